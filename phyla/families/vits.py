"""VITS (Kim et al. 2021, arXiv:2106.06103): text to sound in one pass.

Public checkpoints: facebook/mms-tts-eng in 1,100 languages, kakao-enterprise/vits-ljs, vits-vctk.
Parts: a text encoder with a window of relative keys and values, durations by chance (a flow of splines), a
flow that makes frames of the text's distribution, and HiFi-GAN's generator. Only speaking is there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    Attention, Block, Context, Encoder, Heads, Layer, LayerNorm, Mixer, Spec, activation, make, repeat,
    residual,
)  # fmt: skip
from phyla.blocks.embed import Tokens
from phyla.blocks.flow import Affine, Separable, WaveNet, unbend
from phyla.blocks.mask import self_mask
from phyla.blocks.vocoder import Vocoder, vocoder_names
from phyla.blocks.wave import Conv, OverChannels
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.outputs import VitsModelOutput
from phyla.skeletons.speaking import TextToWaveModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 38
    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 2
    window_size: int | None = 4
    use_bias: bool = True
    ffn_dim: int = 768
    layerdrop: float = 0.1
    ffn_kernel_size: int = 3
    flow_size: int = 192
    spectrogram_bins: int = 513
    hidden_act: str = "relu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    use_stochastic_duration_prediction: bool = True
    num_speakers: int = 1
    speaker_embedding_size: int = 0
    upsample_initial_channel: int = 512
    upsample_rates: list = [8, 8, 2, 2]
    upsample_kernel_sizes: list = [16, 16, 4, 4]
    resblock_kernel_sizes: list = [3, 7, 11]
    resblock_dilation_sizes: list = [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    leaky_relu_slope: float = 0.1
    depth_separable_channels: int = 2
    depth_separable_num_layers: int = 3
    duration_predictor_flow_bins: int = 10
    duration_predictor_tail_bound: float = 5.0
    duration_predictor_kernel_size: int = 3
    duration_predictor_dropout: float = 0.5
    duration_predictor_num_flows: int = 4
    duration_predictor_filter_channels: int = 256
    prior_encoder_num_flows: int = 4
    prior_encoder_num_wavenet_layers: int = 4
    posterior_encoder_num_wavenet_layers: int = 16
    wavenet_kernel_size: int = 5
    wavenet_dilation_rate: int = 1
    wavenet_dropout: float = 0.0
    speaking_rate: float = 1.0
    noise_scale: float = 0.667
    noise_scale_duration: float = 0.8
    sampling_rate: int = 16000

    def finish(self) -> None:
        if len(self.upsample_kernel_sizes) != len(self.upsample_rates):
            raise ConfigError(
                f"upsample_kernel_sizes must have an entry for each of upsample_rates "
                f"({len(self.upsample_rates)}), but have {len(self.upsample_kernel_sizes)}"
            )


class WindowAttention(Attention):
    """Attention whose keys and values differ with the distance up to `window` (arXiv:1803.02155, eq. 3-4)."""

    def __init__(self, width: int, heads: Heads, window: int, bias: bool, dropout: float) -> None:
        super().__init__(width, heads, bias=bias, dropout=dropout)
        self.window = window
        if window:
            shape = (1, 2 * window + 1, self.head_width)
            self.near_k, self.near_v = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        q, k, v = self.project(x, x)
        mask = self_mask(self.mask, ctx, 0, x.shape[1])
        bias = self.near(q) if self.window else None
        dropout = self.attention_dropout if self.training else 0.0
        y, weights = self._attend_openly(q, k, v, mask, bias, dropout, ctx)
        if ctx.attentions is not None:
            ctx.attentions.append(weights)
        if self.window:
            y = y + self.spread(weights)
        return self.o(y.transpose(1, 2).flatten(2))

    def near(self, q: Tensor) -> Tensor:
        """(B, H, S, S): scores against the vectors of the distance, 0 beyond the window."""
        place = torch.arange(q.shape[2], device=q.device)
        distance = place[None] - place[:, None] + self.window  # (S, S), 0 at the window's left edge
        index = distance.clamp(0, 2 * self.window).expand(*q.shape[:2], -1, -1)
        scores = torch.matmul(q, self.near_k[0].T).gather(3, index) * self.scale
        return scores.masked_fill((distance < 0) | (distance > 2 * self.window), 0)

    def spread(self, weights: Tensor) -> Tensor:
        """(B, H, S, E): the vectors of the distance, weighted."""
        length = weights.shape[3]
        place = torch.arange(length, device=weights.device)[:, None]
        key = place + torch.arange(-self.window, self.window + 1, device=weights.device)  # (S, 2 w + 1)
        index = key.clamp(0, length - 1).expand(*weights.shape[:2], -1, -1)
        seen = weights.gather(3, index).masked_fill((key < 0) | (key >= length), 0)
        return torch.matmul(seen, self.near_v[0])


def real(ctx: Context, x: Tensor) -> Tensor:
    """(B, 1, S): 1 at real tokens."""
    mask = ctx.attention_mask
    return x.new_ones(1, 1, ctx.length) if mask is None else mask[:, None].to(x.dtype)


class ConvFFN(Mixer):
    """Two convolutions over the text, padding at 0. x (B, S, D)."""

    def __init__(self, width: int, inner: int, kernel: int, act: str, dropout: float) -> None:
        super().__init__()
        self.up, self.down = make(Conv(width, inner, kernel)), make(Conv(inner, width, kernel))
        self.act, self.inner_dropout, self.sides = activation(act), dropout, ((kernel - 1) // 2, kernel // 2)

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        keep = real(ctx, x)
        h = self.act(self.up(F.pad(x.transpose(1, 2) * keep, self.sides)))
        if self.training and self.inner_dropout:
            h = F.dropout(h, self.inner_dropout)
        return (self.down(F.pad(h * keep, self.sides)) * keep).transpose(1, 2)


def wave_net(c: Config, layers: int) -> Spec:
    """Gated convolutions of the configuration's shape."""
    rate, drop = c.wavenet_dilation_rate, c.wavenet_dropout
    return WaveNet(c.hidden_size, layers, c.wavenet_kernel_size, rate, drop, c.speaker_embedding_size)


