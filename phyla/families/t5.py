"""T5, T5 1.1 and Flan-T5 (Raffel et al. 2020, arXiv:1910.10683).

Public checkpoints: google-t5/t5-small, google/flan-t5-base, ...
Differs from the plain encoder-decoder in: bucketed relative biases shared by all layers, unscaled attention,
RMS norms, no biases, and a tied head whose input is scaled by D^-0.5.
"""

from typing import Any

from phyla.blocks import (
    FFN, Attention, BucketBias, Causal, Decoder, Embed, Encoder, EncoderDecoder, Full, GatedFFN, Heads, Layer,
    RMSNorm, Spec, StackBias, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Classify, Seq2SeqLM, Span, TokenClassify
from phyla.outputs import (
    Seq2SeqLMOutput, Seq2SeqModelOutput, Seq2SeqQuestionAnsweringModelOutput, Seq2SeqSequenceClassifierOutput,
)  # fmt: skip
from phyla.skeletons import EncoderDecoderModel, TextModel


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

    def finish(self) -> None:
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        parts = self.feed_forward_proj.split("-")
        if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
            raise ConfigError(
                'feed_forward_proj must be "ACT" or "gated-ACT", '
                f"but is {self.feed_forward_proj!r} (config key of t5)"
            )
        self.is_gated_act = len(parts) == 2
        # "gated-gelu" is the spelling of T5 1.1's files for the tanh form.
        self.dense_act_fn = "gelu_new" if self.feed_forward_proj == "gated-gelu" else parts[-1]


def stack(c: Config, kind: type, layers: int, decoder: bool) -> Spec:
    """T5's encoder or decoder."""
    norm, drop = RMSNorm(c.d_model, eps=c.layer_norm_epsilon), c.dropout_rate
    heads = Heads(c.num_heads, width=c.d_kv)
    shared: dict[str, Any] = {"bias": False, "scale": 1.0, "dropout": drop}
    attn = Attention(c.d_model, heads, position=StackBias(), mask=Causal() if decoder else Full(), **shared)
    feed_forward = GatedFFN if c.is_gated_act else FFN
    ffn = feed_forward(c.d_model, c.d_ff, act=c.dense_act_fn, bias=False, dropout=drop)
    branches = {"attn": residual(attn, pre=norm, dropout=drop)}
    if decoder:
        across = Attention(c.d_model, heads, cross=True, **shared)
        branches["cross"] = residual(across, pre=norm, dropout=drop)
    branches["ffn"] = residual(ffn, pre=norm, dropout=drop)
    buckets = BucketBias(
        c.relative_attention_num_buckets, c.relative_attention_max_distance, c.num_heads, not decoder
    )
    return kind(
        embed=Embed(c.vocab_size, c.d_model, dropout=drop), layers=repeat(layers, Layer(**branches)),
        norm=norm, dropout=drop, position=buckets,
    )  # fmt: skip


def build(c: Config) -> EncoderDecoder:
    decoder_layers = c.num_layers if c.num_decoder_layers is None else c.num_decoder_layers
    return EncoderDecoder(stack(c, Encoder, c.num_layers, False), stack(c, Decoder, decoder_layers, True))


def build_encoder(c: Config) -> Spec:
    return stack(c, Encoder, c.num_layers, False)


def _names(c: Config, sides: dict[str, str]) -> NameMap:
    maps = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if c.is_gated_act else {"up": "wi", "down": "wo"}
    lines: dict[str, str] = {}
    for ours, theirs in sides.items():
        cross = {"cross": "EncDecAttention"} if theirs == "decoder." else {}
        lines[f"{ours}norm"] = f"{theirs}final_layer_norm"
        lines[f"{ours}position"] = f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias"
        branches = {"attn": "SelfAttention", **cross, "ffn": "DenseReluDense"}
        for index, (branch, public) in enumerate(branches.items()):
            mine, at = f"{ours}layers.{{i}}.{branch}", f"{theirs}block.{{i}}.layer.{index}"
            lines[f"{mine}.pre_norm"] = f"{at}.layer_norm"
            for part, leaf in (maps if branch == "ffn" else {p: p for p in "qkvo"}).items():
                lines[f"{mine}.{part}"] = f"{at}.{public}.{leaf}"
    first = next(iter(sides))
    lines[f"{first}embed.tokens"] = "shared"
    aliases = {f"{first}embed.tokens": ("encoder.embed_tokens", "decoder.embed_tokens")}
    # Some old files carry a table of distances for cross-attention that no layer reads.
    stray = r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
    return NameMap(lines, aliases=aliases, ignore=(stray,))


def names(c: Config) -> NameMap:
    return _names(c, {"encoder.": "encoder.", "decoder.": "decoder."})


def encoder_names(c: Config) -> NameMap:
    return _names(c, {"": "encoder."}).but(ignore=(r"(transformer\.)?decoder\..*", r"lm_head\.weight"))


HEADS = {
    "T5Model": Backbone(output=Seq2SeqModelOutput),
    "T5ForConditionalGeneration": Seq2SeqLM(
        names={"out": "lm_head"}, output=Seq2SeqLMOutput,
        scale=lambda c: c.d_model**-0.5 if c.tie_word_embeddings else None,
    ),
    "T5EncoderModel": Backbone(build=build_encoder, table=encoder_names, skeleton=TextModel),
    "T5ForSequenceClassification": Classify(
        on="end", dense="tanh", dropout=("classifier_dropout",), prefix="transformer",
        names={"dense": "classification_head.dense", "out": "classification_head.out_proj"},
        output=Seq2SeqSequenceClassifierOutput,
    ),
    "T5ForTokenClassification": TokenClassify(
        names={"out": "classifier"}, dropout=("classifier_dropout",), prefix="transformer",
        build=build_encoder, table=encoder_names, skeleton=TextModel,
    ),
    "T5ForQuestionAnswering": Span(names={"out": "qa_outputs"}, output=Seq2SeqQuestionAnsweringModelOutput),
}  # fmt: skip

family(
    "t5", config=Config, build=build, names=names, heads=HEADS, skeleton=EncoderDecoderModel, public="T5",
    width=lambda c: c.d_model, shifts_inputs=True,
)  # fmt: skip
