"""EfficientNet (Tan & Le 2019, arXiv:1905.11946): inverted bottlenecks, scaled in three ways at once.

Public checkpoints: google/efficientnet-b0 ... -b7 and every `model_type: efficientnet`.
Differs from ResNet in: layers widen, convolve each channel alone, weigh channels by their means, and narrow;
sides are padded as TensorFlow pads them.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, Context, Encoder, activation, make
from phyla.blocks.conv import BatchNorm, Conv2d, ConvNorm, Stem
from phyla.blocks.spec import Spec
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Head, ImageClassify
from phyla.outputs import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutputWithNoAttention
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    num_channels: int = 3
    image_size: int = 600
    width_coefficient: float = 2.0
    depth_coefficient: float = 3.1
    depth_divisor: int = 8
    kernel_sizes: list = [3, 3, 5, 3, 5, 5, 3]
    in_channels: list = [32, 16, 24, 40, 80, 112, 192]
    out_channels: list = [16, 24, 40, 80, 112, 192, 320]
    depthwise_padding: list = []
    strides: list = [1, 2, 2, 2, 1, 2, 1]
    num_block_repeats: list = [1, 2, 2, 3, 3, 4, 1]
    expand_ratios: list = [1, 6, 6, 6, 6, 6, 6]
    squeeze_expansion_ratio: float = 0.25
    hidden_act: str = "swish"
    hidden_dim: int = 2560
    pooling_type: str = "mean"
    initializer_range: float = 0.02
    batch_norm_eps: float = 0.001
    batch_norm_momentum: float = 0.99
    dropout_rate: float = 0.5
    drop_connect_rate: float = 0.2

    def finish(self) -> None:
        self.num_hidden_layers = sum(self.num_block_repeats) * 4
        if self.pooling_type not in ("mean", "max"):
            raise ConfigError(f'pooling_type must be "mean" or "max", but is {self.pooling_type!r}')


class PaddedConv(Block):
    """A convolution behind zeros (left, right, top, bottom) on the sides; groups: each channel alone."""

    def __init__(
        self, width: int, out: int, kernel: int, stride: int, padding: tuple[int, ...], norm: Spec, act: str
    ) -> None:
        super().__init__()
        self.padding = padding
        groups = width if width == out else 1
        self.conv = make(ConvNorm(width, out, kernel, stride, padding=0, groups=groups, norm=norm, act=act))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class Squeeze(Block):
    """Each channel times a share that follows from the means of all (Hu et al., arXiv:1709.01507)."""

    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        self.down, self.up = Conv2d(width, inner, 1), Conv2d(inner, width, 1)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.up(self.act(self.down(means))).sigmoid()


class Inverted(Block):
    """narrow(squeeze(depthwise(widen(x)))), with x added where it fits (Sandler et al., arXiv:1801.04381)."""

    site_kind = "stream"

    def __init__(
        self, widen: Spec | None, depthwise: Spec, squeeze: Spec, narrow: Spec, adds: bool, dropout: float
    ) -> None:
        super().__init__()
        self.widen, self.depthwise = make(widen), make(depthwise)
        self.squeeze, self.narrow = make(squeeze), make(narrow)
        self.adds, self.dropout_prob = adds, dropout
        self.register_module("site", None)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = x if self.widen is None else self.widen(x)
        y = self.narrow(self.squeeze(self.depthwise(y)))
        if self.adds:
            y = x + (F.dropout(y, self.dropout_prob) if self.training and self.dropout_prob else y)
        return y if self.site is None else self.site(y)


class MapPool(Block):
    """The mean or the greatest value of each channel (B, C, Y, X) -> (B, C)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, ids: Tensor | None, ctx: Context) -> Tensor:
        return x.mean((2, 3)) if self.kind == "mean" else x.amax((2, 3))


def rounded(c: Config, channels: int) -> int:
    """Channels times the width coefficient, to whole multiples of depth_divisor."""
    divisor, wanted = c.depth_divisor, channels * c.width_coefficient
    found = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return int(found + divisor if found < 0.9 * wanted else found)


