"""Heads on what was decoded from latent vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from phyla.blocks import Linear
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.lm import MaskedLM, TokenScores
from phyla.heads.loss import label_loss
from phyla.outputs import ModelOutput, PerceiverClassifierOutput, PerceiverMaskedLMOutput

# Motions are small beside the other numbers of a model.
FLOW_SCALE = 100.0


@dataclass
class LatentCall(Call):
    """points: which outputs of each modality were asked for, by flat number."""

    points: Mapping[str, Tensor] | None = None


class _Decoded(TokenScores):
    """Scores of the tokens at all positions the decoder has a query for."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.scores(out.logits)
        return {"loss": self.loss(logits, call), "logits": logits}


@dataclass(frozen=True)
class DecodedLM(MaskedLM):
    """Scores of the token at each position; width: config -> width of what was decoded."""

    output: type[ModelOutput] = PerceiverMaskedLMOutput
    width: Any = None

    def make(self, config: Any, width: int) -> HeadModule:
        return _Decoded(self, config, self.width(config))


class _DecodedLabels(HeadModule):
    """The only decoded vector holds the scores."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = out.logits[:, 0]
        loss = None if call.labels is None else label_loss(logits, call.labels, call.config)
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class DecodedLabels(Head):
    """Labels of a text."""

    task: ClassVar[str] = "sequence-classification"
    output: type[ModelOutput] = PerceiverClassifierOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _DecodedLabels()


@dataclass(frozen=True)
class DecodedImageLabels(DecodedLabels):
    """Labels of an image."""

    task: ClassVar[str] = "image-classification"


def without_loss(call: Call, what: str) -> None:
    """Refuse labels where no loss is known."""
    if call.labels is not None:
        raise ArgumentError(
            f"there is no public loss for {what}: leave labels out and compute one from logits"
        )


class _Flow(HeadModule):
    """Two numbers a pixel."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        without_loss(call, "optical flow")
        return {"logits": (out.logits / FLOW_SCALE).unflatten(1, tuple(call.config.train_size))}


@dataclass(frozen=True)
class Flow(Head):
    """How far each pixel moves: (B, Y, X, 2)."""

    task: ClassVar[str] = "optical-flow"
    output: type[ModelOutput] = PerceiverClassifierOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Flow()


class _Rebuilt(HeadModule):
    """One projection a modality; the decoded vectors stand joined by name: audio, image, label."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        widths = {"audio": config.samples_per_patch, "image": 3, "label": config.num_labels}
        self.parts = nn.ModuleDict({k: Linear(config.output_num_channels, v) for k, v in widths.items()})

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        without_loss(call, "autoencoding")
        config, chosen = call.config, (call.points or {}).get("audio")
        sounds = config.num_frames * config.audio_samples_per_frame // config.samples_per_patch
        sounds = sounds if chosen is None else len(chosen)
        x = out.logits
        audio = self.parts["audio"](x[:, :sounds]).flatten(1)
        image, label = self.parts["image"](x[:, sounds:-1]), self.parts["label"](x[:, -1])
        return {"logits": {"audio": audio, "image": image, "label": label}}


@dataclass(frozen=True)
class Rebuilt(Head):
    """Sound (B, samples), pixels (B, N, 3) and labels (B, labels), by name."""

    task: ClassVar[str] = "multimodal-autoencoding"
    output: type[ModelOutput] = PerceiverClassifierOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Rebuilt(config)
