"""Speech to text of fairseq S2T (Wang et al. 2020, arXiv:2010.05171).

Public checkpoints: facebook/s2t-small-librispeech-asr, facebook/s2t-medium-mustc-multilingual-st, ...
Differs from BART in: gated convolutions that halve the filter banks' frames in place of the encoder's
tokens, stored waves for positions, norms before each branch.
"""

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, Decoder, Encoder, EncoderDecoder, Spec, make
from phyla.blocks.sinusoid import StoredSinusoid
from phyla.blocks.wave import Conv, frame_mask
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import bart
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.speech import SpeechToText
from phyla.outputs import Seq2SeqModelOutput
from phyla.skeletons.speech import SpeechModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 10000
    encoder_layers: int = 12
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 4
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 4
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 256
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    decoder_start_token_id: int | None = 2
    scale_embedding: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    max_source_positions: int = 6000
    max_target_positions: int = 1024
    num_conv_layers: int = 2
    conv_kernel_sizes: list = [5, 5]
    conv_channels: int = 1024
    input_feat_per_channel: int = 80
    input_channels: int = 1

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    def finish(self) -> None:
        bart.count_layers(self)
        if len(self.conv_kernel_sizes) != self.num_conv_layers:
            raise ConfigError(
                f"conv_kernel_sizes must have num_conv_layers ({self.num_conv_layers}) entries, "
                f"but are {self.conv_kernel_sizes}"
            )


class Subsampled(Block):
    """Filter banks (B, T, F) to the stream (B, T / 2^n, D): n gated convolutions, then positions."""

    def __init__(self, inputs: int, inner: int, width: int, kernels: list[int], position: Spec,
                 scale: float = 1.0, dropout: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        last = len(kernels) - 1
        self.layers = make(
            [
                Conv(inner // 2 if i else inputs, 2 * width if i == last else inner, k, 2, k // 2)
                for i, k in enumerate(kernels)
            ]
        )
        self.position, self.scale, self.dropout_prob = make(position), scale, dropout

    def real(self, mask: Tensor | None, length: int) -> Tensor | None:
        """bool (B, length): states of real frames, given the mask (B, T) of frames."""
        if mask is None:
            return None
        frames = mask.sum(-1)
        for _ in self.layers:
            frames = (frames - 1) // 2 + 1
        return frame_mask(frames, length)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = x.transpose(1, 2)
        for layer in self.layers:
            x = F.glu(layer(x), 1)
        x = x.transpose(1, 2) * self.scale
        real = self.real(mask, x.shape[1])
        seen = x.new_ones(x.shape[:2]) if real is None else real
        x = x + self.position(self.position.counted(seen)).to(x.dtype)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        return x, real


def build(c: Config) -> EncoderDecoder:
    places = (
        StoredSinusoid(n + 2, c.d_model, c.pad_token_id)
        for n in (c.max_source_positions, c.max_target_positions)
    )
    ears, mouth = places
    embed = Subsampled(
        c.input_feat_per_channel * c.input_channels, c.conv_channels, c.d_model, c.conv_kernel_sizes, ears,
        scale=c.d_model**0.5 if c.scale_embedding else 1.0, dropout=c.dropout,
    )  # fmt: skip
    return EncoderDecoder(
        bart.stack(c, Encoder, False, position=ears, place="pre").but(embed=embed),
        bart.stack(c, Decoder, True, position=mouth, place="pre"),
        shared=False,
    )


NAMES = NameMap(
    bart.side_names("encoder.", "encoder.", "pre")
    | bart.side_names("decoder.", "decoder.", "pre")
    | {
        "encoder.embed.layers.{i}": "encoder.conv.conv_layers.{i}",
        "encoder.embed.position.weight": "encoder.embed_positions.weights",
        "decoder.embed.position.weight": "decoder.embed_positions.weights",
        "decoder.embed.tokens": "decoder.embed_tokens",
    },
    prefix="model",
)

HEADS: dict[str, Head] = {
    "Speech2TextModel": Backbone(output=Seq2SeqModelOutput),
    "Speech2TextForConditionalGeneration": SpeechToText(names={"out": "lm_head"}),
}

family(
    "speech_to_text", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=SpeechModel,
    public="Speech2Text", width=lambda c: c.d_model,
)  # fmt: skip
