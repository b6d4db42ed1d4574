"""The head that scores whole graphs."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Linear
from phyla.heads.base import Call, Head, HeadModule
from phyla.outputs import ModelOutput, SequenceClassifierOutput


def graph_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One number (mean squares), one class a graph, or several questions; NaN labels do not count."""
    known, count = ~torch.isnan(labels), logits.shape[-1]
    if count == 1:
        return F.mse_loss(logits.reshape(labels.shape)[known], labels[known].float())
    if labels.dim() == 1:
        return F.cross_entropy(logits[known], labels[known].long())
    return F.binary_cross_entropy_with_logits(logits[known], labels[known].to(logits.dtype), reduction="sum")


class _Graph(HeadModule):
    """The state of the whole graph -> classes, with one bias for all."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.out = Linear(width, config.num_classes, bias=False)
        self.offset = nn.Parameter(torch.empty(1))

    def reset(self, std: float) -> bool:
        nn.init.zeros_(self.offset)
        return True

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.out(out.last_hidden_state[:, 0]) + self.offset
        return {"loss": None if call.labels is None else graph_loss(logits, call.labels), "logits": logits}


@dataclass(frozen=True)
class GraphClassify(Head):
    """Classes or numbers of a graph."""

    task: ClassVar[str] = "graph-classification"
    output: type[ModelOutput] = SequenceClassifierOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Graph(config, width)
