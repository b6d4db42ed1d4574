"""EnCodec (Defossez et al. 2022, arXiv:2210.13438).

Public checkpoints: facebook/encodec_24khz, facebook/encodec_48khz, facebook/encodec_32khz (in MusicGen).
Differs from everything with attention: convolutions and an LSTM make states of sound, residual codebooks
make codes of states, and the mirrored network makes sound again (SEANet, arXiv:2009.02095).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Spec, make
from phyla.blocks.recurrence import lstm
from phyla.blocks.wave import Conv, GroupNorm
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.outputs import EncodecOutput
from phyla.skeletons.codec import CodecModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    target_bandwidths: list = [1.5, 3.0, 6.0, 12.0, 24.0]
    sampling_rate: int = 24000
    audio_channels: int = 1
    normalize: bool = False
    chunk_length_s: float | None = None
    overlap: float | None = None
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: list = [8, 5, 4, 2]
    norm_type: str = "weight_norm"
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2
    num_lstm_layers: int = 2
    trim_right_ratio: float = 1.0
    codebook_size: int = 1024
    codebook_dim: int | None = None
    use_conv_shortcut: bool = True

    def finish(self) -> None:
        if self.codebook_dim is None:
            self.codebook_dim = self.hidden_size
        if self.norm_type not in ("weight_norm", "time_group_norm"):
            raise ConfigError(
                f'norm_type must be "weight_norm" or "time_group_norm", but is {self.norm_type!r}'
            )
        if not self.use_causal_conv and self.trim_right_ratio != 1.0:
            raise ConfigError("trim_right_ratio must be 1.0 unless use_causal_conv is true")
        if self.codebook_size & (self.codebook_size - 1):
            raise ConfigError(f"codebook_size must be a power of 2, but is {self.codebook_size}")

    @property
    def chunk_length(self) -> int | None:
        """Samples of a chunk, or None for the whole sound at once."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples from one chunk to the next."""
        if self.chunk_length is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    @property
    def frame_rate(self) -> int:
        """Codes of a codebook a second."""
        return math.ceil(self.sampling_rate / math.prod(self.upsampling_ratios))

    @property
    def num_quantizers(self) -> int:
        """Codebooks at the highest bandwidth."""
        return int(1000 * self.target_bandwidths[-1] // (self.frame_rate * 10))


@dataclass(frozen=True)
class Style:
    """How all convolutions pad (only the past, or both sides) and which norm they have."""

    causal: bool
    mode: str
    weight_norm: bool
    trim: float


class Padded(Block):
    """A convolution of sound (B, C, T) whose output is T / stride long, rounded up."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style: Style, stride: int = 1, dilation: int = 1
    ):
        super().__init__()
        self.conv = make(
            Conv(inputs, outputs, kernel, stride, dilation=dilation, gain=0 if style.weight_norm else None)
        )
        self.norm = None if style.weight_norm else make(GroupNorm(1, outputs))
        self.style, self.stride, self.total = style, stride, (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor) -> Tensor:
        extra = -x.shape[-1] % self.stride
        right = 0 if self.style.causal else self.total // 2
        x = self.conv(self._pad(x, self.total - right, right + extra))
        return x if self.norm is None else self.norm(x)

    def _pad(self, x: Tensor, left: int, right: int) -> Tensor:
        if left == right == 0:
            return x
        if self.style.mode != "reflect":
            mode = "constant" if self.style.mode == "zero" else self.style.mode
            return F.pad(x, (left, right), mode)
        # A mirror needs more samples than it adds: short sounds borrow silence.
        short = max(max(left, right) - x.shape[-1] + 1, 0)
        x = F.pad(F.pad(x, (0, short)) if short else x, (left, right), "reflect")
        return x[..., : x.shape[-1] - short]


class Raised(Block):
    """A transposed convolution of sound (B, C, T) whose output is T * stride long."""

    def __init__(self, inputs: int, outputs: int, kernel: int, style: Style, stride: int = 1) -> None:
        super().__init__()
        gain = 0 if style.weight_norm else None
        self.conv = make(Conv(inputs, outputs, kernel, stride, gain=gain, transposed=True))
        self.norm = None if style.weight_norm else make(GroupNorm(1, outputs))
        total = kernel - stride
        self.right = math.ceil(total * style.trim) if style.causal else total // 2
        self.left = total - self.right

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return x[..., self.left : x.shape[-1] - self.right]


class Elu(Block):
    """max(x, 0) + min(exp(x) - 1, 0) (Clevert et al. 2015, arXiv:1511.07289)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x)


