"""SpeechT5 (Ao et al. 2021, arXiv:2110.07205): one encoder-decoder for speech and text on either side.

Public checkpoints: microsoft/speecht5_asr, microsoft/speecht5_tts, microsoft/speecht5_vc.
Differs from BART in: what stands before and behind each side (text, samples, frames of a spectrogram), and
learned vectors of the distance that all layers of the encoder share.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Attention, Block, Causal, Context, Decoder, Embed, Encoder, EncoderDecoder, Heads, Layer, LayerNorm,
    Linear, Spec, make, repeat, residual,
)  # fmt: skip
from phyla.blocks.embed import Tokens
from phyla.blocks.position import Position
from phyla.blocks.sinusoid import StoredSinusoid
from phyla.blocks.wave import ConvPosition, Hidden, WaveFeatures, frame_mask
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.speaking import Revoice, Speak
from phyla.heads.speech import SpeechToText
from phyla.outputs import Seq2SeqModelOutput
from phyla.skeletons.speaking import SpeakingModel, TextSpeakingModel, WaveToTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 81
    hidden_size: int = 768
    encoder_layers: int = 12
    encoder_attention_heads: int = 12
    encoder_ffn_dim: int = 3072
    encoder_layerdrop: float = 0.1
    decoder_layers: int = 6
    decoder_ffn_dim: int = 3072
    decoder_attention_heads: int = 12
    decoder_layerdrop: float = 0.1
    hidden_act: str = "gelu"
    positional_dropout: float = 0.1
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    scale_embedding: bool = False
    feat_extract_norm: str = "group"
    feat_proj_dropout: float = 0.0
    feat_extract_activation: str = "gelu"
    conv_dim: list = [512] * 7
    conv_stride: list = [5, 2, 2, 2, 2, 2, 2]
    conv_kernel: list = [10, 3, 3, 3, 3, 2, 2]
    conv_bias: bool = False
    num_feat_extract_layers: int | None = None
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    decoder_start_token_id: int | None = 2
    num_mel_bins: int = 80
    speech_decoder_prenet_layers: int = 2
    speech_decoder_prenet_units: int = 256
    speech_decoder_prenet_dropout: float = 0.5
    speaker_embedding_dim: int = 512
    speech_decoder_postnet_layers: int = 5
    speech_decoder_postnet_units: int = 256
    speech_decoder_postnet_kernel: int = 5
    speech_decoder_postnet_dropout: float = 0.5
    reduction_factor: int = 2
    max_speech_positions: int = 4000
    max_text_positions: int = 450
    encoder_max_relative_position: int = 160
    use_guided_attention_loss: bool = True
    guided_attention_loss_num_heads: int = 2
    guided_attention_loss_sigma: float = 0.4
    guided_attention_loss_scale: float = 10.0
    use_cache: bool = True
    is_encoder_decoder: bool = True

    ALIASES = {"num_attention_heads": "encoder_attention_heads", "num_hidden_layers": "encoder_layers"}

    def finish(self) -> None:
        if self.num_feat_extract_layers is None:
            self.num_feat_extract_layers = len(self.conv_dim)


class Distances(Block):
    """A vector (E) for each distance up to `reach` on either side, shared by the layers of a stack."""

    def __init__(self, reach: int, width: int) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(2 * reach, width))

    def forward(self, length: int) -> Tensor:
        """(S, S, E)."""
        place = torch.arange(length, device=self.weight.device)
        distance = (place[:, None] - place[None]).clamp(-self.reach, self.reach - 1) + self.reach
        return F.embedding(distance, self.weight)


class StackDistances(Position):
    """Queries scored against the vectors of the distance that the stack owns."""

    def bias(self, q: Tensor, k: Tensor, first: int, scale: float, ctx: Context) -> Tensor:
        table = ctx.once("distances", lambda: ctx.memo["stack-bias"](ctx.length))
        return torch.einsum("bhse,ske->bhsk", q, table) * scale


class Waves(Block):
    """x + alpha * waves over the places (Li et al. 2018, arXiv:1809.08895, section 3.2)."""

    def __init__(self, positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout_prob = dropout
        self.alpha = nn.Parameter(torch.empty(()))
        self.register_buffer("table", torch.empty(positions, width), persistent=False)

    def fill_buffers(self) -> None:
        positions, width = self.table.shape
        steps = torch.exp(torch.arange(0, width, 2).float() * -(math.log(10000.0) / width))
        angles = torch.arange(positions).float()[:, None] * steps
        self.table.copy_(torch.stack((angles.sin(), angles.cos()), -1).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.alpha * self.table[: x.shape[1]].to(x.dtype)
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x

    def reset(self, std: float) -> bool:
        nn.init.ones_(self.alpha)
        return True


class Entry(Block):
    """What an encoder begins with: the source as states, normed; None: the source is states already."""

    def __init__(self, source: Spec | None, norm: Spec, dropout: float) -> None:
        super().__init__()
        self.source, self.norm, self.dropout_prob = make(source), make(norm), dropout

    @property
    def features(self) -> nn.Module:
        """The convolutions that read samples."""
        return self.source.features

    def real(self, mask: Tensor | None, length: int) -> Tensor | None:
        """The mask of the states."""
        count = getattr(self.source, "real", None)
        return mask if mask is None or count is None else count(mask, length)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.source is not None:
            x = self.source(x, mask)
        real = self.real(mask, x.shape[1])
        x = self.norm(x)
        return (F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x), real


class TextSource(Block):
    """Token ids (B, S) to states (B, S, D)."""

    def __init__(self, vocabulary: int, width: int, padding: int | None, waves: Spec) -> None:
        super().__init__()
        self.tokens, self.waves = Tokens(vocabulary, width, padding), make(waves)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return self.waves(self.tokens(ids))


class SpeechSource(Block):
    """Samples (B, T) to states (B, S, D)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        count, width = c.num_feat_extract_layers, c.hidden_size
        shapes = (c.conv_dim[:count], c.conv_kernel[:count], c.conv_stride[:count])
        act = c.feat_extract_activation
        self.features = make(WaveFeatures(*shapes, c.feat_extract_norm, act, c.conv_bias))
        self.features_norm = make(LayerNorm(c.conv_dim[-1], c.layer_norm_eps))
        self.project, self.dropout_prob = Linear(c.conv_dim[-1], width), c.feat_proj_dropout
        time = (c.mask_time_prob, c.mask_time_length, c.mask_time_min_masks)
        channel = (c.mask_feature_prob, c.mask_feature_length, c.mask_feature_min_masks)
        self.hidden = make(Hidden(width, time, channel, c.apply_spec_augment))
        self.near = make(ConvPosition(width, c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups, act))
        padding = c.pad_token_id or 0
        self.position = make(StoredSinusoid(c.max_speech_positions + padding + 3, width, padding))

    def real(self, mask: Tensor, length: int) -> Tensor:
        """bool (B, length): states of real samples, given their mask (B, T)."""
        return frame_mask(self.features.length(mask.sum(-1)), length)

    def forward(self, wave: Tensor, mask: Tensor | None) -> Tensor:
        x = self.project(self.features_norm(self.features(wave)))
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        real = x.new_ones(x.shape[:2]) if mask is None else self.real(mask, x.shape[1])
        x = self.near(self.hidden(x, None, None if mask is None else real.sum(-1)))
        return x + self.position(self.position.counted(real)).to(x.dtype)


