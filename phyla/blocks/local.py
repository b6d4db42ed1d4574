"""Attention to near tokens, with some that all see and that see all (Beltagy et al., arXiv:2004.05150)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.attention import Attention, Heads, attend
from phyla.blocks.context import Context, Tokenwise, opened
from phyla.blocks.linear import Linear
from phyla.blocks.shapes import Stream


@dataclass(frozen=True)
class Globals(Tokenwise):
    """Which tokens are global: mask bool (B, S), and where (B, G) if their largest number G is known.

    index names distinct slots; `known` (B, G) says which of them are global indeed. first: what is global is
    the first slot of a row, whatever stands there.
    """

    mask: Tensor
    index: Tensor | None = None
    first: bool = False

    @property
    def known(self) -> Tensor:
        """bool (B, G)."""
        return self.mask if self.index is None else self.mask.gather(1, self.index)

    def widened(self, at: int, count: int) -> "Globals":
        at = self.mask.shape[1] if self.first else at
        index = None if self.index is None else self.index + count * (self.index >= at)
        return Globals(opened(self.mask, at, count, 0), index, self.first)


def globals_of(mask: Tensor, attention_mask: Tensor | None, most: int | None = None) -> Globals | None:
    """Globals of a mask (B, S) where it attends; None without any. most: their largest number, if known.

    A graph cannot count them, so that in one nothing is left out for being local.
    """
    mask = mask.bool() if attention_mask is None else mask.bool() & attention_mask.bool()
    if most is None:
        if torch.compiler.is_compiling():
            return Globals(mask)
        most = int(mask.sum(1).max())
    if not most:
        return None
    return Globals(mask, mask.int().sort(dim=1, descending=True, stable=True).indices[:, :most])


class BandedAttention(Attention):
    """Attention of each token to those at most window / 2 away and to global ones; global tokens see all.

    Global tokens ask through q_global, k_global, v_global. Padding asks nothing: its answer is zero. Long
    texts are cut into blocks of half a window that see their neighbours; short ones take one masked product.
    """

    def __init__(self, width: int, heads: Heads, window: int, dropout: float = 0.0) -> None:
        super().__init__(width, heads, dropout=dropout)
        inner = self.num_heads * self.head_width
        self.radius = window // 2
        self.q_global = Linear(width, inner)
        self.k_global = Linear(width, inner)
        self.v_global = Linear(width, inner)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        q, k, v = self.project(x, x)
        given, chosen = ctx.attention_mask, ctx.notes.get("globals")
        dropout = self.attention_dropout if self.training else 0.0
        plain = ctx.attentions is None and ctx.implementation != "eager" and ctx.head_mask is None
        near = 3 * self.radius + (0 if chosen is None or chosen.index is None else chosen.index.shape[1])
        unknown = chosen is not None and chosen.index is None
        if plain and self.kv_site is None and not unknown and x.shape[1] > near:
            y = self._banded(q, k, v, given, chosen, dropout)
        else:
            mask: Tensor | None = ctx.once(("band", self.radius), lambda: self._band(x, given, chosen))
            if self.kv_site is not None:
                k, v, mask = self.kv_site(k, v, mask, x)
            if plain:
                y = attend(q, k, v, mask, None, False, self.scale, dropout)
            else:
                y, weights = self._attend_openly(q, k, v, mask, None, dropout, ctx)
                if ctx.attentions is not None:
                    ctx.attentions.append(self._shown(weights, given, chosen))
        y = y.transpose(1, 2).flatten(2)  # (B, S, H * E)
        if given is not None:
            y = y * given[..., None].to(y.dtype)
        if chosen is not None:
            y = self._global(x, y, given, chosen, dropout, plain, ctx)
        return self.o(y)

    def _band(self, x: Tensor, given: Tensor | None, chosen: Globals | None) -> Tensor | None:
        """Mask (B or 1, 1, S, S); padding, whose answers nobody reads, sees all."""
        length = x.shape[1]
        if given is None and length <= self.radius + 1:
            return None
        slots = torch.arange(length, device=x.device)
        mask = ((slots[:, None] - slots).abs() <= self.radius)[None]  # (1, S, S)
        if chosen is not None:
            mask = mask | chosen.mask[:, None]
        if given is not None:
            mask = (mask & given[:, None]) | ~given[..., None]
        return mask[:, None]

    def _banded(
        self, q: Tensor, k: Tensor, v: Tensor, given: Tensor | None, chosen: Globals | None, dropout: float
    ) -> Tensor:
        """Answers (B, H, S, E), block by block: a block of `radius` queries sees three blocks of keys."""
        batch, heads, length, width = q.shape
        size = self.radius
        extra = -length % size
        blocks = (length + extra) // size
        real = q.new_ones(batch, length, dtype=torch.bool) if given is None else given
        near = real if chosen is None else real & ~chosen.mask
        near = F.pad(near, (size, extra + size), value=False).unfold(1, 3 * size, size)  # (B, N, 3r)
        offset = torch.arange(3 * size, device=q.device) - size - torch.arange(size, device=q.device)[:, None]
        mask = (offset.abs() <= size) & near[:, :, None]  # (B, N, r, 3r)
        asks = F.pad(real, (0, extra), value=False).view(batch, blocks, size, 1)
        far: tuple[Tensor, ...] = ()
        if chosen is not None and chosen.index is not None:
            index = chosen.index[:, None, :, None].expand(-1, heads, -1, width)
            far = tuple(t.gather(2, index)[:, None].expand(-1, blocks, -1, -1, -1) for t in (k, v))
            known = chosen.known[:, None, None].expand(-1, blocks, size, -1)
            mask = torch.cat((mask, known), -1)
        mask = (mask | ~asks).flatten(0, 1)[:, None]  # (B * N, 1, r, 3r + G)
        q = F.pad(q, (0, 0, 0, extra)).unflatten(2, (blocks, size)).transpose(1, 2)  # (B, N, H, r, E)
        k, v = (
            F.pad(t, (0, 0, size, extra + size)).unfold(2, 3 * size, size).permute(0, 2, 1, 4, 3)
            for t in (k, v)
        )  # (B, N, H, 3r, E)
        if far:
            k, v = torch.cat((k, far[0]), 3), torch.cat((v, far[1]), 3)
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        y = attend(q, k, v, mask, None, False, self.scale, dropout)
        return y.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]

    def _global(
        self,
        x: Tensor,
        y: Tensor,
        given: Tensor | None,
        chosen: Globals,
        dropout: float,
        plain: bool,
        ctx: Context,
    ) -> Tensor:
        """Answers y (B, S, H * E) with those of global tokens replaced."""
        index = chosen.index
        asking = x if index is None else x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
        q = self._split(self.q_global(asking), self.num_heads)
        k, v = self._split(self.k_global(x), self.num_heads), self._split(self.v_global(x), self.num_heads)
        mask = None if given is None else given[:, None, None]
        if plain:
            z = attend(q, k, v, mask, None, False, self.scale, dropout)
        else:
            z, weights = self._attend_openly(q, k, v, mask, None, dropout, ctx)
            if ctx.attentions is not None:
                if index is not None:  # of slots without a global token the public weights are even
                    weights = torch.where(chosen.known[:, None, :, None], weights, 1 / x.shape[1])
                ctx.memo.setdefault("global-attentions", []).append(weights.transpose(2, 3))
        z = z.transpose(1, 2).flatten(2)
        if index is None:
            return torch.where(chosen.mask[..., None], z, y)
        index = index[..., None].expand(-1, -1, y.shape[2])
        return y.scatter(1, index, torch.where(chosen.known[..., None], z, y.gather(1, index)))

    def _shown(self, weights: Tensor, given: Tensor | None, chosen: Globals | None) -> Tensor:
        """Weights (B, H, S, S) as the public (B, H, S, G + W): of global keys, then of the window."""
        length = weights.shape[2]
        asks = (
            torch.ones((), dtype=torch.bool, device=weights.device)
            if given is None
            else given[:, None, :, None]
        )
        near, far = weights, None
        if chosen is not None and chosen.index is not None:
            index = chosen.index[:, None, None].expand(-1, self.num_heads, length, -1)
            far = weights.gather(3, index) * chosen.known[:, None, None]
            near = weights.masked_fill(chosen.mask[:, None, None], 0.0)
            asks = asks & ~chosen.mask[:, None, :, None]
        slots = torch.arange(length, device=weights.device)[:, None]
        keys = slots + torch.arange(2 * self.radius + 1, device=weights.device)  # of the padded row
        near = F.pad(near, (self.radius, self.radius)).gather(3, keys.expand(*weights.shape[:2], -1, -1))
        return (near if far is None else torch.cat((far, near), -1)) * asks
