"""DPT (Ranftl et al. 2021, arXiv:2103.13413): ViT whose layers become maps for depth and segmentation.

Public checkpoints: Intel/dpt-large, Intel/dpt-beit-large-512, Intel/dpt-hybrid-midas, and every
`model_type: dpt`.
Differs from ViT in: images of any size by bilinear resampling of positions; a backbone of another family may
stand in its place; the hybrid kind reads patches from the maps of a convolutional backbone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, PatchEmbed
from phyla.blocks.conv import BatchNorm, Conv2d, ConvNorm
from phyla.blocks.spec import Spec, make
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import vit
from phyla.family import family, part
from phyla.heads import Backbone, Head
from phyla.heads.dense import Segment, resized
from phyla.heads.depth import DepthEstimate, DepthRead, FusionNeck, Reassembly
from phyla.outputs import BaseModelOutputWithPoolingAndIntermediateActivations
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list = 384
    patch_size: int | list = 16
    num_channels: int = 3
    is_hybrid: bool = False
    qkv_bias: bool = True
    backbone_out_indices: Any = [2, 5, 8, 11]
    readout_type: str = "project"
    reassemble_factors: list = [4, 2, 1, 0.5]
    neck_hidden_sizes: list = [96, 192, 384, 768]
    fusion_hidden_size: int = 256
    head_in_index: int = -1
    use_batch_norm_in_fusion_residual: bool = False
    use_bias_in_fusion_residual: bool | None = None
    add_projection: bool = False
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float = 0.4
    semantic_loss_ignore_index: int = 255
    semantic_classifier_dropout: float = 0.1
    backbone_featmap_shape: Any = [1, 1024, 24, 24]
    neck_ignore_stages: list = [0, 1]
    backbone_config: Any = None
    backbone: str | None = None
    use_pretrained_backbone: bool = False
    use_timm_backbone: bool = False
    backbone_kwargs: dict | None = None
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"

    def finish(self) -> None:
        if self.readout_type not in ("ignore", "add", "project"):
            raise ConfigError(
                f'readout_type must be "ignore", "add" or "project", but is {self.readout_type!r}'
            )
        self.pooler_output_size = self.pooler_output_size or self.hidden_size
        if self.is_hybrid and self.readout_type != "project":
            raise ConfigError(f'with is_hybrid, readout_type must be "project", but is {self.readout_type!r}')
        default = HYBRID if self.is_hybrid else None
        # The default model_type of a nested configuration is that of the hybrid kind.
        self.take_backbone(default, "bit")
        self.use_autobackbone = self.backbone_config is not None and not self.is_hybrid
        if not self.is_hybrid:
            self.backbone_featmap_shape, self.neck_ignore_stages = None, []
        if self.use_autobackbone:
            self.backbone_out_indices = None


HYBRID = {
    "model_type": "bit",
    "global_padding": "same",
    "layer_type": "bottleneck",
    "depths": [3, 4, 9],
    "out_features": ["stage1", "stage2", "stage3"],
    "embedding_dynamic_padding": True,
}


class BilinearPatches(PatchEmbed):
    """Patches whose positions are resampled bilinearly to images of any size."""

    resampling = "bilinear"


class MapPatches(BilinearPatches):
    """Patches read from the last map of a convolutional backbone, whose first two maps are given on."""

    def __init__(
        self,
        image: tuple[int, int],
        patch: tuple[int, int],
        channels: int,
        width: int,
        features: Spec,
        maps: int,
    ) -> None:
        super().__init__(image, patch, channels, width)
        self.projection = Conv2d(maps, width, 1)
        self.features = make(features)

    def forward(self, pixels: Tensor, hidden: Tensor | None, interpolate: bool) -> Any:
        maps = self.features(pixels).feature_maps
        x = self.projection(maps[-1])
        grid = (x.shape[2], x.shape[3])
        x = torch.cat((self.class_token.expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)), 1)
        x = x + self.positions(*grid)
        return (x if self.site is None else self.site(x)), {"intermediate_activations": maps[:2]}


def build(c: Config) -> Spec:
    embed: Spec
    plain = vit.build(c)
    image, patch = vit.pair(c.image_size), vit.pair(c.patch_size)
    if c.is_hybrid:
        found = part(c.backbone_config)
        embed = MapPatches(
            image, patch, c.num_channels, c.hidden_size, found.features, c.backbone_featmap_shape[1]
        )
    else:
        embed = BilinearPatches(
            image, patch, c.num_channels, c.hidden_size, dropout=c.hidden_dropout_prob, any_size=True
        )
    return plain.but(embed=embed)


def names(c: Config) -> NameMap:
    """ViT's names; of the hybrid kind, the backbone stands in the embeddings."""
    plain = vit.names(c).but(prefix="dpt")
    if not c.is_hybrid:
        return plain
    lines = {**plain.lines, "embed.projection": "embeddings.projection"}
    return plain.but(
        lines=lines, parts={"embed.features": ("embeddings.backbone.", part(c.backbone_config).feature_names)}
    )


