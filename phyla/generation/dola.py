"""DoLa: scores of the last layer against those of an earlier one (Chuang et al. 2023)."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from phyla.errors import GenerationError
from phyla.generation.forward import Forward
from phyla.generation.logits import NEVER, LogitsProcessor, LogitsProcessorList

_LEAST = math.log(0.1)  # tokens less likely than a tenth of the likeliest are out
_DEEP = 40  # with more layers only 20 at either end are looked at


class LayerForward(Forward):
    """Keeps the last position's states of all layers beside the scores."""

    states: tuple[Tensor, ...] = ()

    def logits(self, out: Any) -> Tensor:
        """As `Forward.logits`."""
        if not out.hidden_states:
            raise GenerationError(
                f"{type(self.model).__name__} gives no hidden states, which dola_layers need"
            )
        self.states = tuple(layer[:, -1] for layer in out.hidden_states)
        return super().logits(out)


class Seen(Protocol):
    """Where a contrast finds its model, and the states (rows, D) of all layers at the last position."""

    model: Any
    states: tuple[Tensor, ...]


class LayerContrast(LogitsProcessor):
    """The last layer's log-probabilities minus those of the candidate layer that differs most from it.

    Each row has its layer, the one of the greatest Jensen-Shannon divergence.
    """

    def __init__(self, forward: Seen, layers: list[int], table: nn.Module):
        self.forward, self.layers, self.table = forward, layers, table

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        early = torch.stack([self.table(self.forward.states[layer]).to(scores) for layer in self.layers])
        base = early[_farthest(scores, early), torch.arange(len(scores), device=scores.device)]
        final, base = scores.log_softmax(-1), base.log_softmax(-1)
        unlikely = final < final.amax(-1, keepdim=True) + _LEAST
        return (final - base).masked_fill(unlikely, NEVER)


class Contrasted(LogitsProcessorList):
    """A contrast, then other processors; where these forbid all that it left, they judge the last layer."""

    def __init__(self, contrast: LayerContrast, others: LogitsProcessorList) -> None:
        super().__init__([contrast, *others])
        self.others = others

    def __call__(self, input_ids: Tensor, scores: Tensor, **extra: object) -> Tensor:
        made = super().__call__(input_ids, scores, **extra)
        lost = made.amax(-1, keepdim=True) == NEVER
        if not bool(lost.any()):
            return made
        return torch.where(lost, self.others(input_ids, scores.log_softmax(-1), **extra), made)


def _farthest(final: Tensor, early: Tensor) -> Tensor:
    """Which of `early` (layers, rows, vocabulary) is farthest from `final` (rows, vocabulary), a row."""
    mean = 0.5 * (final.softmax(-1) + early.softmax(-1))
    logs = final.log_softmax(-1) + early.log_softmax(-1)
    return (2 * mean.xlogy(mean) - mean * logs).mean(-1).argmax(0)


def candidate_layers(config: Any, wanted: str | list[int]) -> list[int]:
    """The layers that `dola_layers` names; number 0 is the embedding."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    last = text.num_hidden_layers
    # with tied tables the embedding scores each token as itself
    first = 0 if not config.tie_word_embeddings else 2 if last > 2 else last - 1
    if wanted == "low":
        middle = last // 2
        if first == middle:
            return [first]
        layers = list(range(first, middle if last <= _DEEP else 20, 2))
    elif wanted == "high":
        layers = list(range(last // 2 if last <= _DEEP else last - 20, last, 2))
    elif isinstance(wanted, (list, tuple)) and all(isinstance(i, int) and i >= 0 for i in wanted):
        layers = [i for i in wanted if i < last]
    else:
        raise GenerationError(f"dola_layers must be 'low', 'high' or a list of layers, but is {wanted!r}")
    if not layers:
        raise GenerationError(f"dola_layers must name layers below the last, {last}, but is {wanted!r}")
    return layers


def layer_contrast(forward: Seen, config: Any, wanted: str | list[int]) -> LayerContrast:
    """The processor that `dola_layers` asks for."""
    model = forward.model
    if getattr(config, "is_encoder_decoder", False):
        raise GenerationError("dola_layers work for decoder-only models alone")
    head = getattr(model, "head", None)
    table = head if isinstance(head, nn.Linear) else getattr(head, "out", None)
    if table is None:
        raise GenerationError(
            f"dola_layers need a table of output words, but {type(model).__name__} has none"
        )
    return LayerContrast(forward, candidate_layers(config, wanted), table)
