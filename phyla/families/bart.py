"""BART (Lewis et al. 2019, arXiv:1910.13461).

Public checkpoints: facebook/bart-large, facebook/bart-large-cnn, ...
Differs from the plain encoder-decoder in: norms after the residual sums and after the embedding, learned
positions with two unused rows in front, a stored constant on the logits.
"""

from typing import Any

from phyla.blocks import (
    FFN, Attention, Causal, Decoder, Embed, Encoder, EncoderDecoder, Full, Heads, Layer, LayerNorm, Learned,
    Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.layouts import both_names, decoder_names
from phyla.checkpoints.layouts import side_names as side_names
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Head, Seq2SeqLM, Span
from phyla.outputs import (
    CausalLMOutputWithCrossAttentions, Seq2SeqLMOutput, Seq2SeqModelOutput,
    Seq2SeqQuestionAnsweringModelOutput, Seq2SeqSequenceClassifierOutput,
)  # fmt: skip
from phyla.skeletons import EncoderDecoderModel, TextModel


def count_layers(c: PretrainedConfig) -> None:
    """The public `num_hidden_layers`, which is the encoder's count."""
    c.num_hidden_layers = c.encoder_layers


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50265
    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    activation_function: str = "gelu"
    d_model: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    classifier_dropout: float = 0.0
    scale_embedding: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    is_encoder_decoder: bool = True
    decoder_start_token_id: int | None = 2
    forced_eos_token_id: int | list | None = 2

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}
    LABELS = 3

    finish = count_layers


def stack(
    c: PretrainedConfig, kind: type, decoder: bool, position: Spec | None = None, place: str = "post",
    norm: Spec | None = None, vocabulary: int | None = None,
) -> Spec:  # fmt: skip
    """The encoder or decoder of BART and its relatives.

    position: instead of BART's table. place: where norms stand, "post" or "pre"; with "pre" the last states
    are normed too. norm: of the embedding.
    """
    side = "decoder" if decoder else "encoder"
    heads = Heads(getattr(c, f"{side}_attention_heads"))
    placed: dict[str, Any] = {place: LayerNorm(c.d_model), "dropout": c.dropout}
    attn = Attention(c.d_model, heads, mask=Causal() if decoder else Full(), dropout=c.attention_dropout)
    inner = getattr(c, f"{side}_ffn_dim")
    ffn = FFN(c.d_model, inner, act=c.activation_function, dropout=c.activation_dropout)
    branches = {"attn": residual(attn, **placed)}
    if decoder:
        across = Attention(c.d_model, heads, cross=True, dropout=c.attention_dropout)
        branches["cross"] = residual(across, **placed)
    branches["ffn"] = residual(ffn, **placed)
    scale = c.d_model**0.5 if c.scale_embedding else None
    embed = Embed(
        vocabulary or c.vocab_size, c.d_model, position=position or offset_table(c), norm=norm,
        dropout=c.dropout, scale=scale, padding=c.pad_token_id,
    )  # fmt: skip
    return kind(
        embed=embed, layers=repeat(getattr(c, f"{side}_layers"), Layer(**branches)),
        norm=LayerNorm(c.d_model) if place == "pre" else None, layer_drop=getattr(c, f"{side}_layerdrop"),
    )  # fmt: skip


def offset_table(c: PretrainedConfig) -> Spec:
    """Learned positions with two unused rows in front."""
    return Learned(c.max_position_embeddings + 2, c.d_model, offset=2)


def build(c: PretrainedConfig, **slots: Any) -> EncoderDecoder:
    """Both sides; slots as in `stack`."""
    slots = {"norm": LayerNorm(c.d_model), **slots}
    return EncoderDecoder(stack(c, Encoder, False, **slots), stack(c, Decoder, True, **slots))


def build_decoder(c: PretrainedConfig, **slots: Any) -> Spec:
    """The decoder alone; slots as in `stack`."""
    return stack(c, Decoder, True, **{"norm": LayerNorm(c.d_model), **slots})


SCORES = Seq2SeqLM(
    names={"out": "lm_head", "offset": "final_logits_bias"}, output=Seq2SeqLMOutput, offset=True
)


def classifier_heads(stem: str) -> dict[str, Head]:
    """The classes that score labels of a row and spans."""
    return {
        f"{stem}ForSequenceClassification": Classify(
            on="end", dense="tanh", dropout=("classifier_dropout",), output=Seq2SeqSequenceClassifierOutput,
            names={"dense": "classification_head.dense", "out": "classification_head.out_proj"},
        ),
        f"{stem}ForQuestionAnswering": Span(
            names={"out": "qa_outputs"}, output=Seq2SeqQuestionAnsweringModelOutput
        ),
    }  # fmt: skip


def language_heads(stem: str, build: Any, table: Any) -> dict[str, Head]:
    """The bare model, the one that translates, and the decoder alone with its `build` and `table`."""
    return {
        f"{stem}Model": Backbone(output=Seq2SeqModelOutput),
        f"{stem}ForConditionalGeneration": SCORES,
        f"{stem}ForCausalLM": CausalLM(
            names={"out": "lm_head"}, output=CausalLMOutputWithCrossAttentions, shifted=False, build=build,
            table=table, skeleton=TextModel, changes={"is_decoder": True, "is_encoder_decoder": False},
        ),
    }  # fmt: skip


NAMES = both_names()
HEADS = language_heads("Bart", build_decoder, decoder_names()) | classifier_heads("Bart")

family(
    "bart", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=EncoderDecoderModel, public="Bart",
    width=lambda c: c.d_model, shifts_inputs=True,
    bases=("BartPreTrainedModel", "BartPretrainedModel", "PretrainedBartModel"),
)  # fmt: skip
