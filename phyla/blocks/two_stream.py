"""Attention of texts in any order, with a second stream of queries that do not see their own token.

Yang et al. 2019, arXiv:1906.08237, section 2.3; distances and memories: Dai et al. 2019, arXiv:1901.02860.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.attention import Attention, Heads, attend
from phyla.blocks.context import Context
from phyla.blocks.embed import Embed
from phyla.blocks.linear import Linear
from phyla.blocks.shapes import Stream
from phyla.errors import ArgumentError

HIDDEN = {torch.float16: -65500.0}  # published: finite, so that a query that sees nothing sees all alike


class MemorySlot:
    """States (B, T, D) that came into a layer, at most the last `most`; tail: ids (B, 1) of the last."""

    def __init__(self, most: int | None) -> None:
        self.most, self.seen = most, 0
        self.keys: Tensor | None = None
        self.tail: Tensor | None = None

    def remember(self, states: Tensor) -> None:
        """Add the states (B, S, D) of a call."""
        self.seen += states.shape[1]
        states = states if self.keys is None else torch.cat((self.keys, states), 1)
        self.keys = states[:, -self.most :] if self.most else states

    def reorder(self, index: Tensor) -> None:
        self.keys, self.tail = (t if t is None else t.index_select(0, index) for t in (self.keys, self.tail))

    def truncate(self, length: int) -> None:
        if self.keys is not None and length < self.seen:
            if length < self.seen - self.keys.shape[1]:
                raise ArgumentError(f"only the last {self.keys.shape[1]} positions are remembered")
            self.keys = self.keys[:, : self.keys.shape[1] - (self.seen - length)]
        self.seen = min(self.seen, length)


@dataclass
class Streams:
    """What the layers of one call share; the stream is (B, S + M, D): S tokens, then M queries for targets.

    own, blind: bool (B or 1, S, K), what tokens and queries do not see, or None. apart: bool (B, S, K),
    tokens of different segments, or None. targets: (B, M, S), where each query stands. memory: a layer.
    distances: encoded distances (B or 1, P, D), from the largest down. length: S.
    """

    length: int
    distances: Tensor
    own: Tensor | None = None
    blind: Tensor | None = None
    apart: Tensor | None = None
    targets: Tensor | None = None
    memory: list[Tensor | None] = field(default_factory=list)


class TwoStreamAttention(Attention):
    """Attention whose scores add content, distance and segment, each with a bias of its own for queries."""

    caches = True

    def __init__(self, width: int, heads: Heads, most: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(width, heads, bias=False, out_bias=False, dropout=dropout)
        inner = (self.num_heads, self.head_width)
        self.most = most
        self.r = Linear(width, self.num_heads * self.head_width, bias=False)
        self.content_bias = nn.Parameter(torch.empty(inner))
        self.distance_bias = nn.Parameter(torch.empty(inner))
        self.segment_bias = nn.Parameter(torch.empty(inner))
        self.segment = nn.Parameter(torch.empty(2, *inner))

    def new_cache(self, batch: int, length: int) -> MemorySlot:  # type: ignore[override]
        return MemorySlot(self.most)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        streams: Streams = ctx.memo["streams"]
        length = streams.length
        tokens, memory = x[:, :length], streams.memory[self.slot] if streams.memory else None
        source = tokens if memory is None else torch.cat((memory.to(x.dtype), tokens), 1)
        k, v = (self._split(side(source), self.num_heads) for side in (self.k, self.v))
        r = self._split(self.r(streams.distances.to(x.dtype)), self.num_heads)  # (B or 1, H, P, E)
        seen: Any
        y, seen = self._answers(self.q(tokens), k, v, r, streams.own, "own", ctx)
        if streams.targets is not None:
            targets = streams.targets.to(x.dtype)
            asks = targets.transpose(1, 2) @ self.q(x[:, length:])  # (B, S, H * E)
            z, blind = self._answers(asks, k, v, r, streams.blind, "blind", ctx)
            y = torch.cat((y, targets @ z), 1)
            seen = (seen, blind)
        if ctx.attentions is not None:
            ctx.attentions.append(seen)
        return self.o(y)

    def _answers(
        self, q: Tensor, k: Tensor, v: Tensor, r: Tensor, hidden: Tensor | None, name: str, ctx: Context
    ) -> tuple[Tensor, Tensor | None]:
        """Answers (B, S, H * E) to queries of that shape, and the weights (B, H, S, K) if asked for."""
        apart = ctx.memo["streams"].apart
        q = self._split(q, self.num_heads)
        bias = self._shift((q + self.distance_bias[:, None]) @ r.transpose(2, 3), k.shape[2])
        if apart is not None:
            kinds = (q + self.segment_bias[:, None]) @ self.segment.permute(1, 2, 0)  # (B, H, S, 2)
            bias = bias + torch.where(apart[:, None], kinds[..., 1:], kinds[..., :1])
        bias = bias * self.scale
        if hidden is not None:
            lowest = HIDDEN.get(q.dtype, -1e30)
            bias = bias + ctx.once(("hidden", name), lambda: hidden[:, None].to(q.dtype) * lowest)
        q = q + self.content_bias[:, None]
        dropout = self.attention_dropout if self.training else 0.0
        if ctx.attentions is None and ctx.implementation != "eager" and ctx.head_mask is None:
            y, weights = attend(q, k, v, None, bias, False, self.scale, dropout), None
        else:
            y, weights = self._attend_openly(q, k, v, None, bias, dropout, ctx)
        return y.transpose(1, 2).flatten(2), weights

    def _shift(self, x: Tensor, keys: int) -> Tensor:
        """Scores (B, H, S, P) by distance, as (B, H, S, K) by key: row i moves i steps to the left."""
        batch, heads, length, places = x.shape
        x = x.reshape(batch, heads, places, length)[:, :, 1:]
        return x.reshape(batch, heads, length, places - 1)[..., :keys]


class BlankEmbed(Embed):
    """Token vectors, and one vector for every query whose token is to be told."""

    def __init__(self, vocabulary: int, width: int, dropout: float = 0.0) -> None:
        super().__init__(vocabulary, width, dropout=dropout)
        self.blank = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("frequencies", torch.empty(width // 2), persistent=False)

    def fill_buffers(self) -> None:
        width = self.blank.shape[-1]
        self.frequencies.copy_(1 / torch.pow(10000, torch.arange(0, width, 2.0) / width))

    def streams(
        self, ids: Tensor | None, vectors: Tensor | None, targets: Tensor | None, ctx: Context
    ) -> Tensor:
        """(B, S + M, D): tokens, and blanks for targets (B, M, S)."""
        x = super().forward(ids, vectors, None, ctx)
        if targets is None:
            return x
        blanks = self.blank.expand(x.shape[0], targets.shape[1], -1)
        return torch.cat((x, F.dropout(blanks, self.dropout_prob, self.training)), 1)

    def distances(self, places: Tensor) -> Tensor:
        """Sinusoids (..., P, D) of distances (..., P)."""
        angles = places[..., None].float() * self.frequencies.float()
        encoded = torch.cat((angles.sin(), angles.cos()), -1)
        return F.dropout(encoded, self.dropout_prob, self.training)