def body(c: Config) -> Spec:
    """What depth is read from: ViT, or a backbone of another family."""
    return part(c.backbone_config).features if c.use_autobackbone else build(c)


def body_names(c: Config) -> NameMap:
    """The names of `body`."""
    return part(c.backbone_config).features_under("backbone") if c.use_autobackbone else names(c)


def neck(c: Config) -> FusionNeck:
    """Maps of four layers, fused."""
    own = c.backbone_config if c.use_autobackbone else c
    reassembly = Reassembly(
        own.hidden_size, c.neck_hidden_sizes, c.reassemble_factors, vit.pair(own.patch_size), c.readout_type,
        c.hidden_act, ready=c.neck_ignore_stages,
    )  # fmt: skip
    indices = None
    if not c.use_autobackbone:
        indices = [i + 1 for i in sorted(set(c.backbone_out_indices[2 if c.is_hybrid else 0 :]))]
    norms, bias = c.use_batch_norm_in_fusion_residual, c.use_bias_in_fusion_residual
    return FusionNeck(
        # A backbone of windows has maps of the sizes that are due.
        None if c.use_autobackbone and hasattr(own, "window_size") else reassembly,
        c.neck_hidden_sizes, c.fusion_hidden_size, indices, bias=not norms if bias is None else bias,
        norms=norms,
    )  # fmt: skip


class Scores(Block):
    """Scores of labels from one of the fused maps, at `grow` times its size."""

    def __init__(
        self, width: int, labels: int, dropout: float, grow: int = 1, index: int | None = None
    ) -> None:
        super().__init__()
        self.conv = make(ConvNorm(width, width, 3, norm=BatchNorm(width), act="relu"))
        self.out = Conv2d(width, labels, 1)
        self.dropout_prob, self.grow, self.index = dropout, grow, index

    def forward(self, x: Any) -> Tensor:
        x = self.conv(x if self.index is None else x[self.index])
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        x = self.out(x)
        return resized(x, [n * self.grow for n in x.shape[2:]], corners=True) if self.grow > 1 else x


NECK = {
    "neck.reassembly.scales.{i}.project": "neck.reassemble_stage.layers.{i}.projection",
    "neck.reassembly.scales.{i}.resize": "neck.reassemble_stage.layers.{i}.resize",
    "neck.reassembly.readouts.{i}.project": "neck.reassemble_stage.readout_projects.{i}.0",
    "neck.convs.{i}": "neck.convs.{i}",
    "neck.layers.{i}.project": "neck.fusion_stage.layers.{i}.projection",
    **{
        f"neck.layers.{{i}}.{ours}.{conv}{leaf}": f"neck.fusion_stage.layers.{{i}}.{theirs}.{word}{n}"
        for ours, theirs in (("side", "residual_layer1"), ("main", "residual_layer2"))
        for conv, n in (("first", 1), ("second", 2))
        for leaf, word in (("", "convolution"), ("_norm", "batch_norm"))
    },
}

HEADS: dict[str, Head] = {
    "DPTModel": Backbone(output=BaseModelOutputWithPoolingAndIntermediateActivations, pool=True),
    "DPTForDepthEstimation": DepthEstimate(
        build=body,
        table=body_names,
        neck=neck,
        read=lambda c: DepthRead(c.fusion_hidden_size, 32, before=256 if c.add_projection else 0),
        names={
            **NECK,
            "read.before": "head.projection",
            "read.first": "head.head.0",
            "read.second": "head.head.2",
            "read.third": "head.head.4",
        },
    ),
    "DPTForSemanticSegmentation": Segment(
        neck=neck,
        main=lambda c: Scores(
            c.fusion_hidden_size, c.num_labels, c.semantic_classifier_dropout, 2, c.head_in_index
        ),
        auxiliary=lambda c: Scores(c.fusion_hidden_size, c.num_labels, 0.1) if c.use_auxiliary_head else None,
        level=-1,
        names={
            **NECK,
            **{
                f"{ours}.{line}": f"{theirs}.head.{n}"
                for ours, theirs in (("main", "head"), ("auxiliary", "auxiliary_head"))
                for line, n in (("conv.conv", 0), ("conv.norm", 1), ("out", 4))
            },
        },
    ),
}

family("dpt", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel, public="DPT")
