"""The text model of Gemma 4. Public checkpoints: the decoder of google/gemma-4-E2B-it, ...

Differs from Gemma 3 in: norms store their gain whole; values are normed, without a gain, and scores are not
scaled; layers that see all have wider heads, of which a share turns, and keys that may serve as values; the
last layers may borrow keys and values from the last layers that make any; each layer may read vectors of its
own of each token; experts may stand beside the feed-forward; a layer's output has a factor.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.blocks import (
    Attention, Causal, Context, Decoder, Full, GatedFFN, Heads, Layer, Linear, RMSNorm, Rotary, Spec,
    StackOutput, Window, activation, make, residual,
)  # fmt: skip
from phyla.blocks.cache import CrossCache, KVCache
from phyla.blocks.context import OfTokens
from phyla.blocks.embed import Tokens
from phyla.blocks.mask import is_plain_causal
from phyla.blocks.residual import Mixer
from phyla.blocks.shapes import Stream
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.families import diffusion_gemma_text as relative
from phyla.families.diffusion_gemma_text import ROPE, ScaledLayer, SparseAndDense
from phyla.families.gemma3_text import ScaledEmbed
from phyla.families.gemma4_vision import UnitAttention
from phyla.families.qwen3 import FULL
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Head
from phyla.outputs import BaseModelOutputWithPast
from phyla.skeletons import TextModel

KEPT, OWN = "kept keys", "vectors of layers"  # in a call's memory; of tokens, among its notes


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json; global_head_dim and num_global_key_value_heads make
    per_layer_config, {layer: {head_dim, num_key_value_heads}}, where a file has none."""

    vocab_size: int = 262144
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 30
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    bos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    sliding_window: int = 512
    layer_types: list | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: str | None = None
    vocab_size_per_layer_input: int = 262144
    hidden_size_per_layer_input: int | None = 256
    attention_k_eq_v: bool = False
    num_kv_shared_layers: int = 0
    enable_moe_block: bool = False
    use_double_wide_mlp: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None
    per_layer_config: dict | None = None

    heads: ClassVar[Any] = relative.Config.heads

    def finish(self) -> None:
        if not self.attention_k_eq_v:
            self.__dict__.pop("num_global_key_value_heads", None)
        relative.Config.finish(self)  # type: ignore[arg-type]
        if not 0 <= self.num_kv_shared_layers <= self.num_hidden_layers:
            raise ConfigError(
                f"num_kv_shared_layers must be 0 to {self.num_hidden_layers}, the layers, but is "
                f"{self.num_kv_shared_layers} (in a {self.model_type} config)"
            )
        makers = (self.layer_types or [])[: self.first_borrower]
        lacking = {*(self.layer_types or [])[: self.num_hidden_layers]} - {*makers}
        if lacking and self.first_borrower:
            raise ConfigError(
                f"num_kv_shared_layers must leave a layer of each kind that makes keys, but "
                f"{self.num_kv_shared_layers} of {self.num_hidden_layers} leave none of {sorted(lacking)}"
            )

    @property
    def first_borrower(self) -> int:
        """The number of the first layer that makes no keys of its own."""
        return self.num_hidden_layers - self.num_kv_shared_layers


