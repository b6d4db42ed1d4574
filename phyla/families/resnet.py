"""ResNet (He et al. 2015, arXiv:1512.03385), version 1.5: the stride stands in the 3 x 3 convolution.

Public checkpoints: microsoft/resnet-18 ... microsoft/resnet-152, and the backbones of detectors.
Differs from transformers in everything: convolutions with batch norm in stages that halve the sides.
"""

from typing import Any

from phyla.blocks.conv import BatchNorm, ConvNorm, ConvResidual, Stem
from phyla.blocks.pool import MeanPool
from phyla.blocks.spec import Spec
from phyla.blocks.stages import Stage, Stages
from phyla.checkpoints.names import NameMap
from phyla.config import StagedConfig
from phyla.errors import ConfigError, nearest
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
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    out_features: Any = None
    out_indices: Any = None

    def finish(self) -> None:
        if self.layer_type not in ("basic", "bottleneck"):
            raise ConfigError(
                f'layer_type must be "basic" or "bottleneck", but is {self.layer_type!r}.'
                + nearest(str(self.layer_type), ("basic", "bottleneck"))
            )
        self.name_stages(len(self.depths))


def layer(c: Config, width: int, out: int, stride: int) -> Spec:
    """One residual layer from `width` to `out` channels."""

    def conv(a: int, b: int, kernel: int, step: int = 1, act: str | None = "relu") -> Spec:
        # hidden_act is that of the stem and of the sums alone.
        return ConvNorm(a, b, kernel, step, norm=BatchNorm(b), act=act)

    if c.layer_type == "basic":
        convs = [conv(width, out, 3, stride), conv(out, out, 3, act=None)]
    else:
        first, second = (stride, 1) if c.downsample_in_bottleneck else (1, stride)
        inner = out // 4
        convs = [
            conv(width, inner, 1, first), conv(inner, inner, 3, second), conv(inner, out, 1, act=None),
        ]  # fmt: skip
    shortcut = conv(width, out, 1, stride, None) if width != out or stride != 1 else None
    return ConvResidual(convs, shortcut, c.hidden_act)


def build(c: Config) -> Stages:
    stages, width = [], c.embedding_size
    for number, (out, depth) in enumerate(zip(c.hidden_sizes, c.depths, strict=True)):
        stride = 2 if number or c.downsample_in_first_stage else 1
        layers = [layer(c, width, out, stride), *[layer(c, out, out, 1)] * (depth - 1)]
        stages.append(Stage(layers))
        width = out
    conv = ConvNorm(
        c.num_channels, c.embedding_size, 7, 2, norm=BatchNorm(c.embedding_size), act=c.hidden_act
    )
    return Stages(embed=Stem(c.num_channels, [conv], pool=True), layers=stages, pool=MeanPool())


def conv_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of a ConvNorm."""
    return {f"{ours}.conv": f"{theirs}.convolution", f"{ours}.norm": f"{theirs}.normalization"}


AT, THEIRS = "layers.{i}.layers.{j}", "encoder.stages.{i}.layers.{j}"
NAMES = NameMap(
    {
        **conv_names("embed.parts.0", "embedder.embedder"),
        **conv_names(f"{AT}.convs.{{k}}", f"{THEIRS}.layer.{{k}}"),
        **conv_names(f"{AT}.shortcut", f"{THEIRS}.shortcut"),
    },
    prefix="resnet",
)

HEADS: dict[str, Head] = {
    "ResNetModel": Backbone(output=BaseModelOutputWithPoolingAndNoAttention, pool=True),
    "ResNetForImageClassification": ImageClassify(
        names={"out": "classifier.1"}, on="pool", pool=True, output=ImageClassifierOutputWithNoAttention
    ),
    "ResNetBackbone": FeatureMaps(
        skeleton=BackboneModel, channels=lambda c: [c.embedding_size, *c.hidden_sizes]
    ),
}

family(
    "resnet", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=VisionModel, public="ResNet",
    width=lambda c: c.hidden_sizes[-1],
)  # fmt: skip
