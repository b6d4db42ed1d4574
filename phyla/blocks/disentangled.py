"""Attention that scores content against distance and distance against content.

He et al. 2020, arXiv:2006.03654, section 3.1; logarithmic buckets: He et al. 2021, arXiv:2111.09543.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.attention import Attention
from phyla.blocks.context import Context
from phyla.blocks.embed import Tokens
from phyla.blocks.linear import Linear
from phyla.blocks.mask import Apart, Mask
from phyla.blocks.position import Position
from phyla.blocks.shapes import Bias, Keys, NewKeys, Queries
from phyla.blocks.spec import Block, Spec, make


class DistanceTable(Block):
    """Vectors of relative distances (2 * span, D), normed or not, owned by a stack and read by its layers."""

    def __init__(self, span: int, width: int, norm: Spec | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * span, width))
        self.norm = make(norm)

    def forward(self) -> Tensor:
        return self.weight if self.norm is None else self.norm(self.weight)


class Disentangled(Position):
    """Adds scale * (q . key of the distance) ("c2p") and scale * (k . query of the distance) ("p2c").

    width: of the stack's table. inner: H * E. span: distances -span .. span - 1 have a vector. buckets: half
    of the logarithmic buckets that distances up to max_distance fall into, or 0. shared: distances go through
    the attention's own projections. Queries of padding are zeroed: they attend to all alike (`Mutual`).
    """

    def __init__(
        self,
        width: int,
        inner: int,
        kinds: tuple[str, ...],
        span: int,
        buckets: int = 0,
        max_distance: int = 0,
        key_bias: bool = True,
        shared: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.kinds = [kind for kind in kinds if span]
        self.span, self.buckets, self.max_distance, self.dropout_prob = span, buckets, max_distance, dropout
        own = self.kinds if not shared else ()
        self.k = Linear(width, inner, bias=key_bias) if "c2p" in own else None
        self.q = Linear(width, inner) if "p2c" in own else None
        self.borrowed: tuple[Linear, Linear] | None = None  # the attention's own q and k

    def rotate(self, q: Queries, k: NewKeys, ctx: Context) -> tuple[Queries, NewKeys]:
        real = _real(ctx)
        return (q, k) if real is None else (q * real.to(q.dtype), k)

    def prefixed(
        self, q: Queries, k: Keys, first: int, scale: float, ctx: Context, count: int
    ) -> Bias | None:
        """Learned keys in front have no distance, and their padding needs no zeros."""
        own = self._bias(q, k[:, :, count:], first, scale, ctx, None)
        return None if own is None else F.pad(own, (count, 0))

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias | None:
        return self._bias(q, k, first, scale, ctx, _real(ctx))

    def _bias(
        self, q: Tensor, k: Tensor, first: int, scale: float, ctx: Context, real: Tensor | None
    ) -> Tensor | None:
        if not self.kinds:
            return None
        length, keys = q.shape[2], k.shape[2]
        table: Tensor = ctx.once("distance-table", ctx.memo["stack-bias"])
        span = self.span
        # Steps of this width put no distance into a bucket beyond itself.
        if not self.buckets or self.max_distance >= 2 * self.buckets:
            span = min(max(length, keys), span)
        table = table[self.span - span : self.span + span]
        if self.training and self.dropout_prob:
            table = F.dropout(table, self.dropout_prob)
        index, turned = ctx.once(
            self.signature, lambda: self._index(*ctx.numbers(first, keys, q.device), span)
        )
        batch, heads = q.shape[:2]
        own: Any = self.borrowed or (self.q, self.k)
        total: Any = None
        if "c2p" in self.kinds:
            side = self._by_head(own[1](table) * scale, q)  # (H, 2 span, E)
            total = torch.matmul(q, side.transpose(1, 2)).gather(3, index.expand(batch, heads, -1, -1))
        if "p2c" in self.kinds:
            side = self._by_head(own[0](table) * scale, q)
            scores = torch.matmul(k, side.transpose(1, 2)).gather(3, turned.expand(batch, heads, -1, -1))
            total = scores.transpose(2, 3) if total is None else total + scores.transpose(2, 3)
            total = total if real is None else total * real.to(total.dtype)
        return total

    def _by_head(self, x: Tensor, q: Tensor) -> Tensor:
        return x.view(x.shape[0], q.shape[1], q.shape[3]).transpose(0, 1)  # (H, 2 span, E)

    def _index(self, query: Tensor, key: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """Rows of the table for query slot - key slot, as (S, K) and as (K, S); by row (B, 1, S, K)."""
        distance = query - key if query.dim() == 2 else (query - key)[:, None]
        if self.buckets and self.max_distance:
            distance = log_bucket(distance, self.buckets, self.max_distance)
        index = (distance + span).clamp(0, 2 * span - 1)
        return index, index.transpose(-1, -2).contiguous()


def _real(ctx: Context) -> Tensor | None:
    """(B, 1, S, 1): which queries are no padding; None where all are or a ready mask says otherwise."""
    given = ctx.attention_mask
    if given is None or given.dim() != 2:
        return None
    return given[:, None, ctx.start : ctx.start + ctx.length, None]


def log_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Distances below half of `buckets` as they are, larger ones in logarithmic steps up to max_distance."""
    middle = buckets // 2
    far = distance.abs().clamp(min=max(middle - 1, 1)).float()
    # The base is rounded to float32 first: steps must fall where published checkpoints put them.
    base = torch.tensor((max_distance - 1) / middle, device=distance.device).log()
    steps = torch.ceil(torch.log(far / middle) / base * (middle - 1)) + middle
    return torch.where(distance.abs() <= middle, distance, (steps * distance.sign()).long())


