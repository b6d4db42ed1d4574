"""The layers of DiffusionGemma, as the text model that reads finished text (Gemma 4's with experts).

Public checkpoints: the text part of google/diffusiongemma-26B-A4B-it.
Differs from Gemma 3 in: norms store their gain whole; values are normed, without a gain, and scores are
not scaled; layers that see all have wider heads, of which a share turns, and keys that serve as values; each
token goes through a dense feed-forward and, beside it, through a few of many experts; a layer's output has a
factor.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks import (
    Causal, Context, Decoder, Experts, Full, GatedFFN, Heads, Layer, RMSNorm, Rotary, Spec, Window,
    make, residual,
)  # fmt: skip
from phyla.blocks.cache import KVCache
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Split
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families.gemma3_text import ScaledEmbed
from phyla.families.gemma4_vision import UnitAttention, unit
from phyla.families.qwen3 import FULL, SLIDING
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.outputs import BaseModelOutputWithPast
from phyla.skeletons import TextModel

CANVAS = "canvas"  # the note of a call on unfinished text: the memory of the finished text before it
ROPE = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
}


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
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    bos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    sliding_window: int = 512
    layer_types: list | None = None
    final_logit_softcapping: float = 30.0
    use_bidirectional_attention: str | None = None
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None
    per_layer_config: dict | None = None

    def finish(self) -> None:
        values, count = self.__dict__, self.num_hidden_layers
        if self.layer_types is None:
            self.layer_types = [SLIDING if (i + 1) % 6 else FULL for i in range(count)]
        if len(self.layer_types) < count or not {*self.layer_types} <= {FULL, SLIDING}:
            raise ConfigError(
                f"layer_types must name {count} layers, each {FULL} or {SLIDING}, but is {self.layer_types}"
            )
        if self.layer_types:
            self.layer_types = [*self.layer_types[:-1], FULL]  # the last layer always sees all
        if self.use_bidirectional_attention not in (None, "all", "vision"):
            raise ConfigError(
                'use_bidirectional_attention must be "all", "vision" or null, but is '
                f"{self.use_bidirectional_attention!r} (in a {self.model_type} config)"
            )
        values["rope_parameters"] = self.rope_parameters or {kind: dict(said) for kind, said in ROPE.items()}
        said: dict[str, Any] = values["rope_parameters"]
        lacking = [kind for kind in {*self.layer_types} if not isinstance(said.get(kind), dict)]
        if lacking:
            raise ConfigError(
                f"rope_parameters must be an object for each kind of layer, but has none for {lacking} (in a "
                f"{self.model_type} config)"
            )
        width, shared = values.pop("global_head_dim", 512), values.pop("num_global_key_value_heads", None)
        if self.per_layer_config is None:
            other = {"head_dim": width} | ({} if shared is None else {"num_key_value_heads": shared})
            full = [i for i, kind in enumerate(self.layer_types) if kind == FULL]
            self.per_layer_config = {str(i): dict(other) for i in full}
        changes = {"head_dim", "num_key_value_heads"}
        wrong = {k: v for k, v in self.per_layer_config.items() if not {*v} <= changes}
        if wrong:
            raise ConfigError(
                f"per_layer_config may change {sorted(changes)} of a layer, but has {wrong} (in a "
                f"{self.model_type} config)"
            )

    def heads(self, layer: int) -> Heads:
        """The heads of a layer: the configuration's, with what per_layer_config changes."""
        own: Mapping[Any, Any] = self.per_layer_config or {}
        own = own.get(str(layer), own.get(layer, {}))
        kv = own.get("num_key_value_heads", self.num_key_value_heads)
        return Heads(self.num_attention_heads, kv=kv, width=own.get("head_dim", self.head_dim))