def layers(c: Config) -> list[Spec]:
    """All inverted bottlenecks."""
    repeats = [math.ceil(c.depth_coefficient * n) for n in c.num_block_repeats]
    found: list[Spec] = []
    for i, count in enumerate(repeats):
        width, out = rounded(c, c.in_channels[i]), rounded(c, c.out_channels[i])
        for j in range(count):
            source, stride = (out, 1) if j else (width, c.strides[i])
            kernel, number = c.kernel_sizes[i], len(found)
            inner, half = source * c.expand_ratios[i], kernel // 2
            short = half if number in c.depthwise_padding else half - 1
            padding = (short, half, short, half) if stride == 2 else (half, half, half, half)
            eps, momentum = c.batch_norm_eps, c.batch_norm_momentum
            widen = ConvNorm(source, inner, 1, norm=BatchNorm(inner, eps), act=c.hidden_act)
            squeeze = Squeeze(inner, max(1, int(source * c.squeeze_expansion_ratio)), c.hidden_act)
            found.append(
                Inverted(
                    widen=widen if c.expand_ratios[i] != 1 else None,
                    depthwise=PaddedConv(
                        inner, inner, kernel, stride, padding, BatchNorm(inner, eps, momentum), c.hidden_act
                    ),
                    squeeze=squeeze,
                    narrow=ConvNorm(inner, out, 1, norm=BatchNorm(out, eps, momentum)),
                    adds=stride == 1 and j > 0,
                    dropout=c.drop_connect_rate * number / sum(repeats),
                )
            )
    return found


def build(c: Config) -> Encoder:
    stem, eps, momentum = rounded(c, 32), c.batch_norm_eps, c.batch_norm_momentum
    first = PaddedConv(c.num_channels, stem, 3, 2, (0, 1, 0, 1), BatchNorm(stem, eps, momentum), c.hidden_act)
    last = rounded(c, c.out_channels[-1])
    top = BatchNorm(c.hidden_dim, eps, momentum)
    return Encoder(
        embed=Stem(c.num_channels, [first]),
        layers=layers(c),
        norm=ConvNorm(last, rounded(c, 1280), 1, norm=top, act=c.hidden_act),
        pool=MapPool(c.pooling_type),
        record="raw",
    )


AT, THEIRS = "layers.{i}", "encoder.blocks.{i}"
NAMES = NameMap(
    {
        "embed.parts.0.conv.conv": "embeddings.convolution",
        "embed.parts.0.conv.norm": "embeddings.batchnorm",
        f"{AT}.widen.conv": f"{THEIRS}.expansion.expand_conv",
        f"{AT}.widen.norm": f"{THEIRS}.expansion.expand_bn",
        f"{AT}.depthwise.conv.conv": f"{THEIRS}.depthwise_conv.depthwise_conv",
        f"{AT}.depthwise.conv.norm": f"{THEIRS}.depthwise_conv.depthwise_norm",
        f"{AT}.squeeze.down": f"{THEIRS}.squeeze_excite.reduce",
        f"{AT}.squeeze.up": f"{THEIRS}.squeeze_excite.expand",
        f"{AT}.narrow.conv": f"{THEIRS}.projection.project_conv",
        f"{AT}.narrow.norm": f"{THEIRS}.projection.project_bn",
        "norm.conv": "encoder.top_conv",
        "norm.norm": "encoder.top_bn",
    },
    prefix="efficientnet",
)

HEADS: dict[str, Head] = {
    "EfficientNetModel": Backbone(output=BaseModelOutputWithPoolingAndNoAttention, pool=True),
    "EfficientNetForImageClassification": ImageClassify(
        names={"out": "classifier"}, on="pool", pool=True, dropout="dropout_rate",
        output=ImageClassifierOutputWithNoAttention,
    ),
}  # fmt: skip

family(
    "efficientnet", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=VisionModel,
    public="EfficientNet", width=lambda c: c.hidden_dim,
)  # fmt: skip
