"""Depth Anything (Yang et al. 2024, arXiv:2401.10891 and 2406.09414): DPT's decoder on DINOv2.

Public checkpoints: LiheYoung/depth-anything-small-hf, depth-anything/Depth-Anything-V2-Small-hf and every
`model_type: depth_anything`.
Differs from DPT in: the class vector falls away, a fused map has the size of the next, depth has the size of
the image; `metric` models give metres through a sigmoid.
"""

from typing import Any

from phyla.blocks.spec import Spec
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families.dpt import NECK
from phyla.family import family, part
from phyla.heads import Head
from phyla.heads.depth import DepthEstimate, DepthRead, FusionNeck, Reassembly
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    backbone_config: Any = None
    backbone: str | None = None
    use_pretrained_backbone: bool = False
    use_timm_backbone: bool = False
    backbone_kwargs: dict | None = None
    patch_size: int = 14
    initializer_range: float = 0.02
    reassemble_hidden_size: int = 384
    reassemble_factors: list = [4, 2, 1, 0.5]
    neck_hidden_sizes: list = [48, 96, 192, 384]
    fusion_hidden_size: int = 64
    head_in_index: int = -1
    head_hidden_size: int = 32
    depth_estimation_type: str = "relative"
    max_depth: Any = None

    def finish(self) -> None:
        if self.depth_estimation_type not in ("relative", "metric"):
            raise ConfigError(
                f'depth_estimation_type must be "relative" or "metric", but is {self.depth_estimation_type!r}'
            )
        self.max_depth = self.max_depth or 1
        self.take_backbone(DEFAULT, "dinov2")


DEFAULT = {
    "model_type": "dinov2",
    "image_size": 518,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "out_indices": [9, 10, 11, 12],
    "apply_layernorm": True,
    "reshape_hidden_states": False,
}


def build(c: Config) -> Spec:
    return part(c.backbone_config).features


def names(c: Config) -> NameMap:
    """The backbone's names."""
    return part(c.backbone_config).features_under("backbone")


def neck(c: Config) -> FusionNeck:
    """Maps of the chosen layers, fused."""
    patch = (c.patch_size, c.patch_size)
    reassembly = Reassembly(
        c.reassemble_hidden_size, c.neck_hidden_sizes, c.reassemble_factors, patch, "ignore"
    )
    return FusionNeck(reassembly, c.neck_hidden_sizes, c.fusion_hidden_size, follows=True)


def read(c: Config) -> DepthRead:
    """From the last fused map to depth."""
    last = "relu" if c.depth_estimation_type == "relative" else "sigmoid"
    return DepthRead(c.fusion_hidden_size, c.head_hidden_size, c.patch_size, last, c.max_depth)


HEADS: dict[str, Head] = {
    "DepthAnythingForDepthEstimation": DepthEstimate(
        neck=neck,
        read=read,
        names={
            **NECK,
            "read.first": "head.conv1",
            "read.second": "head.conv2",
            "read.third": "head.conv3",
        },
    ),
}

family(
    "depth_anything", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel,
    public="DepthAnything", width=lambda c: c.backbone_config.hidden_size,
)  # fmt: skip
