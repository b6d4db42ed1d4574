"""Multi-head attention with its variable parts in slots, and the one call that all attention goes through."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.attending import Asked, kernels
from phyla.blocks.cache import CrossCache, KVCache
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.mask import Causal, Full, Mask, additive, is_plain_causal, self_mask
from phyla.blocks.position import Position
from phyla.blocks.residual import Mixer
from phyla.blocks.shapes import Answers, Bias, Keys, Queries, Stream, Values
from phyla.blocks.shapes import Mask as MaskTensor
from phyla.blocks.spec import Spec, make
from phyla.errors import ArgumentError, ConfigError


@dataclass(frozen=True)
class Heads:
    """q query heads that share kv key/value heads of `width` elements (defaults: kv = q, width = D / q)."""

    q: int
    kv: int | None = None
    width: int | None = None

    def resolve(self, stream: int) -> tuple[int, int, int]:
        """(H, G, E) for a stream of `stream` elements; ConfigError where they do not fit."""
        kv = self.q if self.kv is None else self.kv
        if self.q <= 0 or kv <= 0:
            raise ConfigError(
                f"the number of heads must be positive, but there are {self.q} query and {kv} key/value heads"
            )
        if self.q % kv:
            raise ConfigError(f"num_heads must be a multiple of num_kv_heads ({kv}), but is {self.q}")
        if self.width is None and stream % self.q:
            raise ConfigError(
                f"the width must be a multiple of the number of heads ({self.q}), but is {stream}"
            )
        return self.q, kv, self.width or stream // self.q


class Attention(Mixer):
    """softmax(scale q k^T + bias + mask) v, heads joined by o (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    width: D. position: what turns or biases queries and keys. mask: a rule of blocks/mask.py. bias: True,
    False or the letters of the projections that have one ("qv": Whisper). scale: default E ** -0.5 (T5: 1.0).
    softcap: scores become softcap * tanh(scores / softcap) (Gemma 2), not under "sdpa": the fused call has
    no cap, and public results are without it (docs/differences.md). norm_qk: norm of queries and keys, by
    head when its width is E, else over all heads. cross: keys and values come from the encoder, of width
    kv_width. A subclass may set `clip`: queries, keys and values are clamped to -clip .. clip.
    """

    caches = True
    clip: float | None = None

    def __init__(
        self,
        width: int,
        heads: Heads,
        position: Spec | None = None,
        mask: Mask = Full(),
        bias: bool | str = True,
        out_bias: bool | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        norm_qk: Spec | None = None,
        dropout: float = 0.0,
        cross: bool = False,
        kv_width: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_width = heads.resolve(width)
        inner, kv_inner = self.num_heads * self.head_width, self.num_kv_heads * self.head_width
        biased = "qkv" if bias is True else bias or ""
        source = kv_width or width
        self.q = Linear(width, inner, bias="q" in biased)
        self.k = Linear(source, kv_inner, bias="k" in biased)
        self.v = Linear(source, kv_inner, bias="v" in biased)
        self.o = Linear(inner, width, bias=bias is True if out_bias is None else out_bias)
        self.position: Position | None = make(position)
        self.q_norm, self.k_norm = make(norm_qk), make(norm_qk)
        self.norm_by_head = norm_qk is not None and norm_qk.width == self.head_width
        self.mask, self.cross, self.attention_dropout = mask, cross, dropout
        self.scale = self.head_width**-0.5 if scale is None else scale
        self.softcap = softcap
        self.register_module("kv_site", None)
        # Set by fast.pack: q, k and v as one product.
        self.joined: Any = None

    @property
    def rule(self) -> Mask:
        """Which keys the queries of this call may see."""
        return self.mask

    @property
    def is_causal(self) -> bool:
        """Whether queries see earlier keys alone (public functions of attention look here)."""
        return isinstance(self.mask, Causal) and not self.cross

    @property
    def num_key_value_groups(self) -> int:
        """Query heads that share a key/value head (likewise)."""
        return self.num_heads // self.num_kv_heads

    def idle(self, ctx: Context) -> bool:
        if not self.cross or ctx.memory is not None:
            return False
        cache = ctx.slot(self.slot)
        return cache is None or cache.keys is None

    def new_cache(self, batch: int, length: int) -> KVCache | CrossCache | None:
        if self.cross:
            return CrossCache()
        if not isinstance(self.mask, Causal):
            return None
        return KVCache(batch, length, self.mask.window)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, self.head_width).transpose(1, 2)  # (B, heads, S, E)

    def project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, S, E) of x; keys, values (B, G, K, E) of source; normed if the block has norm_qk."""
        if self.joined is not None and source is x and self.joined.ready():
            q, k, v = self.joined(x)
        else:
            q, k, v = self.q(x), self.k(source), self.v(source)
        if self.q_norm is not None and not self.norm_by_head:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (
            self._split(q, self.num_heads),
            self._split(k, self.num_kv_heads),
            self._split(v, self.num_kv_heads),
        )
        if self.q_norm is not None and self.norm_by_head:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.clip is not None:
            q, k, v = (t.clamp(-self.clip, self.clip) for t in (q, k, v))
        return q, k, v

    def _project_and_turn(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """`project` and the rotation of queries and keys; where both are plain, on all heads at once."""
        joined, position = self.joined, self.position
        if (
            joined is not None
            and position is not None
            and self.q_norm is None
            and self.clip is None
            and joined.ready()
            and joined.bare()
        ):
            queries, turned = self.num_heads, self.num_heads + self.num_kv_heads
            heads = self._split(joined.product(x), turned + self.num_kv_heads)  # (B, H + 2G, S, E)
            qk = position.rotate_heads(heads[:, :turned], ctx)
            if qk is not None:
                return qk[:, :queries], qk[:, queries:], heads[:, turned:]
        q, k, v = self.project(x, x)
        return (q, k, v) if position is None else (*position.rotate(q, k, ctx), v)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        cache = ctx.slot(self.slot)
        if self.cross:
            q, k, v = self._cross(x, ctx, cache)
            first, causal = 0, False
        else:
            q, k, v = self._project_and_turn(x, ctx)
            first = 0
            if cache is not None:
                if ctx.cache.flat:  # several texts side by side: each sees its own keys
                    return self.o(cache.attend(self, q, k, v, x, ctx))
                k, v, first = cache.update(k, v)
            causal = is_plain_causal(self.mask, ctx, k.shape[2])
        return self.o(self.answer(q, k, v, first, causal, x, ctx))

    def answer(
        self, q: Tensor, k: Tensor, v: Tensor, first: int, causal: bool, x: Tensor, ctx: Context
    ) -> Tensor:
        """What queries find in keys and values from slot `first` on, heads joined (B, S, H * E).

        causal: the mask is the lower triangle and nothing else. x: the input, for what is at `kv_site`.
        """
        record = ctx.cross_attentions if self.cross else ctx.attentions
        dropout = self.attention_dropout if self.training else 0.0
        made = None
        kernel = kernels.get(ctx.implementation)
        if kernel is not None:
            asked = Asked(self, q, k, v, first, causal, dropout, x, ctx)
            y, made = kernel(asked), asked.made
            if y is not None:
                return y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
        capped = self.softcap is not None and ctx.implementation != "sdpa"
        plain = record is None and ctx.implementation != "eager" and ctx.head_mask is None and not capped
        if made is None or (made[4] and not plain):
            made = self.seen(q, k, v, first, causal and plain, x, ctx)
        k, v, mask, bias, causal = made
        if plain:
            y = attend(q, k, v, mask, bias, causal, self.scale, dropout)
        else:
            y, weights = self._attend_openly(q, k, v, mask, bias, dropout, ctx)
            if record is not None:
                record.append(weights)
        return y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)  # (B, S, H * E)

    def seen(
        self, q: Tensor, k: Tensor, v: Tensor, first: int, causal: bool, x: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]:
        """Keys and values with those of `kv_site`, the mask over them, the bias of positions, and `causal`.

        causal: as in `answer`; it stays where that says all, and there is no mask then.
        """
        keys = k.shape[2]
        bias = None
        if self.position is not None and self.kv_site is None:
            bias = self.position.bias(q, k, first, self.scale, ctx)
        causal = causal and bias is None and self.kv_site is None
        if self.cross:
            memory_mask = ctx.memory_mask
            mask = memory_mask
            if memory_mask is not None and memory_mask.dim() == 2:
                mask = ctx.once("memory", lambda: memory_mask[:, None, None])
        else:
            mask = None if causal else self_mask(self.rule, ctx, first, keys)
        if self.kv_site is not None:
            k, v, mask = self.kv_site(k, v, mask, x)
            if self.position is not None:
                bias = self.position.prefixed(q, k, first, self.scale, ctx, k.shape[2] - keys)
        return k, v, mask, bias, causal

    def _cross(self, x: Tensor, ctx: Context, cache: CrossCache | None) -> tuple[Tensor, Tensor, Tensor]:
        if cache is not None and cache.keys is not None and cache.values is not None:
            q = self._split(self.q(x), self.num_heads)
            return q, cache.keys, cache.values
        if ctx.memory is None:
            raise ArgumentError("cross-attention needs the encoder's states: pass encoder_hidden_states")
        q, k, v = self.project(x, ctx.memory)
        if cache is not None:
            cache.keys, cache.values = k, v
        return q, k, v

    def _attend_openly(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        dropout: float,
        ctx: Context,
    ) -> tuple[Tensor, Tensor]:
        """Attention step by step, for soft caps and for callers who want the weights (B, H, S, K)."""
        groups = self.num_heads // self.num_kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = torch.matmul(q, k.transpose(2, 3)) * self.scale  # (B, H, S, K)
        if bias is not None:
            scores = scores + bias
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores + additive(mask, scores.dtype)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
        if dropout:
            weights = F.dropout(weights, dropout)
        if ctx.head_mask is not None:
            weights = weights * ctx.head_mask[ctx.layer]
        return torch.matmul(weights, v), weights


def attend(
    q: Queries,
    k: Keys,
    v: Values,
    mask: MaskTensor | None,
    bias: Bias | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> Answers:
    """The one attention call, by the fastest kernel: q (B, H, S, E), k and v (B, G, K, E) -> (B, H, S, E).

    mask is bool or additive, broadcastable to (B, H, S, K); bias is added to the scaled scores.
    """
    batch, heads, length, width = q.shape
    groups = heads // k.shape[1]
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias + additive(mask, q.dtype)
    elif mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    if length == 1 and groups > 1:
        # One query a head: the heads of a group become the queries of one head, and keys are read once.
        q = q.reshape(batch, k.shape[1], groups, width)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.expand(-1, heads, -1, -1).reshape(mask.shape[0], k.shape[1], groups, -1)
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale).view(batch, heads, 1, -1)
    if length == 1:
        causal = False  # a branch, because kernels take no symbolic truth value
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=causal, scale=scale, enable_gqa=groups > 1
    )
