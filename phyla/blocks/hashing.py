"""Attention within chunks: of neighbouring tokens, or of tokens that hashing brought together.

Kitaev et al. 2020, arXiv:2001.04451, sections 2 and 3; positions on axes: section 4 and its appendix.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.attention import attend
from phyla.blocks.cache import StateCache
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.residual import Mixer
from phyla.blocks.shapes import Stream
from phyla.blocks.spec import Block
from phyla.errors import ArgumentError, ConfigError

# Published: finite, so that a token with nothing else to see sees itself, and one with nothing sees all.
HIDDEN = {torch.float16: (-1e4, -1e3)}


class _Past(StateCache):
    """States of all positions: they grow, so that rows cannot differ in length."""

    shift: Any = None


class ChunkAttention(Mixer):
    """Tokens see those of their chunk and of some chunks before and after it, in a circle.

    heads: how many, of head_width E elements each. At most `chunk` tokens see each other without chunks.
    """

    caches = True

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        chunk: int,
        before: int,
        after: int,
        causal: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_width = heads, head_width
        self.chunk, self.before, self.after = chunk, before, after
        self.causal, self.attention_dropout = causal, dropout
        self.v = Linear(width, heads * head_width, bias=False)
        self.o = Linear(heads * head_width, width, bias=False)

    def new_cache(self, batch: int, length: int) -> StateCache | None:
        return _Past() if self.causal else None

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, self.head_width)).transpose(1, 2)  # (B, H, S, E)

    def _cut(self, x: Tensor, length: int) -> Tensor:
        """(B, H, S, ...) in chunks: (B, H, N, c, ...)."""
        return x.unflatten(2, (-1, self.chunk if length > self.chunk else length))

    def _beside(self, x: Tensor, length: int) -> Tensor:
        """Chunks (B, H, N, c, ...) with those before and after them: (B, H, N, c * M, ...)."""
        if length <= self.chunk:
            return x
        return torch.cat([x.roll(-i, 2) for i in range(-self.before, self.after + 1)], 3)

    def _weighed(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, same: Tensor | None, ctx: Context
    ) -> tuple[Tensor, Tensor]:
        """Answers (B, H, N, c, E) and the log of each row's sum (B, H, N, c).

        seen, same (..., N, c, K): what a query may see, and which keys are its own, to be avoided.
        """
        hidden, own = HIDDEN.get(q.dtype, (-1e9, -1e5))
        dropout = self.attention_dropout if self.training else 0.0
        scores = q @ k.transpose(3, 4)  # (B, H, N, c, K)
        scores = scores if seen is None else torch.where(seen, scores, hidden)
        scores = scores if same is None else torch.where(same, own, scores)
        total = torch.logsumexp(scores, -1, keepdim=True)
        weights = F.dropout(torch.exp(scores - total), dropout)
        if ctx.head_mask is not None:
            weights = weights * ctx.head_mask[ctx.layer][..., None]
        if ctx.attentions is not None:
            ctx.attentions.append(weights if weights.shape[2] > 1 else weights[:, :, 0])
        return weights @ v, total.squeeze(-1)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, ctx: Context) -> Tensor:
        """Answers (B, H, N, c, E) by the fused call where nothing else is asked for."""
        if ctx.attentions is not None or ctx.implementation == "eager" or ctx.head_mask is not None:
            return self._weighed(q, k, v, seen, None, ctx)[0]
        batch, heads, chunks = q.shape[:3]
        mask = None
        if seen is not None:  # as numbers, so that a query that sees nothing sees all
            hidden = HIDDEN.get(q.dtype, (-1e9, -1e5))[0]
            mask = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~seen, hidden)
            mask = mask.expand(batch, heads, chunks, -1, -1).flatten(1, 2)
        dropout = self.attention_dropout if self.training else 0.0
        q, k, v = (t.flatten(1, 2) for t in (q, k, v))
        y = attend(q, k, v, mask, None, False, 1.0, dropout)
        return y.unflatten(1, (heads, chunks))

    def _joined(self, y: Tensor) -> Tensor:
        return self.o(y.transpose(1, 2).flatten(2))  # of (B, H, S, E)

    def _seen(self, query: Tensor, key: Tensor, real: Tensor | None) -> Tensor | None:
        """What slots (..., c) may see of slots (..., K), of which `real` (..., K) are no padding."""
        seen = None if real is None else real[..., None, :]
        if self.causal:
            earlier = query[..., None] >= key[..., None, :]
            seen = earlier if seen is None else seen & earlier
        return seen

    def _remember(self, cache: StateCache, x: Tensor, ctx: Context) -> Tensor | None:
        """Add the states x to the cache; returns those from before, or None at the first call."""
        past = cache.get("states")
        x = x[:, : ctx.memo.get("length", x.shape[1])]
        cache.set("states", x if past is None else torch.cat((past, x), 1))
        return past

    def _one_by_one(self, x: Tensor, ctx: Context) -> Tensor:
        """New tokens behind a filled cache: each finds its chunk among those before it."""
        if ctx.attentions is not None:
            raise ArgumentError(
                "with a filled cache and output_attentions one token is due at a time, but there are "
                f"{x.shape[1]}"
            )
        given, found = ctx.attention_mask, []
        for number in range(x.shape[1]):
            start = ctx.start + number
            seen = None if given is None else given[:, : start + 1]
            one = replace(ctx, attention_mask=seen, start=start, length=1)
            found.append(self.mix(x[:, number : number + 1], one))
        return torch.cat(found, 1)


class LocalChunkAttention(ChunkAttention):
    """Chunks of neighbouring tokens."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        chunk: int,
        before: int,
        after: int,
        causal: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, heads, head_width, chunk, before, after, causal, dropout)
        self.q = Linear(width, heads * head_width, bias=False)
        self.k = Linear(width, heads * head_width, bias=False)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        cache, length, given = ctx.slot(self.slot), x.shape[1], ctx.attention_mask
        if length > 1 and cache is not None and cache.get("states") is not None:
            return self._one_by_one(x, ctx)
        past = None if cache is None else self._remember(cache, x, ctx)
        source = x
        if past is not None:
            first = max((past.shape[1] // self.chunk - self.before) * self.chunk, 0)
            source = torch.cat((past[:, first:], x), 1)
        q = self._split(self.q(x)) * self.head_width**-0.5
        k, v = self._split(self.k(source)), self._split(self.v(source))
        if past is not None:
            seen = None if given is None else given[:, None, None, None, -source.shape[1] :]
            return self._joined(
                self._attended(q[:, :, None], k[:, :, None], v[:, :, None], seen, ctx)[:, :, 0]
            )
        slots = self._cut(torch.arange(length, device=x.device)[None, None], length)  # (1, 1, N, c)
        keys = self._beside(slots, length)
        real = None if given is None else self._beside(self._cut(given[:, None], length), length)
        k, v = (self._beside(self._cut(t, length), length) for t in (k, v))
        y = self._attended(self._cut(q, length), k, v, self._seen(slots, keys, real), ctx)
        return self._joined(y.flatten(2, 3))


class HashAttention(ChunkAttention):
    """Chunks of tokens sorted by random hashes of their keys, which are their queries too.

    hashes: rounds, weighed by their sums. buckets: how many, or the factors of how many, or None where the
    length tells. seed: of the hashes, or None for new ones at every call. positions: the longest text.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        chunk: int,
        before: int,
        after: int,
        causal: bool,
        dropout: float = 0.0,
        hashes: int = 1,
        buckets: int | tuple[int, ...] | None = None,
        seed: int | None = None,
        positions: int = 4096,
    ) -> None:
        super().__init__(width, heads, head_width, chunk, before, after, causal, dropout)
        self.qk = Linear(width, heads * head_width, bias=False)
        self.hashes, self.buckets, self.seed, self.positions = hashes, buckets, seed, positions
        if seed is not None and buckets is not None:
            shape = (heads, head_width, hashes, sum(_factors(buckets)) // 2)
            self.register_buffer("rotations", torch.empty(shape), persistent=False)
        else:
            self.rotations = None

    def fill_buffers(self) -> None:
        if self.rotations is not None and self.seed is not None:
            self.rotations.copy_(torch.randn(self.rotations.shape, generator=_seeded(self.seed)))

    def mix(self, x: Stream, ctx: Context) -> Stream:
        cache, length, given = ctx.slot(self.slot), x.shape[1], ctx.attention_mask
        if length > 1 and cache is not None and cache.get("states") is not None:
            return self._one_by_one(x, ctx)
        hashes = ctx.notes.get("hashes") or self.hashes
        past = None if cache is None else self._remember(cache, x, ctx)
        if past is not None:
            return self._step(x, past, cache, hashes, ctx)
        qk, v = self._split(self.qk(x)), self._split(self.v(x))
        if length <= self.chunk:
            slots = torch.arange(length, device=x.device)[None, None, None]
            real = None if given is None else given[:, None, None]
            seen, same = self._seen(slots, slots, real), slots[..., None] == slots[..., None, :]
            y, _ = self._weighed(qk[:, :, None], self._keys(qk)[:, :, None], v[:, :, None], seen, same, ctx)
            return self._joined(y[:, :, 0])
        buckets, count = self._hash(qk, hashes, given, length)  # (B, H, hashes, S)
        if cache is not None:
            cache.set("buckets", buckets[..., : ctx.memo.get("length", length)])
        rounds = torch.arange(hashes, device=x.device)[:, None] * (count + 1)
        order = (buckets + rounds).flatten(2).sort(dim=-1, stable=True).indices  # (B, H, hashes * S)
        slots = order % length
        index = slots[..., None].expand(-1, -1, -1, self.head_width)
        qk, v = (self._cut(t.gather(2, index), length) for t in (qk, v))
        keys = self._cut(slots, length)
        beside = self._beside(keys, length)
        real = None
        if given is not None:
            real = (
                given[:, None].expand(-1, self.num_heads, -1).gather(2, beside.flatten(2)).view(beside.shape)
            )
        seen, same = self._seen(keys, beside, real), keys[..., None] == beside[..., None, :]
        k, v = self._beside(self._keys(qk), length), self._beside(v, length)
        y, total = self._weighed(qk, k, v, seen, same, ctx)
        back = order.argsort(dim=-1)
        y = y.flatten(2, 3).gather(2, back[..., None].expand(-1, -1, -1, self.head_width))
        if hashes > 1:
            share = _shares(total.flatten(2).gather(2, back).unflatten(2, (hashes, length)))
            y = (y.unflatten(2, (hashes, length)) * share[..., None]).sum(2)
        return self._joined(y)

    def _step(self, x: Tensor, past: Tensor, cache: StateCache, hashes: int, ctx: Context) -> Tensor:
        """The answer to one new token x (B, 1, D), whose chunk is sought among the remembered ones."""
        source = torch.cat((past, x), 1)  # (B, T, D)
        length, known, given = source.shape[1], cache.get("buckets"), ctx.attention_mask
        q = self._split(self.qk(x))
        if known is None:
            qk, v = self._split(self.qk(source)), self._split(self.v(source))
            if length >= self.chunk:
                cache.set("buckets", self._hash(qk, hashes, given, length)[0])
            slots = torch.arange(length, device=x.device)
            real = None if given is None else given[:, None, None]
            seen = None if real is None else real[..., None, :]
            same = slots == length - 1
            y, _ = self._weighed(q[:, :, None], self._keys(qk)[:, :, None], v[:, :, None], seen, same, ctx)
            return self._joined(y[:, :, 0])
        fresh, _ = self._hash(q, hashes, None, length)
        buckets = torch.cat((known, fresh), -1)  # (B, H, hashes, T)
        cache.set("buckets", buckets)
        order = buckets.sort(dim=-1, stable=True).indices
        place = (order == length - 1).int().argmax(-1, keepdim=True)
        reach = torch.arange(self.chunk * (1 + self.before + self.after), device=x.device)
        reach = ((place // self.chunk - self.before) * self.chunk + reach) % length
        slots = order.gather(3, reach)  # (B, H, hashes, K)
        index = slots.flatten(2)[..., None].expand(-1, -1, -1, self.head_width)
        qk, v = (
            self._split(side(source)).gather(2, index).unflatten(2, (hashes, -1))
            for side in (self.qk, self.v)
        )
        real = None
        if given is not None:
            real = given[:, None].expand(-1, self.num_heads, -1).gather(2, slots.flatten(2)).view(slots.shape)
        q = q[:, :, None].expand(-1, -1, hashes, -1, -1)
        seen = None if real is None else real[..., None, :]
        y, total = self._weighed(q, self._keys(qk), v, seen, (slots == length - 1)[..., None, :], ctx)
        return self._joined((y * _shares(total)[..., None]).sum(2))

    def _keys(self, qk: Tensor) -> Tensor:
        """Keys of one length, scaled, so that queries cannot see whose they are."""
        norm = torch.rsqrt(qk.square().mean(-1, keepdim=True) + 1e-6)
        return qk * norm / math.sqrt(self.head_width)

    def _hash(self, x: Tensor, hashes: int, given: Tensor | None, length: int) -> tuple[Tensor, int]:
        """Bucket (B, H, hashes, S) of each of x (B, H, S, E), and their count without that of padding."""
        factors = _factors(self.buckets if self.buckets is not None else self._by_length(length))
        rotations = self._rotations(hashes, sum(factors) // 2, x)
        turned = torch.einsum("bhse,hetr->bhtsr", x.detach(), rotations)
        found, count, first = torch.zeros_like(turned[..., 0], dtype=torch.long), 1, 0
        for factor in factors:
            part = turned[..., first : first + factor // 2]
            found = found + count * torch.cat((part, -part), -1).argmax(-1)
            first, count = first + factor // 2, count * factor
        if given is not None:
            found = torch.where(given[:, None, None], found, count)
        return found, count

    def _rotations(self, hashes: int, size: int, x: Tensor) -> Tensor:
        """Random (H, E, hashes, size): the stored ones where they fit."""
        shape = (self.num_heads, self.head_width, hashes, size)
        if self.rotations is not None and self.rotations.shape == shape:
            return self.rotations.to(x.dtype)
        if self.seed is None or torch.compiler.is_compiling():
            return torch.randn(shape, device=x.device, dtype=x.dtype)
        return torch.randn(shape, generator=_seeded(self.seed)).to(x)

    def _by_length(self, length: int) -> int | tuple[int, ...]:
        """Buckets for a text of this length: two a chunk, down to a power of two, factored if many."""
        power = max((2 * (length // self.chunk)).bit_length() - 1, 1)
        most = 2 * max(int((self.positions // self.chunk) ** 0.5), self.chunk)
        return 2**power if 2**power <= most else (2 ** (power // 2), 2 ** (power - power // 2))


def _shares(total: Tensor) -> Tensor:
    """How much each round (dim 2) counts; no softmax, as published results round sums of large numbers."""
    return torch.exp(total - torch.logsumexp(total, 2, keepdim=True))


def _factors(buckets: int | tuple[int, ...]) -> tuple[int, ...]:
    factors = (buckets,) if isinstance(buckets, int) else tuple(buckets)
    if any(factor <= 0 or factor % 2 for factor in factors):
        raise ConfigError(f"num_buckets must be even and positive, but is {buckets}")
    return factors


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class AxialPositions(Block):
    """Position p as the vectors of its coordinates on axes of these sizes, side by side (widths sum to D)."""

    def __init__(self, sizes: tuple[int, ...], widths: tuple[int, ...], std: float, dropout: float) -> None:
        super().__init__()
        self.sizes, self.std, self.dropout_prob = sizes, std, dropout
        ones = (1,) * len(sizes)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(*ones[:axis], size, *ones[axis + 1 :], width))
            for axis, (size, width) in enumerate(zip(sizes, widths, strict=True))
        )

    def index(self, ctx: Context, ids: Tensor | None) -> Tensor:
        """Positions (B or 1, S)."""
        if ctx.start + ctx.length > math.prod(self.sizes):
            raise ArgumentError(
                f"a text may have {math.prod(self.sizes)} positions (axes of {self.sizes}), "
                f"but has {ctx.start + ctx.length}"
            )
        return ctx.positions

    def forward(self, index: Tensor) -> Tensor:
        parts, step = [], math.prod(self.sizes)
        for size, weight in zip(self.sizes, self.weights, strict=True):
            step //= size
            parts.append(F.embedding(index // step % size, weight.flatten(0, -2)))
        x = torch.cat(parts, -1)  # (B or 1, S, D)
        if self.training and self.dropout_prob:
            columns = F.dropout(x.new_ones(len(index), self.sizes[-1]), self.dropout_prob)
            x = x * columns.gather(1, index % self.sizes[-1])[..., None]
        return x

    def reset(self, std: float) -> bool:
        for weight in self.weights:
            nn.init.normal_(weight, std=self.std)
        return True
