"""Collators for language models: next tokens, masked tokens, masked words, sentence order."""

from __future__ import annotations

import multiprocessing
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..text.base import PreTrainedTokenizerBase
from ..text.batch import is_mapping
from .arrays import NumpyArrays, TorchArrays, arrays, plain_list

Arrays = NumpyArrays | TorchArrays
IGNORED = -100


def collated(rows: list, tokenizer: Any, multiple: int | None, make: Arrays, fill: int | None = None) -> Any:
    """Rows of numbers as one integer array, padded on the tokenizer's side; (batch, tokens)."""
    rows = [plain_list(row) for row in rows]
    length = max(map(len, rows))
    if multiple is not None:
        length = -(-length // multiple) * multiple
    if any(len(row) < length for row in rows):
        if tokenizer.pad_token is None:
            raise ArgumentError("examples of different lengths need a pad_token, and this tokenizer has none")
        value = tokenizer.pad_token_id if fill is None else fill
        right = tokenizer.padding_side == "right"
        more = [[value] * (length - len(row)) for row in rows]
        rows = [row + m if right else m + row for row, m in zip(rows, more)]
    return make.tensor(rows, "int")


@dataclass
class DataCollatorForLanguageModeling:
    """Labels for masked (`mlm`) or causal language modelling.

    Of the tokens that are not special, `mlm_probability` are to be predicted: `mask_replace_prob` of them
    become the mask token, `random_replace_prob` a random one, the rest stay. With `seed` the draws repeat.
    """

    tokenizer: PreTrainedTokenizerBase
    mlm: bool = True
    mlm_probability: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"
    seed: int | None = None

    def __post_init__(self):
        if self.mlm:
            self._need_mask_token()
        for name in ("mlm_probability", "mask_replace_prob", "random_replace_prob"):
            value = float(getattr(self, name))
            if not 0 <= value <= 1:
                raise ArgumentError(f"{name} must be between 0 and 1, but is {value}")
            setattr(self, name, value)
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ArgumentError("mask_replace_prob and random_replace_prob must not exceed 1 together")
        self.generator: Any = None

    def _need_mask_token(self) -> None:
        if self.tokenizer.mask_token is None:
            raise ArgumentError(
                "masked language modelling needs a mask_token, and this tokenizer has none: mlm=False trains"
                " on the next token instead"
            )

    def _seeded(self, make: Arrays) -> None:
        """Make the generator of the seed; each worker of a DataLoader has its own."""
        if not self.seed or self.generator is not None:
            return
        seed = self.seed
        if multiprocessing.current_process().name != "MainProcess":
            worker = TorchArrays().torch.utils.data.get_worker_info()
            if worker is None:
                raise ArgumentError(
                    "a seed in another process needs a torch DataLoader, which numbers its workers"
                )
            seed += worker.id
        self.generator = make.generator(seed)

    def __call__(self, features: list, return_tensors: str | None = None) -> Any:
        """The padded batch with `labels`; examples are mappings, or lists of ids."""
        kind = return_tensors or self.return_tensors
        make = arrays(kind)
        self._seeded(make)
        batch: Any
        if is_mapping(features[0]):
            batch = self.tokenizer.pad(
                features, return_tensors=kind, pad_to_multiple_of=self.pad_to_multiple_of
            )
        else:
            batch = {"input_ids": collated(features, self.tokenizer, self.pad_to_multiple_of, make)}
        special = batch.pop("special_tokens_mask", None)
        ids = batch["input_ids"]
        if self.mlm:
            if special is None:
                special = self._special(ids)
            chances = np.where(np.asarray(special, dtype=bool), 0.0, self.mlm_probability)
            chosen = make.coins(chances, ids.shape, self.generator)
            batch["labels"] = self._replace(ids, chosen, make)
        else:
            batch["labels"] = labels = make.copy(ids)
            if self.tokenizer.pad_token_id is not None:
                labels[labels == self.tokenizer.pad_token_id] = IGNORED
        return batch

    def _special(self, ids: Any) -> np.ndarray:
        """Where the special tokens are, (batch, tokens)."""
        rows = [
            self.tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True)
            for row in ids.tolist()
        ]
        return np.array(rows, dtype=bool)

    def _replace(self, ids: Any, chosen: Any, make: Arrays) -> Any:
        """Mask and replace the chosen ids in place; returns the labels."""
        labels = make.copy(ids)
        labels[~chosen] = IGNORED
        masked = make.coins(self.mask_replace_prob, labels.shape, self.generator) & chosen
        ids[masked] = self.tokenizer.convert_tokens_to_ids(self.tokenizer.mask_token)
        if self.mask_replace_prob == 1 or self.random_replace_prob == 0:
            return labels
        share = self.random_replace_prob / (1 - self.mask_replace_prob)
        changed = make.coins(share, labels.shape, self.generator) & chosen & ~masked
        make.put_random_ids(ids, changed, len(self.tokenizer), self.generator)
        return labels


