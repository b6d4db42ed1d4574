"""Attention to near blocks, the first, the last and some at random (Zaheer et al. 2020, arXiv:2007.14062)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.attention import Attention, Heads, attend
from phyla.blocks.context import Context
from phyla.blocks.mask import Full
from phyla.blocks.shapes import Stream


class BlockSparseAttention(Attention):
    """Blocks of `size` tokens see both neighbours, the first, the last and `random` others.

    The first and the last block see all. Texts of at most (5 + 2 random) blocks take full attention. Random
    blocks are drawn in training alone; else the first block stands in for them, so that its keys count
    1 + random times, as in published results. seed: of the draw, another for each layer.
    """

    def __init__(
        self,
        width: int,
        heads: Heads,
        size: int,
        random: int,
        bias: bool = True,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(width, heads, mask=Full(), bias=bias, out_bias=True, dropout=dropout)
        self.size, self.random, self.seed = size, random, seed

    def mix(self, x: Stream, ctx: Context) -> Stream:
        given, length, size = ctx.attention_mask, x.shape[1], self.size
        if length <= (5 + 2 * self.random) * size or (given is not None and given.dim() != 2):
            return super().mix(x, ctx)
        q, k, v = self.project(x, x)
        extra = -length % size
        blocks = (length + extra) // size
        real = x.new_ones(1, length, dtype=torch.bool) if given is None else given
        drawn = self._draw(blocks, x.device) if self.training and self.random else None
        q, k, v = (F.pad(t, (0, 0, 0, extra)) for t in (q, k, v))
        real = F.pad(real, (0, extra), value=False)  # (B or 1, S')
        plain = ctx.attentions is None and ctx.implementation != "eager" and ctx.head_mask is None
        if plain and self.kv_site is None:
            y = self._sparse(q, k, v, real, drawn, blocks)
        else:
            bias = self._counts(blocks, drawn, x.device).log()  # (H or 1, N, N)
            bias = bias.repeat_interleave(size, 1).repeat_interleave(size, 2)[None]
            bias = (bias + _hide(real, torch.float32)[:, None, None]).clamp(min=torch.finfo(q.dtype).min)
            if self.kv_site is not None:
                k, v, bias = self.kv_site(k, v, bias, x)
            y, weights = self._attend_openly(q, k, v, None, bias.to(q.dtype), 0.0, ctx)
            if ctx.attentions is not None:
                ctx.attentions.append(weights)
        y = y * real[:, None, :, None].to(y.dtype)
        return self.o(y.transpose(1, 2).flatten(2)[:, :length])

    def _sparse(
        self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, drawn: Tensor | None, blocks: int
    ) -> Tensor:
        """Answers (B, H, S', E) of queries, keys and values (B, H, S', E)."""
        size, inner = self.size, blocks - 2
        batch, heads, _, width = q.shape
        ends = torch.cat((q[:, :, :size], q[:, :, -size:]), 2)
        ends = attend(ends, k, v, _hide(real, q.dtype)[:, None, None], None, False, self.scale, 0.0)
        by_block = real.unflatten(1, (blocks, size))  # (B, N, b)
        rows = by_block.shape[0]
        near = _hide(real.unfold(1, 3 * size, size), q.dtype)  # (B, N - 2, 3b)
        first, last = (_hide(by_block[:, at], q.dtype)[:, None].repeat(1, inner, 1) for at in (0, -1))
        if drawn is None:  # the first block counts 1 + random times
            more = torch.tensor(1.0 + self.random).log().item()
            first = first + more
            near[:, 0, :size] += more
        lowest = torch.finfo(q.dtype).min
        first[:, 0], last[:, -1] = lowest, lowest  # neighbours there already
        masks = [t[:, :, None] for t in (near, first, last)]  # (B, N - 2, 1, ...)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for t, found in ((k, keys), (v, values)):
            t = t.unflatten(2, (blocks, size))  # (B, H, N, b, E)
            found.append(torch.cat((t[:, :, :-2], t[:, :, 1:-1], t[:, :, 2:]), 3))
            found += [t[:, :, at : at + 1].expand(-1, -1, inner, -1, -1) for at in (0, blocks - 1)]
            if drawn is not None:
                index = drawn.flatten(1)[None, :, :, None, None].expand(batch, -1, -1, size, width)
                found.append(t.gather(2, index).unflatten(2, (inner, -1)).flatten(3, 4))
        if drawn is not None:
            masks = [t.expand(-1, -1, heads, -1) for t in masks]
            index = drawn.flatten(1)[None, :, :, None].expand(rows, -1, -1, size)
            chance = by_block[:, None].expand(-1, heads, -1, -1).gather(2, index)  # (B, H, (N - 2) r, b)
            masks.append(_hide(chance.unflatten(2, (inner, -1)).flatten(3).transpose(1, 2), q.dtype))
        mask = (
            torch.cat(masks, -1).expand(batch, -1, -1, -1).flatten(0, 1)[:, :, None]
        )  # (B (N - 2), H or 1, 1, K)
        k, v = (torch.cat(t, 3).transpose(1, 2).flatten(0, 1) for t in (keys, values))
        asks = q[:, :, size:-size].unflatten(2, (inner, size)).transpose(1, 2).flatten(0, 1)
        mask = mask.expand(-1, -1, size, -1)
        y = attend(asks, k, v, mask, None, False, self.scale, 0.0)
        y = y.unflatten(0, (batch, inner)).transpose(1, 2).flatten(2, 3)
        return torch.cat((ends[:, :, :size], y, ends[:, :, size:]), 2)

    def _counts(self, blocks: int, drawn: Tensor | None, device: torch.device) -> Tensor:
        """How often a block of keys counts for a block of queries, (H or 1, N, N)."""
        at = torch.arange(blocks, device=device)
        near = (at[:, None] - at).abs() <= 1
        edge = (at == 0) | (at == blocks - 1)
        counts = (near | edge | edge[:, None]).float()[None]  # (1, N, N)
        if drawn is None:
            stand_in = (~edge).float()[:, None] * (at == 0).float() * self.random
            return counts + stand_in
        return counts + F.pad(F.one_hot(drawn, blocks).sum(2).float(), (0, 0, 1, 1))

    def _draw(self, blocks: int, device: torch.device) -> Tensor:
        """Random blocks (H, N - 2, r) of the inner blocks, the same for one `seed` at every step.

        Neighbours, the first and the last block are seen anyway and not drawn.
        """
        row = torch.arange(1, blocks - 1, device=device)
        column = torch.arange(blocks, device=device)
        head = torch.arange(self.num_heads, device=device)[:, None, None]
        place = ((head * blocks + row[:, None]) * blocks + column).double()
        chance = torch.frac(torch.sin(place * 12.9898 + (self.seed + 1) * 78.233) * 43758.5453).abs()
        seen = ((row[:, None] - column).abs() <= 1) | (column == 0) | (column == blocks - 1)
        return chance.masked_fill(seen, -1.0).topk(self.random, -1).indices


def _hide(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, the lowest number elsewhere, to add to scores."""
    return torch.zeros((), dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
