"""From sound to the stream: convolutions over time, their weight norm, and the masks of training."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.act import activation
from phyla.blocks.linear import Linear
from phyla.blocks.norm import LayerNorm
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError, ConfigError


class Conv(Block):
    """A convolution over time, (B, in, T) -> (B, out, T'), with PyTorch's padding rules.

    gain: the weight is `gain * direction / |direction|`, with one gain for each index of this dimension
    (Salimans & Kingma 2016, arXiv:1602.07868, eq. 2); None: a plain weight. transposed: the adjoint, which
    makes the signal `stride` times longer; trim is then PyTorch's output_padding.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        gain: int | None = None,
        transposed: bool = False,
        trim: int = 0,
    ) -> None:
        super().__init__()
        shape = [outputs, inputs // groups, kernel]
        if transposed:
            shape[:2] = inputs, outputs // groups
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.kernel, self.gain_dim, self.transposed, self.trim = kernel, gain, transposed, trim
        self.gain = self.direction = self.plain = None
        if gain is None:
            self.weight = nn.Parameter(torch.empty(shape))
        else:
            ones = [n if i == gain else 1 for i, n in enumerate(shape)]
            self.gain, self.direction = nn.Parameter(torch.empty(ones)), nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def kernels(self) -> Tensor:
        """The weight that the signal meets, (out, in / groups, kernel)."""
        if self.gain is None or self.direction is None or self.gain_dim is None:
            return self.weight
        return torch._weight_norm(self.direction, self.gain, self.gain_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed:
            return F.conv_transpose1d(
                x, self.kernels(), self.bias, self.stride, self.padding, self.trim, self.groups, self.dilation
            )
        return F.conv1d(x, self.kernels(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def length(self, samples: Tensor) -> Tensor:
        """How long the output is for inputs of so many samples."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (samples + 2 * self.padding - reach) // self.stride + 1

    def reset(self, std: float) -> bool:
        weight = self.weight if self.direction is None else self.direction
        nn.init.kaiming_normal_(weight)
        if self.gain is not None:
            dims = [i for i in range(3) if i != self.gain_dim]
            with torch.no_grad():
                self.gain.copy_(weight.norm(2, dims, keepdim=True))
        if self.bias is not None:
            bound = math.sqrt(1 / (weight.shape[1] * self.kernel))
            nn.init.uniform_(self.bias, -bound, bound)
        return True


class GroupNorm(Block):
    """Each group of channels normed over channels and time (Wu & He 2018, arXiv:1803.08494). x (B, C, T)."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)

    def reset(self, std: float) -> bool:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        return True


class OverChannels(Block):
    """A norm of vectors applied to the channels of a signal (B, C, T)."""

    def __init__(self, norm: Spec) -> None:
        super().__init__()
        self.norm = make(norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class ConvLayer(Block):
    """act(norm(conv(x))) of a signal (B, C, T)."""

    def __init__(self, conv: Spec, norm: Spec | None, act: str) -> None:
        super().__init__()
        self.conv, self.norm, self.act = make(conv), make(norm), activation(act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.act(x if self.norm is None else self.norm(x))


class WaveFeatures(Block):
    """Samples (B, T) to features (B, S, C): convolutions that each shorten the signal (arXiv:2006.11477, 2).

    norm: "group" norms each channel over time in the first layer; "layer" norms the channels in all layers.
    """

    def __init__(
        self, widths: Sequence[int], kernels: Sequence[int], strides: Sequence[int], norm: str, act: str,
        bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not len(widths) == len(kernels) == len(strides):
            raise ConfigError(
                "conv_dim, conv_kernel and conv_stride must be of one length, but have "
                f"{len(widths)}, {len(kernels)} and {len(strides)} entries"
            )
        if norm not in ("group", "layer"):
            raise ConfigError(f'feat_extract_norm must be "group" or "layer", but is {norm!r}')
        layers, inputs = [], 1
        for i, (width, kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True)):
            over_time = GroupNorm(width, width) if i == 0 else None
            between = over_time if norm == "group" else OverChannels(LayerNorm(width))
            layers.append(ConvLayer(Conv(inputs, width, kernel, stride, bias=bias), between, act))
            inputs = width
        self.layers = make(layers)

    def forward(self, wave: Tensor) -> Tensor:
        x = wave[:, None]
        for layer in self.layers:
            x = layer(x)
        return x.transpose(1, 2)

    def length(self, samples: Tensor) -> Tensor:
        """How many features so many samples give."""
        for layer in self.layers:
            samples = layer.conv.length(samples)
        return samples


class ConvPosition(Block):
    """x + act(grouped convolution of x): positions by what stands around (arXiv:1904.11660). x (B, S, D)."""

    def __init__(self, width: int, kernel: int, groups: int, act: str) -> None:
        super().__init__()
        self.conv = make(Conv(width, width, kernel, padding=kernel // 2, groups=groups, gain=2))
        self.act, self.extra = activation(act), int(kernel % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2))
        return x + self.act(y[..., : y.shape[-1] - self.extra]).transpose(1, 2)


class Hidden(Block):
    """The masks of training (SpecAugment, Park et al. 2019, arXiv:1904.08779) on features x (B, S, D).

    time, channel: (probability, length, least count) of the masked spans along each axis. The vector stands
    where time is masked; channels become 0. On in training, or where marks are given.
    """

    def __init__(
        self, width: int, time: tuple[float, int, int], channel: tuple[float, int, int], on: bool = True
    ) -> None:
        super().__init__()
        self.time, self.channel, self.on = time, channel, on
        hides = time[0] > 0 or channel[0] > 0
        self.vector = nn.Parameter(torch.empty(width)) if hides else None

    def forward(self, x: Tensor, marks: Tensor | None, lengths: Tensor | None) -> Tensor:
        """marks bool (B, S): hide these; lengths (B): real features of each row."""
        if not self.on:
            return x
        if marks is None and self.training and self.time[0] > 0:
            marks = random_spans(x, x.shape[1], *self.time, lengths)
        if marks is not None:
            if self.vector is None:
                raise ArgumentError("mask_time_indices need mask_time_prob or mask_feature_prob above 0")
            x = torch.where(marks.bool()[..., None], self.vector.to(x.dtype), x)
        if self.training and self.channel[0] > 0:
            x = x.masked_fill(random_spans(x, x.shape[2], *self.channel)[:, None], 0)
        return x

    def reset(self, std: float) -> bool:
        if self.vector is not None:
            nn.init.uniform_(self.vector)
        return True


def random_spans(
    x: Tensor, size: int, chance: float, span: int, least: int, lengths: Tensor | None = None
) -> Tensor:
    """bool (B, size): spans of `span` hidden places each, `chance * length / span` of them a row, rounded by
    chance; spans may overlap and stay within the row's length.
    """
    if not 0 < span <= size:
        raise ArgumentError(f"masked spans must be 1 to {size} long (the axis), but are {span}")
    batch, device = x.shape[0], x.device
    real = torch.full((batch,), size, device=device) if lengths is None else lengths
    count = (chance * real / span + torch.rand((), device=device)).long().clamp(min=least, max=size // span)
    starts = (real - span + 1).clamp(min=0)[:, None]  # places where a span can begin
    place = torch.arange(size, device=device)[None]
    order = torch.rand(batch, size, device=device).masked_fill(place >= starts, 2).argsort(1).argsort(1)
    begins = (order < count[:, None]) & (place < starts)
    return F.max_pool1d(F.pad(begins.float(), (span - 1, 0))[:, None], span, 1)[:, 0] > 0


class WaveEmbed(Block):
    """Samples to the stream: features, normed and projected, masked in training, positions, norm.

    norm: after the positions (post-norm encoders). dropouts: after the projection, and at the end.
    """

    site_kind = "stream"

    def __init__(
        self,
        features: Spec,
        channels: int,
        width: int,
        eps: float,
        hidden: Spec,
        position: Spec,
        norm: Spec | None = None,
        dropouts: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.features = make(features)
        self.features_norm = make(LayerNorm(channels, eps))
        self.project = Linear(channels, width)
        self.hidden, self.position, self.norm = make(hidden), make(position), make(norm)
        self.dropouts = dropouts
        self.register_module("site", None)

    def forward(
        self, wave: Tensor, lengths: Tensor | None, marks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The stream (B, S, D), the normed features (B, S, C), and the mask of real features (B, S)."""
        features = self.features_norm(self.features(wave.to(self.project.weight.dtype)))
        mask = None
        if lengths is not None:
            lengths = self.features.length(lengths)
            mask = frame_mask(lengths, features.shape[1])
        x = self.project(features)
        if self.training and self.dropouts[0]:
            x = F.dropout(x, self.dropouts[0])
        x = self.hidden(x, marks, lengths)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        x = self.position(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.training and self.dropouts[1]:
            x = F.dropout(x, self.dropouts[1])
        return (x if self.site is None else self.site(x)), features, mask


def frame_mask(lengths: Tensor, size: int) -> Tensor:
    """bool (B, size): the first `lengths` places of each row; a row too short for one place keeps all."""
    lengths = torch.where(lengths > 0, lengths, size)
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


class Shrink(Block):
    """Strided convolutions with gates behind an encoder, x (B, S, D) -> (B, S', out).

    Each layer halves its channels by a gated linear unit (Dauphin et al. 2016, arXiv:1612.08083).
    """

    def __init__(
        self, width: int, out: int, kernel: int, stride: int, layers: int, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.project = Linear(width, out) if out != width else None
        self.norm = make(LayerNorm(out)) if out != width else None
        self.layers = make([Conv(out, 2 * out, kernel, stride, padding=1)] * layers)
        self.stride, self.drop = stride, drop

    def forward(self, x: Tensor) -> Tensor:
        if self.project is not None and self.norm is not None:
            x = self.norm(self.project(x))
        x = x.transpose(1, 2)
        for layer in self.layers:
            if not (self.training and self.drop and torch.rand(()) <= self.drop):
                x = F.glu(layer(x), 1)
        return x.transpose(1, 2)

    def length(self, frames: Tensor) -> Tensor:
        """How many states so many frames give, as the reference counts them."""
        for _ in self.layers:
            frames = (frames - 1) // self.stride + 1
        return frames