class FrameSource(Block):
    """Frames so far (B, T, M) and a voice (B, V) to the decoder's states.

    Its dropout never sleeps (Shen et al. 2017, arXiv:1712.05884, section 2.2), and is one for all rows.
    """

    def __init__(self, c: Config) -> None:
        super().__init__()
        units = c.speech_decoder_prenet_units
        widths = [c.num_mel_bins, *[units] * c.speech_decoder_prenet_layers]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.last, self.drop = Linear(units, c.hidden_size), c.speech_decoder_prenet_dropout
        self.waves = make(Waves(c.max_speech_positions, c.hidden_size, c.positional_dropout))
        self.voice = Linear(c.speaker_embedding_dim + c.hidden_size, c.hidden_size)

    def forward(self, frames: Tensor, voice: Tensor | None, ctx: Context) -> Tensor:
        x = frames
        for layer in self.layers:
            x = F.relu(layer(x))
            kept = torch.bernoulli(x[0], p=1 - self.drop)
            x = torch.where(kept == 1, x, 0) / (1 - self.drop)
        x = self.waves(self.last(x))
        if voice is None:
            return x
        voice = F.normalize(voice)[:, None].expand(-1, x.shape[1], -1)
        return F.relu(self.voice(torch.cat((x, voice), -1)))


