"""What every mixer may need to know about one call, gathered once."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

SLOTS = "slots"  # in a call's memory: (B, S) where in its row each slot counts, if not at its own number


def opened(values: Tensor, at: int, count: int, fill: float) -> Tensor:
    """Values (B, S, ...) of tokens with `count` of `fill` ahead of token `at`."""
    front = values.new_full((len(values), count, *values.shape[2:]), fill)
    return torch.cat([values[:, :at], front, values[:, at:]], 1)


class Tokenwise:
    """A note that says something of each new token."""

    def widened(self, at: int, count: int) -> "Tokenwise":
        """The note of rows with `count` vectors more ahead of token `at`."""
        raise NotImplementedError


@dataclass(frozen=True)
class OfTokens(Tokenwise):
    """Values (B, S, ...) of the new tokens; 0 is that of vectors which are no token."""

    values: Tensor

    def widened(self, at: int, count: int) -> "OfTokens":
        return replace(self, values=opened(self.values, at, count, 0))


@dataclass
class Context:
    """One call of a stack: masks, positions, caches and what to record.

    attention_mask: bool (B, K), True where a position may be attended, over cached and new positions; or a
        ready mask (B, 1 or H, S, K), bool or additive. None means everything may be attended.
    positions: (B or 1, S) index of each new token in its row. start: positions already cached. length: S.
    counted: positions follow from the mask; False where the caller gave them.
    memory, memory_mask: encoder states (B, K', D') and their bool mask (B, K') for cross-attention,
        or one for each query, (B, 1, S, K').
    blocks: (B, S) the number of the image that a new position is of, 0 for text: positions of one image see
        each other, whatever comes first. None where there is text alone.
    notes: what else the caller said and only some layers read, by name; a `Tokenwise` of each new token.
    attentions, cross_attentions, router_logits: lists to record into, or None (nothing is computed for them).
    """

    positions: Tensor
    length: int
    start: int = 0
    attention_mask: Tensor | None = None
    cache: Any = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    blocks: Tensor | None = None
    implementation: str = "sdpa"
    attentions: list[Tensor] | None = None
    cross_attentions: list[Tensor] | None = None
    router_logits: list[Tensor] | None = None
    head_mask: Tensor | None = None
    layer: int = 0
    counted: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict)
    memo: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, x: Tensor) -> "Context":
        """The context of a mixer that is called by itself on x (B, S, ...)."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        return cls(positions=positions, length=x.shape[1])

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The value of `compute()`, computed at the first request of this call and shared by later layers."""
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]

    def widen(self, at: int, count: int) -> None:
        """Make what is said of each new token fit rows with `count` vectors more ahead of token `at`.

        Such vectors are of no image, and look at all of the memory; notes know themselves what they are.
        """
        if self.blocks is not None:
            self.blocks = opened(self.blocks, at, count, 0)
        mask = self.memory_mask
        if mask is not None and mask.dim() == 4 and mask.shape[2] == self.length:
            seen = opened(mask.transpose(1, 2), at, count, int(mask.dtype == torch.bool))
            self.memory_mask = seen.transpose(1, 2)
        longer = {k: v.widened(at, count) for k, v in self.notes.items() if isinstance(v, Tokenwise)}
        self.notes = {**self.notes, **longer}

    def numbers(self, first: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Numbers of the query slots (S, 1) and of the key slots from `first` on (1, K), perhaps by row."""
        counted = self.memo.get(SLOTS)
        if counted is not None and first + keys <= counted.shape[1]:
            return counted[:, :, None], counted[:, None, first : first + keys]
        query = torch.arange(self.start, self.start + self.length, device=device)[:, None]
        return query, torch.arange(first, first + keys, device=device)[None]

    def slot(self, index: int) -> Any:
        """The cache of mixer number `index`, or None without a cache."""
        return None if self.cache is None else self.cache.slots[index]
