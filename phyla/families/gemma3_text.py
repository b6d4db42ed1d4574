"""The text model of Gemma 3 (Gemma Team 2025, arXiv:2503.19786).

Public checkpoints: google/gemma-3-1b-it, google/embeddinggemma-300m, the decoder of google/gemma-3-4b-it, ...
Differs from Gemma 2 in: queries and keys normed by head, where Gemma 2 capped scores; five of six layers see
a sliding window, with an angle base of their own; vectors given in place of tokens are scaled already.
"""

import torch
from torch import Tensor

from phyla.blocks import (
    Causal, Decoder, Embed, Full, GatedFFN, Layer, RMSNorm, Rotary, Window, residual,
)  # fmt: skip
from phyla.config import PretrainedConfig
from phyla.families import gemma2, llama
from phyla.families.qwen3 import FULL, SLIDING, layer_kinds
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Head
from phyla.outputs import BaseModelOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. attn_logit_softcapping is in files, but read by nobody."""

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
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
    rope_theta: float = 1000000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    cache_implementation: str | None = "hybrid"
    rope_scaling: dict | None = None
    rope_local_base_freq: float = 10000.0
    sliding_window_pattern: int = 6
    layer_types: list | None = None
    use_bidirectional_attention: bool = False

    def finish(self) -> None:
        every = self.sliding_window_pattern
        counts = range(1, self.num_hidden_layers + 1)
        self.layer_types = layer_kinds(self, (SLIDING if i % every else FULL for i in counts))


class ScaledEmbed(Embed):
    """Token vectors times a factor, rounded to their dtype; given vectors are taken as they are."""

    def __init__(self, vocabulary: int, width: int, padding: int | None, factor: float) -> None:
        super().__init__(vocabulary, width, padding=padding)
        self.factor = factor

    def words(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        return x * torch.full((), self.factor, dtype=x.dtype, device=x.device)


def mask(c: PretrainedConfig, window: int | None) -> Causal | Full | Window:
    """Who sees whom: earlier tokens, or both sides, where the window is the width of what is seen."""
    if not c.use_bidirectional_attention:
        return Causal(window)
    return Full() if window is None else Window(window // 2)


def build(c: PretrainedConfig) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps, offset=1.0, cast="late")
    ffn = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_activation)

    def layer(window: int | None, rotary: Rotary) -> Layer:
        attn = llama.attention(
            c, mask=mask(c, window), position=rotary, scale=c.query_pre_attn_scalar**-0.5,
            norm_qk=norm.but(width=c.head_dim),
        )  # fmt: skip
        return Layer(attn=residual(attn, pre=norm, out=norm), ffn=residual(ffn, pre=norm, out=norm))

    kinds = {
        FULL: layer(None, Rotary(c.head_dim, c.rope_theta, c.rope_scaling, c.max_position_embeddings)),
        SLIDING: layer(c.sliding_window, Rotary(c.head_dim, c.rope_local_base_freq)),
    }
    return Decoder(
        embed=ScaledEmbed(c.vocab_size, c.hidden_size, c.pad_token_id, c.hidden_size**0.5),
        layers=[kinds[kind] for kind in c.layer_types[: c.num_hidden_layers]],
        norm=norm,
    )


NAMES = gemma2.NAMES.but(
    lines=dict(gemma2.NAMES.lines)
    | {
        "layers.{i}.attn.q_norm": "layers.{i}.self_attn.q_norm",
        "layers.{i}.attn.k_norm": "layers.{i}.self_attn.k_norm",
    }
)

HEADS: dict[str, Head] = {
    "Gemma3TextModel": Backbone(output=BaseModelOutputWithPast),
    "Gemma3ForCausalLM": CausalLM(names={"out": "lm_head"}, softcap="final_logit_softcapping"),
}

family(
    "gemma3_text", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="Gemma3Text", bases=("Gemma3PreTrainedModel",),
)  # fmt: skip
