"""Pretraining with the order of two sentences beside masked tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import nn

from phyla.blocks import Linear
from phyla.heads.base import Call, HeadModule
from phyla.heads.classify import dropout_of
from phyla.heads.lm import MaskedLM, TokenScores
from phyla.heads.loss import cross_entropy
from phyla.outputs import AlbertForPreTrainingOutput, ModelOutput


class _Order(HeadModule):
    """`lm` scores masked tokens, `pair` the order of two sentences."""

    def __init__(self, head: "SentenceOrder", config: Any, width: int) -> None:
        super().__init__()
        self.lm = TokenScores(head, config, width)
        self.dropout_prob = dropout_of(config, head.dropout)
        self.pair = Linear(width, config.num_labels)

    def tie(self, backbone: nn.Module) -> None:
        self.lm.tie(backbone)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.lm.scores(out.last_hidden_state)
        order = self.pair(F.dropout(out.pooler_output, self.dropout_prob, self.training))
        loss = None
        if call.labels is not None and call.next_sentence_label is not None:
            pair_loss = cross_entropy(order, call.next_sentence_label.view(-1))
            loss = cross_entropy(logits, call.labels) + pair_loss
        return {"loss": loss, "prediction_logits": logits, "sop_logits": order}


@dataclass(frozen=True)
class SentenceOrder(MaskedLM):
    """Masked tokens (`lm`) and whether two sentences stand in their order (`pair`; arXiv:1909.11942, 3.1)."""

    task: ClassVar[str] = "pretraining"
    output: type[ModelOutput] = AlbertForPreTrainingOutput
    pool: bool = True
    dropout: tuple[str, ...] = ()

    def make(self, config: Any, width: int) -> HeadModule:
        return _Order(self, config, width)
