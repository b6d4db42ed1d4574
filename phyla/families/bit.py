"""BiT, Big Transfer (Kolesnikov et al. 2019, arXiv:1912.11370): ResNet without batch statistics.

Public checkpoints: google/bit-50, the backbone of Intel/dpt-hybrid-midas, and every `model_type: bit`.
Differs from ResNet in: kernels are normed before each use, groups of channels in place of the batch, norms
before the convolutions in the kind "preactivation", padding as TensorFlow has it in the kind "same".
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Context, activation, make
from phyla.blocks.conv import Conv2d, check_pixels
from phyla.blocks.pool import MeanPool
from phyla.blocks.residual import drop_path, path_chances
from phyla.blocks.spec import Spec
from phyla.blocks.stages import Stage, Stages
from phyla.checkpoints.names import NameMap
from phyla.config import StagedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, FeatureMaps, Head, ImageClassify
from phyla.outputs import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutputWithNoAttention
from phyla.skeletons import BackboneModel, VisionModel


class Config(StagedConfig):
    """Keys and defaults of the public config.json."""

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: list = [256, 512, 1024, 2048]
    depths: list = [3, 4, 6, 3]
    layer_type: str = "preactivation"
    hidden_act: str = "relu"
    global_padding: str | None = None
    num_groups: int = 32
    drop_path_rate: float = 0.0
    embedding_dynamic_padding: bool = False
    output_stride: int = 32
    width_factor: int = 1
    out_features: Any = None
    out_indices: Any = None

    def finish(self) -> None:
        if self.layer_type not in ("preactivation", "bottleneck"):
            raise ConfigError(f'layer_type must be "preactivation" or "bottleneck", not {self.layer_type!r}')
        if self.global_padding is not None:
            self.global_padding = self.global_padding.upper()
            if self.global_padding not in ("SAME", "VALID"):
                raise ConfigError(f'global_padding must be "same" or "valid", but is {self.global_padding!r}')
        self.name_stages(len(self.depths))


def even_padding(x: Tensor, kernel: int, stride: int, dilation: int = 1) -> Tensor:
    """x padded so that the result has a place for each `stride` places, the odd zero behind."""
    reach = (kernel - 1) * dilation + 1
    down, right = (max((-(-n // stride) - 1) * stride + reach - n, 0) for n in x.shape[2:])
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


class NormedConv(Conv2d):
    """A convolution whose kernels have mean 0 and variance 1 (Qiao et al. 2019, arXiv:1903.10520)."""

    def __init__(
        self,
        width: int,
        out: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        padding: str | None = None,
    ) -> None:
        reach = stride - 1 + dilation * (kernel - 1)
        self_padded = padding == "SAME" and (stride != 1 or reach % 2 != 0)
        ahead = 0 if self_padded or padding == "VALID" else reach // 2
        super().__init__(width, out, kernel, stride, ahead, dilation, bias=False)
        self.even = (kernel, stride, dilation) if self_padded else None

    def forward(self, x: Tensor) -> Tensor:
        if self.even is not None:
            x = even_padding(x, *self.even)
        flat = self.weight.flatten(1)
        weight = F.layer_norm(flat, flat.shape[1:], eps=1e-8).view_as(self.weight)
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


class GroupNorm(Block):
    """act of the norm over groups of channels (Wu & He 2018, arXiv:1803.08494)."""

    def __init__(self, groups: int, width: int, act: str | None = None) -> None:
        super().__init__()
        self.groups, self.act = groups, None if act is None else activation(act)
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x, self.groups, self.weight, self.bias)
        return y if self.act is None else self.act(y)

    def reset(self, std: float) -> bool:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        return True


class Unit(Block):
    """Three convolutions with x added; `before`: norms stand before them, else behind (arXiv:1603.05027).

    shortcut: x goes through a convolution (and a norm behind it).
    """

    site_kind = "stream"

    def __init__(
        self,
        convs: tuple[tuple[int, int, int, int, int], ...],
        groups: int,
        act: str,
        before: bool,
        shortcut: bool,
        padding: str | None,
        path_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(NormedConv(*sizes, padding=padding) for sizes in convs)
        last = len(convs) - 1
        self.norms = make([
            GroupNorm(groups, sizes[0 if before else 1], act if before or i < last else None)
            for i, sizes in enumerate(convs)
        ])  # fmt: skip
        width, out, stride = convs[0][0], convs[-1][1], convs[1][3]
        self.shortcut = NormedConv(width, out, 1, stride, padding=padding) if shortcut else None
        self.shortcut_norm = make(GroupNorm(groups, out)) if shortcut and not before else None
        self.act, self.before, self.path_dropout = activation(act), before, path_dropout
        self.register_module("site", None)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = self.norms[0](x) if self.before else x
        side = x
        if self.shortcut is not None:
            side = self.shortcut(y)
            side = side if self.shortcut_norm is None else self.shortcut_norm(side)
        for i, conv in enumerate(self.convs):
            if self.before and i:
                y = self.norms[i](y)
            y = conv(y)
            if not self.before:
                y = self.norms[i](y)
        if self.training and self.path_dropout:
            y = drop_path(y, self.path_dropout)
        y = y + side
        y = y if self.before else self.act(y)
        return y if self.site is None else self.site(y)


class Start(Block):
    """Pixels to the first map: a convolution of 7 x 7, zeros around, a norm, maxima of 3 x 3 at stride 2."""

    site_kind = "stream"

    def __init__(
        self, channels: int, width: int, padding: str | None, even_pool: bool, norm: Spec | None
    ) -> None:
        super().__init__()
        self.channels, self.even_pool, self.zeros = channels, even_pool, int(padding != "SAME")
        self.conv = NormedConv(channels, width, 7, 2, padding=padding)
        self.norm = make(norm)
        self.register_module("site", None)

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, interpolate: bool = False) -> Tensor:
        check_pixels(pixels, self.channels)
        x = F.pad(self.conv(pixels.to(self.conv.weight.dtype)), (self.zeros,) * 4)
        x = x if self.norm is None else self.norm(x)
        x = F.max_pool2d(even_padding(x, 3, 2) if self.even_pool else x, 3, 2)
        return x if self.site is None else self.site(x)


def rounded(value: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that is not a tenth smaller."""
    found = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return found + divisor if found < 0.9 * value else found


