"""The head that tells replaced tokens from original ones."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from phyla.blocks import Linear, activation
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.loss import check_labels
from phyla.outputs import ElectraForPreTrainingOutput, ModelOutput


class _Replaced(HeadModule):
    """One score a token."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.dense, self.act = Linear(width, width), activation(config.hidden_act)
        self.out = Linear(width, 1)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.out(self.act(self.dense(out.last_hidden_state))).squeeze(-1)  # (B, S)
        loss = None
        if call.labels is not None:
            check_labels(logits.shape, call.labels)
            given = call.attention_mask
            real = None if given is None else (given == 1).to(logits.dtype)
            labels = call.labels.to(logits.dtype)
            loss = F.binary_cross_entropy_with_logits(logits, labels, real, reduction="sum")
            loss = loss / (logits.numel() if real is None else real.sum())
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class ReplacedTokens(Head):
    """Which tokens a generator has replaced; labels (B, S) are 1 there (Clark et al., arXiv:2003.10555)."""

    task: ClassVar[str] = "pretraining"
    output: type[ModelOutput] = ElectraForPreTrainingOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Replaced(config, width)
