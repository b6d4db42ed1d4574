"""What every call signature does: flags, checks, the context of a call, the public output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import Cache
from phyla.blocks.context import Context
from phyla.blocks.stack import StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutputWithPooling, ModelOutput

IdTensor = Tensor | None


def flag(value: bool | None, default: bool) -> bool:
    """The caller's choice, or the configuration's."""
    return default if value is None else bool(value)


def finish(model: PreTrainedModel, fields: dict[str, Any], out: Any, return_dict: bool | None) -> Any:
    """The public output of a class: the head's fields and, for the rest, the backbone's."""
    kind = model.head_spec.output
    names = kind.__dataclass_fields__
    values = {n: fields[n] if n in fields else getattr(out, n, None) for n in names}
    result: ModelOutput = kind(**values)
    return result if flag(return_dict, model.config.return_dict) else result.to_tuple()


def conclude(model: PreTrainedModel, out: Any, call: Call, return_dict: bool | None) -> Any:
    """The public output of a class: what its head, if it has one, makes of the backbone's output."""
    return finish(model, {} if model.head is None else model.head(out, call), out, return_dict)


def only_one(ids: Tensor | None, vectors: Tensor | None, to: str = "") -> Tensor:
    """Token ids or the vectors in their place; ArgumentError unless exactly one of them is there."""
    given = ids if ids is not None else vectors
    if given is None or (ids is not None and vectors is not None):
        raise ArgumentError(f"pass either input_ids or inputs_embeds{to}, and not both")
    return given


def check_ids(ids: Tensor, name: str) -> None:
    """Refuse token ids that are no whole numbers or not (B, S)."""
    if ids.dim() != 2:
        raise ArgumentError(f"{name} must be (batch, sequence), but have shape {tuple(ids.shape)}")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ArgumentError(f"{name} must be whole numbers, but are {ids.dtype}")


def read_ids(ids: Tensor | None, vectors: Tensor | None, to: str = "") -> Tensor:
    """Token ids (B, S), looked at, or the vectors in their place; ArgumentError unless one is there."""
    given = only_one(ids, vectors, to)
    if ids is not None:
        check_ids(ids, "input_ids")
    return given


def fold_choices(tokenwise: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What there is for each token of each choice, (B, choices, S), with the choices as rows of their own."""
    return [t if t is None else t.reshape(-1, t.shape[-1]) for t in tokenwise]


def fold_vectors(vectors: Tensor | None) -> Tensor | None:
    """Vectors of the tokens of each choice, (B, choices, S, D), with the choices as rows of their own."""
    return None if vectors is None else vectors.reshape(-1, *vectors.shape[-2:])


def positions_of(mask: Tensor | None, start: int, length: int, device: torch.device) -> Tensor:
    """Positions (B or 1, S) of new tokens: counted from each row's first attended token, or from slot 0."""
    slots = torch.arange(start, start + length, device=device)[None]
    if mask is None or mask.dim() != 2:
        return slots
    lead = mask.int().argmax(-1, keepdim=True)  # padding in front of each row
    return (slots - lead).clamp(min=0)


def context_for(
    model: PreTrainedModel,
    shape: Sequence[int],
    device: torch.device,
    mask: Tensor | None,
    positions: Tensor | None,
    cache: Cache | None,
    attentions: bool,
    cross: bool,
    name: str = "attention_mask",
) -> Context:
    """The context of one call; `shape` is (B, S) of the new tokens."""
    batch, length = shape
    start = 0 if cache is None else cache.length
    if mask is not None:
        if mask.dim() not in (2, 4):
            raise ArgumentError(
                f"{name} must be (batch, positions) or 4-dimensional, but has shape {tuple(mask.shape)}"
            )
        if mask.dim() == 2:
            if mask.shape[0] != batch or mask.shape[1] != start + length:
                raise ArgumentError(
                    f"{name} must be ({batch}, {start + length}) for {length} new and {start} cached "
                    f"positions, but is {tuple(mask.shape)}"
                )
            mask = mask.to(device=device, dtype=torch.bool)
    counted = positions is None
    if positions is None:
        positions = positions_of(mask, start, length, device)
    return Context(
        positions=positions,
        length=length,
        start=start,
        counted=counted,
        attention_mask=mask,
        cache=cache,
        implementation=model.implementation,
        attentions=[] if attentions else None,
        cross_attentions=[] if attentions and cross else None,
    )


def take_cache(model: PreTrainedModel, past: Any, wanted: bool, batch: int, length: int) -> Cache | None:
    """The caller's cache, a new one where wanted, or None."""
    if past is None:
        return model.new_cache(batch, length) if wanted else None
    if isinstance(past, tuple | list) and past and isinstance(past[0], tuple | list):
        past = Cache.from_legacy_cache(past)
    if isinstance(past, Cache):
        past.bind(model, batch, length)
    else:
        raise ArgumentError(
            "past_key_values must be a cache of this model (model.new_cache(batch, length) or the "
            f"past_key_values of an earlier output), but is {type(past).__name__}"
        )
    if past.batch != batch:
        raise ArgumentError(f"the cache holds {past.batch} rows, but the inputs have {batch}")
    return past


def expand_head_mask(mask: Tensor | None, layers: int, dtype: torch.dtype) -> Tensor | None:
    """(H) or (L, H) -> (L, 1, H, 1, 1); None where there is none."""
    if mask is None:
        return None
    if mask.dim() == 1:
        mask = mask[None].expand(layers, -1)
    return mask[:, None, :, None, None].to(dtype)


def finish_tower(model: PreTrainedModel, out: StackOutput, return_dict: bool | None) -> Any:
    """The public output of one tower."""
    result = BaseModelOutputWithPooling(
        out.last_hidden_state, out.pooler_output, out.hidden_states, out.attentions
    )
    return result if flag(return_dict, model.config.return_dict) else result.to_tuple()
