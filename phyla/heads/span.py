"""The head that finds an answer's first and last token."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from phyla.blocks import Linear
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.classify import dropout_of
from phyla.heads.loss import span_loss
from phyla.outputs import ModelOutput, QuestionAnsweringModelOutput


class _Span(HeadModule):
    """Two scores a token: start and end of the answer."""

    def __init__(self, head: "Span", config: Any, width: int) -> None:
        super().__init__()
        self.dropout_prob = dropout_of(config, head.dropout)
        self.out = Linear(width, 2)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        start, end = self.out(x).unbind(-1)  # (B, S) each
        loss = None
        if call.start_positions is not None and call.end_positions is not None:
            loss = span_loss(start, end, call.start_positions, call.end_positions)
        return {"loss": loss, "start_logits": start.contiguous(), "end_logits": end.contiguous()}


@dataclass(frozen=True)
class Span(Head):
    """Extractive question answering: where the answer starts and ends."""

    task: ClassVar[str] = "question-answering"
    output: type[ModelOutput] = QuestionAnsweringModelOutput
    dropout: tuple[str, ...] = ()

    def make(self, config: Any, width: int) -> HeadModule:
        return _Span(self, config, width)
