"""Which positions a query may attend to. Rules are small frozen objects; tensors are made once a call."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.context import Context


@dataclass(frozen=True)
class Full:
    """Every position (encoders, cross-attention)."""

    def limits(self, start: int, length: int, keys: int) -> bool:
        """Whether the rule hides any of `keys` slots from any of `length` queries that begin at `start`."""
        return False

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """bool (S, K) from slots (S, 1) and (1, K)."""
        return torch.ones_like(query - key, dtype=torch.bool)


@dataclass(frozen=True)
class Causal:
    """Itself and earlier positions; with a window, the `window` last ones only (itself included)."""

    window: int | None = None

    def limits(self, start: int, length: int, keys: int) -> bool:
        return length > 1 or (self.window is not None and start + length > self.window)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        seen = key <= query
        return seen if self.window is None else seen & (key > query - self.window)


@dataclass(frozen=True)
class Window:
    """Positions at a distance of at most `radius` on either side (local encoders)."""

    radius: int

    def limits(self, start: int, length: int, keys: int) -> bool:
        return keys > self.radius

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        return (query - key).abs() <= self.radius


@dataclass(frozen=True)
class Mutual(Full):
    """Every position; padding, which nobody real sees, sees all alike."""


@dataclass(frozen=True)
class Apart(Full):
    """Every position; padding sees none, but for learned keys in front."""


Mask = Full | Causal | Window


def is_plain_causal(mask: Mask, ctx: Context, keys: int) -> bool:
    """Whether the rule is exactly the lower triangle, which kernels know without a tensor."""
    if ctx.attention_mask is not None or not isinstance(mask, Causal) or keys != ctx.length or ctx.start:
        return False
    if ctx.blocks is not None:
        return False
    return mask.window is None or keys <= mask.window


def self_mask(mask: Mask, ctx: Context, first: int, keys: int) -> Tensor | None:
    """Mask over the key slots first .. first+keys-1: bool or additive (B or 1, 1 or H, S, K), or None.

    A rule without effect and an absent padding mask give None.
    """
    # Layers of one rule see the same slots in one call; lengths may be symbolic and are no part of the key.
    return ctx.once(mask, lambda: _self_mask(mask, ctx, first, keys))


def _self_mask(mask: Mask, ctx: Context, first: int, keys: int) -> Tensor | None:
    given = ctx.attention_mask
    if getattr(ctx.cache, "fixed", False):
        return ctx.cache.visible(mask)
    if given is not None and given.dim() == 4:
        return given[..., first : first + keys]
    rule = None
    if mask.limits(ctx.start - first, ctx.length, keys):
        query, key = ctx.numbers(first, keys, ctx.positions.device)
        seen = mask.visible(query, key)  # (S, K), perhaps by row
        rule = seen[None, None] if seen.dim() == 2 else seen[:, None]
        if ctx.blocks is not None and isinstance(mask, Causal):
            together = _together(ctx.blocks, ctx.length, keys)  # (B, S, K)
            if mask.window is not None:
                together = together & (key > query - mask.window)
            rule = rule | together[:, None]
    if given is None:
        return rule
    padding = given[:, None, None, first : first + keys]  # (B, 1, 1, K)
    if isinstance(mask, Mutual):
        padding = padding | ~given[:, None, ctx.start : ctx.start + ctx.length, None]
    elif isinstance(mask, Apart):
        padding = padding & given[:, None, ctx.start : ctx.start + ctx.length, None]
    return padding if rule is None else padding & rule


def _together(blocks: Tensor, length: int, keys: int) -> Tensor:
    """Which of the last `keys` slots are of the same image as each of `length` new positions, (B, S, K)."""
    count = blocks.shape[1]  # prompts of an adapter stand in front of what the caller gave
    query, key = F.pad(blocks, (length - count, 0)), F.pad(blocks, (keys - count, 0))
    return (query[:, :, None] == key[:, None]) & (query != 0)[:, :, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add to scores: 0 where visible, the lowest finite number elsewhere."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
