"""What tells attention where tokens stand: rotations of queries and keys, biases, tables on embeddings."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.context import SLOTS, Context
from phyla.blocks.rope import rope_table
from phyla.blocks.shapes import Bias, Keys, NewKeys, Queries
from phyla.blocks.spec import Block


class Position(Block):
    """A position object of attention: by default it neither rotates nor biases.

    by_slot: the bias depends on the slots of queries and keys rather than on what was counted along the rows.
    """

    by_slot = False

    def rotate(self, q: Queries, k: NewKeys, ctx: Context) -> tuple[Queries, NewKeys]:
        """Queries (B, H, S, E) and new keys (B, G, S, E) with their positions turned in."""
        return q, k

    def rotate_heads(self, heads: Tensor, ctx: Context) -> Tensor | None:
        """Queries and keys side by side (B, H + G, S, E) turned at once, or None if they turn differently."""
        return None

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias | None:
        """What to add to the scaled scores, broadcastable to (B, H, S, K), for slots first .. first+K-1."""
        return None

    def by_distance(self, first: int, keys: int, ctx: Context) -> Tensor | None:
        """The bias (H, S + K - 1) of distances key - query, the most negative first; None if there is more
        to it than these.
        """
        return None

    def prefixed(
        self, q: Queries, k: Keys, first: int, scale: float, ctx: Context, count: int
    ) -> Bias | None:
        """As `bias`, where `count` of the keys are learned ones in front: they take the first positions.

        A bias that knows of places alone, whatever keys there are, is 0 for those in front.
        """
        own = self.bias(q, k, first, scale, ctx)
        return F.pad(own, (count, 0)) if own is not None and own.shape[-1] == k.shape[2] - count else own


class Rotary(Position):
    """Turns pairs of query and key elements by angles that grow with position (Su et al., arXiv:2104.09864).

    width: elements of a head that turn (the rest stays). base: theta. scaling: the public `rope_scaling`.
    max_positions, original_positions: the context lengths that scaling kinds refer to.
    layout: "half" pairs element i with i + width/2 (Llama, NeoX); "pairs" pairs 2i with 2i + 1 (GPT-J).
    """

    def __init__(
        self,
        width: int,
        base: float = 10000.0,
        scaling: Any = None,
        max_positions: int = 2048,
        original_positions: int | None = None,
        layout: str = "half",
    ) -> None:
        super().__init__()
        self.width, self.layout = width, layout
        self.table = rope_table(width, base, scaling, max_positions, original_positions)
        self.register_buffer("frequencies", torch.empty(width // 2), persistent=False)
        self.register_buffer("signs", torch.empty(width), persistent=False)

    def fill_buffers(self) -> None:
        self.frequencies.copy_(self.table.frequencies(0))
        half = self.width // 2
        one = torch.ones(half)
        self.signs.copy_(
            torch.cat((-one, one)) if self.layout == "half" else torch.stack((-one, one), -1).flatten()
        )

    def angles(self, ctx: Context, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (1 or B, 1, S, width): turned = x cos + other sin."""
        frequencies = self.frequencies
        if self.table.depends_on_length:
            frequencies = self.table.frequencies(ctx.start + ctx.length).to(frequencies.device)
        angles = ctx.positions[..., None].float() * frequencies.float()  # (B, S, width / 2)
        angles = torch.cat((angles, angles), -1) if self.layout == "half" else angles.repeat_interleave(2, -1)
        factor = self.table.factor
        cos, sin = angles.cos() * factor, angles.sin() * (self.signs.float() * factor)
        return cos[:, None].to(dtype), sin[:, None].to(dtype)  # (B, 1, S, width)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rest = None
        if x.shape[-1] != self.width:
            x, rest = x[..., : self.width], x[..., self.width :]
        if self.layout == "half":
            other = x.roll(self.width // 2, -1)
        else:
            other = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        y = torch.addcmul(x * cos, other, sin)
        return y if rest is None else torch.cat((y, rest), -1)

    def rotate_heads(self, heads: Tensor, ctx: Context) -> Tensor:
        return self._turn(heads, *ctx.once(self.signature, lambda: self.angles(ctx, heads.dtype)))

    def rotate(self, q: Queries, k: NewKeys, ctx: Context) -> tuple[Queries, NewKeys]:
        cos, sin = ctx.once(self.signature, lambda: self.angles(ctx, q.dtype))
        return self._turn(q, cos, sin), self._turn(k, cos, sin)


class Alibi(Position):
    """A bias that falls linearly with distance, one slope a head (Press et al., arXiv:2108.12409, section 3).

    rounded: slopes and distances in bfloat16, as Falcon computes them. scaled: the attention scale applies to
    the bias too (Falcon).
    """

    def __init__(self, heads: int, rounded: bool = False, scaled: bool = False) -> None:
        super().__init__()
        self.heads, self.rounded, self.scaled = heads, rounded, scaled
        self.register_buffer("slopes", torch.empty(heads), persistent=False)

    def fill_buffers(self) -> None:
        self.slopes.copy_(torch.tensor(alibi_slopes(self.heads)))

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias:
        return ctx.once(self.signature, lambda: self._bias(q, first, k.shape[2], scale, ctx))

    def prefixed(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context, count: int) -> Bias:
        def longer() -> Tensor:
            own = self._bias(q, first, k.shape[2] - count, scale, ctx)
            front = self._slope(torch.arange(-count, 0, device=q.device)[None], q, scale)
            return torch.cat([front.expand(own.shape[0], -1, -1, -1), own], -1)

        return ctx.once((self.signature, count), longer)

    def _bias(self, q: Tensor, first: int, keys: int, scale: float, ctx: Context) -> Tensor:
        given = ctx.attention_mask
        if given is not None and given.dim() == 2:
            index = ((given.long().cumsum(-1) - 1) * given)[:, first : first + keys]
        else:
            index = torch.arange(first, first + keys, device=q.device)[None]
        return self._slope(index, q, scale)

    def _slope(self, index: Tensor, q: Tensor, scale: float) -> Tensor:
        slopes = self.slopes
        if self.rounded:
            bias = slopes.bfloat16()[:, None, None] * index[:, None, None]  # (B, H, 1, K)
        else:
            bias = slopes.float()[:, None, None] * index[:, None, None]
        bias = bias.to(q.dtype)
        return bias * scale if self.scaled else bias


def alibi_slopes(heads: int) -> list[float]:
    """Slopes 2^(-8i/n) for a power of two n; further heads take every second slope of the next power."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    return slopes + [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]


class BucketBias(Block):
    """A learned bias for each head and bucket of distances (Raffel et al., arXiv:1910.10683, section 2.1).

    Half of the buckets are single distances, the others widen logarithmically up to max_distance. A stack
    owns it and all its layers add it (see `StackBias`). both_sides: later positions have buckets of their own
    (encoders).
    """

    def __init__(self, buckets: int, max_distance: int, heads: int, both_sides: bool) -> None:
        super().__init__()
        self.buckets, self.max_distance, self.both_sides = buckets, max_distance, both_sides
        self.weight = nn.Parameter(torch.empty(buckets, heads))

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of each distance key - query."""
        buckets = self.buckets
        offset: int | Tensor = 0
        if self.both_sides:
            buckets //= 2
            offset = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            distance = -distance.clamp(max=0)
        exact = buckets // 2
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        wide = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        return torch.where(distance < exact, distance, wide) + offset

    def forward(self, start: int, length: int, first: int, keys: int) -> Tensor:
        """(1, H, S, K) for queries start .. start+length-1 and key slots first .. first+keys-1."""
        device = self.weight.device
        query = torch.arange(start, start + length, device=device)[:, None]
        key = torch.arange(first, first + keys, device=device)[None]
        return self.of(key - query)[None]

    def of(self, distance: Tensor) -> Tensor:
        """Biases (..., H, S, K) of distances key - query (..., S, K)."""
        return F.embedding(self.bucket(distance), self.weight).movedim(-1, -3)


class StackBias(Position):
    """Takes the bias that the stack owns and has put into the call (T5: one table for all layers)."""

    by_slot = True

    def by_distance(self, first: int, keys: int, ctx: Context) -> Tensor | None:
        owner = ctx.memo["stack-bias"]
        if SLOTS in ctx.memo or "stack-bias-values" in ctx.memo or "ahead" in ctx.notes:
            return None
        if not isinstance(owner, BucketBias) or type(self).bias is not StackBias.bias:
            return None

        def table() -> Tensor:
            farthest = first - (ctx.start + ctx.length - 1)
            return owner.of(torch.arange(keys + ctx.length - 1, device=owner.weight.device)[None] + farthest)

        return ctx.once(("stack-bias-distances", first, keys), table)[:, 0]

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias:
        owner = ctx.memo["stack-bias"]

        def values() -> Tensor:
            if SLOTS in ctx.memo and k.shape[2] == ctx.length:
                query, key = ctx.numbers(first, k.shape[2], q.device)
                return owner.of(key - query).to(q.dtype)
            start = ctx.start + ctx.notes.get("ahead", 0)  # learned keys that take positions of their own
            return owner(start, ctx.length, first, k.shape[2]).to(q.dtype)

        shared = ctx.once("stack-bias-values", values)
        if shared.shape[-1] != k.shape[2]:
            # The table is the first layer's; one with more or fewer learned keys has, as published, no bias.
            shared = ctx.memo["stack-bias-values"] = shared.new_zeros(*shared.shape[:3], k.shape[2])
        return shared


class RelativeKeys(Position):
    """Learned vectors of the distance that score against the query and, with `queries`, against the key.

    Shaw et al. 2018, arXiv:1803.02155, eq. 4; Huang et al. 2020, arXiv:2009.13658 (method 4) for `queries`.
    """

    by_slot = True

    def __init__(self, max_positions: int, width: int, queries: bool = False) -> None:
        super().__init__()
        self.max_positions, self.queries = max_positions, queries
        self.weight = nn.Parameter(torch.empty(2 * max_positions - 1, width))

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias:
        query, key = ctx.numbers(first, k.shape[2], q.device)
        distance = query - key
        rows = "b" if distance.dim() == 3 else ""
        table = F.embedding(distance + self.max_positions - 1, self.weight)  # (S, K, E), perhaps by row
        bias = torch.einsum(f"bhse,{rows}ske->bhsk", q, table)
        if self.queries:
            if k.shape[1] != q.shape[1]:
                k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            bias = bias + torch.einsum(f"bhke,{rows}ske->bhsk", k, table)
        return bias * scale


class Learned(Block):
    """A table of position vectors added to the embeddings.

    offset: rows before position 0 (OPT, BART: 2). count: "row" counts from the first attended token; "mask"
    counts attended tokens (OPT); "tokens" counts tokens other than `padding` and starts behind it (RoBERTa).
    """

    def __init__(
        self, positions: int, width: int, offset: int = 0, count: str = "row", padding: int | None = None
    ) -> None:
        super().__init__()
        self.offset, self.count, self.padding = offset, count, padding
        self.weight = nn.Parameter(torch.empty(positions, width))

    def index(self, ctx: Context, ids: Tensor | None) -> Tensor:
        """Table rows (B or 1, S) of the new tokens."""
        mask = ctx.attention_mask
        given = mask if mask is not None and mask.dim() == 2 else None
        if self.count == "mask" and ctx.counted and given is not None:
            return ((given.long().cumsum(1) * given).long() - 1)[:, ctx.start :] + self.offset
        if self.count == "tokens" and self.padding is not None and ctx.counted:
            if ids is None:
                return ctx.positions + self.padding + 1
            real = ids.ne(self.padding).int()
            seen = ctx.start if given is None else given[:, : ctx.start].sum(1, keepdim=True)
            return (real.cumsum(1) + seen).long() * real + self.padding
        return ctx.positions + self.offset

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight)
