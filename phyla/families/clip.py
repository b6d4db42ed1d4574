"""CLIP (Radford et al. 2021, arXiv:2103.00020): a text tower and a vision tower that learn to agree.

Public checkpoints: openai/clip-vit-base-patch32, laion/CLIP-ViT-H-14-laion2B-s32B-b79K, ...
The towers are the families clip_text_model and clip_vision_model, whole.
"""

from typing import Any

from phyla.blocks import Dual, Linear
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import clip_text_model, clip_vision_model
from phyla.family import family
from phyla.heads import Contrast, Head, ImageClassify
from phyla.registry import config_class
from phyla.skeletons import DualModel, VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    text_config: dict | None = None
    vision_config: dict | None = None
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0

    PARTS = {"text_config": "clip_text_model", "vision_config": "clip_vision_model"}

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **merge_parts(keys, self.PARTS))

    @classmethod
    def from_text_vision_configs(
        cls, text_config: PretrainedConfig, vision_config: PretrainedConfig, **keys: Any
    ) -> "Config":
        """A configuration from those of the two towers."""
        return cls(text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), **keys)


def merge_parts(keys: dict[str, Any], parts: dict[str, str]) -> dict[str, Any]:
    """The keys with the old `text_config_dict` and its like, defaults and all, laid over `text_config`."""
    for name, model_type in parts.items():
        old = keys.pop(f"{name}_dict", None)
        if old is not None:
            keys[name] = {**(keys.get(name) or {}), **config_class(model_type)(**old).to_dict()}
    return keys


def build(c: PretrainedConfig) -> Dual:
    return Dual(text=clip_text_model.build(c.text_config), image=clip_vision_model.build(c.vision_config))


NAMES = NameMap({}, parts={"text": ("", clip_text_model.TOWER), "image": ("", clip_vision_model.TOWER)})

HEADS: dict[str, Head] = {
    "CLIPModel": Contrast(
        text=lambda c: Linear(c.text_config.hidden_size, c.projection_dim, bias=False),
        other=lambda c: Linear(c.vision_config.hidden_size, c.projection_dim, bias=False),
        names={"text": "text_projection", "image": "visual_projection", "scale.value": "logit_scale"},
    ),
    "CLIPForImageClassification": ImageClassify(
        on="mean",
        pool=True,
        names={"out": "classifier"},
        build=lambda c: clip_vision_model.build(c.vision_config),
        table=clip_vision_model.NAMES,
        skeleton=VisionModel,
    ),
}

family(
    "clip", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=DualModel, public="CLIP",
    width=lambda c: c.vision_config.hidden_size,
)  # fmt: skip
