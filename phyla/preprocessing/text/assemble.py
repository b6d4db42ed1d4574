"""From ids of sequences to model inputs: special tokens, truncation, padding."""

import logging
from collections.abc import Sized
from typing import Any

from phyla.errors import ArgumentError, TokenizerInputError

from . import layout as layouts
from .batch import BatchEncoding, framework_of, is_mapping, to_python
from .strategy import PaddingStrategy, TruncationStrategy, resolve
from .tokens import SpecialTokens

log = logging.getLogger(__name__)


class Assembly(SpecialTokens):
    """The part of a tokenizer that puts ids together; it needs no text."""

    special_mask_frame = False  # some classes mark a frame of special tokens that they do not put
    layout: Any = layouts.PLAIN  # a Layout, or a property that gives one

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Ids of one sequence or a pair with the special tokens around them."""
        return layouts.build(self, self.layout, token_ids_0, token_ids_1)

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Token types (0 or 1) along `build_inputs_with_special_tokens`."""
        return layouts.token_types(self, self.layout, token_ids_0, token_ids_1)

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others, along `build_inputs_with_special_tokens` or the ids as
        given.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ArgumentError("with already_has_special_tokens=True give one list of ids, not two")
            special = set(self.all_special_ids)
            return [int(token in special) for token in token_ids_0]
        frame = layouts.FRAME if self.special_mask_frame else self.layout
        return layouts.special_mask(self, frame, token_ids_0, token_ids_1)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens one sequence or a pair gets."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    @property
    def max_len_single_sentence(self) -> int:
        """The most tokens of one sequence that fit beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """The most tokens of a pair that fit beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def _plan(self, padding, truncation, max_length, pad_to_multiple_of=None, verbose=True):
        has_pad = self.pad_token is not None and (self.pad_token_id or 0) >= 0
        return resolve(
            padding, truncation, max_length, pad_to_multiple_of, self.model_max_length, has_pad, verbose
        )

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str | TruncationStrategy = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Cut `num_tokens_to_remove` ids from one or both sequences at the truncation side.

        Returns both sequences and the cut ids with `stride` ids of what was kept before them (none for
        longest_first of a pair).
        """
        count = num_tokens_to_remove
        if count <= 0:
            return ids, pair_ids, []
        strategy = TruncationStrategy(truncation_strategy)
        if strategy is TruncationStrategy.LONGEST_FIRST and pair_ids is not None:
            from_longer = min(abs(len(pair_ids) - len(ids)), count)
            shared = count - from_longer
            if len(ids) > len(pair_ids):
                first, second = from_longer + shared // 2, shared - shared // 2
            else:
                first, second = shared // 2, from_longer + shared - shared // 2
            return self._cut(ids, first), self._cut(pair_ids, second), []
        if strategy is TruncationStrategy.ONLY_SECOND and pair_ids is not None:
            cut, overflow = self._cut_with_rest(pair_ids, count, stride, "second")
            return ids, cut, overflow
        if strategy in (TruncationStrategy.ONLY_FIRST, TruncationStrategy.LONGEST_FIRST):
            cut, overflow = self._cut_with_rest(ids, count, stride, "first")
            return cut, pair_ids, overflow
        return ids, pair_ids, []

    def _cut(self, ids, count):
        if count <= 0:
            return ids
        return ids[:-count] if self.truncation_side == "right" else ids[count:]

    def _cut_with_rest(self, ids, count, stride, which):
        if len(ids) <= count:
            log.error(
                "%d tokens must go, but the %s sequence has only %d; nothing was cut", count, which, len(ids)
            )
            return ids, []
        window = min(len(ids), stride + count)
        if self.truncation_side == "right":
            return ids[:-count], ids[-window:]
        return ids[count:], ids[:window]

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        add_special_tokens: bool = True,
        padding=False,
        truncation=None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors=None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
    ) -> BatchEncoding:
        """Model inputs from the ids of one sequence or a pair: special tokens, truncation, padding, masks."""
        plan = self._plan(padding, truncation, max_length, pad_to_multiple_of, verbose)
        inputs = self._assembled(
            ids,
            pair_ids,
            add_special_tokens,
            plan,
            stride,
            return_token_type_ids,
            return_overflowing_tokens,
            return_special_tokens_mask,
        )
        mask = self._wants("attention_mask", return_attention_mask)
        if plan.padding is not PaddingStrategy.DO_NOT_PAD or mask:
            inputs = dict(
                self.pad(
                    inputs,
                    padding=plan.padding.value,
                    max_length=plan.max_length,
                    pad_to_multiple_of=pad_to_multiple_of,
                    padding_side=padding_side,
                    return_attention_mask=mask,
                )
            )
        if return_length:
            inputs["length"] = len(inputs["input_ids"])
        return BatchEncoding(inputs, tensor_type=return_tensors, prepend_batch_axis=prepend_batch_axis)

    def _wants(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _assembled(self, ids, pair_ids, add_special, plan, stride, types, overflow, special_mask) -> dict:
        """One unpadded example."""
        if types and not add_special:
            raise TokenizerInputError(
                "token types are not defined without special tokens: set return_token_type_ids to None"
            )
        if overflow and plan.truncation is TruncationStrategy.LONGEST_FIRST and pair_ids is not None:
            raise TokenizerInputError(
                "overflowing tokens of a pair cut longest_first are not defined:"
                " use only_first or only_second"
            )
        total = (
            len(ids)
            + len(pair_ids or ())
            + (self.num_special_tokens_to_add(pair_ids is not None) if add_special else 0)
        )
        cut: list[int] = []
        if (
            plan.truncation is not TruncationStrategy.DO_NOT_TRUNCATE
            and plan.max_length
            and total > plan.max_length
        ):
            ids, pair_ids, cut = self.truncate_sequences(
                ids, pair_ids, total - plan.max_length, plan.truncation, stride
            )
        inputs: dict = {}
        if overflow:
            inputs["overflowing_tokens"] = cut
            inputs["num_truncated_tokens"] = total - plan.max_length if plan.max_length is not None else 0
        if add_special:
            sequence = self.build_inputs_with_special_tokens(ids, pair_ids)
        else:
            sequence = ids + pair_ids if pair_ids else ids
        inputs["input_ids"] = sequence
        if self._wants("token_type_ids", types):
            inputs["token_type_ids"] = (
                self.create_token_type_ids_from_sequences(ids, pair_ids)
                if add_special
                else [0] * len(sequence)
            )
        if special_mask:
            inputs["special_tokens_mask"] = (
                self.get_special_tokens_mask(ids, pair_ids) if add_special else [0] * len(sequence)
            )
        self._warn_if_long(sequence, plan.max_length)
        return inputs

    def _warn_if_long(self, ids, max_length) -> None:
        if max_length is None and len(ids) > self.model_max_length and not self.__dict__.get("_warned_long"):
            object.__setattr__(self, "_warned_long", True)
            log.warning("%d tokens are more than the model takes (%d)", len(ids), self.model_max_length)

    def pad(
        self,
        encoded_inputs,
        padding=True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors=None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad one example, a batch, or a list of examples to one length; arrays come back as the kind they
        were.
        """
        if isinstance(encoded_inputs, (list, tuple)):
            if not encoded_inputs or not is_mapping(encoded_inputs[0]):
                raise TokenizerInputError("pad wants a dictionary of inputs or a list of such dictionaries")
            encoded_inputs = {key: [example[key] for example in encoded_inputs] for key in encoded_inputs[0]}
        main = self.model_input_names[0]
        if main not in encoded_inputs:
            raise TokenizerInputError(
                f"pad wants inputs with {main!r}, but got {list(encoded_inputs.keys())}"
            )
        inputs = {key: encoded_inputs[key] for key in encoded_inputs}
        required = inputs[main]
        if required is None or (isinstance(required, Sized) and len(required) == 0):
            if return_attention_mask:
                inputs["attention_mask"] = []
            return BatchEncoding(inputs)
        first = required[0]
        if isinstance(first, (list, tuple)):
            first = next((row[0] for row in required if len(row)), first)
        if not isinstance(first, (int, list, tuple)):
            kind = framework_of(first)
            if kind is None:
                raise TokenizerInputError(
                    f"{main!r} must hold integers or arrays, but holds {type(first).__name__}"
                )
            return_tensors = kind if return_tensors is None else return_tensors
            inputs = {key: to_python(value) for key, value in inputs.items()}
            required = inputs[main]
        plan = self._plan(padding, None, max_length, verbose=verbose)
        batched = bool(required) and isinstance(required[0], (list, tuple))
        rows = required if batched else [required]
        if plan.padding is PaddingStrategy.LONGEST:
            plan = plan._replace(padding=PaddingStrategy.MAX_LENGTH, max_length=max(len(row) for row in rows))
        if not batched:
            padded = self._pad(
                inputs, plan.max_length, plan.padding, pad_to_multiple_of, padding_side, return_attention_mask
            )
            return BatchEncoding(padded, tensor_type=return_tensors)
        for key, value in inputs.items():
            if len(value) != len(rows):
                raise TokenizerInputError(f"{key!r} has {len(value)} rows, but {main!r} has {len(rows)}")
        batch: dict[str, list] = {}
        for i in range(len(rows)):
            row = {key: value[i] for key, value in inputs.items()}
            row = self._pad(
                row, plan.max_length, plan.padding, pad_to_multiple_of, padding_side, return_attention_mask
            )
            for key, value in row.items():
                batch.setdefault(key, []).append(value)
        return BatchEncoding(batch, tensor_type=return_tensors)

    def _pad(
        self,
        encoded_inputs,
        max_length=None,
        padding_strategy=PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of=None,
        padding_side=None,
        return_attention_mask=None,
    ):
        """One example padded to `max_length` (rounded up to the multiple)."""
        inputs = dict(encoded_inputs)
        required = inputs[self.model_input_names[0]]
        if self._wants("attention_mask", return_attention_mask) and "attention_mask" not in inputs:
            inputs["attention_mask"] = [1] * len(required)
        if padding_strategy is PaddingStrategy.DO_NOT_PAD:
            return inputs
        if max_length is not None and pad_to_multiple_of:
            max_length = -(-max_length // pad_to_multiple_of) * pad_to_multiple_of
        missing = (len(required) if max_length is None else max_length) - len(required)
        if missing <= 0:
            return inputs
        side = self.padding_side if padding_side is None else padding_side
        if side not in ("right", "left"):
            raise ArgumentError(f"padding_side must be 'right' or 'left', but is {side!r}")
        fill = {
            "attention_mask": 0,
            "token_type_ids": self.pad_token_type_id,
            "special_tokens_mask": 1,
            self.model_input_names[0]: self.pad_token_id,
            **self._fills(),
        }
        if not self._wants("attention_mask", return_attention_mask):
            del fill["attention_mask"]
        for key, value in fill.items():
            if key in inputs:
                inputs[key] = lengthened(inputs[key], value, missing, side)
        return inputs

    def _fills(self) -> dict[str, Any]:
        """Hook: what pads each input that a kind puts beside the ids."""
        return {}


def lengthened(row, value, missing: int, side: str) -> list:
    """A row with `missing` times a value at its right or left."""
    rest = [value] * max(0, missing)
    return [*row, *rest] if side == "right" else [*rest, *row]
