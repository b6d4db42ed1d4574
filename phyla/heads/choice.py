"""The head that picks one of several texts."""

from dataclasses import dataclass
from typing import Any, ClassVar

from phyla.heads.base import Call, HeadModule
from phyla.heads.classify import Classify, _Rows
from phyla.heads.loss import cross_entropy
from phyla.outputs import ModelOutput, MultipleChoiceModelOutput


class _Choice(_Rows):
    """One score a row; the rows of a question stand side by side."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        labels, call.labels = call.labels, None
        logits = super().forward(out, call)["logits"].view(-1, call.num_choices)  # (B, choices)
        return {"loss": None if labels is None else cross_entropy(logits, labels), "logits": logits}


@dataclass(frozen=True)
class MultipleChoice(Classify):
    """One score for each of a question's choices; inputs are (B, choices, S)."""

    task: ClassVar[str] = "multiple-choice"
    output: type[ModelOutput] = MultipleChoiceModelOutput

    def make(self, config: Any, width: int) -> HeadModule:
        module = _Choice(self, config, width)
        module.out = type(module.out)(width, 1)
        return module