class LendingAttention(UnitAttention):
    """`UnitAttention` whose keys and values others borrow: later layers of its kind where it `lends`, drafts.

    Drafts see two positions more than the window has.
    """

    def __init__(
        self, kind: str, width: int, heads: Heads, position: Spec, mask: Any, eps: float, bias: bool = False,
        dropout: float = 0.0, same: bool = False, lends: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(width, heads, position, mask, eps, bias, dropout, same)
        self.kind, self.paged = kind, not lends  # what is lent in a call is of one text: see blocks/flat.py

    def new_cache(self, batch: int, length: int) -> KVCache | CrossCache | None:
        window = getattr(self.mask, "window", None)
        if not isinstance(self.mask, Causal) or window is None:
            return super().new_cache(batch, length)
        return KVCache(batch, length, window + 2)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        q, k, v = self._project_and_turn(x, ctx)
        cache, first = ctx.slot(self.slot), 0
        if cache is not None:
            k, v, first = cache.update(k, v)
        ctx.memo.setdefault(KEPT, {})[self.kind] = k, v, first
        causal = is_plain_causal(self.mask, ctx, k.shape[2])
        return self.o(self.answer(q, k, v, first, causal, x, ctx))


class BorrowingAttention(Mixer):
    """Attention to the keys and values of the last layer of its kind that makes any; queries are new."""

    paged = False
    cross, softcap, kv_site = False, None, None
    rule, seen, _attend_openly = Attention.rule, Attention.seen, Attention._attend_openly
    answer: Any = Attention.answer
    _split: Any = Attention._split

    def __init__(
        self, kind: str, width: int, heads: Heads, position: Spec, mask: Any, eps: float, bias: bool = False,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.mask, self.attention_dropout, self.scale = kind, mask, dropout, 1.0
        self.num_heads, self.num_kv_heads, self.head_width = heads.resolve(width)
        inner = self.num_heads * self.head_width
        self.q, self.o = Linear(width, inner, bias=bias), Linear(inner, width, bias=bias)
        self.q_norm = make(RMSNorm(self.head_width, eps=eps, cast="late"))
        self.position = make(position)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        kept = ctx.memo[KEPT].get(self.kind)
        if kept is None:
            raise ArgumentError(f"layers that borrow keys need those of {self.kind!r}, which nobody has made")
        k, v, first = kept
        q = self.position.rotate_heads(self.q_norm(self._split(self.q(x), self.num_heads)), ctx)
        causal = is_plain_causal(self.mask, ctx, k.shape[2])
        return self.o(self.answer(q, k, v, first, causal, x, ctx))


class LayerwiseEmbed(ScaledEmbed):
    """A scaled embedding that gives each of `layers` layers vectors of its own, `own` wide, of each token.

    They are the mean, times sqrt 2, of a table's and of what a map reads from the stream. Vectors in place of
    ids are looked up in the token table; to those that are not there a layer's table adds nothing.
    """

    def __init__(
        self, vocabulary: int, width: int, padding: int | None, layers: int, own: int, words: int, eps: float
    ):
        super().__init__(vocabulary, width, padding, width**0.5)
        self.width, self.count, self.own_width = width, layers, own
        self.table = Tokens(words, layers * own, padding)
        self.narrow = Linear(width, layers * own, bias=False)
        self.narrow_norm = make(RMSNorm(own, eps=eps, cast="late"))

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, segment_ids: Tensor | None, ctx: Context
    ) -> Tensor:
        if ids is None:
            assert vectors is not None
            found, known = self._words_of(vectors)
            y = self.table(found) * known
        else:
            y = self.table(ids)
        y = y * torch.full((), self.own_width**0.5, dtype=y.dtype, device=y.device)
        ctx.notes = {**ctx.notes, OWN: OfTokens(y)}
        x = super().forward(ids, vectors, segment_ids, ctx)
        y = ctx.notes[OWN].values
        shape = (self.count, self.own_width)
        read = self.narrow_norm((self.narrow(x) * self.width**-0.5).unflatten(-1, shape))
        ctx.memo[OWN] = (read + y.unflatten(-1, shape)) * 2**-0.5  # (B, S, layers, own)
        return x

    def _words_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, S) of the nearest vectors, and whether (B, S, 1) they are the same."""
        every = self.words(torch.arange(self.tokens.num_embeddings, device=x.device))
        ids = (2 * x @ every.t() - every.square().sum(-1)).argmax(-1)
        return ids, (every[ids] == x).all(-1, keepdim=True)


class OwnVectors(Mixer):
    """up(act(gate(x)) * the layer's own vector of the token)."""

    def __init__(self, width: int, own: int, act: str) -> None:
        super().__init__()
        self.act = activation(act)
        self.gate, self.up = Linear(width, own, bias=False), Linear(own, width, bias=False)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        return self.up(self.act(self.gate(x)) * ctx.memo[OWN][:, :, ctx.layer])


class LendingDecoder(Decoder):
    """A decoder some of whose layers borrow keys and values of others in the same call."""

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StackOutput:
        ctx.memo.setdefault(KEPT, {})
        return super().run(x, ctx, ids, record_states)


def build(c: Config) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps, cast="late")
    own, kinds = c.hidden_size_per_layer_input or 0, c.layer_types or []
    both_sides = c.use_bidirectional_attention == "all"

    def attention(index: int) -> Spec:
        kind, heads = kinds[index], c.heads(index)
        said = dict((c.rope_parameters or {})[kind])
        reach = None if kind == FULL else c.sliding_window // 2 + 1 if both_sides else c.sliding_window
        mask: Any = Causal(reach)
        if both_sides:
            mask = Full() if reach is None else Window(reach - 1)
        theta = said.pop("rope_theta", ROPE[kind]["rope_theta"])
        rotary = Rotary(heads.width or c.head_dim, theta, said, c.max_position_embeddings)
        plain = (c.hidden_size, heads, rotary, mask, c.rms_norm_eps, c.attention_bias, c.attention_dropout)
        if index >= c.first_borrower:
            return BorrowingAttention(kind, *plain)
        same = c.attention_k_eq_v and kind == FULL
        return LendingAttention(kind, *plain, same, c.num_kv_shared_layers > 0)

    def feed_forward(index: int) -> Spec:
        wide = c.use_double_wide_mlp and index >= c.first_borrower
        inner, act = c.intermediate_size * (2 if wide else 1), c.hidden_activation
        if not c.enable_moe_block:
            return residual(GatedFFN(c.hidden_size, inner, act=act), pre=norm, out=norm)
        experts = relative.experts(c)
        return residual(SparseAndDense(c.hidden_size, inner, act, norm, experts), out=norm)

    def layer(index: int) -> Layer:
        parts = {"attn": residual(attention(index), pre=norm, out=norm), "ffn": feed_forward(index)}
        if own:
            parts["own"] = residual(OwnVectors(c.hidden_size, own, c.hidden_activation), out=norm)
        return ScaledLayer(("text",), **parts)

    embed = ScaledEmbed(c.vocab_size, c.hidden_size, c.pad_token_id, c.hidden_size**0.5)
    if own:
        embed = LayerwiseEmbed(
            c.vocab_size, c.hidden_size, c.pad_token_id, c.num_hidden_layers, own,
            c.vocab_size_per_layer_input, c.rms_norm_eps,
        )  # fmt: skip
    return LendingDecoder(embed=embed, layers=[layer(i) for i in range(c.num_hidden_layers)], norm=norm)


