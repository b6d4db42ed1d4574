"""Llama 3.2 Vision (Llama Team 2024, arXiv:2407.21783, section 7): a Llama that looks aside at tiles of
images.

Public checkpoints: meta-llama/Llama-3.2-11B-Vision-Instruct, meta-llama/Llama-3.2-90B-Vision-Instruct.
The parts are the families mllama_vision_model and mllama_text_model, whole; between them stands a linear map.
"""

from typing import Any

from phyla.blocks import Block, Linear, Spec, make
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import llava
from phyla.family import family, part
from phyla.heads import Head
from phyla.heads.fusion import ImageTextLM
from phyla.outputs import CausalLMOutputWithPast
from phyla.skeletons.cross_text import CrossImageTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vision_config: Any = None
    text_config: Any = None
    image_token_index: int = 128256

    PARTS = {"vision_config": "mllama_vision_model", "text_config": "mllama_text_model"}


class Reader(Block):
    """A tower of tiles, a linear map to the width of the text, and the text decoder that looks aside."""

    def __init__(self, vision: Spec, text: Spec, seen: int, width: int) -> None:
        super().__init__()
        self.vision, self.projector, self.text = make(vision), Linear(seen, width), make(text)


def build(c: PretrainedConfig) -> Reader:
    vision, text = part(c.vision_config), part(c.text_config)
    return Reader(vision.spec, text.spec, vision.width, text.width)


def names(c: PretrainedConfig) -> NameMap:
    return NameMap(
        {"projector": "multi_modal_projector"},
        parts={
            "vision": ("vision_model.", part(c.vision_config).bare.but(ignore=())),
            "text": ("language_model.", part(c.text_config).names("causal-lm")),
        },
    )


HEADS: dict[str, Head] = {
    "MllamaForConditionalGeneration": ImageTextLM(
        text=llava.text_head, names=llava.head_names, real_only=False, output=CausalLMOutputWithPast
    )
}

family(
    "mllama", config=Config, build=build, names=names, heads=HEADS, skeleton=CrossImageTextModel,
    public="Mllama", width=lambda c: c.text_config.hidden_size,
)  # fmt: skip
