"""Heads on encoders that read words and an image together: the words stand in front."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import LayerNorm, Linear, make
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.classify import TokenClassify, dropout_of
from phyla.heads.lm import MaskedLM, TokenScores
from phyla.heads.loss import check_labels, cross_entropy, span_loss
from phyla.heads.span import Span
from phyla.outputs import ModelOutput, SequenceClassifierOutput


@dataclass
class PageCall(Call):
    """words: how many of the states are those of tokens."""

    words: int = 0


class _Scores(HeadModule):
    """dropout, square layer, tanh, dropout, scores; or dropout and scores alone."""

    def __init__(self, dropout: float, width: int, count: int, deep: bool) -> None:
        super().__init__()
        self.dropout_prob = dropout
        self.dense = Linear(width, width) if deep else None
        self.out = Linear(width, count)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x

    def scores(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., labels)."""
        x = self.drop(x)
        return self.out(x if self.dense is None else self.drop(torch.tanh(self.dense(x))))


class _Words(_Scores):
    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        logits = self.scores(out.last_hidden_state[:, : call.words])
        loss = None
        if call.labels is not None:
            check_labels(logits.shape[:2], call.labels)
            loss = cross_entropy(logits, call.labels)
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class WordClassify(TokenClassify):
    """Labels of every token; from `deep_from` labels on through a square layer (0: never)."""

    deep_from: int = 0

    def make(self, config: Any, width: int) -> HeadModule:
        count = config.num_labels
        deep = bool(self.deep_from) and count >= self.deep_from
        return _Words(dropout_of(config, self.dropout), width, count, deep)


class _PageSpan(_Scores):
    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        start, end = self.scores(out.last_hidden_state).unbind(-1)  # (B, S) each
        loss = None
        if call.start_positions is not None and call.end_positions is not None:
            loss = span_loss(start, end, call.start_positions, call.end_positions)
        return {"loss": loss, "start_logits": start.contiguous(), "end_logits": end.contiguous()}


@dataclass(frozen=True)
class PageSpan(Span):
    """Where an answer starts and ends, through a square layer."""

    def make(self, config: Any, width: int) -> HeadModule:
        return _PageSpan(dropout_of(config, self.dropout), width, 2, True)


class _WordScores(TokenScores):
    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        words = copy.copy(out)
        words.last_hidden_state = out.last_hidden_state[:, : call.words]
        return super().forward(words, call)


@dataclass(frozen=True)
class WordMaskedLM(MaskedLM):
    """Scores of the words behind masks."""

    def make(self, config: Any, width: int) -> HeadModule:
        return _WordScores(self, config, width)


class _Answers(HeadModule):
    """Linear, norm, GELU, linear on the pooled vector, or on those of several images side by side."""

    def __init__(self, head: "Answers", config: Any, width: int) -> None:
        super().__init__()
        self.graded = head.images is None
        images = 1 if head.images is None else head.images(config)
        inner = 2 * width if head.images is None else images * width
        self.dense, self.norm = Linear(images * width, inner), make(LayerNorm(inner))
        self.out = Linear(inner, config.num_labels)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.out(F.gelu(self.norm(self.dense(out.pooler_output))))
        loss, labels = None, call.labels
        if labels is not None and self.graded:
            check_labels(logits.shape, labels)
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits)) * labels.shape[1]
        elif labels is not None:
            loss = cross_entropy(logits, labels.view(-1))
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class Answers(Head):
    """One of many answers to a question about an image; labels grade each (B, labels).

    images: config -> number of images that a text is about; labels then name one class each (B).
    """

    task: ClassVar[str] = "visual-question-answering"
    output: type[ModelOutput] = SequenceClassifierOutput
    pool: bool = True
    images: Any = None

    def make(self, config: Any, width: int) -> HeadModule:
        return _Answers(self, config, width)


@dataclass(frozen=True)
class SeveralImages(Answers):
    """A class for a text and several images."""

    task: ClassVar[str] = "images-text-classification"


class _Rank(HeadModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = Linear(width, 1)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        if call.labels is not None:
            raise ArgumentError("this class has no loss: leave labels out, and compute one from the logits")
        return {"logits": self.out(out.pooler_output)}


@dataclass(frozen=True)
class Rank(Head):
    """How well a text and an image belong together, (B, 1)."""

    task: ClassVar[str] = "image-text-retrieval"
    output: type[ModelOutput] = SequenceClassifierOutput
    pool: bool = True

    def make(self, config: Any, width: int) -> HeadModule:
        return _Rank(width)
