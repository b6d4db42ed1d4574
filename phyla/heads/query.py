"""Heads of models whose learned queries look at an image."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Linear
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.fusion import ImageTextLM
from phyla.outputs import (
    Blip2ForConditionalGenerationModelOutput,
    Blip2ImageTextMatchingModelOutput,
    Blip2TextModelOutput,
    Blip2VisionModelOutput,
    ModelOutput,
)


@dataclass(frozen=True)
class QueryTextLM(ImageTextLM):
    """Next-token scores of a text behind an image, whose vectors stand at its placeholder tokens."""

    output: type[ModelOutput] = Blip2ForConditionalGenerationModelOutput
    real_only: bool = False
    at_tokens: bool = True


@dataclass(frozen=True)
class QueryBackbone(QueryTextLM):
    """The same under the name of the bare model; the image stands in front of the text."""

    task: ClassVar[str] = "base-model"
    at_tokens: bool = False


class _Common(HeadModule):
    """Vectors of texts and images in one space, and whether a text and an image match."""

    def __init__(self, width: int, out: int, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.text: Any = Linear(width, out) if "text" in parts else None
        self.image: Any = Linear(width, out) if "image" in parts else None
        self.match: Any = Linear(width, 2) if "match" in parts else None

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        return self.text_fields(out)

    def text_fields(self, out: Any) -> dict[str, Tensor]:
        """text_embeds (B, S, E) of a text's states."""
        return {"text_embeds": F.normalize(self.text(out.last_hidden_state), dim=-1)}

    def image_fields(self, found: Any) -> dict[str, Tensor]:
        """image_embeds (B, Q, E) of the queries' states."""
        return {"image_embeds": F.normalize(self.image(found.last_hidden_state), dim=-1)}

    def compare_fields(self, text: Any, found: Any) -> dict[str, Tensor]:
        """Cosines (I, T) of the best query of each image and the first word's vector of each text."""
        image = self.image_fields(found)["image_embeds"]
        words = F.normalize(self.text(text.last_hidden_state[:, 0]), dim=-1)  # (T, E)
        scores = torch.matmul(image, words.T).amax(1)  # (I, T)
        return {
            "logits_per_image": scores, "logits_per_text": scores.T, "text_embeds": words, "image_embeds":
            image,
        }  # fmt: skip

    def match_fields(self, text: Any, seen: Any, queries: int) -> dict[str, Tensor]:
        """Scores (B, 2) from the queries that read the text and looked at the image."""
        states = text.last_hidden_state
        scores = self.match(states[:, :queries]).mean(1)
        return {
            "logits_per_image": scores, "logits_per_text": scores.T, "text_embeds": states,
            "image_embeds": seen.last_hidden_state,
        }  # fmt: skip


@dataclass(frozen=True)
class QueryMatch(Head):
    """Compares images with texts, or reads them together; parts: text, image, match."""

    task: ClassVar[str] = "zero-shot-image-classification"
    output: type[ModelOutput] = Blip2ImageTextMatchingModelOutput
    parts: tuple[str, ...] = ("text", "image", "match")

    def make(self, config: Any, width: int) -> HeadModule:
        return _Common(config.qformer_config.hidden_size, config.image_text_hidden_size, self.parts)


@dataclass(frozen=True)
class QueryText(QueryMatch):
    """The vectors of a text alone."""

    task: ClassVar[str] = "text-projection"
    output: type[ModelOutput] = Blip2TextModelOutput
    parts: tuple[str, ...] = ("text",)


@dataclass(frozen=True)
class QueryImage(QueryMatch):
    """The vectors of an image alone."""

    task: ClassVar[str] = "image-projection"
    output: type[ModelOutput] = Blip2VisionModelOutput
    parts: tuple[str, ...] = ("image",)