class ReadingAttention(UnitAttention):
    """`UnitAttention` in two ways: in finished text it follows its rule; a call with the note CANVAS reads a
    canvas, of which every token sees all others and what the layer keeps of the finished text.

    reach: sliding layers keep so many positions, and a canvas sees all of them but the oldest.
    """

    def __init__(
        self, width: int, heads: Heads, position: Spec, mask: Causal | Full | Window, reach: int | None,
        same: bool, eps: float, bias: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(width, heads, position, mask, eps, bias, dropout, same)
        self.reach = reach

    def new_cache(self, batch: int, length: int) -> KVCache:
        return KVCache(batch, length, self.reach)

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        memory = ctx.notes.get(CANVAS)
        if memory is None:
            return super().mix(x, ctx)
        q, k, v = self._project_and_turn(x, ctx)
        kept = memory.slots[ctx.layer].read()
        if kept is not None:
            total = kept[0].shape[2]
            drop = 0 if self.reach is None else max(0, total - (self.reach - 1))
            pairs = zip(kept, (k, v), strict=True)
            k, v = (torch.cat((old[:, :, drop:].to(new), new), 2) for old, new in pairs)
        first = ctx.start + ctx.length - k.shape[2]
        return self.o(self.answer(q, k, v, first, False, x, ctx))


class NormedExperts(Experts):
    """Experts that read the normed stream, chosen by the stream itself, over its root mean square.

    scale (D) and D ** -0.5 stand before the router's map, expert_scale (X) behind its softmax.
    """

    def __init__(self, width: int, inner: int, experts: int, chosen: int, act: str, eps: float) -> None:
        super().__init__(width, inner, experts, chosen, act)
        self.eps = eps
        self.pre, self.out = (make(RMSNorm(width, eps=eps, cast="late")) for _ in range(2))
        self.scale = nn.Parameter(torch.empty(width))
        self.expert_scale = nn.Parameter(torch.empty(experts))

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        stream = x.reshape(-1, x.shape[-1])  # (N, D)
        seen = unit(stream, self.eps) * self.scale * x.shape[-1] ** -0.5
        weights, index = self.route(seen, ctx)
        weights = weights * self.expert_scale[index]
        return self.out(self._run(self.pre(stream), weights.to(x.dtype), index).view_as(x))

    def reset(self, std: float) -> bool:
        for matrix in (self.gate, self.up, self.down):
            nn.init.normal_(matrix, 0.0, std)
        nn.init.ones_(self.scale)
        nn.init.ones_(self.expert_scale)
        return True


class SparseAndDense(GatedFFN):
    """The sum of a gated feed-forward and of experts, each with norms before and behind it."""

    def __init__(self, width: int, inner: int, act: str, norm: Spec, experts: Spec) -> None:
        super().__init__(width, inner, act)
        self.dense_pre, self.dense_out, self.experts = make(norm), make(norm), make(experts)

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        return self.dense_out(super().mix(self.dense_pre(x), ctx)) + self.experts(x, ctx)


class ScaledLayer(Layer):
    """A layer whose output has a stored factor: `text_scale` (1) where it reads, `canvas_scale` on a canvas.

    roles: which of the two ("text", "canvas") the layer has.
    """

    def __init__(self, roles: tuple[str, ...], **branches: Spec) -> None:
        super().__init__(**branches)
        for role in roles:
            self.register_buffer(f"{role}_scale", torch.empty(1))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x, ctx)
        x = x * (self.text_scale if ctx.notes.get(CANVAS) is None else self.canvas_scale)
        return x if self.site is None else self.site(x, ctx)

    def reset(self, std: float) -> bool:
        for factor in self.buffers(recurse=False):
            factor.fill_(1.0)
        return True


def experts(c: PretrainedConfig) -> Spec:
    """The experts of a layer."""
    count, chosen, inner = c.num_experts, c.top_k_experts, c.moe_intermediate_size
    if not (count and chosen and inner and 0 < chosen <= count):
        raise ConfigError(
            "num_experts, top_k_experts (no more of them) and moe_intermediate_size must be set, but are "
            f"{(count, chosen, inner)} (in a {c.model_type} config)"
        )
    return NormedExperts(c.hidden_size, inner, count, chosen, c.hidden_activation, c.rms_norm_eps)


