"""The head that finds an answer's end given its start, and whether there is an answer (arXiv:1906.08237)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import LayerNorm, Linear, make
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.loss import cross_entropy
from phyla.outputs import ModelOutput, XLNetForQuestionAnsweringOutput


@dataclass
class SpanCall(Call):
    """Also: whether there is no answer (B), where the class token stands (B), tokens to leave out (B, S)."""

    is_impossible: Tensor | None = None
    cls_index: Tensor | None = None
    p_mask: Tensor | None = None


class _BeamSpan(HeadModule):
    """Start, then end given start; `answer` tells from start and class token whether there is an answer."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.starts, self.ends = config.start_n_top, config.end_n_top
        self.start = Linear(width, 1)
        self.end_dense, self.end = Linear(2 * width, width), Linear(width, 1)
        self.end_norm = make(LayerNorm(width, eps=config.layer_norm_eps))
        self.answer_dense, self.answer = Linear(2 * width, width), Linear(width, 1, bias=False)

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        x = out.last_hidden_state
        rows = torch.arange(x.shape[0], device=x.device)
        start = _without(self.start(x).squeeze(-1), call.p_mask)  # (B, S)
        index = call.cls_index
        token = x[:, -1] if index is None else x[rows, index.view(-1)]  # (B, D)
        if call.start_positions is not None and call.end_positions is not None:
            found, ends = call.start_positions.view(-1), call.end_positions.view(-1)
            state = x[rows, found]  # (B, D)
            end = self._ends(x, state[:, None].expand_as(x), call.p_mask)
            loss = (cross_entropy(start, found) + cross_entropy(end, ends)) / 2
            if index is not None and call.is_impossible is not None:
                scores = self._answerable(state, token)
                wrong = call.is_impossible.view(-1).to(scores.dtype)
                loss = loss + 0.5 * F.binary_cross_entropy_with_logits(scores, wrong)
            return {"loss": loss}
        chance = start.softmax(-1)
        best, places = chance.topk(self.starts, -1)  # (B, N)
        states = x[rows[:, None], places][:, None].expand(-1, x.shape[1], -1, -1)  # (B, S, N, D)
        hidden = None if call.p_mask is None else call.p_mask[..., None]
        ends = self._ends(x[:, :, None].expand_as(states), states, hidden).softmax(1)  # (B, S, N)
        last, where = ends.topk(self.ends, 1)  # (B, M, N)
        mean = torch.einsum("bsd,bs->bd", x, chance)
        return {
            "start_top_log_probs": best, "start_top_index": places, "end_top_log_probs": last.flatten(1),
            "end_top_index": where.flatten(1), "cls_logits": self._answerable(mean, token),
        }  # fmt: skip

    def _ends(self, x: Tensor, states: Tensor, hidden: Tensor | None) -> Tensor:
        y = self.end_norm(torch.tanh(self.end_dense(torch.cat((x, states), -1))))
        return _without(self.end(y).squeeze(-1), hidden)

    def _answerable(self, state: Tensor, token: Tensor) -> Tensor:
        return self.answer(torch.tanh(self.answer_dense(torch.cat((state, token), -1)))).squeeze(-1)


def _without(scores: Tensor, hidden: Tensor | None) -> Tensor:
    """Scores with those of hidden tokens as low as published."""
    if hidden is None:
        return scores
    hidden = hidden.to(scores.dtype)
    return scores * (1 - hidden) - (65500 if scores.dtype == torch.float16 else 1e30) * hidden


@dataclass(frozen=True)
class BeamSpan(Head):
    """Extractive question answering with a beam over starts and ends; public keys start_n_top, end_n_top."""

    task: ClassVar[str] = "question-answering"
    output: type[ModelOutput] = XLNetForQuestionAnsweringOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _BeamSpan(config, width)
