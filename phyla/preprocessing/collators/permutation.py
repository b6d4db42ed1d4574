"""The collator for permutation language modelling: spans predicted in a random order (Yang et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..text.base import PreTrainedTokenizerBase
from ..text.batch import is_mapping
from .arrays import TorchArrays, arrays
from .masking import IGNORED, collated


class _Draws:
    """Random numbers of torch or numpy, so that seeding either repeats a batch."""

    def __init__(self, make: Any):
        self.torch = make.torch if isinstance(make, TorchArrays) else None

    def below(self, low: int, high: int) -> int:
        if self.torch is not None:
            return int(self.torch.randint(low, high, (1,)))
        return int(np.random.randint(low, high))

    def order(self, count: int) -> np.ndarray:
        if self.torch is not None:
            return self.torch.randperm(count).numpy()
        return np.random.permutation(count)


@dataclass
class DataCollatorForPermutationLanguageModeling:
    """Spans of 1 to `max_span_length` tokens to predict, about `plm_probability` of all tokens."""

    tokenizer: PreTrainedTokenizerBase
    plm_probability: float = 1 / 6
    max_span_length: int = 5
    return_tensors: str = "pt"

    def __call__(self, features: list, return_tensors: str | None = None) -> dict[str, Any]:
        """`input_ids`, `labels` (batch, tokens), `perm_mask`, `target_mapping` (batch, tokens, tokens)."""
        make = arrays(return_tensors or self.return_tensors)
        rows = [one["input_ids"] if is_mapping(one) else one for one in features]
        if self.tokenizer.mask_token is None:
            raise ArgumentError(
                "permutation language modelling needs a mask_token, and this tokenizer has none"
            )
        ids = np.asarray(collated(rows, self.tokenizer, None, make))
        count, length = ids.shape
        if length % 2:
            raise ArgumentError(
                f"sequences must be of even length, so that no target leaks, but have {length} tokens"
            )
        draws = _Draws(make)
        chosen = np.zeros(ids.shape, dtype=bool)
        for row in chosen:
            self._choose_spans(row, draws)
        special = [
            self.tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True)
            for row in ids.tolist()
        ]
        fixed = np.array(special, dtype=bool)
        if self.tokenizer.pad_token is not None:
            fixed |= ids == self.tokenizer.pad_token_id
        chosen &= ~fixed
        hidden = np.zeros((count, length, length), dtype=np.float32)
        for row in range(count):
            # Both halves are permuted alike, the sequence being read in two parts.
            order = np.arange(length).reshape(2, length // 2)[:, draws.order(length // 2)].reshape(-1)
            order[~chosen[row] & ~fixed[row]] = -1
            hidden[row] = (order[:, None] <= order[None, :]) & chosen[row]
        labels = np.where(chosen, ids, IGNORED)
        inputs = np.where(chosen, self.tokenizer.mask_token_id, ids)
        targets = np.broadcast_to(np.eye(length, dtype=np.float32), hidden.shape)
        return {
            "input_ids": make.tensor(inputs, "int"),
            "perm_mask": make.tensor(hidden, "float"),
            "target_mapping": make.tensor(targets, "float"),
            "labels": make.tensor(labels, "int"),
        }

    def _choose_spans(self, row: np.ndarray, draws: _Draws) -> None:
        """Mark one span in each stretch of context, in place."""
        start = 0
        while start < len(row):
            span = draws.below(1, self.max_span_length + 1)
            context = int(span / self.plm_probability)
            first = start + draws.below(0, context - span + 1)
            row[first : first + span] = True
            start += context
