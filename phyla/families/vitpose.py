"""ViTPose (Xu et al. 2022, arXiv:2204.12484): joints of a person from a plain ViT.

Public checkpoints: usyd-community/vitpose-base-simple, vitpose-plus-base and every `model_type: vitpose`.
The backbone is a family of its own; a decoder of one or three layers makes a map of heat for each joint.
"""

from typing import Any

from phyla.blocks.spec import Spec
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families.vit import pair
from phyla.family import family, part
from phyla.heads import Head
from phyla.heads.pose import ClassicHeat, PoseEstimate, SimpleHeat
from phyla.skeletons.vision import PoseModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    backbone_config: Any = None
    backbone: str | None = None
    use_pretrained_backbone: bool = False
    use_timm_backbone: bool = False
    backbone_kwargs: dict | None = None
    initializer_range: float = 0.02
    scale_factor: int = 4
    use_simple_decoder: bool = True

    def finish(self) -> None:
        if self.use_timm_backbone:
            raise ConfigError("use_timm_backbone must be false: joints are read from a configured backbone")
        self.take_backbone({"model_type": "vitpose_backbone", "out_indices": [4]}, "vitpose_backbone")


def build(c: Config) -> Spec:
    return part(c.backbone_config).features


def names(c: Config) -> NameMap:
    """The backbone's names."""
    return part(c.backbone_config).features_under("backbone")


def grid(c: Config) -> tuple[int, int]:
    """Patches of an image by rows and columns."""
    image, patch = pair(c.backbone_config.image_size), pair(c.backbone_config.patch_size)
    return image[0] // patch[0], image[1] // patch[1]


def heat(c: Config) -> Spec:
    """The simple decoder or the classic one."""
    width = c.backbone_config.hidden_size
    if c.use_simple_decoder:
        return SimpleHeat(width, c.num_labels, c.scale_factor)
    return ClassicHeat(width, c.num_labels)


HEADS: dict[str, Head] = {
    "VitPoseForPoseEstimation": PoseEstimate(
        heat=heat,
        grid=grid,
        names={
            "heat.first": "head.deconv1",
            "heat.first_norm": "head.batchnorm1",
            "heat.second": "head.deconv2",
            "heat.second_norm": "head.batchnorm2",
            "heat.out": "head.conv",
        },
    ),
}

family(
    "vitpose", config=Config, build=build, names=names, heads=HEADS, skeleton=PoseModel, public="VitPose",
    width=lambda c: c.backbone_config.hidden_size,
)  # fmt: skip
