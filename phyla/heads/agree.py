"""Heads that put texts and sounds into one space, each through two layers and with a scale of its own."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, DualOutput, Linear, activation, make
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.contrast import Projected, Scalar
from phyla.outputs import ClapAudioModelOutput, ClapOutput, ClapTextModelOutput, ModelOutput


class Project(Block):
    """down(act(up(x))), x (B, D) -> (B, E)."""

    def __init__(self, width: int, out: int, act: str) -> None:
        super().__init__()
        self.up, self.down, self.act = Linear(width, out), Linear(out, out), activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


def project(config: Any, width: int) -> Project:
    """The two layers of one side."""
    return make(Project(width, config.projection_dim, config.projection_hidden_act))


class _Agree(HeadModule):
    """Scaled cosines of all pairs of a text and a sound."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.text = project(config.text_config, config.text_config.hidden_size)
        self.audio = project(config.audio_config, config.audio_config.hidden_size)
        start = math.log(config.logit_scale_init_value)
        self.text_scale, self.audio_scale = make(Scalar(start)), make(Scalar(start))

    def vector(self, name: str, out: Any) -> Tensor:
        """(B, E): the place of each row in the common space, at length 1."""
        return F.normalize(getattr(self, name)(out.pooler_output), dim=-1)

    def forward(self, out: DualOutput, call: Call) -> dict[str, Any]:
        text, audio = self.vector("text", out.text), self.vector("audio", out.other)
        scores = text @ audio.T
        per_text = scores * self.text_scale.value.exp()
        per_audio = scores.T * self.audio_scale.value.exp()
        loss = None
        if call.return_loss:
            # Each side picks its partner from the texts' point of view, as in public results.
            own = torch.arange(len(text), device=text.device)
            loss = (F.cross_entropy(per_text, own) + F.cross_entropy(per_audio.T, own)) / 2
        return {
            "loss": loss,
            "logits_per_audio": per_audio,
            "logits_per_text": per_text,
            "text_embeds": text,
            "audio_embeds": audio,
        }


@dataclass(frozen=True)
class Agree(Head):
    """Compares texts with sounds."""

    task: ClassVar[str] = "base-model"
    output: type[ModelOutput] = ClapOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Agree(config)


@dataclass(frozen=True)
class TextSide(Head):
    """A text tower with its projection."""

    task: ClassVar[str] = "text-projection"
    output: type[ModelOutput] = ClapTextModelOutput
    pool: bool = True
    field: ClassVar[str] = "text_embeds"

    def make(self, config: Any, width: int) -> HeadModule:
        return Projected(self.field, project(config, width))


@dataclass(frozen=True)
class AudioSide(TextSide):
    """A sound tower with its projection."""

    task: ClassVar[str] = "audio-projection"
    output: type[ModelOutput] = ClapAudioModelOutput
    field: ClassVar[str] = "audio_embeds"