def separable(c: Config, dropout: float = 0.0) -> Spec:
    """Separable convolutions of the configuration's shape."""
    kernel = c.duration_predictor_kernel_size
    return Separable(c.hidden_size, kernel, c.depth_separable_num_layers, dropout)


class Posterior(Block):
    """What training reads true frames with; files hold it, speaking does without."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.pre = make(Conv(c.spectrogram_bins, c.hidden_size, 1))
        self.net = make(wave_net(c, c.posterior_encoder_num_wavenet_layers))
        self.out = make(Conv(c.hidden_size, 2 * c.flow_size, 1))


class Coupling(Block):
    """One half of the channels moved by what the other says (Dinh et al. 2016, arXiv:1605.08803)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        half = c.flow_size // 2
        self.pre, self.out = make(Conv(half, c.hidden_size, 1)), make(Conv(c.hidden_size, half, 1))
        self.net = make(wave_net(c, c.prior_encoder_num_wavenet_layers))

    def inverse(self, x: Tensor, keep: Tensor, voice: Tensor | None) -> Tensor:
        """x (B, C, S) before the move."""
        first, second = x.chunk(2, 1)
        mean = self.out(self.net(self.pre(first) * keep, keep, voice)) * keep
        return torch.cat((first, (second - mean) * keep), 1)


class SplineFlow(Block):
    """One half of the channels bent by splines that the other chooses (Durkan et al., arXiv:1906.04032)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.side, self.bins, self.bound = (
            c.depth_separable_channels // 2, c.duration_predictor_flow_bins, c.duration_predictor_tail_bound,
        )  # fmt: skip
        self.width = c.hidden_size
        self.pre, self.net = make(Conv(self.side, c.hidden_size, 1)), make(separable(c))
        self.out = make(Conv(c.hidden_size, self.side * (3 * self.bins - 1), 1))

    def inverse(self, x: Tensor, keep: Tensor, told: Tensor) -> Tensor:
        """x (B, C, S) before it was bent."""
        first, second = x.chunk(2, 1)
        h = self.out(self.net(self.pre(first), keep, told)) * keep
        h = h.unflatten(1, (self.side, -1)).transpose(2, 3)  # (B, C / 2, S, 3 bins - 1)
        widths, heights, slopes = h.split((self.bins, self.bins, self.bins - 1), -1)
        root = math.sqrt(self.width)
        second = unbend(second, widths / root, heights / root, slopes, self.bound)
        return torch.cat((first, second), 1) * keep


class DrawnDurations(Block):
    """Logarithms of durations (B, 1, S) drawn from a flow; post_* learns it and does not speak."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        width, drop = c.hidden_size, c.duration_predictor_dropout
        flows = [Affine(c.depth_separable_channels), *[SplineFlow(c)] * c.duration_predictor_num_flows]
        self.pre, self.net, self.out = make(
            [Conv(width, width, 1), separable(c, drop), Conv(width, width, 1)]
        )
        self.flows = make(flows)
        self.post_pre, self.post_net, self.post_out = make(
            [Conv(1, width, 1), separable(c, drop), Conv(width, width, 1)]
        )
        self.post_flows = make(flows)
        voice = c.speaker_embedding_size
        self.voice = make(Conv(voice, width, 1)) if voice else None

    def forward(self, x: Tensor, keep: Tensor, voice: Tensor | None, noise: float) -> Tensor:
        x = self.pre(x.detach())
        if voice is not None and self.voice is not None:
            x = x + self.voice(voice.detach())
        x = self.out(self.net(x, keep)) * keep
        drawn = torch.randn(len(x), 2, x.shape[2], dtype=x.dtype, device=x.device) * noise
        # The first spline is left out, as in public results.
        for flow in (*reversed(list(self.flows)[2:]), self.flows[0]):
            drawn = flow.inverse(drawn.flip(1), keep, x)
        return drawn[:, :1]