def build(c: Config, roles: tuple[str, ...] = ("text",)) -> Decoder:
    """The stack; `roles` says what its layers do: read finished text, refine a canvas, or both."""
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps, cast="late")
    ffn = SparseAndDense(c.hidden_size, c.intermediate_size, c.hidden_activation, norm, experts(c))
    both_sides = c.use_bidirectional_attention == "all"
    kinds: list[str] = c.layer_types or []
    turns: dict[str, dict[str, Any]] = c.rope_parameters or ROPE

    def layer(index: int) -> Layer:
        kind, heads = kinds[index], c.heads(index)
        said = dict(turns[kind])
        reach = None if kind == FULL else c.sliding_window // 2 + 1 if both_sides else c.sliding_window
        mask: Causal | Full | Window = Causal(reach)
        if both_sides:
            mask = Full() if reach is None else Window(reach - 1)
        base = said.pop("rope_theta", ROPE[kind]["rope_theta"])
        rotary = Rotary(heads.width or 0, base, said, c.max_position_embeddings)
        attn = ReadingAttention(
            c.hidden_size, heads, rotary, mask, reach, kind == FULL, c.rms_norm_eps, bias=c.attention_bias,
            dropout=c.attention_dropout,
        )  # fmt: skip
        return ScaledLayer(roles, attn=residual(attn, pre=norm, out=norm), ffn=residual(ffn, out=norm))

    return Decoder(
        embed=ScaledEmbed(c.vocab_size, c.hidden_size, c.pad_token_id, c.hidden_size**0.5),
        layers=[layer(i) for i in range(c.num_hidden_layers)],
        norm=norm,
    )


_IN, _NORM = "layers.{i}", "layernorm"
LINES: dict[str, str | To] = {
    "embed.tokens": "embed_tokens",
    "norm": "norm",
    f"{_IN}.attn.pre_norm": f"{_IN}.input_{_NORM}",
    f"{_IN}.attn.out_norm": f"{_IN}.post_attention_{_NORM}",
    **{f"{_IN}.attn.{part}": f"{_IN}.self_attn.{part}_proj" for part in "qkvo"},
    **{f"{_IN}.attn.{part}_norm": f"{_IN}.self_attn.{part}_norm" for part in "qk"},
    **{f"{_IN}.ffn.{part}": f"{_IN}.mlp.{part}_proj" for part in ("gate", "up", "down")},
    f"{_IN}.ffn.dense_pre": f"{_IN}.pre_feedforward_{_NORM}",
    f"{_IN}.ffn.dense_out": f"{_IN}.post_feedforward_{_NORM}_1",
    f"{_IN}.ffn.experts.pre": f"{_IN}.pre_feedforward_{_NORM}_2",
    f"{_IN}.ffn.experts.out": f"{_IN}.post_feedforward_{_NORM}_2",
    f"{_IN}.ffn.out_norm": f"{_IN}.post_feedforward_{_NORM}",
    f"{_IN}.ffn.experts.router": f"{_IN}.router.proj",
    f"{_IN}.ffn.experts.scale": f"{_IN}.router.scale",
    f"{_IN}.ffn.experts.expert_scale": f"{_IN}.router.per_expert_scale",
    f"{_IN}.ffn.experts.gate|up": To(f"{_IN}.experts.gate_up_proj", Split(dim=1)),
    f"{_IN}.ffn.experts.down": f"{_IN}.experts.down_proj",
}
NAMES = NameMap(LINES | {f"{_IN}.text_scale": f"{_IN}.layer_scalar"}, prefix="model")
HEADS: dict[str, Head] = {"DiffusionGemmaEncoderTextModel": Backbone(output=BaseModelOutputWithPast)}

family(
    "diffusion_gemma_text", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="DiffusionGemmaText", bases=("DiffusionGemmaPreTrainedModel",),
)  # fmt: skip
