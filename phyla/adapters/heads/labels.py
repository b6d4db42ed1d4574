"""Heads that score labels: of a row, of one of several texts, of every token, of an image."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.adapters.heads.base import PredictionHead, beside_prompt, labels_of
from phyla.heads.loss import IGNORED, check_labels, cross_entropy, span_loss
from phyla.outputs import (
    ImageClassifierOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    Seq2SeqQuestionAnsweringModelOutput,
    Seq2SeqSequenceClassifierOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


class ClassificationHead(PredictionHead):
    """One label of a row, or one number (num_labels=1)."""

    head_type: ClassVar[str] = "classification"
    plain: ClassVar[type[ModelOutput]] = SequenceClassifierOutput
    joint: ClassVar[type[ModelOutput] | None] = Seq2SeqSequenceClassifierOutput

    def __init__(
        self, model: Any, head_name: str, num_labels: int = 2, layers: int = 2,
        activation_function: str | None = "tanh", id2label: Any = None, use_pooler: bool = False,
        bias: bool = True, dropout_prob: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(head_name)
        self.config = {
            "head_type": self.head_type, "num_labels": num_labels, "layers": layers,
            "activation_function": activation_function, "label2id": labels_of(id2label),
            "use_pooler": use_pooler, "bias": bias, "dropout_prob": dropout_prob,
        }  # fmt: skip
        self.build(model)

    def forward(  # type: ignore[override]
        self, outputs: Any, cls_output: Tensor | None = None, attention_mask: Tensor | None = None,
        return_dict: bool = False, labels: Tensor | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """Scores (B, labels) and, with labels, the loss."""
        logits = super().forward(self.row(outputs, cls_output, given))
        loss = None if labels is None else self.loss(logits, labels)
        return self.answer(outputs, return_dict, loss=loss, logits=logits)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy with labels (B), or the squared error of one number."""
        if self.config["num_labels"] == 1:
            return F.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        return cross_entropy(logits, labels)


class MultiLabelClassificationHead(ClassificationHead):
    """Any number of labels of a row; labels (B, num_labels) are 0 or 1."""

    head_type: ClassVar[str] = "multilabel_classification"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross entropy of each label."""
        check_labels(logits.shape, labels)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class ImageClassificationHead(ClassificationHead):
    """Labels of an image."""

    head_type: ClassVar[str] = "image_classification"
    plain: ClassVar[type[ModelOutput]] = ImageClassifierOutput
    joint: ClassVar[type[ModelOutput] | None] = None

    def __init__(
        self, model: Any, head_name: str, num_labels: int = 2, layers: int = 2,
        activation_function: str | None = "tanh", multilabel: bool = False, id2label: Any = None,
        use_pooler: bool = False, bias: bool = True, dropout_prob: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            model, head_name, num_labels, layers, activation_function, id2label, use_pooler, bias,
            dropout_prob,
        )  # fmt: skip
        self.config["multilabel"] = multilabel

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As one label or as several."""
        if self.config["multilabel"] and self.config["num_labels"] > 1:
            check_labels(logits.shape, labels)
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return super().loss(logits, labels)


class MultipleChoiceHead(PredictionHead):
    """One score for each of a question's choices; inputs are (B, choices, S)."""

    plain: ClassVar[type[ModelOutput]] = MultipleChoiceModelOutput

    def __init__(
        self, model: Any, head_name: str, num_choices: int = 2, layers: int = 2,
        activation_function: str | None = "tanh", id2label: Any = None, use_pooler: bool = False,
        dropout_prob: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(head_name)
        self.config = {
            "head_type": "multiple_choice", "num_choices": num_choices, "layers": layers,
            "activation_function": activation_function, "label2id": labels_of(id2label),
            "use_pooler": use_pooler, "dropout_prob": dropout_prob,
        }  # fmt: skip
        self.build(model)

    def forward(  # type: ignore[override]
        self, outputs: Any, cls_output: Tensor | None = None, attention_mask: Tensor | None = None,
        return_dict: bool = False, labels: Tensor | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """Scores (B, choices) and, with labels (B), the loss."""
        choices = given.get("choices") or self.config["num_choices"]
        logits = super().forward(self.row(outputs, cls_output, given)).view(-1, choices)
        loss = None if labels is None else cross_entropy(logits, labels)
        return self.answer(outputs, return_dict, loss=loss, logits=logits)


class TaggingHead(PredictionHead):
    """A label of every token."""

    plain: ClassVar[type[ModelOutput]] = TokenClassifierOutput

    def __init__(
        self, model: Any, head_name: str, num_labels: int = 2, layers: int = 1,
        activation_function: str | None = "tanh", id2label: Any = None, dropout_prob: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(head_name)
        self.config = {
            "head_type": "tagging", "num_labels": num_labels, "layers": layers,
            "activation_function": activation_function, "label2id": labels_of(id2label),
            "dropout_prob": dropout_prob,
        }  # fmt: skip
        self.build(model)

    def forward(  # type: ignore[override]
        self, outputs: Any, cls_output: Tensor | None = None, attention_mask: Tensor | None = None,
        return_dict: bool = False, labels: Tensor | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """Scores (B, S, labels) and, with labels (B, S), the loss over attended tokens."""
        logits = super().forward(self.states(outputs))
        loss = None
        if labels is not None:
            if attention_mask is not None and attention_mask.shape == labels.shape:
                labels = torch.where(attention_mask == 1, labels, IGNORED)
            labels = beside_prompt(labels, given, IGNORED)
            check_labels(logits.shape[:2], labels)
            loss = cross_entropy(logits, labels)
        return self.answer(outputs, return_dict, loss=loss, logits=logits)


class QuestionAnsweringHead(PredictionHead):
    """Where an answer starts and ends."""

    plain: ClassVar[type[ModelOutput]] = QuestionAnsweringModelOutput
    joint: ClassVar[type[ModelOutput] | None] = Seq2SeqQuestionAnsweringModelOutput

    def __init__(
        self, model: Any, head_name: str, num_labels: int = 2, layers: int = 1,
        activation_function: str | None = "tanh", id2label: Any = None, dropout_prob: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(head_name)
        self.config = {
            "head_type": "question_answering", "num_labels": num_labels, "layers": layers,
            "activation_function": activation_function, "label2id": labels_of(id2label),
            "dropout_prob": dropout_prob,
        }  # fmt: skip
        self.build(model)

    def get_label_names(self) -> list[str]:
        return ["start_positions", "end_positions"]

    def forward(  # type: ignore[override]
        self, outputs: Any, cls_output: Tensor | None = None, attention_mask: Tensor | None = None,
        return_dict: bool = False, start_positions: Tensor | None = None,
        end_positions: Tensor | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """Scores of each token as start and end (B, S) and, with positions (B), the loss."""
        start, end = super().forward(self.states(outputs)).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            prompt, skip = given.get("prompt_tokens_length") or 0, given.get("prompt_skip") or 0
            if prompt:
                start_positions = torch.where(
                    start_positions >= skip, start_positions + prompt, start_positions
                )
                end_positions = torch.where(end_positions >= skip, end_positions + prompt, end_positions)
            loss = span_loss(start, end, start_positions, end_positions)
        return self.answer(
            outputs, return_dict, loss=loss, start_logits=start.contiguous(), end_logits=end.contiguous()
        )
