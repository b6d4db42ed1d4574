"""Attention to near tokens and to sums of fixed stretches of the text (Guo et al., arXiv:2112.07916)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.attention import Attention, Heads, attend
from phyla.blocks.context import Context
from phyla.blocks.position import BucketBias
from phyla.blocks.shapes import Stream
from phyla.blocks.spec import Block, Spec, make

HIDDEN = -1e10  # published: not infinite, so that padding, which sees nothing, sees all alike


class NearAndFarBias(Block):
    """Bucketed biases of near tokens and, with `far`, of summaries; a stack owns it for all its layers."""

    def __init__(self, buckets: int, max_distance: int, heads: int, far: bool = False) -> None:
        super().__init__()
        table = BucketBias(buckets, max_distance, heads, True)
        self.near, self.far = make(table), make(table) if far else None


class ChunkedAttention(Attention):
    """Attention of each token to those at most `radius` away and to summaries of every `stretch` tokens.

    The text is cut into blocks of radius + 1 tokens that see themselves and both neighbours. A summary is the
    normed sum of a stretch, made anew in each layer; stretch None leaves summaries out. The stack's
    `NearAndFarBias` gives the biases.
    """

    def __init__(
        self,
        width: int,
        heads: Heads,
        radius: int,
        stretch: int | None = None,
        norm: Spec | None = None,
        scale: float | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, heads, bias=bias, scale=scale, dropout=dropout)
        self.size, self.stretch = radius + 1, stretch or 0
        self.summary_norm: Any = make(norm) if stretch is not None else None

    def mix(self, x: Stream, ctx: Context) -> Stream:
        batch, length = x.shape[:2]
        size, extra = self.size, -length % self.size
        blocks = (length + extra) // size
        q, k, v = self.project(x, x)
        q = F.pad(q, (0, 0, 0, extra)).unflatten(2, (blocks, size)).transpose(1, 2)  # (B, N, H, r, E)
        k, v = (
            F.pad(t, (0, 0, size, extra + size)).unfold(2, 3 * size, size).permute(0, 2, 1, 4, 3)
            for t in (k, v)
        )  # (B, N, H, 3r, E)
        if self.stretch and length >= self.stretch:
            owner = ctx.once(
                ("stretches", self.stretch), lambda: stretches(length, self.stretch, ctx, x.device)
            )
            chosen = F.one_hot(owner + 1, length // self.stretch + 1)[..., 1:].to(x.dtype)  # (B, S, G)
            summary = self.summary_norm(chosen.transpose(1, 2).expand(batch, -1, -1) @ x)  # (B, G, D)
            k, v = (
                torch.cat(
                    (t, self._split(side(summary), self.num_heads)[:, None].expand(-1, blocks, -1, -1, -1)), 3
                )
                for t, side in ((k, self.k), (v, self.v))
            )
        bias = ctx.once("chunk-bias", lambda: self._bias(blocks, extra, length, ctx).to(q.dtype))
        bias = bias.expand(batch, -1, -1, -1, -1).flatten(0, 1)  # (B * N, H, r, 3r + G)
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        dropout = self.attention_dropout if self.training else 0.0
        if ctx.attentions is None and ctx.implementation != "eager" and ctx.head_mask is None:
            y = attend(q, k, v, None, bias, False, self.scale, dropout)
        else:
            y, weights = self._attend_openly(q, k, v, None, bias, dropout, ctx)
            if ctx.attentions is not None:
                ctx.attentions.append(weights.unflatten(0, (batch, blocks)))
        y = y.unflatten(0, (batch, blocks)).transpose(2, 3).flatten(1, 2).flatten(2)  # (B, S + extra, H * E)
        return self.o(y[:, :length])

    def _bias(self, blocks: int, extra: int, length: int, ctx: Context) -> Tensor:
        """(B or 1, N, H, r, 3r + G): what all layers add to their scores."""
        owner: NearAndFarBias = ctx.memo["stack-bias"]
        size, given = self.size, ctx.attention_mask
        device = ctx.positions.device
        real = torch.ones(1, length, dtype=torch.bool, device=device) if given is None else given
        offset = torch.arange(3 * size, device=device) - size - torch.arange(size, device=device)[:, None]
        keys = F.pad(real, (size, extra + size), value=False).unfold(1, 3 * size, size)  # (B, N, 3r)
        asks = F.pad(real, (0, extra), value=False).unflatten(1, (blocks, size))  # (B, N, r)
        seen = asks[..., None] & keys[:, :, None] & (offset.abs() < size)  # (B, N, r, 3r)
        near = owner.near.of(offset) + _hidden(seen)[:, :, None]  # (B, N, H, r, 3r)
        if owner.far is None or length < self.stretch:
            return near
        place = ctx.once(("stretches", self.stretch), lambda: stretches(length, self.stretch, ctx, device))
        index = torch.arange(length // self.stretch, device=device)
        alike = real[..., None] == (index <= place.max(1, keepdim=True).values)[:, None]  # (B, S, G)
        far = owner.far.of(index - place[..., None]) + _hidden(alike)[:, None]  # (B, H, S, G)
        far = F.pad(far, (0, 0, 0, extra)).unflatten(2, (blocks, size)).transpose(1, 2)
        return torch.cat((near.expand(far.shape[0], -1, -1, -1, -1), far), -1)


def _hidden(seen: Tensor) -> Tensor:
    return torch.where(seen, 0.0, HIDDEN)


def stretches(length: int, stretch: int, ctx: Context, device: torch.device) -> Tensor:
    """Stretch (B or 1, S) that each token belongs to; -1: padding, or a row shorter than a stretch.

    Tokens behind the last whole stretch belong to it.
    """
    given = ctx.attention_mask
    real = torch.ones(1, length, dtype=torch.bool, device=device) if given is None else given
    # Counted in float32 steps: published rounding for stretches that are no power of two.
    step = torch.full((length,), 1.0 / stretch, device=device)
    place = torch.floor(1.0 + (step.cumsum(0) - step) - 1.0).long().clamp(min=-1)
    place = torch.where(real, place, -1)
    ends = torch.arange(length, device=device) % stretch == stretch - 1
    whole = ((place >= 0) & ends).sum(1, keepdim=True) - 1
    return torch.minimum(place, whole)
