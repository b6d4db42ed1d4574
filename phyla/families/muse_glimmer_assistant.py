"""The block draft of Muse Glimmer (DFlash). Public checkpoints: meta-models/Muse-Glimmer-30B-assistant.

Differs from a decoder in: no tokens of its own; keys and values come from states of another model's layers,
joined and narrowed, and from the blanks behind the last token, which see each other and are filled at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from phyla.blocks import (
    Attention, Context, Full, GatedFFN, Layer, Linear, RMSNorm, Spec, Stack, StackOutput, Window, make,
    residual,
)  # fmt: skip
from phyla.blocks.cache import KVCache
from phyla.blocks.shapes import Stream
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import llama, qwen3
from phyla.families.qwen3 import FULL, SLIDING, layer_kinds
from phyla.family import family
from phyla.heads import Backbone
from phyla.outputs import BaseModelOutputWithPast
from phyla.skeletons import BlockDraftModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 6656
    intermediate_size: int = 19968
    num_hidden_layers: int = 5
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: dict | None = None
    max_position_embeddings: int = 131072
    sliding_window: int = 2048
    layer_types: list | None = None
    attention_dropout: float = 0.0
    hidden_act: str = "silu"
    bos_token_id: int | None = 200000
    eos_token_id: int | list | None = 200001
    pad_token_id: int | None = 200018
    block_size: int = 16
    mask_token_id: int = 201818
    target_layer_ids: list | None = None
    use_cache: bool = True

    def finish(self) -> None:
        self.layer_types = layer_kinds(self, [SLIDING] * self.num_hidden_layers)
        if self.target_layer_ids is None:
            self.target_layer_ids = [1, 13, 25, 37, 49]
        ids = self.target_layer_ids
        if not ids or not all(isinstance(i, int) and i >= 0 for i in ids):
            raise ConfigError(
                f"target_layer_ids must be numbers of layers, but are {ids!r} ({self.model_type})"
            )
        if self.block_size < 2:
            raise ConfigError(f"block_size must be at least 2, but is {self.block_size} ({self.model_type})")


class BlockAttention(Attention):
    """Attention of blanks x (B, S, D) to each other and to the read states, ctx.memory (B, C, D).

    Positions are those of the C + S keys. A window counts them too where the call knows those of all keys,
    `places` (B, cached + C + S); else it counts slots.
    """

    def new_cache(self, batch: int, length: int) -> KVCache:
        return KVCache(batch, length)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        assert ctx.memory is not None and self.position is not None
        count, rotary = x.shape[1], self.position
        q, k, v = self.project(x, torch.cat((ctx.memory, x), 1))
        cos, sin = ctx.once(rotary.signature, lambda: rotary.angles(ctx, q.dtype))
        q, k = rotary._turn(q, cos[:, :, -count:], sin[:, :, -count:]), rotary._turn(k, cos, sin)
        cache, first = ctx.slot(self.slot), 0
        if cache is not None:
            k, v, first = cache.update(k, v)
        places, rule = ctx.memo.get("places"), self.mask
        if places is not None and isinstance(rule, Window):
            ctx.once(rule, lambda: self._near(places, rule.radius, count, ctx))
        return self.o(self.answer(q, k, v, first, False, x, ctx))

    def _near(self, places: Tensor, radius: int, count: int, ctx: Context) -> Tensor:
        """Which keys (B, 1, S, K) are near enough to each blank, by position."""
        near = (places[:, -count:, None] - places[:, None]).abs() <= radius
        return (near if ctx.attention_mask is None else near & ctx.attention_mask[:, None])[:, None]


class BlockStack(Stack):
    """States of the chosen layers are narrowed and normed; the layers read them beside the blanks."""

    def __init__(self, width: int, chosen: int, norm: Spec, layers: Sequence[Spec]) -> None:
        super().__init__(layers=layers, norm=norm)
        self.read = Linear(chosen * width, width, bias=False)
        self.read_norm = make(norm)

    def forward(  # type: ignore[override]
        self, ctx: Context, blanks: Tensor, context: Tensor, record_states: bool = False
    ) -> StackOutput:
        """From vectors of blanks (B, S, D) and joined states (B, C, chosen * D) to states (B, S, D)."""
        ctx.memory = self.read_norm(self.read(context))
        # Slots and queries are counted from behind the context, which brings keys alone.
        ctx.start, ctx.length = ctx.start + context.shape[1], blanks.shape[1]
        return self.run(blanks, ctx, None, record_states)


def build(c: Config) -> BlockStack:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    ffn = residual(GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act), pre=norm)
    by_head = RMSNorm(c.head_dim, eps=c.rms_norm_eps)

    def layer(kind: str) -> Layer:
        rule = Full() if kind == FULL else Window(c.sliding_window)
        plain = llama.attention(c, mask=rule, bias=False, norm_qk=by_head)
        return Layer(attn=residual(Spec(BlockAttention, plain.args), pre=norm), ffn=ffn)

    kinds = {kind: layer(kind) for kind in (FULL, SLIDING)}
    layers = [kinds[kind] for kind in (c.layer_types or ())[: c.num_hidden_layers]]
    return BlockStack(c.hidden_size, len(c.target_layer_ids or ()), norm, layers)


NAMES = qwen3.NAMES.but(
    lines={k: v for k, v in qwen3.NAMES.lines.items() if k != "embed.tokens"}
    | {"read": "encoder.fc", "read_norm": "encoder.output_norm_enc"}
)

HEADS = {"MuseGlimmerAssistantModel": Backbone(output=BaseModelOutputWithPast)}

family(
    "muse_glimmer_assistant", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=BlockDraftModel,
    public="MuseGlimmerAssistant",
)  # fmt: skip
