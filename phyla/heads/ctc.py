"""Heads that score characters for each frame of a sound (Graves et al. 2006)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Linear
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.classify import dropout_of
from phyla.outputs import CausalLMOutput, MaskedLMOutput, ModelOutput


@dataclass
class AudioCall(Call):
    """What the caller passed beside a sound.

    lengths: how many states of each row (B) are real, or None; hidden: bool (B, S) frames that were masked;
    negatives: (B, S, K) flat numbers of other frames to tell the right one from.
    """

    lengths: Tensor | None = None
    hidden: Tensor | None = None
    negatives: Tensor | None = None


def alignment_loss(logits: Tensor, labels: Tensor, lengths: Tensor | None, config: Any) -> Tensor:
    """Minus log of all ways to read the labels (B, T; negative ones are padding) in logits (B, S, V)."""
    if not torch.compiler.is_compiling() and labels.max() >= config.vocab_size:
        raise ArgumentError(
            f"labels must be below vocab_size ({config.vocab_size}), but reach {labels.max()}"
        )
    real = labels >= 0
    chances = F.log_softmax(logits, -1, dtype=torch.float32).transpose(0, 1)  # (S, B, V)
    if lengths is None:
        lengths = torch.full((len(logits),), logits.shape[1], device=logits.device)
    return F.ctc_loss(
        chances, labels.masked_select(real), lengths, real.sum(-1), blank=config.pad_token_id,
        reduction=config.ctc_loss_reduction, zero_infinity=config.ctc_zero_infinity,
    )  # fmt: skip


class _Characters(HeadModule):
    """states (B, S, D) -> scores (B, S, V)."""

    def __init__(self, head: "CTC", config: Any, width: int) -> None:
        super().__init__()
        self.aligns = head.aligns
        self.dropout_prob = dropout_of(config, head.dropout)
        self.out = Linear(width, config.vocab_size)

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        x = out.last_hidden_state
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        logits = self.out(x)
        aligned = call.labels is not None and self.aligns
        return {
            "loss": alignment_loss(logits, call.labels, call.lengths, call.config) if aligned else None,
            "logits": logits,
        }


@dataclass(frozen=True)
class CTC(Head):
    """Characters of each frame, with a blank at pad_token_id; aligns: labels give the alignment loss."""

    task: ClassVar[str] = "ctc"
    output: type[ModelOutput] = CausalLMOutput
    dropout: tuple[str | float, ...] = ("final_dropout",)
    aligns: bool = True

    def make(self, config: Any, width: int) -> HeadModule:
        return _Characters(self, config, width)


@dataclass(frozen=True)
class FrameTokens(CTC):
    """Characters of each frame without a loss (the deprecated masked class)."""

    task: ClassVar[str] = "masked-lm"
    output: type[ModelOutput] = MaskedLMOutput
    aligns: bool = False
