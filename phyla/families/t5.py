"""T5, T5 1.1 and Flan-T5 (Raffel et al. 2020, arXiv:1910.10683).

Public checkpoints: google-t5/t5-small, google/flan-t5-base, ...
Differs from the plain encoder-decoder in: bucketed relative biases shared by all layers, unscaled attention,
RMS norms, no biases, and a tied head whose input is scaled by D^-0.5.
"""

from collections.abc import Sequence
from typing import Any

from phyla.blocks import (
    FFN, Attention, BucketBias, Causal, Decoder, Embed, Encoder, EncoderDecoder, Full, GatedFFN, Heads, Layer,
    RMSNorm, Spec, StackBias, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.layouts import mesh_names
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Classify, Head, Seq2SeqLM, Span, TokenClassify
from phyla.outputs import (
    Seq2SeqLMOutput, Seq2SeqModelOutput, Seq2SeqQuestionAnsweringModelOutput, Seq2SeqSequenceClassifierOutput,
)  # fmt: skip
from phyla.skeletons import EncoderDecoderModel, TextModel


def fill_layers(c: PretrainedConfig) -> None:
    """Keys that follow from others; ConfigError for an unknown kind of feed-forward."""
    if c.num_decoder_layers is None:
        c.num_decoder_layers = c.num_layers
    parts = c.feed_forward_proj.split("-")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
        raise ConfigError(
            'feed_forward_proj must be "ACT" or "gated-ACT", '
            f"but is {c.feed_forward_proj!r} (config key of {c.model_type})"
        )
    c.is_gated_act = len(parts) == 2
    # "gated-gelu" is the spelling of T5 1.1's files for the tanh form.
    c.dense_act_fn = "gelu_new" if c.feed_forward_proj == "gated-gelu" else parts[-1]


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    classifier_dropout: float = 0.0

    ALIASES = {
        "hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }  # fmt: skip

    finish = fill_layers


def feed_forward(c: PretrainedConfig) -> Spec:
    """T5's feed-forward."""
    kind = GatedFFN if c.is_gated_act else FFN
    return kind(c.d_model, c.d_ff, act=c.dense_act_fn, bias=False, dropout=c.dropout_rate)


def stack(c: PretrainedConfig, kind: type, layers: int, decoder: bool, feeds: Sequence[Spec] = ()) -> Spec:
    """T5's encoder or decoder; feeds: feed-forwards of the layers in turn, instead of T5's."""
    norm, drop = RMSNorm(c.d_model, eps=c.layer_norm_epsilon), c.dropout_rate
    heads = Heads(c.num_heads, width=c.d_kv)
    shared: dict[str, Any] = {"bias": False, "scale": 1.0, "dropout": drop}
    attn = Attention(c.d_model, heads, position=StackBias(), mask=Causal() if decoder else Full(), **shared)
    branches = {"attn": residual(attn, pre=norm, dropout=drop)}
    if decoder:
        across = Attention(c.d_model, heads, cross=True, **shared)
        branches["cross"] = residual(across, pre=norm, dropout=drop)
    kinds = [
        Layer(**branches, ffn=residual(ffn, pre=norm, dropout=drop)) for ffn in feeds or (feed_forward(c),)
    ]
    buckets = BucketBias(
        c.relative_attention_num_buckets, c.relative_attention_max_distance, c.num_heads, not decoder
    )
    return kind(
        embed=Embed(c.vocab_size, c.d_model, dropout=drop), layers=repeat(layers, kinds),
        norm=norm, dropout=drop, position=buckets,
    )  # fmt: skip


def build(c: PretrainedConfig) -> EncoderDecoder:
    decoder_layers = c.num_layers if c.num_decoder_layers is None else c.num_decoder_layers
    return EncoderDecoder(stack(c, Encoder, c.num_layers, False), stack(c, Decoder, decoder_layers, True))


def build_encoder(c: PretrainedConfig) -> Spec:
    return stack(c, Encoder, c.num_layers, False)


def names(c: PretrainedConfig) -> NameMap:
    return mesh_names({"encoder.": "encoder.", "decoder.": "decoder."}, c.is_gated_act)


def encoder_names(c: PretrainedConfig) -> NameMap:
    table = mesh_names({"": "encoder."}, c.is_gated_act)
    return table.but(ignore=(r"(transformer\.)?decoder\..*", r"lm_head\.weight"))


def t5_heads(stem: str) -> dict[str, Head]:
    """The public classes of T5 and its relatives."""
    return {
        f"{stem}Model": Backbone(output=Seq2SeqModelOutput),
        f"{stem}ForConditionalGeneration": Seq2SeqLM(
            names={"out": "lm_head"}, output=Seq2SeqLMOutput,
            scale=lambda c: c.d_model**-0.5 if c.tie_word_embeddings else None,
        ),
        f"{stem}EncoderModel": Backbone(build=build_encoder, table=encoder_names, skeleton=TextModel),
        f"{stem}ForSequenceClassification": Classify(
            on="end", dense="tanh", dropout=("classifier_dropout",), prefix="transformer",
            names={"dense": "classification_head.dense", "out": "classification_head.out_proj"},
            output=Seq2SeqSequenceClassifierOutput,
        ),
        f"{stem}ForTokenClassification": TokenClassify(
            names={"out": "classifier"}, dropout=("classifier_dropout",), prefix="transformer",
            build=build_encoder, table=encoder_names, skeleton=TextModel,
        ),
        f"{stem}ForQuestionAnswering": Span(
            names={"out": "qa_outputs"}, output=Seq2SeqQuestionAnsweringModelOutput
        ),
    }  # fmt: skip


HEADS = t5_heads("T5")

family(
    "t5", config=Config, build=build, names=names, heads=HEADS, skeleton=EncoderDecoderModel, public="T5",
    width=lambda c: c.d_model, shifts_inputs=True,
)  # fmt: skip