_IN = "layers.{i}"


def names(c: Config) -> NameMap:
    """Of what is there: experts, vectors of layers; borrowers have keys in files that nobody reads."""
    lines = dict(relative.NAMES.lines)
    if not c.enable_moe_block:
        lines = {k: v for k, v in lines.items() if ".dense_" not in k and ".experts." not in k}
        lines[f"{_IN}.ffn.pre_norm"] = f"{_IN}.pre_feedforward_layernorm"
    if c.hidden_size_per_layer_input:
        lines |= {
            "embed.table": "embed_tokens_per_layer",
            "embed.narrow": "per_layer_model_projection",
            "embed.narrow_norm": "per_layer_projection_norm",
            f"{_IN}.own.gate": f"{_IN}.per_layer_input_gate",
            f"{_IN}.own.up": f"{_IN}.per_layer_projection",
            f"{_IN}.own.out_norm": f"{_IN}.post_per_layer_input_norm",
        }
    late = "|".join(str(i) for i in range(c.first_borrower, c.num_hidden_layers))
    unread = rf"(model\.)?layers\.({late})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\..*"
    return relative.NAMES.but(lines=lines, ignore=(unread,) if late else ())


HEADS: dict[str, Head] = {
    "Gemma4TextModel": Backbone(output=BaseModelOutputWithPast),
    "Gemma4ForCausalLM": CausalLM(names={"out": "lm_head"}, softcap="final_logit_softcapping"),
}

family(
    "gemma4_text", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel,
    public="Gemma4Text", bases=("Gemma4PreTrainedModel",), inside="model.language_model",
)  # fmt: skip