@dataclass
class DataCollatorForWholeWordMask(DataCollatorForLanguageModeling):
    """Masked language modelling that chooses whole words; for tokenizers whose word parts begin with `##`.

    `chinese_ref` of an example lists the positions that continue a word besides.
    """

    def __call__(self, features: list, return_tensors: str | None = None) -> dict[str, Any]:
        """`input_ids` and `labels`, (batch, tokens)."""
        make = arrays(return_tensors or self.return_tensors)
        self._need_mask_token()
        self._seeded(make)
        rows: list[Mapping] = [one if is_mapping(one) else {"input_ids": one} for one in features]
        ids = collated([row["input_ids"] for row in rows], self.tokenizer, self.pad_to_multiple_of, make)
        words = [self._chosen_words(self._tokens(row)) for row in rows]
        chosen = collated(words, self.tokenizer, self.pad_to_multiple_of, make, fill=0)
        chosen = make.bools(chosen) & ~make.bools(self._special(ids))
        if self.tokenizer.pad_token is not None:
            chosen = chosen & (ids != self.tokenizer.pad_token_id)
        labels = self._replace(ids, chosen, make)
        return {"input_ids": ids, "labels": labels}

    def _tokens(self, row: Mapping) -> list[str]:
        tokens = self.tokenizer.convert_ids_to_tokens(plain_list(row["input_ids"]))
        for place in plain_list(row.get("chinese_ref", ())):
            if place < len(tokens):
                tokens[place] = f"##{tokens[place]}"
        return tokens

    def _chosen_words(self, tokens: list[str], most: int = 512) -> list[int]:
        """1 for the tokens of words drawn until the share of tokens is reached."""
        words: list[list[int]] = []
        for place, token in enumerate(tokens):
            if token in ("[CLS]", "[SEP]"):
                continue
            if words and token.startswith("##"):
                words[-1].append(place)
            else:
                words.append([place])
        random.shuffle(words)
        wanted = min(most, max(1, round(len(tokens) * self.mlm_probability)))
        chosen: set[int] = set()
        for word in words:
            if len(chosen) + len(word) <= wanted:
                chosen.update(word)
        return [int(place in chosen) for place in range(len(tokens))]


@dataclass
class DataCollatorForSOP(DataCollatorForLanguageModeling):
    """Masked language modelling with the order of two sentences to predict (deprecated)."""

    def __post_init__(self):
        super().__post_init__()
        warnings.warn(
            "DataCollatorForSOP is deprecated: use DataCollatorForLanguageModeling",
            FutureWarning,
            stacklevel=3,
        )

    def __call__(self, features: list, return_tensors: str | None = None) -> dict[str, Any]:
        """`input_ids`, `labels`, `attention_mask`, `token_type_ids`, `sentence_order_label`.

        The attention mask is 0 where a token is to be predicted, as the public collator has it.
        """
        make = arrays(return_tensors or self.return_tensors)
        self._seeded(make)
        ids = collated([one["input_ids"] for one in features], self.tokenizer, None, make)
        padding = ids == self.tokenizer.pad_token_id
        chances = np.where(self._special(ids) | np.asarray(padding, dtype=bool), 0.0, self.mlm_probability)
        chosen = make.coins(chances, ids.shape, self.generator)
        labels = self._replace(ids, chosen, make)
        visible = make.tensor((~chosen | padding).tolist(), "float")
        types = collated(
            [one["token_type_ids"] for one in features],
            self.tokenizer,
            None,
            make,
            fill=self.tokenizer.pad_token_type_id,
        )
        order = make.tensor([int(one["sentence_order_label"]) for one in features], "int")
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": visible,
            "token_type_ids": types,
            "sentence_order_label": order,
        }
