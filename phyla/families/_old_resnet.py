"""The ResNets that old detectors name by a string (`backbone: resnet50`), with the names of their files.

Differs from the family resnet in: frozen batch norms; the last stages may widen their reach in place of
halving (DETR's DC5); stems of three convolutions and averaged shortcuts (the names that end in d; He et al.
2018, arXiv:1812.01187), grouped and wide ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.conv import BatchNorm, ConvNorm, ConvResidual, Stem, freeze
from phyla.blocks.spec import Spec
from phyla.blocks.stages import Features, Stage, StageMaps, Stages
from phyla.checkpoints.names import NameMap
from phyla.errors import ConfigError, nearest

# Name: layers are bottlenecks, depths, groups, width of a bottleneck for each of its stage.
_PLAIN: dict[str, tuple[bool, Sequence[int], int, int]] = {
    "resnet18": (False, (2, 2, 2, 2), 1, 1),
    "resnet26": (True, (2, 2, 2, 2), 1, 1),
    "resnet34": (False, (3, 4, 6, 3), 1, 1),
    "resnet50": (True, (3, 4, 6, 3), 1, 1),
    "resnet101": (True, (3, 4, 23, 3), 1, 1),
    "resnet152": (True, (3, 8, 36, 3), 1, 1),
}
KINDS = {
    **_PLAIN,
    **{f"{name}d": kind for name, kind in _PLAIN.items()},
    "resnext50_32x4d": (True, (3, 4, 6, 3), 32, 2),
    "resnext101_32x8d": (True, (3, 4, 23, 3), 32, 4),
    "wide_resnet50_2": (True, (3, 4, 6, 3), 1, 2),
    "wide_resnet101_2": (True, (3, 4, 23, 3), 1, 2),
}


class AveragedConv(ConvNorm):
    """A shortcut of 1 x 1 behind means of 2 x 2; spread: they keep the size, with zeros beyond the edge."""

    def __init__(self, width: int, out: int, stride: int, spread: bool, norm: Spec) -> None:
        super().__init__(width, out, 1, norm=norm)
        self.stride, self.spread = stride, spread

    def forward(self, x: Tensor) -> Tensor:
        if self.spread:
            x = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)
        elif self.stride > 1:
            x = F.avg_pool2d(x, 2, self.stride, ceil_mode=True, count_include_pad=False)
        return super().forward(x)


def conv(width: int, out: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> Spec:
    """One convolution with its norm, before an activation."""
    return ConvNorm(
        width, out, kernel, stride, groups=groups, norm=BatchNorm(out), act="relu", dilation=dilation
    )


@dataclass(frozen=True)
class OldResNet:
    """A ResNet by its old name: maps of `indices` (1 to 4), the last at `stride` pixels; ConfigError."""

    name: str
    indices: Sequence[int]
    channels: int = 3
    stride: int = 32

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise ConfigError(
                f"backbone must be one of {sorted(KINDS)}, but is {self.name!r}.{nearest(self.name, KINDS)} "
                "Other networks of the library timm cannot be built from a name: give a backbone_config"
            )
        if self.stride not in (8, 16, 32):
            raise ConfigError(f"output_stride must be 8, 16 or 32, but is {self.stride!r}")
        if not self.indices or not set(self.indices) <= {1, 2, 3, 4}:
            raise ConfigError(f"out_indices must be among 1 to 4, but are {self.indices}")

    @property
    def deep(self) -> bool:
        """Whether the stem has three convolutions and shortcuts average."""
        return self.name.endswith("d") and self.name in KINDS and self.name[:-1] in _PLAIN

    @property
    def sizes(self) -> list[int]:
        """Channels of the four stages."""
        return [64 * 2**i * (4 if KINDS[self.name][0] else 1) for i in range(4)]

    @property
    def widths(self) -> list[int]:
        """Channels of the maps."""
        return [self.sizes[i - 1] for i in self.indices]

    @property
    def spec(self) -> Spec:
        """The feature extractor: all its batch norms are frozen."""
        body = Stages(embed=Stem(self.channels, self._stem(), pool=True), layers=self._stages())
        return freeze(Features(body=body, maps=StageMaps(self.indices)))

    def _stem(self) -> list[Spec]:
        if not self.deep:
            return [conv(self.channels, 64, 7, 2)]
        return [conv(self.channels, 32, 3, 2), conv(32, 32, 3), conv(32, 64, 3)]

    def _stages(self) -> list[Spec]:
        stages: list[Spec] = []
        width, reached, reach = 64, 4, 1
        for number, (out, depth) in enumerate(zip(self.sizes, KINDS[self.name][1], strict=True)):
            stride, before = min(number, 1) + 1, reach
            if number and reached >= self.stride:
                reach, stride = reach * stride, 1
            reached *= stride
            layers = [self._layer(width, out, stride, before, reach)]
            layers += [self._layer(out, out, 1, reach, reach)] * (depth - 1)
            stages.append(Stage(layers))
            width = out
        return stages

    def _layer(self, width: int, out: int, stride: int, first: int, reach: int) -> Spec:
        """`first`: the reach of the convolution that may shrink, `reach` that of one behind it."""
        bottleneck, _, groups, wide = KINDS[self.name]
        if bottleneck:
            inner = out // 4 * wide
            middle = conv(inner, inner, 3, stride, groups=groups, dilation=first)
            convs = [conv(width, inner, 1), middle, conv(inner, out, 1).but(act=None)]
        else:
            second = conv(out, out, 3, dilation=reach).but(act=None)
            convs = [conv(width, out, 3, stride, dilation=first), second]
        shortcut = None
        if stride != 1 or width != out:
            shortcut = conv(width, out, 1, stride).but(act=None)
            if self.deep:
                shortcut = AveragedConv(width, out, stride, reach > 1, BatchNorm(out))
        return ConvResidual(convs, shortcut)

    @property
    def names(self) -> NameMap:
        """Names of `spec` in the files of old detectors."""
        lines = {"body.embed.parts.0.conv": "conv1", "body.embed.parts.0.norm": "bn1"}
        if self.deep:
            theirs = ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")
            ours = [f"body.embed.parts.{i}.{part}" for i in range(3) for part in ("conv", "norm")]
            lines = dict(zip(ours, theirs, strict=True))
        ahead = 1 if self.deep else 0
        for i, depth in enumerate(KINDS[self.name][1]):
            for j in range(depth):
                at, stored = f"body.layers.{i}.layers.{j}", f"layer{i + 1}.{j}"
                for k in range(3):
                    lines[f"{at}.convs.{k}.conv"] = f"{stored}.conv{k + 1}"
                    lines[f"{at}.convs.{k}.norm"] = f"{stored}.bn{k + 1}"
                lines[f"{at}.shortcut.conv"] = f"{stored}.downsample.{ahead}"
                lines[f"{at}.shortcut.norm"] = f"{stored}.downsample.{ahead + 1}"
        return NameMap(lines)
