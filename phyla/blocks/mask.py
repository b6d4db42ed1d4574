"""Which positions a query may attend to. Rules are small frozen objects; tensors are made once a call."""

from dataclasses import dataclass

import torch
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
    return mask.window is None or keys <= mask.window


def self_mask(mask: Mask, ctx: Context, first: int, keys: int) -> Tensor | None:
    """Mask over the key slots first .. first+keys-1: bool or additive (B or 1, 1 or H, S, K), or None.

    A rule without effect and an absent padding mask give None.
    """
    # Layers of one rule see the same slots in one call; lengths may be symbolic and are no part of the key.
    return ctx.once(mask, lambda: _self_mask(mask, ctx, first, keys))


def _self_mask(mask: Mask, ctx: Context, first: int, keys: int) -> Tensor | None:
    given = ctx.attention_mask
    if given is not None and given.dim() == 4:
        return given[..., first : first + keys]
    rule = None
    if mask.limits(ctx.start - first, ctx.length, keys):
        device = ctx.positions.device
        query = torch.arange(ctx.start, ctx.start + ctx.length, device=device)[:, None]
        key = torch.arange(first, first + keys, device=device)[None]
        rule = mask.visible(query, key)[None, None]  # (1, 1, S, K)
    if given is None:
        return rule
    padding = given[:, None, None, first : first + keys]  # (B, 1, 1, K)
    if isinstance(mask, Mutual):
        padding = padding | ~given[:, None, ctx.start : ctx.start + ctx.length, None]
    elif isinstance(mask, Apart):
        padding = padding & given[:, None, ctx.start : ctx.start + ctx.length, None]
    return padding if rule is None else padding & rule


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add to scores: 0 where visible, the lowest finite number elsewhere."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
