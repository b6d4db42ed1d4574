"""The head with two tasks: next tokens, and which of several continuations is the right one."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Linear, activation
from phyla.errors import ConfigError, nearest
from phyla.heads.base import Call, HeadModule
from phyla.heads.lm import CausalLM, TokenScores
from phyla.heads.loss import cross_entropy
from phyla.outputs import GPT2DoubleHeadsModelOutput, ModelOutput

_PICKS = ("cls_index", "first", "last", "mean")


class Summary(HeadModule):
    """One vector a row by the public `summary_*` keys: pick, dropout, projection, activation, dropout."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.pick = pick = getattr(config, "summary_type", "last")
        if pick not in _PICKS:
            raise ConfigError(
                f"summary_type must be one of {_PICKS}, but is {pick!r}.{nearest(str(pick), _PICKS)}"
            )
        to_labels = getattr(config, "summary_proj_to_labels", False) and config.num_labels > 0
        projects = getattr(config, "summary_use_proj", False)
        self.out = Linear(width, config.num_labels if to_labels else width) if projects else None
        act = getattr(config, "summary_activation", None)
        self.act = activation(act) if act else None
        self.first_dropout = getattr(config, "summary_first_dropout", 0.0)
        self.last_dropout = getattr(config, "summary_last_dropout", 0.0)

    def picked(self, x: Tensor, index: Tensor | None) -> Tensor:
        """(N, D) of x (N, S, D); index (N) is where "cls_index" looks, by default the end of the row."""
        if self.pick == "mean":
            return x.mean(1)
        if self.pick == "cls_index" and index is not None:
            return x[torch.arange(x.shape[0], device=x.device), index.reshape(-1)]
        return x[:, 0] if self.pick == "first" else x[:, -1]

    def read(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """(N, labels or D) of x (N, S, D)."""
        y = F.dropout(self.picked(x, index), self.first_dropout, self.training)
        y = y if self.out is None else self.out(y)
        y = y if self.act is None else self.act(y)
        return F.dropout(y, self.last_dropout, self.training)


class _Double(HeadModule):
    """`lm` scores tokens, `summary` scores choices."""

    def __init__(self, lm: TokenScores, summary: Summary) -> None:
        super().__init__()
        self.lm, self.summary = lm, summary

    def tie(self, backbone: nn.Module) -> None:
        self.lm.tie(backbone)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x, rows = out.last_hidden_state, (-1, call.num_choices) if call.num_choices else (-1,)
        fields = self.lm(out, call)
        scores = self.summary.read(x, call.mc_token_ids).squeeze(-1).unflatten(0, rows)  # (B, choices)
        if call.mc_labels is not None:
            fields["mc_loss"] = cross_entropy(scores.view(-1, scores.shape[-1]), call.mc_labels.reshape(-1))
        return fields | {"logits": fields["logits"].unflatten(0, rows), "mc_logits": scores}


@dataclass(frozen=True)
class DoubleHeads(CausalLM):
    """Next-token scores (B, choices, S, V) and one score a choice (B, choices); inputs (B, choices, S)."""

    task: ClassVar[str] = "double-heads"
    output: type[ModelOutput] = GPT2DoubleHeadsModelOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Double(TokenScores(self, config, width), Summary(config, width))