def build(c: Config) -> Stages:
    before = c.layer_type == "preactivation"
    chances = iter(path_chances(c.drop_path_rate, sum(c.depths)))
    stages, width, reached, dilation = [], c.embedding_size, 4, 1
    for number, (size, depth) in enumerate(zip(c.hidden_sizes, c.depths, strict=True)):
        out, stride = rounded(size * c.width_factor), 2 if number else 1
        if reached >= c.output_stride:
            dilation, stride = dilation * stride, 1
        first, units = 1 if dilation in (1, 2) else 2, []
        for i in range(depth):
            inner, step = rounded(out * 0.25), stride if i == 0 else 1
            spread = 1 if before else first  # the kind with norms before has no dilation
            convs = ((width, inner, 1, 1, 1), (inner, inner, 3, step, spread), (inner, out, 1, 1, 1))
            units.append(
                Unit(convs, c.num_groups, c.hidden_act, before, i == 0, c.global_padding, next(chances))
            )
            width, first = out, dilation
        stages.append(Stage(units))
        reached *= stride
    norm = GroupNorm(c.num_groups, c.embedding_size, c.hidden_act)
    return Stages(
        embed=Start(
            c.num_channels, c.embedding_size, c.global_padding, c.embedding_dynamic_padding,
            None if before else norm,
        ),
        layers=stages,
        norm=GroupNorm(c.num_groups, c.hidden_sizes[-1], c.hidden_act) if before else None,
        pool=MeanPool(),
    )  # fmt: skip


def names(c: Config) -> NameMap:
    """BiT's public names."""
    at, theirs = "layers.{i}.layers.{j}", "encoder.stages.{i}.layers.{j}"
    lines = {
        "embed.conv": "embedder.convolution",
        "embed.norm": "embedder.norm",
        f"{at}.shortcut": f"{theirs}.downsample.conv",
        f"{at}.shortcut_norm": f"{theirs}.downsample.norm",
        "norm": "norm",
    }
    for i, depth in enumerate(c.depths):
        for j in range(depth):
            for k in range(3):
                ours, public = f"layers.{i}.layers.{j}", f"encoder.stages.{i}.layers.{j}"
                lines[f"{ours}.convs.{k}"] = f"{public}.conv{k + 1}"
                lines[f"{ours}.norms.{k}"] = f"{public}.norm{k + 1}"
    return NameMap(lines, prefix="bit")


HEADS: dict[str, Head] = {
    "BitModel": Backbone(output=BaseModelOutputWithPoolingAndNoAttention, pool=True),
    "BitForImageClassification": ImageClassify(
        names={"out": "classifier.1"}, on="pool", pool=True, output=ImageClassifierOutputWithNoAttention
    ),
    # Its files keep the prefix of the bare model.
    "BitBackbone": FeatureMaps(
        skeleton=BackboneModel, channels=lambda c: [c.embedding_size, *c.hidden_sizes], prefix="bit"
    ),
}

family(
    "bit", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel, public="Bit",
    width=lambda c: c.hidden_sizes[-1],
)  # fmt: skip