class Given(Block):
    """States that the caller made."""

    def forward(self, x: Tensor, voice: Tensor | None, ctx: Context) -> Tensor:
        return x


def layers(c: Config, decoder: bool) -> tuple[Spec, ...]:
    """The layers of one side."""
    side = "decoder" if decoder else "encoder"
    norm, drop = LayerNorm(c.hidden_size, c.layer_norm_eps), c.hidden_dropout
    heads = Heads(getattr(c, f"{side}_attention_heads"))
    attn = Attention(c.hidden_size, heads, dropout=c.attention_dropout)
    ffn = FFN(c.hidden_size, getattr(c, f"{side}_ffn_dim"), act=c.hidden_act, dropout=c.activation_dropout)
    own = attn.but(mask=Causal()) if decoder else attn.but(position=StackDistances())
    parts = {"attn": own, **({"cross": attn.but(cross=True)} if decoder else {}), "ffn": ffn}
    layer = Layer(**{name: residual(part, post=norm, dropout=drop) for name, part in parts.items()})
    return repeat(getattr(c, f"{side}_layers"), layer)


def build(c: Config, source: str = "", target: str = "") -> EncoderDecoder:
    """Encoder and decoder with what stands before them: source "text", "speech" or "" for ready states."""
    padding, width = c.pad_token_id or 0, c.hidden_size
    sources = {
        "text": TextSource(
            c.vocab_size, width, c.pad_token_id, Waves(c.max_text_positions, width, c.positional_dropout)
        ),
        "speech": SpeechSource(c),
    }
    targets = {
        "text": Embed(
            c.vocab_size, width, position=StoredSinusoid(c.max_text_positions + padding + 3, width, padding),
            dropout=c.positional_dropout, scale=width**0.5 if c.scale_embedding else None,
            padding=c.pad_token_id,
        ),
        "speech": FrameSource(c),
    }  # fmt: skip
    entry = Entry(sources.get(source), LayerNorm(width, c.layer_norm_eps), c.hidden_dropout)
    distances = Distances(c.encoder_max_relative_position, Heads(c.encoder_attention_heads).resolve(width)[2])
    return EncoderDecoder(
        Encoder(entry, layers(c, False), position=distances, layer_drop=c.encoder_layerdrop),
        Decoder(targets.get(target, Given()), layers(c, True), layer_drop=c.decoder_layerdrop),
        shared=False,
    )


