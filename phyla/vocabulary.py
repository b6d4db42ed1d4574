"""Token tables of a model: read, replaced, and with more or fewer rows; the output matrix goes along."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError
from phyla.heads.lm import TokenScores
from phyla.model import Places, PreTrainedModel, assign, places_of

# Drawn rows depart from the mean row by this share of the covariance (Hewitt 2021, as the reference does it).
SPREAD = 1e-9


def resize_token_embeddings(
    self: PreTrainedModel,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
) -> nn.Module:
    """Give the token table and the output matrix new_num_tokens rows, and return the table.

    New rows come last, near the mean row (mean_resizing) or drawn with config.initializer_range; rows beyond
    the number go. pad_to_multiple_of: rounds the number up. config.vocab_size follows. Raises ArgumentError.
    """
    config = self.config.get_text_config(decoder=True)
    old = getattr(config, "vocab_size", None)
    try:
        table: Any = self.get_input_embeddings()
    except AttributeError:
        old = None
    if not isinstance(old, int):
        raise ArgumentError(f"{type(self).__name__} has no table of tokens with a vocab_size to change")
    size = _wanted(old if new_num_tokens is None else new_num_tokens, pad_to_multiple_of)
    if size == old:
        return table
    std = None if mean_resizing else float(getattr(config, "initializer_range", 0.02))
    for tensor in _tables(self, table, old):
        _replace(places_of(self), tensor, _resized(tensor.detach(), old, size, std))
    for scores in _scores(self):
        if scores.out.weight.shape[0] == old:
            _replace(places_of(self), scores.out.weight, _resized(scores.out.weight.detach(), old, size, std))
        scores.out.out_features = size
        for constant in (scores.out.bias, scores._buffers.get("offset")):
            if constant is not None and constant.shape[-1] == old:
                _replace(places_of(self), constant, _longer(constant.detach(), size))
    config.vocab_size = size
    if config is not self.config and "vocab_size" in self.config.__dict__:
        self.config.vocab_size = size
    return self.get_input_embeddings()


def get_output_embeddings(self: PreTrainedModel) -> Any:
    """The layer that scores tokens, None where the class has none."""
    return next((scores.out for scores in _scores(self)), None)


def set_input_embeddings(self: PreTrainedModel, value: Any) -> None:
    """Take the weight (V, D) of another table, wherever the model's stands."""
    table: Any = self.get_input_embeddings()
    _check(value, table.weight)
    assign(places_of(self), table.weight, value.weight.detach())


def set_output_embeddings(self: PreTrainedModel, new_embeddings: Any) -> None:
    """Take the weight (V, D) of another layer for scores; a tied table stays as it is."""
    out = get_output_embeddings(self)
    if out is None:
        raise ArgumentError(f"{type(self).__name__} has no layer that scores tokens")
    _check(new_embeddings, out.weight)
    out.weight = nn.Parameter(new_embeddings.weight.detach(), requires_grad=out.weight.requires_grad)


def tie_weights(self: PreTrainedModel) -> None:
    """Share the table with the output layer again where the class is declared tied."""
    for part in (self, *self.parts().values()):
        if not part.is_own() and part.head is not None:
            part.head.tie(part.backbone)


def get_memory_footprint(self: PreTrainedModel, return_buffers: bool = True) -> int:
    """Bytes of the parameters, tied ones once, and of the buffers."""
    tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
    return sum(t.numel() * t.element_size() for t in tensors)


def enable_input_require_grads(self: PreTrainedModel) -> None:
    """Let gradients flow from the token vectors on, where the table itself is frozen."""
    disable_input_require_grads(self)
    table = self.get_input_embeddings()
    self.__dict__["_input_gradients"] = table.register_forward_hook(lambda _, __, x: x.requires_grad_(True))


def disable_input_require_grads(self: PreTrainedModel) -> None:
    """Undo `enable_input_require_grads`."""
    hook = self.__dict__.pop("_input_gradients", None)
    if hook is not None:
        hook.remove()


def _wanted(count: int, multiple: int | None) -> int:
    for name, value in (("new_num_tokens", count), ("pad_to_multiple_of", multiple or 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ArgumentError(f"{name} must be a positive whole number, but is {value!r}")
    return -(-count // (multiple or 1)) * (multiple or 1)


def _tables(model: PreTrainedModel, table: Any, size: int) -> list[Tensor]:
    """The token table, and others of as many rows that stand in the same role (an encoder's of its own)."""
    found: dict[int, Tensor] = {id(table.weight): table.weight}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if path.endswith("embed.tokens") and isinstance(weight, Tensor) and weight.shape[0] == size:
            found[id(weight)] = weight
    return list(found.values())


def _scores(model: PreTrainedModel) -> Iterator[TokenScores]:
    return (m for m in model.modules() if isinstance(m, TokenScores))


def _resized(rows: Tensor, old: int, size: int, std: float | None) -> Tensor:
    """(old + extra, D) -> (size + extra, D); what a table has beyond the vocabulary stays behind it."""
    kept, extra = rows[: min(old, size)], rows[old:]
    count = size - len(kept)
    noise = torch.randn(count, old if std is None else rows.shape[1], device=rows.device)
    if std is None:
        known = rows[:old].float()
        mean = known.mean(0)
        added = mean + noise @ (known - mean) * (SPREAD / old) ** 0.5
    else:
        added = noise * std
    return torch.cat((kept, added.to(rows.dtype), extra))


def _longer(constant: Tensor, size: int) -> Tensor:
    """A bias or constant (..., V) of another length; new places have the mean."""
    kept = constant[..., :size]
    count = size - kept.shape[-1]
    return torch.cat((kept, constant.mean(-1, keepdim=True).expand(*kept.shape[:-1], count)), -1)


def _replace(places: Places, old: Tensor, new: Tensor) -> None:
    assign(places, old, new.contiguous())


def _check(value: Any, weight: Tensor) -> None:
    given = getattr(value, "weight", None)
    if not isinstance(given, Tensor) or given.dim() != 2 or given.shape[1] != weight.shape[1]:
        shape = None if not isinstance(given, Tensor) else tuple(given.shape)
        raise ArgumentError(f"the new table must have a weight (rows, {weight.shape[1]}), but has {shape}")
