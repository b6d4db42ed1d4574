"""Heads of detectors: labels, boxes and masks of queries."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Linear
from phyla.blocks.deformable import moved
from phyla.blocks.spec import Block, make
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.boxes import FOCAL, SOFTMAX, detection_loss
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
    """Labels and boxes of queries. kind: how labels are learned; nothing: labels of no object."""

    kind, nothing = SOFTMAX, 1

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.labels, self.boxes = Linear(width, config.num_labels + self.nothing), make(Steps(width, 4))

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
                logits, boxes, call.labels, call.config, pairs, self.kind, masks
            )
        return fields


@dataclass(frozen=True)
class Detect(Head):
    """Labels and boxes of objects."""

    task: ClassVar[str] = "object-detection"
    output: type[ModelOutput] = DetrObjectDetectionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return ObjectScores(config, width)


class LayerScores(HeadModule):
    """Labels, one score each, and boxes from the points of every layer's queries.

    count: of pairs of the two; with one pair all layers share it. The decoder reads `boxes` as its `refine`.
    """

    def __init__(self, config: Any, width: int, count: int) -> None:
        super().__init__()
        self.labels = nn.ModuleList(ScoreLinear(width, config.num_labels) for _ in range(count))
        self.boxes = make([BoxSteps(width, 4) for _ in range(count)])

    def layer(self, out: Any, index: int) -> tuple[Tensor, Tensor]:
        """Logits and boxes of one layer."""
        x = out.intermediate_hidden_states[:, index]
        before = out.intermediate_reference_points[:, index - 1] if index else out.init_reference_points
        own = min(index, len(self.labels) - 1)
        return self.labels[own](x), moved(before, self.boxes[own](x)).sigmoid()

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        last = out.intermediate_hidden_states.shape[1] - 1
        logits, boxes = self.layer(out, last)
        fields: dict[str, Any] = {"logits": logits, "pred_boxes": boxes}
        if call.labels is not None:
            others: list[tuple[Tensor, Tensor]] = []
            if call.config.auxiliary_loss:
                others = [self.layer(out, i) for i in range(last)]
                fields["auxiliary_outputs"] = [{"logits": a, "pred_boxes": b} for a, b in others]
            fields["loss"], fields["loss_dict"] = detection_loss(
                logits, boxes, call.labels, call.config, others, FOCAL
            )
        return fields


class ScoreLinear(Linear):
    """Scores that are 0.01 when fresh (Lin et al. 2017, arXiv:1708.02002, section 4.1)."""

    def reset(self, std: float) -> bool:
        nn.init.normal_(self.weight, 0.0, std)
        nn.init.constant_(self.bias, -math.log(99))
        return True


class BoxSteps(Steps):
    """Steps to boxes, small and without change when fresh."""

    def __init__(self, width: int, out: int, count: int = 3, inner: int | None = None) -> None:
        super().__init__(width, out, count, inner)
        self.layers[-1] = _Still(inner or width, out)


class _Still(Linear):
    def reset(self, std: float) -> bool:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.bias[2:] = -2.0
        return True
