"""Whisper (Radford et al. 2022, arXiv:2212.04356).

Public checkpoints: openai/whisper-tiny ... openai/whisper-large-v3, distil-whisper/distil-large-v3, ...
Differs from the plain encoder-decoder in: two convolutions over log-mel frames in place of the encoder's
tokens, keys without a bias, norms before each branch; `generate` follows phyla/generation/transcribe.py.
"""

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Block, Causal, Decoder, Embed, Encoder, EncoderDecoder, Full, Heads, Layer, LayerNorm,
    Learned, Spec, make, repeat, residual,
)  # fmt: skip
from phyla.blocks.sinusoid import StoredSinusoid
from phyla.blocks.wave import Conv, random_spans
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError
from phyla.families import bart
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Head
from phyla.heads.audio import SoundClassify
from phyla.heads.speech import SpeechToText
from phyla.outputs import CausalLMOutputWithCrossAttentions, Seq2SeqModelOutput
from phyla.skeletons.speech import SpeechDecoderModel, SpeechEncoderModel
from phyla.skeletons.transcriber import TranscriberModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 51865
    num_mel_bins: int = 80
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    encoder_ffn_dim: int = 1536
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    decoder_start_token_id: int | None = 50257
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 384
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    max_source_positions: int = 1500
    max_target_positions: int = 448
    pad_token_id: int | None = 50256
    bos_token_id: int | None = 50256
    eos_token_id: int | list | None = 50256
    suppress_tokens: list | None = None
    begin_suppress_tokens: list | None = [220, 50256]
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    apply_spec_augment: bool = False
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    median_filter_width: int = 7

    ALIASES = {
        "hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads",
        "num_key_value_heads": "encoder_attention_heads",
    }  # fmt: skip
    DEFAULTS = {"num_hidden_layers": None}
    finish = bart.count_layers


class MelEmbed(Block):
    """Log-mel frames (B, M, 2 S) to the stream (B, S, D): two convolutions, then stored waves.

    time, channel: (probability, length, least count) of the spans that training sets to 0.
    """

    def __init__(
        self, mels: int, width: int, positions: int, dropout: float,
        time: tuple[float, int, int] = (0.0, 0, 0), channel: tuple[float, int, int] = (0.0, 0, 0),
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1, self.conv2 = make(Conv(mels, width, 3, padding=1)), make(Conv(width, width, 3, 2, 1))
        self.position = make(StoredSinusoid(positions, width))
        self.mels, self.dropout_prob, self.time, self.channel = mels, dropout, time, channel

    def real(self, mask: Tensor | None, length: int) -> None:
        """None: padding is silence, which the encoder hears like any other sound."""

    def hide(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The masks of training (SpecAugment) on x (B, M, T)."""
        if self.time[0]:
            lengths = None if mask is None else mask.sum(-1)
            x = x.masked_fill(random_spans(x, x.shape[2], *self.time, lengths)[:, None], 0)
        if self.channel[0]:
            x = x.masked_fill(random_spans(x, x.shape[1], *self.channel)[..., None], 0)
        return x

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
        frames = self.position.weight.shape[0] * 2
        if x.shape[1:] != (self.mels, frames):
            raise ArgumentError(
                f"input_features must be (batch, {self.mels}, {frames}), "
                f"but are {tuple(x.shape)}; pad or cut them to that length"
            )
        if self.training:
            x = self.hide(x, mask)
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)
        x = x + self.position.weight.to(x.dtype)
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x, None


def layers(c: Config, decoder: bool) -> tuple[Spec, ...]:
    """The layers of one side."""
    side = "decoder" if decoder else "encoder"
    heads, norm = Heads(getattr(c, f"{side}_attention_heads")), LayerNorm(c.d_model)
    attn = Attention(
        c.d_model, heads, mask=Causal() if decoder else Full(), bias="qv", out_bias=True,
        dropout=c.attention_dropout,
    )  # fmt: skip
    inner = getattr(c, f"{side}_ffn_dim")
    branches: dict[str, Spec] = (
        {"attn": attn, "cross": attn.but(cross=True, mask=Full())} if decoder else {"attn": attn}
    )
    branches["ffn"] = FFN(c.d_model, inner, act=c.activation_function, dropout=c.activation_dropout)
    layer = Layer(**{name: residual(part, pre=norm, dropout=c.dropout) for name, part in branches.items()})
    return repeat(getattr(c, f"{side}_layers"), layer)


def build_encoder(c: Config) -> Spec:
    time = (
        (c.mask_time_prob, c.mask_time_length, c.mask_time_min_masks) if c.apply_spec_augment else (0, 0, 0)
    )
    channel = (c.mask_feature_prob, c.mask_feature_length, c.mask_feature_min_masks)
    channel = channel if c.apply_spec_augment else (0, 0, 0)
    embed = MelEmbed(c.num_mel_bins, c.d_model, c.max_source_positions, c.dropout, time, channel)
    return Encoder(embed, layers(c, False), LayerNorm(c.d_model), layer_drop=c.encoder_layerdrop)


def build_decoder(c: Config) -> Spec:
    embed = Embed(
        c.vocab_size, c.d_model, position=Learned(c.max_target_positions, c.d_model), dropout=c.dropout,
        padding=c.pad_token_id,
    )  # fmt: skip
    return Decoder(embed, layers(c, True), LayerNorm(c.d_model), layer_drop=c.decoder_layerdrop)


def build(c: Config) -> EncoderDecoder:
    return EncoderDecoder(build_encoder(c), build_decoder(c), shared=False)


def side(ours: str, theirs: str) -> dict[str, str]:
    """Lines of one side."""
    lines = bart.side_names(ours, theirs, "pre")
    if theirs == "encoder.":
        return lines | {f"{ours}embed.conv{i}": f"{theirs}conv{i}" for i in (1, 2)}
    return lines | {f"{ours}embed.tokens": f"{theirs}embed_tokens"}


NAMES = NameMap(side("encoder.", "encoder.") | side("decoder.", "decoder."), prefix="model")
# Files of the whole model hold the other side too.
ENCODER = NameMap(side("", "encoder."), prefix="", ignore=(r"decoder\..*", r"model\.decoder\..*"))
DECODER = NameMap(side("", "decoder."), prefix="model", ignore=(r"(model\.)?encoder\..*",))

HEADS: dict[str, Head] = {
    "WhisperModel": Backbone(output=Seq2SeqModelOutput),
    "WhisperForConditionalGeneration": SpeechToText(names={"out": "proj_out"}),
    "WhisperForCausalLM": CausalLM(
        names={"out": "proj_out"}, output=CausalLMOutputWithCrossAttentions, shifted=False,
        build=build_decoder, table=DECODER, skeleton=SpeechDecoderModel,
        changes={"is_encoder_decoder": False},
    ),
    "WhisperForAudioClassification": SoundClassify(
        names={"mix.weight": "layer_weights", "project": "projector", "out": "classifier"},
        build=build_encoder, table=ENCODER, skeleton=SpeechEncoderModel,
    ),
}  # fmt: skip

family(
    "whisper", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TranscriberModel,
    public="Whisper", width=lambda c: c.d_model,
)  # fmt: skip
