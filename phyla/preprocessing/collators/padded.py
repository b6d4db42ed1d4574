"""Collators that pad inputs with the tokenizer, and labels beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phyla.errors import ArgumentError

from ..text.base import PreTrainedTokenizerBase
from ..text.strategy import PaddingStrategy
from .arrays import arrays, plain_list
from .plain import plain_number


def _label_name(features: list) -> str:
    return "label" if "label" in features[0] else "labels"


@dataclass
class DataCollatorWithPadding:
    """Inputs padded to one length; `label` and `label_ids` become `labels`."""

    tokenizer: PreTrainedTokenizerBase
    padding: Any = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: list) -> Any:
        """The padded batch of the examples."""
        batch = self._pad(features, self.return_tensors)
        for name in ("label", "label_ids"):
            if name in batch:
                batch["labels"] = batch.pop(name)
        return batch

    def _pad(self, features: list, return_tensors: Any) -> Any:
        return self.tokenizer.pad(
            features,
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors=return_tensors,
        )

    def _filled(self, row: list, length: int, value: int) -> list:
        more = [value] * (length - len(row))
        return row + more if self.tokenizer.padding_side == "right" else more + row


@dataclass
class DataCollatorForTokenClassification(DataCollatorWithPadding):
    """Inputs padded, and with them one label for each token."""

    label_pad_token_id: int = -100
    return_tensors: str = "pt"

    def __call__(self, features: list, return_tensors: str | None = None) -> Any:
        """The padded batch of the examples; labels (batch, tokens)."""
        kind = return_tensors or self.return_tensors
        name = _label_name(features)
        if name not in features[0]:
            return self._pad(features, kind)
        make = arrays(kind)
        inputs = [{k: v for k, v in one.items() if k != name} for one in features]
        batch = self._pad(inputs, "np" if kind == "np" else kind)
        length = batch["input_ids"].shape[1]
        rows = [self._filled(plain_list(one[name]), length, self.label_pad_token_id) for one in features]
        if kind == "np":
            batch = {key: value.astype("int64") for key, value in batch.items()}
        batch[name] = make.tensor(rows, "int")
        return batch


@dataclass
class DataCollatorForSeq2Seq(DataCollatorWithPadding):
    """Inputs and labels padded each to their own length; decoder inputs where the model can make them."""

    tokenizer: PreTrainedTokenizerBase
    model: Any = None
    padding: Any = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    label_pad_token_id: int = -100
    return_tensors: str = "pt"

    def __call__(self, features: list, return_tensors: str | None = None) -> Any:
        """The padded batch; `labels` is None where the examples have none."""
        kind = return_tensors or self.return_tensors
        name = _label_name(features)
        labels = [one.get(name) for one in features]
        batch = self._pad([{k: v for k, v in one.items() if k != name} for one in features], kind)
        if all(label is None for label in labels):
            batch["labels"] = None
            return batch
        rows = [plain_list(label) for label in labels]
        strategy = getattr(self.padding, "value", self.padding)
        if strategy not in (False, PaddingStrategy.DO_NOT_PAD.value):
            length = max(map(len, rows))
            if strategy == PaddingStrategy.MAX_LENGTH.value and self.max_length is not None:
                length = self.max_length
            if self.pad_to_multiple_of is not None:
                length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
            rows = [self._filled(row, length, self.label_pad_token_id) for row in rows]
        batch["labels"] = arrays(kind).tensor(rows, "int")
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None:
            batch["decoder_input_ids"] = shift(labels=batch["labels"])
        return batch


@dataclass
class DataCollatorForMultipleChoice(DataCollatorWithPadding):
    """Examples of several choices each, padded to one length over all choices."""

    def __call__(self, features: list, return_tensors: str | None = None) -> dict[str, Any]:
        """Inputs (batch, choices, tokens) and `labels` (batch,)."""
        kind = return_tensors or self.return_tensors
        name, make = _label_name(features), arrays(kind)
        if name not in features[0]:
            raise ArgumentError(f"examples of several choices need 'label' or 'labels': {list(features[0])}")
        labels = [plain_number(one[name]) for one in features]
        inputs = [{k: v for k, v in one.items() if k != name} for one in features]
        choices = len(inputs[0]["input_ids"])
        flat = [{k: v[i] for k, v in one.items()} for one in inputs for i in range(choices)]
        batch = {k: v.reshape(len(features), choices, -1) for k, v in self._pad(flat, kind).items()}
        return {**batch, "labels": make.tensor(labels, "int")}
