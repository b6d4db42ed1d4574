"""Biaffine dependency parsing (Glavas & Vulic 2021, arXiv:2008.06788)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.heads.base import PredictionHead, labels_of
from phyla.adapters.heads.output import DependencyParsingOutput
from phyla.errors import AdapterError
from phyla.heads.loss import IGNORED, cross_entropy
from phyla.outputs import ModelOutput


class Biaffine(nn.Module):
    """Scores of pairs (Dozat & Manning 2017, arXiv:1611.01734): (B, X, D), (B, Y, D) -> (B, out, X, Y)."""

    def __init__(self, width: int, outputs: int, bias_y: bool) -> None:
        super().__init__()
        self.bias_y = bias_y
        self.weight = nn.Parameter(torch.zeros(outputs, width + 1, width + bias_y))

    def reset(self, std: float) -> bool:
        """Start at zero."""
        nn.init.zeros_(self.weight)
        return True

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = F.pad(x, (0, 1), value=1.0)
        y = F.pad(y, (0, 1), value=1.0) if self.bias_y else y
        return torch.einsum("bxi,oij,byj->boxy", x, self.weight, y)


class BiaffineParsingHead(PredictionHead):
    """Heads and relations of words; each word is the mean of its tokens, the first token is the root."""

    plain: ClassVar[type[ModelOutput]] = DependencyParsingOutput

    def __init__(self, model: Any, head_name: str, num_labels: int = 2, id2label: Any = None) -> None:
        super().__init__(head_name)
        self.config = {
            "head_type": "dependency_parsing", "num_labels": num_labels, "label2id": labels_of(id2label),
        }  # fmt: skip
        self.padding = getattr(model.config, "pad_token_id", None)
        self.biaffine_arcs = Biaffine(model.width, 1, bias_y=False)
        self.biaffine_rels = Biaffine(model.width, num_labels, bias_y=True)
        self.drop = nn.Dropout(self.dropout(model.config))
        self.start(model)

    def get_label_names(self) -> list[str]:
        return ["labels_arcs", "labels_rels"]

    def forward(  # type: ignore[override]
        self, outputs: Any, cls_output: Tensor | None = None, attention_mask: Tensor | None = None,
        return_dict: bool = False, word_starts: Tensor | None = None, labels_arcs: Tensor | None = None,
        labels_rels: Tensor | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """Scores of arcs (B, S, S + 1) and relations (B, S, S + 1, labels).

        word_starts (B, W): the first token of each word and, last, the token behind the last word, padded
        with pad_token_id; labels_arcs and labels_rels (B, S) of the words, padded likewise.
        """
        if word_starts is None:
            raise AdapterError(f"the head {self.name!r} needs word_starts: the first token of each word")
        x = self.drop(self.states(outputs))
        words = self.words(x, torch.as_tensor(word_starts, device=x.device))
        heads = torch.cat([x[:, :1], words], 1)
        arcs = self.biaffine_arcs(words, heads)[:, 0]  # (B, S, S + 1)
        rels = self.biaffine_rels(words, heads).permute(0, 2, 3, 1)  # (B, S, S + 1, labels)
        loss = None
        if labels_arcs is not None and labels_rels is not None:
            loss = self.loss(arcs, rels, labels_arcs, labels_rels)
        return self.answer(outputs, return_dict, loss=loss, rel_preds=rels, arc_preds=arcs)

    def words(self, x: Tensor, starts: Tensor) -> Tensor:
        """(B, S, D): means over the tokens of each word, zeros behind the last one."""
        length = x.shape[1]
        real = torch.ones_like(starts) if self.padding is None else (starts != self.padding).long()
        # Padding goes to the end: files were made with it left out, wherever it stands.
        order = torch.argsort(1 - real, dim=1, stable=True)
        starts, count = starts.gather(1, order), real.sum(1, keepdim=True)
        begin, end = starts[:, :-1, None], starts[:, 1:, None]  # (B, W - 1, 1)
        number = torch.arange(begin.shape[1], device=x.device)
        valid = (number + 1 < count) & ((starts[:, 1:] > 0).long().cumprod(1) > 0)
        at = torch.arange(length, device=x.device)
        inside = ((at >= begin) & (at < end) & valid[..., None]).to(x.dtype)  # (B, W - 1, S)
        means = inside @ x / inside.sum(-1, keepdim=True).clamp(min=1)
        return F.pad(means, (0, 0, 0, length - means.shape[1]))

    def loss(self, arcs: Tensor, rels: Tensor, labels_arcs: Tensor, labels_rels: Tensor) -> Tensor:
        """Cross entropy of the arcs, and of the relations of the right arcs."""
        wanted = labels_arcs != (self.padding if self.padding is not None else IGNORED)
        right = labels_arcs.clamp(0, arcs.shape[-1] - 1)[..., None, None]
        chosen = rels.gather(2, right.expand(-1, -1, 1, rels.shape[-1]))[:, :, 0]
        return cross_entropy(arcs, torch.where(wanted, labels_arcs, IGNORED)) + cross_entropy(
            chosen, torch.where(wanted, labels_rels, IGNORED)
        )
