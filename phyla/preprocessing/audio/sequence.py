"""Sequences of features in one batch: cut, padded, with a mask; what every feature extractor shares."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..feature import BatchFeature, FeatureExtractionMixin
from ..text.batch import framework_of, is_mapping
from ..text.strategy import PaddingStrategy
from .waveforms import array_of


def rounded_up(length: int | None, multiple: int | None) -> int | None:
    """A length raised to the next multiple."""
    if length is None or multiple is None:
        return length
    return -(-length // multiple) * multiple


class SequenceFeatureExtractor(FeatureExtractionMixin):
    """Pads and cuts sequences of features; the first name of `model_input_names` says which."""

    model_input_names: list[str] = ["input_values"]

    def __init__(self, feature_size: int, sampling_rate: int, padding_value: float, **settings: Any):
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        self.padding_side = settings.pop("padding_side", "right")
        self.return_attention_mask = settings.pop("return_attention_mask", True)
        super().__init__(**settings)

    def strategy(self, padding: Any, max_length: int | None) -> PaddingStrategy:
        """The strategy behind `padding` (a boolean, name or strategy)."""
        if padding is False or padding is None:
            return PaddingStrategy.DO_NOT_PAD
        chosen = PaddingStrategy.LONGEST if padding is True else PaddingStrategy(padding)
        if chosen is PaddingStrategy.MAX_LENGTH and max_length is None:
            raise ArgumentError("padding='max_length' needs max_length")
        if chosen is not PaddingStrategy.DO_NOT_PAD and self.padding_value is None:
            raise ArgumentError(
                "padding needs a padding_value; set one: feature_extractor.padding_value = 0.0"
            )
        return chosen

    def pad(
        self,
        processed_features: Any,
        padding: Any = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: Any = None,
        return_tensors: Any = None,
    ) -> BatchFeature:
        """A batch of one length from features of several lengths.

        Takes a BatchFeature or dictionary of lists, or a list of them with one example each. The result has
        numpy arrays, or tensors where the features are tensors, unless `return_tensors` says otherwise.
        """
        main = self.model_input_names[0]
        if isinstance(processed_features, (list, tuple)):
            if not processed_features or not is_mapping(processed_features[0]):
                raise ArgumentError("pad takes a dictionary of lists, or a list of dictionaries")
            keys = processed_features[0].keys()
            processed_features = {key: [one[key] for one in processed_features] for key in keys}
        if main not in processed_features:
            raise ArgumentError(f"pad needs {main!r}, but got {list(processed_features.keys())}")
        masked = self.return_attention_mask if return_attention_mask is None else return_attention_mask
        first = processed_features[main]
        if len(first) == 0:
            if masked:
                processed_features["attention_mask"] = []
            return processed_features
        if return_tensors is None:
            return_tensors = framework_of(first[0]) or "np"
        columns = {
            key: [array_of(v, None) for v in values] if np.ndim(values[0]) else array_of(values, None)
            for key, values in processed_features.items()
        }
        sizes = {key: len(column) for key, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ArgumentError(f"all inputs must have one batch size, but these are {sizes}")
        strategy = self.strategy(padding, max_length)
        rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
        for row in rows:
            self._cut(row, max_length, pad_to_multiple_of, truncation)
        if strategy is PaddingStrategy.LONGEST:
            max_length = max(len(row[main]) for row in rows)
        target = rounded_up(max_length, pad_to_multiple_of)
        if strategy is PaddingStrategy.DO_NOT_PAD:
            target = None
        for row in rows:
            self._fill(row, target, bool(masked))
        batch = {key: [_single(row[key]) for row in rows] for key in rows[0]}
        return BatchFeature(batch, tensor_type=return_tensors)

    def _cut(self, row: dict, max_length: int | None, multiple: int | None, truncation: bool) -> None:
        if not truncation:
            return
        if max_length is None:
            raise ArgumentError("truncation=True needs max_length")
        limit = rounded_up(max_length, multiple)
        for name in (self.model_input_names[0], "attention_mask"):
            if name in row:
                row[name] = row[name][:limit]

    def _fill(self, row: dict, target: int | None, masked: bool) -> None:
        """Bring one example to the target length."""
        main = self.model_input_names[0]
        length = len(row[main])
        if masked and "attention_mask" not in row:
            row["attention_mask"] = np.ones(length, dtype=np.int32)
        if target is None or length >= target:
            return
        if self.padding_side not in ("right", "left"):
            raise ArgumentError(f"padding_side must be 'right' or 'left', but is {self.padding_side!r}")
        more = (0, target - length) if self.padding_side == "right" else (target - length, 0)
        if masked:
            row["attention_mask"] = np.pad(row["attention_mask"], more)
        rest = [(0, 0)] * (row[main].ndim - 1)
        row[main] = np.pad(row[main], [more, *rest], constant_values=self.padding_value)


def _single(value: Any) -> np.ndarray:
    """An array with float64 rounded to float32."""
    value = np.asarray(value)
    return value.astype(np.float32) if value.dtype == np.float64 else value


def standardized(values: Any, lengths: Any, padding_value: float) -> list[np.ndarray]:
    """Each row with zero mean and unit variance over its length; what lies after it is padding."""
    result = []
    for row, length in zip(values, [None] * len(values) if lengths is None else lengths):
        real = row[:length]
        row = (row - real.mean()) / np.sqrt(real.var() + 1e-7)
        if length is not None:
            row[length:] = padding_value
        result.append(row)
    return result


def cepstral(
    values: Any, lengths: Any, means: bool, variances: bool, padding_value: float
) -> list[np.ndarray]:
    """Each row (frames, features) with the mean and deviation of every feature over its frames taken out."""
    result = []
    for row, length in zip(values, [len(row) for row in values] if lengths is None else lengths):
        if means:
            row = row - row[:length].mean(axis=0)
        if variances:
            row = row / row[:length].std(axis=0)
        row = row.copy()
        row[length:] = padding_value
        result.append(row.astype(np.float32))
    return result
