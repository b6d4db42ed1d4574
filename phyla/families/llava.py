"""LLaVA 1.5 (Liu et al. 2023, arXiv:2304.08485, arXiv:2310.03744): a text decoder that reads patch vectors.

Public checkpoints: llava-hf/llava-1.5-7b-hf, llava-hf/bakLlava-v1-hf, mistral-community/pixtral-12b, ...
The vision tower and the text decoder are other families, whole; between them stand two linear maps.
"""

from collections.abc import Mapping
from typing import Any

from phyla.blocks import FFN, Spec
from phyla.blocks.fusion import ImageText
from phyla.checkpoints.names import NameMap, To
from phyla.config import PretrainedConfig
from phyla.family import family, part
from phyla.heads import Head
from phyla.heads.fusion import ImageTextLM
from phyla.skeletons import ImageTextModel

# The tower of LLaVA 1.5, where a file says nothing of it.
TOWER = {
    "intermediate_size": 4096, "hidden_size": 1024, "patch_size": 14, "image_size": 336, "num_hidden_layers":
    24,
    "num_attention_heads": 16, "vocab_size": 32000, "projection_dim": 768,
}  # fmt: skip


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vision_config: Any = None
    text_config: Any = None
    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: str = "default"
    vision_feature_layer: int | list = -2
    image_seq_length: int = 576
    multimodal_projector_bias: bool = True

    PARTS = {"vision_config": "clip_vision_model", "text_config": "llama"}
    PART_DEFAULTS = {"vision_config": TOWER}


def projector(c: PretrainedConfig) -> Spec:
    """Two linear maps from the chosen states of the tower, side by side, to the width of the text."""
    chosen = 1 if isinstance(c.vision_feature_layer, int) else len(c.vision_feature_layer)
    width = part(c.text_config).width
    return FFN(
        part(c.vision_config).width * chosen,
        width,
        act=c.projector_hidden_act,
        bias=c.multimodal_projector_bias,
        out=width,
    )


def build(c: PretrainedConfig, kind: type = ImageText) -> Spec:
    """LLaVA's parts; relatives pass the block that joins them."""
    return kind(
        vision=part(c.vision_config).spec,
        projector=projector(c),
        text=part(c.text_config).spec,
        token=c.image_token_index,
        layers=c.vision_feature_layer,
        strategy=c.vision_feature_select_strategy,
    )


PROJECTOR = {
    "projector.up": "multi_modal_projector.linear_1",
    "projector.down": "multi_modal_projector.linear_2",
}


def names(c: PretrainedConfig, lines: Mapping[str, str | To] = PROJECTOR) -> NameMap:
    """The projector's names and those of the parts."""
    return NameMap(
        lines,
        parts={
            "vision": ("vision_tower.", part(c.vision_config).bare),
            "text": ("language_model.", part(c.text_config).names("causal-lm")),
        },
    )


def text_head(c: PretrainedConfig) -> Head:
    """The text family's own head."""
    return part(c.text_config).head("causal-lm")


def head_names(c: PretrainedConfig) -> NameMap:
    """That head's names in these files."""
    inner = text_head(c).names
    inner = inner(c.text_config) if callable(inner) else inner
    inner = inner if isinstance(inner, NameMap) else NameMap(inner)
    return NameMap({}, parts={"text": ("language_model.", inner)})


HEADS: dict[str, Head] = {"LlavaForConditionalGeneration": ImageTextLM(text=text_head, names=head_names)}

family(
    "llava", config=Config, build=build, names=names, heads=HEADS, skeleton=ImageTextModel, public="Llava",
    width=lambda c: part(c.text_config).width,
)  # fmt: skip
