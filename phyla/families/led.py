"""LED, the Longformer encoder-decoder (Beltagy et al. 2020, arXiv:2004.05150, section 7).

Public checkpoints: allenai/led-base-16384, allenai/led-large-16384-arxiv, ...
Differs from BART in: the encoder's attention within windows and to global tokens; positions without
unused rows.
"""

from phyla.blocks import (
    FFN, Attention, Causal, Decoder, Embed, Encoder, EncoderDecoder, Heads, Layer, LayerNorm, Learned, Spec,
    residual,
)  # fmt: skip
from phyla.blocks.local import BandedAttention
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import bart, longformer
from phyla.family import family
from phyla.heads import Backbone, Classify, Seq2SeqLM, Span
from phyla.outputs import (
    LEDSeq2SeqLMOutput, LEDSeq2SeqModelOutput, LEDSeq2SeqQuestionAnsweringModelOutput,
    LEDSeq2SeqSequenceClassifierOutput,
)  # fmt: skip
from phyla.skeletons import GlobalEncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50265
    max_encoder_position_embeddings: int = 16384
    max_decoder_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    decoder_start_token_id: int | None = 2
    classifier_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    attention_window: int | list = 512

    ALIASES = {
        "hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads",
        "attention_probs_dropout_prob": "attention_dropout", "initializer_range": "init_std",
    }  # fmt: skip
    DEFAULTS = {"num_hidden_layers": None}

    def finish(self) -> None:
        self.num_hidden_layers = self.encoder_layers
        longformer.windows(self, self.encoder_layers)


def stack(c: Config, kind: type, decoder: bool) -> Spec:
    """LED's encoder or decoder."""
    side = "decoder" if decoder else "encoder"
    heads, norm = Heads(getattr(c, f"{side}_attention_heads")), LayerNorm(c.d_model)
    if decoder:
        plain = Attention(c.d_model, heads, mask=Causal(), dropout=c.attention_dropout)
        mixers = [{"attn": plain, "cross": plain.but(cross=True)}] * c.decoder_layers
    else:
        windows = longformer.windows(c, c.encoder_layers)
        mixers = [{"attn": BandedAttention(c.d_model, heads, w, c.attention_dropout)} for w in windows]
    inner = getattr(c, f"{side}_ffn_dim")
    ffn = FFN(c.d_model, inner, act=c.activation_function, dropout=c.activation_dropout)
    layers = [
        Layer(**{name: residual(m, post=norm, dropout=c.dropout) for name, m in {**some, "ffn": ffn}.items()})
        for some in mixers
    ]
    positions = Learned(getattr(c, f"max_{side}_position_embeddings"), c.d_model)
    return kind(
        embed=Embed(
            c.vocab_size, c.d_model, position=positions, norm=norm, dropout=c.dropout, padding=c.pad_token_id
        ),
        layers=layers,
        layer_drop=getattr(c, f"{side}_layerdrop"),
    )


def build(c: Config) -> EncoderDecoder:
    return EncoderDecoder(stack(c, Encoder, False), stack(c, Decoder, True))


def encoder_names() -> dict[str, str]:
    """Lines of the encoder's attention."""
    ours, theirs = "encoder.layers.{i}.attn", "encoder.layers.{i}.self_attn"
    lines = {f"{ours}.o": f"{theirs}.output"}
    for part, public in {"q": "query", "k": "key", "v": "value"}.items():
        lines[f"{ours}.{part}"] = f"{theirs}.longformer_self_attn.{public}"
        lines[f"{ours}.{part}_global"] = f"{theirs}.longformer_self_attn.{public}_global"
    return lines


SIDES = bart.side_names("encoder.", "encoder.") | bart.side_names("decoder.", "decoder.")
NAMES = NameMap(
    SIDES | encoder_names() | {"encoder.embed.tokens": "shared"},
    prefix="led",
    aliases={"encoder.embed.tokens": ("encoder.embed_tokens", "decoder.embed_tokens")},
)

HEADS = {
    "LEDModel": Backbone(output=LEDSeq2SeqModelOutput),
    "LEDForConditionalGeneration": Seq2SeqLM(
        names={"out": "lm_head", "offset": "final_logits_bias"}, output=LEDSeq2SeqLMOutput, offset=True
    ),
    "LEDForSequenceClassification": Classify(
        on="end", dense="tanh", dropout=("classifier_dropout",), output=LEDSeq2SeqSequenceClassifierOutput,
        names={"dense": "classification_head.dense", "out": "classification_head.out_proj"},
    ),
    "LEDForQuestionAnswering": Span(
        names={"out": "qa_outputs"}, output=LEDSeq2SeqQuestionAnsweringModelOutput
    ),
}  # fmt: skip

family(
    "led", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=GlobalEncoderDecoderModel,
    public="LED", width=lambda c: c.d_model, shifts_inputs=True,
)  # fmt: skip