class PlainDurations(Block):
    """Logarithms of durations (B, 1, S) from two convolutions."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        inner, kernel = c.duration_predictor_filter_channels, c.duration_predictor_kernel_size
        self.first, self.second = (
            make(Conv(n, inner, kernel, padding=kernel // 2)) for n in (c.hidden_size, inner)
        )
        norm = OverChannels(LayerNorm(inner, c.layer_norm_eps))
        self.first_norm, self.second_norm, self.out = make([norm, norm, Conv(inner, 1, 1)])
        self.drop, voice = c.duration_predictor_dropout, c.speaker_embedding_size
        self.voice = make(Conv(voice, c.hidden_size, 1)) if voice else None

    def forward(self, x: Tensor, keep: Tensor, voice: Tensor | None, noise: float) -> Tensor:
        x = x.detach()
        if voice is not None and self.voice is not None:
            x = x + self.voice(voice.detach())
        for conv, norm in ((self.first, self.first_norm), (self.second, self.second_norm)):
            x = norm(F.relu(conv(x * keep)))
            x = F.dropout(x, self.drop) if self.training and self.drop else x
        return self.out(x * keep) * keep


@dataclass
class Spoken:
    """What the backbone made."""

    waveform: Tensor
    sequence_lengths: Tensor
    spectrogram: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class Voice(Block):
    """Token ids (B, S) to sound (B, T)."""

    def __init__(self, c: Config, layers: Sequence[Spec], vocoder: Spec) -> None:
        super().__init__()
        self.tokens, self.scale = Tokens(c.vocab_size, c.hidden_size), c.hidden_size**0.5
        self.text = make(Encoder(layers=layers, layer_drop=c.layerdrop))
        self.stats = make(Conv(c.hidden_size, 2 * c.flow_size, 1))
        self.durations = make((DrawnDurations if c.use_stochastic_duration_prediction else PlainDurations)(c))
        self.flows = make([Coupling(c)] * c.prior_encoder_num_flows)
        self.vocoder, self.posterior = make(vocoder), make(Posterior(c))
        self.speakers = Tokens(c.num_speakers, c.speaker_embedding_size) if c.num_speakers > 1 else None
        self.samples = math.prod(c.upsample_rates)  # a frame

    def forward(
        self, ctx: Context, ids: Tensor, speaker: Tensor | None, states: bool, rate: float, noise: float,
        duration_noise: float,
    ) -> Spoken:  # fmt: skip
        x = self.tokens(ids) * self.scale
        keep = real(ctx, x)
        out = self.text.run(x * keep.transpose(1, 2), ctx, None, states)
        x = out.last_hidden_state * keep.transpose(1, 2)
        if out.hidden_states is not None:
            out.hidden_states = (*out.hidden_states[:-1], x)
        x = x.transpose(1, 2)
        means, spreads = (self.stats(x) * keep).transpose(1, 2).chunk(2, -1)  # (B, S, F)
        voice = None if speaker is None or self.speakers is None else self.speakers(speaker)[..., None]
        log_durations = self.durations(x, keep, voice, duration_noise)
        ends = torch.ceil(torch.exp(log_durations) * keep / rate)[:, 0].cumsum(-1)  # (B, S)
        lengths = ends[:, -1].clamp(min=1).long()
        frame = torch.arange(int(lengths.max()), device=x.device)
        shown = (frame[None] < lengths[:, None]).to(x.dtype)[:, None]  # (B, 1, T)
        token = (frame[None, :, None] >= ends[:, None]).sum(-1).clamp(max=ids.shape[1] - 1)  # (B, T)
        said = token[..., None].expand(-1, -1, means.shape[-1])
        spoken = (frame[None] < ends[:, -1:]).to(x.dtype)[..., None]
        mean, spread = ((v.gather(1, said) * spoken).transpose(1, 2) for v in (means, spreads))
        latent = mean + torch.randn_like(mean) * torch.exp(spread) * noise
        for flow in reversed(self.flows):
            latent = flow.inverse(latent.flip(1), shown, voice)
        frames = latent * shown
        sound = self.vocoder(frames, voice)[:, 0]
        return Spoken(sound, lengths * self.samples, frames, out.hidden_states, out.attentions)


def build(c: Config) -> Voice:
    norm, drop = LayerNorm(c.hidden_size, c.layer_norm_eps), c.hidden_dropout
    heads = Heads(c.num_attention_heads)
    attn = WindowAttention(c.hidden_size, heads, c.window_size or 0, c.use_bias, c.attention_dropout)
    ffn = ConvFFN(c.hidden_size, c.ffn_dim, c.ffn_kernel_size, c.hidden_act, c.activation_dropout)
    layer = Layer(attn=residual(attn, post=norm, dropout=drop), ffn=residual(ffn, post=norm, dropout=drop))
    vocoder = Vocoder(
        c.flow_size, c.upsample_initial_channel, c.upsample_rates, c.upsample_kernel_sizes,
        c.resblock_kernel_sizes, c.resblock_dilation_sizes, c.leaky_relu_slope, c.speaker_embedding_size,
        bias=False,
    )  # fmt: skip
    return Voice(c, repeat(c.num_hidden_layers, layer), vocoder)


def names(c: Config) -> NameMap:
    lines, aliases = vocoder_names("vocoder.", "decoder."), {}
    at, to = "text.layers.{i}", "text_encoder.encoder.layers.{i}"
    parts = {
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "o": "out_proj",
        "near_k": "emb_rel_k",
        "near_v": "emb_rel_v",
    }
    lines |= {f"{at}.attn.{p}": f"{to}.attention.{name}" for p, name in parts.items()}
    lines |= {
        "tokens": "text_encoder.embed_tokens",
        "stats": "text_encoder.project",
        "speakers": "embed_speaker",
        f"{at}.attn.post_norm": f"{to}.layer_norm",
        f"{at}.ffn.up": f"{to}.feed_forward.conv_1",
        f"{at}.ffn.down": f"{to}.feed_forward.conv_2",
        f"{at}.ffn.post_norm": f"{to}.final_layer_norm",
        "flows.{i}.pre": "flow.flows.{i}.conv_pre",
        "flows.{i}.out": "flow.flows.{i}.conv_post",
        "posterior.pre": "posterior_encoder.conv_pre",
        "posterior.out": "posterior_encoder.conv_proj",
    }
    for ours, theirs in (
        ("flows.{i}.net", "flow.flows.{i}.wavenet"),
        ("posterior.net", "posterior_encoder.wavenet"),
    ):
        for part, public in (
            ("gates.{j}", "in_layers.{j}"),
            ("skips.{j}", "res_skip_layers.{j}"),
            ("voice", "cond_layer"),
        ):
            lines[f"{ours}.{part}"] = f"{theirs}.{public}"
            for i, (leaf, old) in enumerate((("gain", "weight_g"), ("direction", "weight_v"))):
                lines[f"{ours}.{part}.{leaf}"] = f"{theirs}.{public}.parametrizations.weight.original{i}"
                aliases[f"{ours}.{part}.{leaf}"] = (f"{theirs}.{public}.{old}",)
    mine, public = "durations.", "duration_predictor."
    nets = {"net": "conv_dds", "post_net": "post_conv_dds"}
    for flow in ("flows.{i}", "post_flows.{i}"):
        nets[f"{flow}.net"] = f"{flow}.conv_dds"
        for ours, theirs in (
            ("pre", "conv_pre"),
            ("out", "conv_proj"),
            ("translate", "translate"),
            ("log_scale", "log_scale"),
        ):
            lines[f"{mine}{flow}.{ours}"] = f"{public}{flow}.{theirs}"
    for ours, theirs in nets.items():
        for part, name in (
            ("wide.{j}", "convs_dilated.{j}"),
            ("point.{j}", "convs_pointwise.{j}"),
            ("first.{j}.norm", "norms_1.{j}"),
            ("second.{j}.norm", "norms_2.{j}"),
        ):
            lines[f"{mine}{ours}.{part}"] = f"{public}{theirs}.{name}"
    plain = not c.use_stochastic_duration_prediction
    for ours, theirs in {
        "pre": "conv_pre", "out": "proj" if plain else "conv_proj", "voice": "cond",
        "post_pre": "post_conv_pre",
        "post_out": "post_conv_proj", "first": "conv_1", "second": "conv_2", "first_norm.norm": "norm_1",
        "second_norm.norm": "norm_2",
    }.items():  # fmt: skip
        lines[f"{mine}{ours}"] = f"{public}{theirs}"
    return NameMap(lines, aliases=aliases)


HEADS: dict[str, Head] = {"VitsModel": Backbone(output=VitsModelOutput)}

family("vits", config=Config, build=build, names=names, heads=HEADS, skeleton=TextToWaveModel, public="Vits")
