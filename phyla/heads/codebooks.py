"""Heads that score the next code of every codebook of a sound."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.blocks import Linear
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.loss import IGNORED, cross_entropy
from phyla.outputs import CausalLMOutputWithCrossAttentions, ModelOutput


class _Codes(HeadModule):
    """states (B, S, D) -> scores (B * K, S, V) of K codebooks."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.out = nn.ModuleList(
            Linear(width, config.vocab_size, bias=False) for _ in range(config.num_codebooks)
        )

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = torch.stack([score(out.last_hidden_state) for score in self.out], 1)  # (B, K, S, V)
        loss = None if call.labels is None else self.loss(logits, call.labels, call.config.pad_token_id)
        return {"loss": loss, "logits": logits.flatten(0, 1)}

    def loss(self, logits: Tensor, labels: Tensor, padding: int) -> Tensor:
        """Mean over the codebooks of the loss of labels (B, T, K), which are for the last T states."""
        labels = labels.masked_fill(labels == padding, IGNORED)
        logits = logits[:, :, -labels.shape[1] :]
        losses = [cross_entropy(logits[:, k], labels[..., k]) for k in range(logits.shape[1])]
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class CodeLM(Head):
    """Next codes of all codebooks; labels are the decoder's targets."""

    task: ClassVar[str] = "causal-lm"
    output: type[ModelOutput] = CausalLMOutputWithCrossAttentions

    def make(self, config: Any, width: int) -> HeadModule:
        return _Codes(config, width)


@dataclass(frozen=True)
class TextToSound(Head):
    """A whole model of parts that turns text into sound; what it scores is its decoder's."""

    task: ClassVar[str] = "text-to-waveform"
