"""Llama 1-3 (Touvron et al. 2023, arXiv:2302.13971, arXiv:2307.09288; Llama 3, arXiv:2407.21783).

Public checkpoints: meta-llama/Llama-3.1-8B, HuggingFaceTB/SmolLM2-135M-Instruct and every `model_type:
llama`. Differs from the plain decoder in: RMS norm, rotary positions, gated feed-forward, grouped key/value
heads, no biases.
"""

from collections.abc import Sequence

from phyla.blocks import (
    Attention, Causal, Decoder, Embed, GatedFFN, Heads, Layer, RMSNorm, Rotary, Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Head, Span, TokenClassify
from phyla.outputs import BaseModelOutputWithPast, SequenceClassifierOutputWithPast
from phyla.skeletons import TextModel


def fill_heads(self: PretrainedConfig) -> None:
    """Key/value heads and head width default to what the query heads and the width imply."""
    if self.num_key_value_heads is None:
        self.num_key_value_heads = self.num_attention_heads
    if self.head_dim is None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size must be a multiple of num_attention_heads ({self.num_attention_heads}) "
                f"where head_dim is not given, but is {self.hidden_size}"
            )
        self.head_dim = self.hidden_size // self.num_attention_heads


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    pretraining_tp: int = 1
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    head_dim: int | None = None

    finish = fill_heads


def attention(c: PretrainedConfig, **options) -> Spec:
    """Llama's attention; relatives pass what differs."""
    width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    heads = Heads(c.num_attention_heads, kv=c.num_key_value_heads, width=width)
    rotary = Rotary(width, c.rope_theta, c.rope_scaling, c.max_position_embeddings)
    settings = {"position": rotary, "mask": Causal(), "dropout": c.attention_dropout}
    settings["bias"] = options.get("bias", getattr(c, "attention_bias", False))
    return Attention(c.hidden_size, heads, **{**settings, **options})


def build(
    c: PretrainedConfig,
    attn: Spec | None = None,
    ffn: Spec | None = None,
    layers: Sequence[Spec] | None = None,
) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    attn = attn or attention(c)
    ffn = ffn or GatedFFN(
        c.hidden_size, c.intermediate_size, act=c.hidden_act, bias=getattr(c, "mlp_bias", False)
    )
    layer = Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, padding=c.pad_token_id),
        layers=repeat(c.num_hidden_layers, layer) if layers is None else layers,
        norm=norm,
    )


NAMES = NameMap(
    {
        "embed.tokens": "embed_tokens",
        "layers.{i}.attn.pre_norm": "layers.{i}.input_layernorm",
        "layers.{i}.attn.q": "layers.{i}.self_attn.q_proj",
        "layers.{i}.attn.k": "layers.{i}.self_attn.k_proj",
        "layers.{i}.attn.v": "layers.{i}.self_attn.v_proj",
        "layers.{i}.attn.o": "layers.{i}.self_attn.o_proj",
        "layers.{i}.ffn.pre_norm": "layers.{i}.post_attention_layernorm",
        "layers.{i}.ffn.gate": "layers.{i}.mlp.gate_proj",
        "layers.{i}.ffn.up": "layers.{i}.mlp.up_proj",
        "layers.{i}.ffn.down": "layers.{i}.mlp.down_proj",
        "norm": "norm",
    },
    prefix="model",
    ignore=(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
)


def decoder_heads(stem: str, qa_prefix: str | None = None) -> dict[str, Head]:
    """The five public classes that Llama and its relatives have."""
    return {
        f"{stem}Model": Backbone(output=BaseModelOutputWithPast),
        f"{stem}ForCausalLM": CausalLM(names={"out": "lm_head"}),
        f"{stem}ForSequenceClassification": Classify(
            on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
        ),
        f"{stem}ForTokenClassification": TokenClassify(
            names={"out": "score"}, dropout=("classifier_dropout", "hidden_dropout")
        ),
        f"{stem}ForQuestionAnswering": Span(names={"out": "qa_outputs"}, prefix=qa_prefix),
    }


HEADS = decoder_heads("Llama", qa_prefix="transformer")

family("llama", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Llama")