class DisentangledAttention(Attention):
    """Attention whose position, if it shares projections, reads distances through this one's q and k."""

    def __init__(
        self, width: int, heads, position: Spec, mask, bias: bool | str, scale: float, dropout: float
    ) -> None:
        super().__init__(width, heads, position, mask, bias=bias, out_bias=True, scale=scale, dropout=dropout)
        if position.shared and isinstance(self.position, Disentangled):
            self.position.borrowed = (self.q, self.k)

    @property
    def rule(self) -> Mask:
        return self.mask if self.kv_site is None else Apart()

    def _project_and_turn(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        return super()._project_and_turn(x, ctx) if self.kv_site is None else self.project(x, x)


def disentangled_scale(width: int, kinds: tuple[str, ...] | list[str]) -> float:
    """1 / sqrt(E * number of summed scores) for heads of `width` E."""
    return 1 / math.sqrt(width * (1 + len(kinds)))


class SummedEmbed(Block):
    """Tokens, positions and types of one `inner` width, summed, projected to D and normed; padding is zeroed.

    ids (B, S) -> stream (B, S, D). segments: size of the table of token types.
    """

    site_kind = "stream"
    shares_segments = False

    def __init__(
        self,
        vocabulary: int,
        width: int,
        inner: int,
        norm: Spec,
        position: Spec | None = None,
        segments: int = 0,
        dropout: float = 0.0,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.tokens = Tokens(vocabulary, inner, padding)
        self.position, self.norm = make(position), make(norm)
        self.segment = Tokens(segments, inner) if segments else None
        self.project = Linear(inner, width, bias=False) if inner != width else None
        self.dropout_prob = dropout
        self.register_module("site", None)

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, segment_ids: Tensor | None, ctx: Context
    ) -> Tensor:
        """ids (B, S), or ready token vectors (B, S, inner); segment_ids (B, S), default all 0."""
        x = self.tokens(ids) if vectors is None else vectors
        if self.position is not None:
            x = x + self.position(self.position.index(ctx, ids))
        if self.segment is not None:
            x = x + (self.segment.weight[0] if segment_ids is None else self.segment(segment_ids))
        if self.project is not None:
            x = self.project(x)
        x = self.norm(x)
        mask = ctx.attention_mask
        if mask is not None and mask.dim() == 2:
            x = x * mask[..., None].to(x.dtype)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        return x if self.site is None else self.site(x, ctx)
