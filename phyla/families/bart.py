"""BART (Lewis et al. 2019, arXiv:1910.13461).

Public checkpoints: facebook/bart-large, facebook/bart-large-cnn, ...
Differs from the plain encoder-decoder in: norms after the residual sums and after the embedding, learned
positions with two unused rows in front, a stored constant on the logits.
"""

from phyla.blocks import (
    FFN, Attention, Causal, Decoder, Embed, Encoder, EncoderDecoder, Full, Heads, Layer, LayerNorm, Learned,
    Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Seq2SeqLM, Span
from phyla.outputs import (
    CausalLMOutputWithCrossAttentions, Seq2SeqLMOutput, Seq2SeqModelOutput,
    Seq2SeqQuestionAnsweringModelOutput, Seq2SeqSequenceClassifierOutput,
)  # fmt: skip
from phyla.skeletons import EncoderDecoderModel, TextModel


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

    def finish(self) -> None:
        self.num_hidden_layers = self.encoder_layers


def stack(c: Config, kind: type, decoder: bool) -> Spec:
    """BART's encoder or decoder."""
    side = "decoder" if decoder else "encoder"
    heads = Heads(getattr(c, f"{side}_attention_heads"))
    norm = LayerNorm(c.d_model)
    attn = Attention(c.d_model, heads, mask=Causal() if decoder else Full(), dropout=c.attention_dropout)
    inner = getattr(c, f"{side}_ffn_dim")
    ffn = FFN(c.d_model, inner, act=c.activation_function, dropout=c.activation_dropout)
    branches = {"attn": residual(attn, post=norm, dropout=c.dropout)}
    if decoder:
        across = Attention(c.d_model, heads, cross=True, dropout=c.attention_dropout)
        branches["cross"] = residual(across, post=norm, dropout=c.dropout)
    branches["ffn"] = residual(ffn, post=norm, dropout=c.dropout)
    scale = c.d_model**0.5 if c.scale_embedding else None
    embed = Embed(
        c.vocab_size, c.d_model, position=Learned(c.max_position_embeddings + 2, c.d_model, offset=2),
        norm=norm, dropout=c.dropout, scale=scale, padding=c.pad_token_id,
    )  # fmt: skip
    return kind(
        embed=embed, layers=repeat(getattr(c, f"{side}_layers"), Layer(**branches)),
        layer_drop=getattr(c, f"{side}_layerdrop"),
    )  # fmt: skip


def build(c: Config) -> EncoderDecoder:
    return EncoderDecoder(stack(c, Encoder, False), stack(c, Decoder, True))


def build_decoder(c: Config) -> Spec:
    return stack(c, Decoder, True)


_ATTENTIONS = {"attn": "self_attn", "cross": "encoder_attn"}


def side_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of one side, our paths beginning with `ours`."""
    at, to = f"{ours}layers.{{i}}", f"{theirs}layers.{{i}}"
    lines = {
        f"{ours}embed.position": f"{theirs}embed_positions",
        f"{ours}embed.norm": f"{theirs}layernorm_embedding",
    }
    for branch, attention in _ATTENTIONS.items():
        lines[f"{at}.{branch}.post_norm"] = f"{to}.{attention}_layer_norm"
        for part, public in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}.items():
            lines[f"{at}.{branch}.{part}"] = f"{to}.{attention}.{public}"
    return lines | {
        f"{at}.ffn.up": f"{to}.fc1",
        f"{at}.ffn.down": f"{to}.fc2",
        f"{at}.ffn.post_norm": f"{to}.final_layer_norm",
    }


SIDES = side_names("encoder.", "encoder.") | side_names("decoder.", "decoder.")
NAMES = NameMap(
    SIDES | {"encoder.embed.tokens": "shared"},
    prefix="model",
    aliases={"encoder.embed.tokens": ("encoder.embed_tokens", "decoder.embed_tokens")},
)
DECODER_NAMES = NameMap(
    side_names("", "decoder.") | {"embed.tokens": "decoder.embed_tokens"},
    prefix="model",
    aliases={"embed.tokens": ("shared",)},
    ignore=(r"(model\.)?encoder\..*", "final_logits_bias"),
)

HEADS = {
    "BartModel": Backbone(output=Seq2SeqModelOutput),
    "BartForConditionalGeneration": Seq2SeqLM(
        names={"out": "lm_head", "offset": "final_logits_bias"}, output=Seq2SeqLMOutput, offset=True
    ),
    "BartForSequenceClassification": Classify(
        on="end", dense="tanh", dropout=("classifier_dropout",), output=Seq2SeqSequenceClassifierOutput,
        names={"dense": "classification_head.dense", "out": "classification_head.out_proj"},
    ),
    "BartForQuestionAnswering": Span(names={"out": "qa_outputs"}, output=Seq2SeqQuestionAnsweringModelOutput),
    "BartForCausalLM": CausalLM(
        names={"out": "lm_head"}, output=CausalLMOutputWithCrossAttentions, shifted=False,
        build=build_decoder, table=DECODER_NAMES, skeleton=TextModel,
        changes={"is_decoder": True, "is_encoder_decoder": False},
    ),
}  # fmt: skip

family(
    "bart", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=EncoderDecoderModel, public="Bart",
    width=lambda c: c.d_model, shifts_inputs=True,
)  # fmt: skip