def names(c: Config) -> NameMap:
    ear, mouth, at = "encoder.embed.source.", "decoder.embed.", "layers.{i}"
    inner, outer = "encoder.prenet.", "decoder.prenet."
    conv = f"{inner}pos_conv_embed.conv"
    lines = {
        f"{ear}tokens": f"{inner}embed_tokens",
        f"{ear}waves.alpha": f"{inner}encode_positions.alpha",
        f"{ear}features.layers.{{i}}.conv": f"{inner}feature_encoder.conv_layers.{{i}}.conv",
        f"{ear}features.layers.{{i}}.norm": f"{inner}feature_encoder.conv_layers.{{i}}.layer_norm",
        f"{ear}features.layers.{{i}}.norm.norm": f"{inner}feature_encoder.conv_layers.{{i}}.layer_norm",
        f"{ear}features_norm": f"{inner}feature_projection.layer_norm",
        f"{ear}project": f"{inner}feature_projection.projection",
        f"{ear}hidden.vector": f"{inner}masked_spec_embed",
        f"{ear}near.conv": conv,
        f"{ear}near.conv.gain": f"{conv}.parametrizations.weight.original0",
        f"{ear}near.conv.direction": f"{conv}.parametrizations.weight.original1",
        f"{ear}position.weight": f"{inner}pos_sinusoidal_embed.weights",
        "encoder.embed.norm": "encoder.wrapped_encoder.layer_norm",
        "encoder.position": "encoder.wrapped_encoder.embed_positions.pe_k",
        f"{mouth}tokens": f"{outer}embed_tokens",
        f"{mouth}position.weight": f"{outer}embed_positions.weights",
        f"{mouth}layers.{{i}}": f"{outer}layers.{{i}}",
        f"{mouth}last": f"{outer}final_layer",
        f"{mouth}waves.alpha": f"{outer}encode_positions.alpha",
        f"{mouth}voice": f"{outer}speaker_embeds_layer",
    }
    sides = {
        "encoder": {"attn": ("attention", "layer_norm")},
        "decoder": {
            "attn": ("self_attn", "self_attn_layer_norm"),
            "cross": ("encoder_attn", "encoder_attn_layer_norm"),
        },
    }  # fmt: skip
    for side, attentions in sides.items():
        mine, theirs = f"{side}.{at}", f"{side}.wrapped_{side}.{at}"
        for ours, (public, norm) in attentions.items():
            parts = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
            lines |= {f"{mine}.{ours}.{p}": f"{theirs}.{public}.{name}" for p, name in parts.items()}
            lines[f"{mine}.{ours}.post_norm"] = f"{theirs}.{norm}"
        lines[f"{mine}.ffn.up"] = f"{theirs}.feed_forward.intermediate_dense"
        lines[f"{mine}.ffn.down"] = f"{theirs}.feed_forward.output_dense"
        lines[f"{mine}.ffn.post_norm"] = f"{theirs}.final_layer_norm"
    aliases = {
        f"{ear}near.conv.gain": (f"{conv}.weight_g",),
        f"{ear}near.conv.direction": (f"{conv}.weight_v",),
    }
    return NameMap(lines, prefix="speecht5", aliases=aliases)


FRAMES = {
    "out": "speech_decoder_postnet.feat_out",
    "stop": "speech_decoder_postnet.prob_out",
    "layers.{i}.conv": "speech_decoder_postnet.layers.{i}.conv",
    "layers.{i}.norm": "speech_decoder_postnet.layers.{i}.batch_norm",
}
HEADS: dict[str, Head] = {
    "SpeechT5Model": Backbone(output=Seq2SeqModelOutput),
    "SpeechT5ForSpeechToText": SpeechToText(
        names={"out": "text_decoder_postnet.lm_head"}, build=lambda c: build(c, "speech", "text"),
        skeleton=WaveToTextModel,
    ),
    "SpeechT5ForTextToSpeech": Speak(
        names=FRAMES, build=lambda c: build(c, "text", "speech"), skeleton=TextSpeakingModel
    ),
    "SpeechT5ForSpeechToSpeech": Revoice(names=FRAMES, build=lambda c: build(c, "speech", "speech")),
}  # fmt: skip

family(
    "speecht5", config=Config, build=build, names=names, heads=HEADS, skeleton=SpeakingModel,
    public="SpeechT5",
)  # fmt: skip