class Memory(Block):
    """x + LSTM(x) over time (Hochreiter & Schmidhuber 1997). x (B, C, T)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        for i in range(layers):
            for name, shape in (("weight", (4 * width, width)), ("bias", (4 * width,))):
                for side in ("ih", "hh"):
                    self.register_parameter(f"{name}_{side}_l{i}", nn.Parameter(torch.empty(shape)))

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)  # (T, B, C)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self, f"{name}_l{i}") for i in range(self.layers) for name in names]
        y = lstm(steps, weights)
        return (y + steps).permute(1, 2, 0)

    def reset(self, std: float) -> bool:
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter) if parameter.dim() == 2 else nn.init.zeros_(parameter)
        return True


class Bottleneck(Block):
    """shortcut(x) + convolutions(x) through fewer channels. x (B, C, T)."""

    def __init__(
        self, width: int, inner: int, kernel: int, dilation: int, style: Style, shortcut: bool
    ) -> None:
        super().__init__()
        self.chain = make(
            [
                Elu(),
                Padded(width, inner, kernel, style, dilation=dilation),
                Elu(),
                Padded(inner, width, 1, style),
            ]
        )
        self.shortcut = make(Padded(width, width, 1, style)) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        layer: Any
        for layer in self.chain:
            y = layer(y)
        return (x if self.shortcut is None else self.shortcut(x)) + y


class Chain(Block):
    """Layers one after the other."""

    def __init__(self, layers: Sequence[Spec]) -> None:
        super().__init__()
        self.layers = make(layers)

    def forward(self, x: Tensor) -> Tensor:
        layer: Any
        for layer in self.layers:
            x = layer(x)
        return x


class Codebook(Block):
    """The nearest of V vectors: x (N, D) -> numbers (N). Files hold the means that training keeps too."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("inited", torch.empty(1))
        self.register_buffer("cluster_size", torch.empty(size))
        self.register_buffer("embed", torch.empty(size, width))
        self.register_buffer("embed_avg", torch.empty(size, width))

    def forward(self, x: Tensor) -> Tensor:
        far = x.square().sum(-1, keepdim=True) - 2 * x @ self.embed.T + self.embed.square().sum(-1)
        return (-far).argmax(-1)

    def reset(self, std: float) -> bool:
        self.inited.fill_(1)
        for buffer in (self.cluster_size, self.embed, self.embed_avg):
            buffer.zero_()
        return True


class Codec(Block):
    """Sound (B, C, T) to codes (B, codebooks, S) and back; each book codes what those before left over."""

    def __init__(self, encoder: Spec, decoder: Spec, books: int, size: int, width: int, rate: int) -> None:
        super().__init__()
        self.encoder, self.decoder = make(encoder), make(decoder)
        self.books = make([Codebook(size, width)] * books)
        self.bits = math.log2(size) * rate  # a second, of one codebook

    def encode(self, sound: Tensor, bandwidth: float | None) -> Tensor:
        """Codes at `bandwidth` kbit/s."""
        count = len(self.books)
        if bandwidth:
            count = max(1, math.floor(bandwidth * 1000 / self.bits))
        left, codes = self.encoder(sound).transpose(1, 2), []  # (B, S, D)
        for book in self.books[:count]:
            codes.append(book(left))
            left = left - F.embedding(codes[-1], book.embed)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Sound of codes (B, codebooks, S)."""
        states = [F.embedding(codes[:, i], self.books[i].embed) for i in range(codes.shape[1])]
        return self.decoder(torch.stack(states).sum(0).transpose(1, 2))


def build(c: Config) -> Codec:
    style = Style(c.use_causal_conv, c.pad_mode, c.norm_type == "weight_norm", c.trim_right_ratio)

    def bottlenecks(width: int) -> list[Spec]:
        return [
            Bottleneck(
                width, width // c.compress, c.residual_kernel_size, c.dilation_growth_rate**i, style,
                c.use_conv_shortcut,
            )
            for i in range(c.num_residual_layers)
        ]  # fmt: skip

    width, last = c.num_filters, c.last_kernel_size
    down: list[Spec] = [Padded(c.audio_channels, width, c.kernel_size, style)]
    for ratio in reversed(c.upsampling_ratios):
        down += [*bottlenecks(width), Elu(), Padded(width, 2 * width, 2 * ratio, style, stride=ratio)]
        width *= 2
    down += [Memory(width, c.num_lstm_layers), Elu(), Padded(width, c.hidden_size, last, style)]
    up: list[Spec] = [Padded(c.hidden_size, width, c.kernel_size, style), Memory(width, c.num_lstm_layers)]
    for ratio in c.upsampling_ratios:
        width //= 2
        up += [Elu(), Raised(2 * width, width, 2 * ratio, style, stride=ratio), *bottlenecks(width)]
    up += [Elu(), Padded(width, c.audio_channels, last, style)]
    return Codec(
        Chain(down),
        Chain(up),
        c.num_quantizers,
        c.codebook_size,
        c.codebook_dim or c.hidden_size,
        c.frame_rate,
    )


def names(c: Config) -> NameMap:
    """Public names; weight norm's two tensors have an older spelling too."""
    lines = {"books.{i}": "quantizer.layers.{i}.codebook"}
    aliases: dict[str, tuple[str, ...]] = {}
    for side in ("encoder", "decoder"):
        at = f"{side}.layers.{{i}}"
        paths = {at: at, f"{at}.chain.{{j}}": f"{at}.block.{{j}}", f"{at}.shortcut": f"{at}.shortcut"}
        for path, public in paths.items():
            lines |= {f"{path}.conv": f"{public}.conv", f"{path}.norm": f"{public}.norm"}
            for i, (ours, old) in enumerate((("gain", "weight_g"), ("direction", "weight_v"))):
                lines[f"{path}.conv.{ours}"] = f"{public}.conv.parametrizations.weight.original{i}"
                aliases[f"{path}.conv.{ours}"] = (f"{public}.conv.{old}",)
        lines[at] = f"{at}.lstm"
    return NameMap(lines, aliases=aliases)


HEADS: dict[str, Head] = {"EncodecModel": Backbone(output=EncodecOutput)}

family("encodec", config=Config, build=build, names=names, heads=HEADS, skeleton=CodecModel, public="Encodec")
