"""Heads that read a row's labels from its summary by the public `summary_*` keys."""

from dataclasses import dataclass
from typing import Any, ClassVar

from phyla.blocks import Linear
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.double import Summary
from phyla.heads.loss import cross_entropy, label_loss
from phyla.outputs import ModelOutput, MultipleChoiceModelOutput, SequenceClassifierOutput


class _Summed(HeadModule):
    """The summary of a row -> labels, or one score of a choice."""

    def __init__(self, config: Any, width: int, labels: int) -> None:
        super().__init__()
        self.summary, self.out = Summary(config, width), Linear(width, labels)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.out(self.summary.read(out.last_hidden_state))
        if call.num_choices:
            logits = logits.view(-1, call.num_choices)  # (B, choices)
            loss = None if call.labels is None else cross_entropy(logits, call.labels.view(-1))
        else:
            loss = None if call.labels is None else label_loss(logits, call.labels, call.config)
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class SummaryClassify(Head):
    """Labels of a row from its summary."""

    task: ClassVar[str] = "sequence-classification"
    output: type[ModelOutput] = SequenceClassifierOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Summed(config, width, config.num_labels)


@dataclass(frozen=True)
class SummaryChoice(Head):
    """One score for each of a question's choices from its summary; inputs are (B, choices, S)."""

    task: ClassVar[str] = "multiple-choice"
    output: type[ModelOutput] = MultipleChoiceModelOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Summed(config, width, 1)
