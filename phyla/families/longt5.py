"""LongT5 (Guo et al. 2022, arXiv:2112.07916).

Public checkpoints: google/long-t5-local-base, google/long-t5-tglobal-base, ...
Differs from T5 in: the encoder's attention, to near tokens and ("transient-global") to sums of stretches.
"""

from typing import Any

from phyla.blocks import (
    Decoder, Embed, Encoder, EncoderDecoder, Heads, Layer, RMSNorm, Spec, repeat, residual,
)  # fmt: skip
from phyla.blocks.chunked import ChunkedAttention, NearAndFarBias
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError, nearest
from phyla.families import t5
from phyla.family import family
from phyla.heads import Backbone, Seq2SeqLM
from phyla.outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from phyla.skeletons import EncoderDecoderModel, TextModel

KINDS = {"local": "LocalSelfAttention", "transient-global": "TransientGlobalSelfAttention"}


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    local_radius: int = 127
    global_block_size: int = 16
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    is_encoder_decoder: bool = True
    encoder_attention_type: str = "local"
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1

    ALIASES = {
        "hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }  # fmt: skip

    def finish(self) -> None:
        t5.fill_layers(self)
        kind = self.encoder_attention_type
        if kind not in KINDS:
            raise ConfigError(
                f"encoder_attention_type must be one of {list(KINDS)}, but is {kind!r}.{nearest(kind, KINDS)}"
            )


def build_encoder(c: Any) -> Spec:
    norm, drop = RMSNorm(c.d_model, eps=c.layer_norm_epsilon), c.dropout_rate
    far = c.encoder_attention_type == "transient-global"
    attn = ChunkedAttention(
        c.d_model, Heads(c.num_heads, width=c.d_kv), c.local_radius, c.global_block_size if far else None,
        norm, scale=1.0, dropout=drop,
    )  # fmt: skip
    layer = Layer(
        attn=residual(attn, pre=norm, dropout=drop), ffn=residual(t5.feed_forward(c), pre=norm, dropout=drop)
    )
    buckets = (c.relative_attention_num_buckets, c.relative_attention_max_distance)
    return Encoder(
        embed=Embed(c.vocab_size, c.d_model, dropout=drop), layers=repeat(c.num_layers, layer), norm=norm,
        dropout=drop, position=NearAndFarBias(*buckets, c.num_heads, far),
    )  # fmt: skip


def build(c: Any) -> EncoderDecoder:
    decoder_layers = c.num_layers if c.num_decoder_layers is None else c.num_decoder_layers
    return EncoderDecoder(build_encoder(c), t5.stack(c, Decoder, decoder_layers, True))


def adapted(c: Config, plain: NameMap, side: str) -> NameMap:
    """T5's names with those of the encoder's attention; `side` begins our paths of the encoder."""
    kind = KINDS[c.encoder_attention_type]
    lines: dict[str, Any] = {**plain.lines}
    del lines[f"{side}position"]
    for ours, theirs in lines.items():
        if theirs.startswith("encoder."):
            lines[ours] = theirs.replace("SelfAttention", kind)
    first = f"encoder.block.0.layer.0.{kind}"
    lines[f"{side}position.near"] = f"{first}.relative_attention_bias"
    lines[f"{side}position.far"] = f"{first}.global_relative_attention_bias"
    lines[f"{side}layers.{{i}}.attn.summary_norm"] = (
        f"encoder.block.{{i}}.layer.0.{kind}.global_input_layer_norm"
    )
    return plain.but(lines=lines)


def names(c: Any) -> NameMap:
    return adapted(c, t5.names(c), "encoder.")


def encoder_names(c: Any) -> NameMap:
    return adapted(c, t5.encoder_names(c), "")


HEADS = {
    "LongT5Model": Backbone(output=Seq2SeqModelOutput),
    "LongT5ForConditionalGeneration": Seq2SeqLM(
        names={"out": "lm_head"}, output=Seq2SeqLMOutput,
        scale=lambda c: c.d_model**-0.5 if c.tie_word_embeddings else None,
    ),
    "LongT5EncoderModel": Backbone(build=build_encoder, table=encoder_names, skeleton=TextModel),
}  # fmt: skip

family(
    "longt5", config=Config, build=build, names=names, heads=HEADS, skeleton=EncoderDecoderModel,
    public="LongT5", width=lambda c: c.d_model,
)  # fmt: skip
