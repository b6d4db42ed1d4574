"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545): convolutions laid out as a transformer.

Public checkpoints: facebook/convnext-tiny-224 and every `model_type: convnext`.
Differs from ResNet in: one wide depthwise convolution a layer, a feed-forward on each place, layer norms, a
learned gain on each branch.
"""

from typing import Any

from torch import Tensor

from phyla.blocks import Block, Context, LayerNorm, Linear, activation, make
from phyla.blocks.conv import ChannelNorm, Conv2d, Stem
from phyla.blocks.linear import activated
from phyla.blocks.pool import MeanPool
from phyla.blocks.residual import LayerScale, drop_path, path_chances
from phyla.blocks.stages import Stage, StageMaps, Stages
from phyla.checkpoints.names import NameMap
from phyla.config import StagedConfig
from phyla.family import family
from phyla.heads import Backbone, FeatureMaps, Head, ImageClassify
from phyla.heads.feature_maps import stage_norm_names, stage_norms
from phyla.outputs import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutputWithNoAttention
from phyla.skeletons import BackboneModel, VisionModel


class Config(StagedConfig):
    """Keys and defaults of the public config.json."""

    num_channels: int = 3
    patch_size: int = 4
    num_stages: int = 4
    hidden_sizes: list = [96, 192, 384, 768]
    depths: list = [3, 3, 9, 3]
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    layer_scale_init_value: float = 1e-6
    drop_path_rate: float = 0.0
    image_size: int = 224
    out_features: Any = None
    out_indices: Any = None

    def finish(self) -> None:
        self.name_stages(len(self.depths))


class DepthwiseLayer(Block):
    """x + gain * down(act(up(norm(conv(x))))) on maps (B, C, Y, X); the convolution is 7 x 7, by channel.

    gain: start of the learned gain; 0 leaves it out. path_dropout: see `drop_path`.
    """

    site_kind = "stream"

    def __init__(self, width: int, act: str, gain: float = 0.0, path_dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = make(LayerNorm(width, eps=1e-6))
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)
        self.act_name, self.act, self.path_dropout = act, activation(act), path_dropout
        self.layer_scale = make(LayerScale(width, gain)) if gain > 0 else None
        self.register_module("site", None)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))  # (B, Y, X, C)
        y = self.down(activated(self.up, y, self.act_name, self.act))
        if self.layer_scale is not None:
            y = self.layer_scale(y)
        y = y.permute(0, 3, 1, 2)
        if self.training and self.path_dropout:
            y = drop_path(y, self.path_dropout)
        y = x + y
        return y if self.site is None else self.site(y)


class Patches(Block):
    """A convolution whose steps are as long as its sides, with a norm before it or behind it."""

    def __init__(self, width: int, out: int, size: int, norm_first: bool) -> None:
        super().__init__()
        self.conv = Conv2d(width, out, size, size)
        self.norm = make(ChannelNorm(width if norm_first else out, eps=1e-6))
        self.norm_first = norm_first

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x)) if self.norm_first else self.norm(self.conv(x))


def build(c: Config) -> Stages:
    chances = iter(path_chances(c.drop_path_rate, sum(c.depths)))
    stages, width = [], c.hidden_sizes[0]
    for number in range(c.num_stages):
        out = c.hidden_sizes[number]
        enter = Patches(width, out, 2, norm_first=True) if number else None
        layers = [
            DepthwiseLayer(out, c.hidden_act, c.layer_scale_init_value, next(chances))
            for _ in range(c.depths[number])
        ]
        stages.append(Stage(layers, enter=enter))
        width = out
    stem = Stem(c.num_channels, [Patches(c.num_channels, c.hidden_sizes[0], c.patch_size, norm_first=False)])
    last = LayerNorm(c.hidden_sizes[-1], eps=c.layer_norm_eps)
    return Stages(embed=stem, layers=stages, pool=MeanPool(norm=last))


def widths(c: Config) -> list[int]:
    """Widths of the stem and of all stages."""
    return [c.hidden_sizes[0], *c.hidden_sizes]


AT, THEIRS = "layers.{i}.layers.{j}", "encoder.stages.{i}.layers.{j}"
NAMES = NameMap(
    {
        "embed.parts.0.conv": "embeddings.patch_embeddings",
        "embed.parts.0.norm": "embeddings.layernorm",
        "layers.{i}.enter.norm": "encoder.stages.{i}.downsampling_layer.0",
        "layers.{i}.enter.conv": "encoder.stages.{i}.downsampling_layer.1",
        f"{AT}.conv": f"{THEIRS}.dwconv",
        f"{AT}.norm": f"{THEIRS}.layernorm",
        f"{AT}.up": f"{THEIRS}.pwconv1",
        f"{AT}.down": f"{THEIRS}.pwconv2",
        f"{AT}.layer_scale.weight": f"{THEIRS}.layer_scale_parameter",
        "pool.norm": "layernorm",
    },
    prefix="convnext",
)

HEADS: dict[str, Head] = {
    "ConvNextModel": Backbone(output=BaseModelOutputWithPoolingAndNoAttention, pool=True),
    "ConvNextForImageClassification": ImageClassify(
        names={"out": "classifier"}, on="pool", pool=True, output=ImageClassifierOutputWithNoAttention
    ),
    "ConvNextBackbone": FeatureMaps(
        skeleton=BackboneModel,
        channels=widths,
        maps=lambda c: StageMaps(c.out_indices, stage_norms(c, widths(c), ChannelNorm)),
        names=stage_norm_names,
    ),
}

family(
    "convnext", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=VisionModel, public="ConvNext",
    width=lambda c: c.hidden_sizes[-1],
)  # fmt: skip
