"""Pix2Struct (Lee et al. 2022, arXiv:2210.03347), DePlot (arXiv:2212.10505) and MatCha (arXiv:2212.09662).

Public checkpoints: google/pix2struct-textcaps-base, google/deplot, google/matcha-chartqa, ...
The parts are the families pix2struct_vision_model and pix2struct_text_model, whole; questions are drawn into
the image.
"""

from typing import Any

from phyla.blocks import EncoderDecoder
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import pix2struct_text_model, pix2struct_vision_model
from phyla.family import family
from phyla.heads import Head
from phyla.heads.fusion import ImageToText
from phyla.outputs import Seq2SeqLMOutput
from phyla.skeletons.patches import PatchesToTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    text_config: Any = None
    vision_config: Any = None
    initializer_factor: float = 1.0
    initializer_range: float = 0.02
    is_vqa: bool = False
    tie_word_embeddings: bool = False
    is_encoder_decoder: bool = True

    PARTS = {"text_config": "pix2struct_text_model", "vision_config": "pix2struct_vision_model"}

    def finish(self) -> None:
        text = self.text_config
        text.is_encoder_decoder, text.tie_word_embeddings = self.is_encoder_decoder, self.tie_word_embeddings
        for key in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
            setattr(self, key, getattr(text, key))
        text.initializer_range = self.vision_config.initializer_range = self.initializer_range

    @classmethod
    def from_text_vision_configs(
        cls, text_config: PretrainedConfig, vision_config: PretrainedConfig, **keys: Any
    ) -> "Config":
        """A configuration from those of the two parts."""
        return cls(text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), **keys)


def build(c: PretrainedConfig) -> EncoderDecoder:
    return EncoderDecoder(
        pix2struct_vision_model.build(c.vision_config),
        pix2struct_text_model.build(c.text_config),
        shared=False,
    )


NAMES = NameMap(
    {},
    parts={
        "encoder": ("encoder.", pix2struct_vision_model.NAMES.but(prefix="", ignore=())),
        "decoder": ("decoder.", pix2struct_text_model.NAMES.but(ignore=())),
    },
)

HEADS: dict[str, Head] = {
    "Pix2StructForConditionalGeneration": ImageToText(
        names={"out": "decoder.lm_head"},
        vocabulary=lambda c: c.text_config.vocab_size,
        output=Seq2SeqLMOutput,
    )
}

family(
    "pix2struct", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=PatchesToTextModel,
    public="Pix2Struct", width=lambda c: c.text_config.hidden_size,
)  # fmt: skip
