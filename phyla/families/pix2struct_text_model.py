"""The text decoder of Pix2Struct (Lee et al. 2022, arXiv:2210.03347).

Public checkpoints: the text decoder of google/pix2struct-base, google/deplot, google/matcha-base.
Differs from T5's decoder in: a gated feed-forward, an output matrix of its own, other names.
"""

from phyla.blocks import (
    Attention, BucketBias, Causal, Decoder, Embed, GatedFFN, Heads, Layer, RMSNorm, StackBias, repeat,
    residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import CausalLM, Head
from phyla.outputs import CausalLMOutputWithCrossAttentions
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50244
    hidden_size: int = 768
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 12
    num_heads: int = 12
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    dense_act_fn: str = "gelu_new"
    decoder_start_token_id: int | None = 0
    use_cache: bool = False
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    tie_word_embeddings: bool = False
    is_decoder: bool = True

    ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}


def build(c: PretrainedConfig) -> Decoder:
    norm, drop = RMSNorm(c.hidden_size, eps=c.layer_norm_epsilon), c.dropout_rate
    attn = Attention(
        c.hidden_size, Heads(c.num_heads, width=c.d_kv), position=StackBias(), mask=Causal(), bias=False,
        scale=1.0, dropout=drop,
    )  # fmt: skip
    mixers = {
        "attn": attn,
        "cross": attn.but(position=None, cross=True),
        "ffn": GatedFFN(c.hidden_size, c.d_ff, act=c.dense_act_fn, dropout=drop),
    }
    layer = Layer(**{name: residual(mixer, pre=norm, dropout=drop) for name, mixer in mixers.items()})
    buckets = BucketBias(
        c.relative_attention_num_buckets, c.relative_attention_max_distance, c.num_heads, both_sides=False
    )
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, dropout=drop), layers=repeat(c.num_layers, layer), norm=norm,
        dropout=drop,
        position=buckets,
    )  # fmt: skip


def _names() -> dict[str, str]:
    lines = {"embed.tokens": "embed_tokens", "norm": "final_layer_norm"}
    lines["position"] = "layer.0.self_attention.attention.relative_attention_bias"
    inner = {"q": "query", "k": "key", "v": "value", "o": "output"}
    for ours, theirs in (("attn", "self_attention"), ("cross", "encoder_decoder_attention")):
        lines[f"layers.{{i}}.{ours}.pre_norm"] = f"layer.{{i}}.{theirs}.layer_norm"
        for part, name in inner.items():
            lines[f"layers.{{i}}.{ours}.{part}"] = f"layer.{{i}}.{theirs}.attention.{name}"
    lines["layers.{i}.ffn.pre_norm"] = "layer.{i}.mlp.layer_norm"
    for part, name in {"gate": "wi_0", "up": "wi_1", "down": "wo"}.items():
        lines[f"layers.{{i}}.ffn.{part}"] = f"layer.{{i}}.mlp.DenseReluDense.{name}"
    return lines


NAMES = NameMap(_names(), ignore=(r"encoder\..*",))

HEADS: dict[str, Head] = {
    "Pix2StructTextModel": CausalLM(
        names={"out": "lm_head"}, shifted=False, output=CausalLMOutputWithCrossAttentions
    ),
}

family(
    "pix2struct_text_model", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="Pix2StructText", inside="decoder", bases=("Pix2StructPreTrainedModel",),
)  # fmt: skip
