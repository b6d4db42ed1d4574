"""Heads of detectors: labels, boxes and masks of queries."""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Linear
from phyla.blocks.spec import Block, make
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.boxes import detection_loss
from phyla.outputs import DetrObjectDetectionOutput, ModelOutput


class Steps(Block):
    """Linear maps with a ReLU between them."""

    def __init__(self, width: int, out: int, count: int = 3, inner: int | None = None) -> None:
        super().__init__()
        sizes = [width] + [inner or width] * (count - 1) + [out]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def auxiliary(scores: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
    """The public form of the predictions of all layers but the last, (L, B, Q, ...)."""
    return [{"logits": a, "pred_boxes": b} for a, b in zip(scores[:-1], boxes[:-1], strict=True)]


class ObjectScores(HeadModule):
    """Labels (one more for no object) and boxes of queries."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.labels, self.boxes = Linear(width, config.num_labels + 1), make(Steps(width, 4))

    def masks(self, out: Any) -> Tensor | None:
        """Scores of masks (B, Q, Y, X), of heads that have them."""
        return None

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        logits, boxes, masks = self.labels(x), self.boxes(x).sigmoid(), self.masks(out)
        fields: dict[str, Any] = {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}
        if call.labels is not None:
            others: list[dict[str, Tensor]] = []
            if call.config.auxiliary_loss:
                kept = out.intermediate_hidden_states
                others = auxiliary(self.labels(kept), self.boxes(kept).sigmoid())
                fields["auxiliary_outputs"] = others
            pairs = [(o["logits"], o["pred_boxes"]) for o in others]
            fields["loss"], fields["loss_dict"] = detection_loss(
                logits, boxes, call.labels, call.config, pairs, masks=masks
            )
        return fields


@dataclass(frozen=True)
class Detect(Head):
    """Labels and boxes of objects."""

    task: ClassVar[str] = "object-detection"
    output: type[ModelOutput] = DetrObjectDetectionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return ObjectScores(config, width)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)), with x kept between 0 and 1 and both sides at least eps."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
