"""SigLIP (Zhai et al. 2023, arXiv:2303.15343): two towers that learn to agree, pair by pair.

Public checkpoints: google/siglip-base-patch16-224, google/siglip-so400m-patch14-384, ...
The towers are the families siglip_text_model and siglip_vision_model, whole. Differs from CLIP in: a sigmoid
for each pair with a learned bias, and no projections behind the towers' own.
"""

from typing import Any

from phyla.blocks import Dual
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.families import siglip_text_model, siglip_vision_model
from phyla.family import family
from phyla.heads import Contrast, Head, ImageClassify
from phyla.skeletons import DualModel, VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    text_config: Any = None
    vision_config: Any = None
    initializer_factor: float = 1.0

    PARTS = {"text_config": "siglip_text_model", "vision_config": "siglip_vision_model"}

    @classmethod
    def from_text_vision_configs(
        cls, text_config: PretrainedConfig, vision_config: PretrainedConfig, **keys: Any
    ) -> "Config":
        """A configuration from those of the two towers."""
        return cls(text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), **keys)


def build(c: PretrainedConfig) -> Dual:
    return Dual(text=siglip_text_model.build(c.text_config), image=siglip_vision_model.build(c.vision_config))


NAMES = NameMap({}, parts={"text": ("", siglip_text_model.TOWER), "image": ("", siglip_vision_model.TOWER)})

HEADS: dict[str, Head] = {
    "SiglipModel": Contrast(
        loss="sigmoid",
        scale=lambda c: 0.0,
        bias=lambda c: 0.0,
        names={
            "scale.value": To("logit_scale", Reshape((1,))),
            "bias.value": To("logit_bias", Reshape((1,))),
        },
    ),
    "SiglipForImageClassification": ImageClassify(
        on="all",
        pool=True,
        names={"out": "classifier"},
        build=lambda c: siglip_vision_model.build(c.vision_config),
        table=siglip_vision_model.NAMES,
        skeleton=VisionModel,
    ),
}

family(
    "siglip", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=DualModel, public="Siglip",
    width=lambda c: c.vision_config.hidden_size,
)  # fmt: skip
