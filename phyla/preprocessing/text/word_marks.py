"""Words with a mark each: boxes on a page, or paths in a document tree; tokens carry the mark of their
word.
"""

import dataclasses
import logging
from typing import Any

from tokenizers import Tokenizer

from phyla.errors import ArgumentError, TokenizerInputError

from .base import CallOptions, PreTrainedTokenizerBase
from .batch import BatchEncoding
from .fast import PreTrainedTokenizerFast
from .rust import encode_batch
from .slow import PreTrainedTokenizer
from .strategy import PaddingStrategy, Plan, TruncationStrategy

log = logging.getLogger(__name__)


class WordMarks(PreTrainedTokenizerBase):
    """Calls take words (or a question and words), their marks, and perhaps a label for each word."""

    marks_name = "boxes"
    labels_name = "word_labels"
    pad_token_label: int
    only_label_first_subword: bool

    def _mark(self, mark) -> dict:
        """What the tokens of a word carry."""
        return {"bbox": mark}

    def _special_mark(self, role: str) -> dict:
        """What a special token carries, or padding, or a question (`pad`)."""
        return {"bbox": getattr(self, f"{role}_token_box")}

    def __call__(self, text=None, text_pair=None, *marks_and_labels, **options):
        """Model inputs of words with marks: words, or a question and words; one example or a batch."""
        return self._call_marked(text, text_pair, *marks_and_labels, **options)

    def _call_marked(self, text, text_pair, *marks_and_labels, **options) -> BatchEncoding:
        marks, labels, settings = self._take(marks_and_labels, options)
        batched = self._check(text, text_pair, marks)
        examples = list(zip(text, text_pair)) if batched and text_pair is not None else text
        if batched:
            return self._encode_examples(list(examples), text_pair is not None, marks, labels, settings)
        return self._encode_example(text, text_pair, marks, labels, settings)

    def _take(self, given: tuple, options: dict) -> tuple:
        names = (self.marks_name, self.labels_name)
        if len(given) > 2:
            raise ArgumentError(f"after the texts stand {' and '.join(names)}, but {len(given)} arguments do")
        values = {**dict(zip(names, given)), **{n: options.pop(n) for n in names if n in options}}
        return values.get(names[0]), values.get(names[1]), self._options(options)

    def _check(self, text, text_pair, marks) -> bool:
        """Whether a batch is given; raises where words and marks do not fit."""
        words = text if text_pair is None else text_pair
        if not isinstance(words, (list, tuple)) or (
            text_pair is not None and not isinstance(text, (str, list, tuple))
        ):
            found = type(words).__name__
            raise TokenizerInputError(
                f"words must be a list of strings, or a list of such lists, but are a {found}"
            )
        if marks is None:
            raise TokenizerInputError(f"{self.marks_name} must be given: one for each word")
        if text_pair is not None:
            batched = isinstance(text, (list, tuple))
        else:
            batched = bool(text) and isinstance(text[0], (list, tuple))
        pairs = list(zip(words, marks)) if batched else [(words, marks)]
        if batched and len(words) != len(marks):
            raise TokenizerInputError(f"{len(words)} examples have {len(marks)} lists of {self.marks_name}")
        for i, (example, own) in enumerate(pairs):
            if len(example) != len(own):
                raise TokenizerInputError(
                    f"example {i} has {len(example)} words, but {len(own)} {self.marks_name}: each needs one"
                )
        if batched and text_pair is not None and len(text) != len(text_pair):
            raise TokenizerInputError(f"text has {len(text)} entries, but text_pair has {len(text_pair)}")
        return batched

    def encode(self, text, text_pair=None, *marks_and_labels, **options):
        """The input ids of one example."""
        return self.encode_plus(text, text_pair, *marks_and_labels, **options)["input_ids"]

    def encode_plus(self, text, text_pair=None, *marks_and_labels, **options) -> BatchEncoding:
        """Model inputs of one example."""
        marks, labels, settings = self._take(marks_and_labels, options)
        return self._encode_example(text, text_pair, marks, labels, settings)

    def batch_encode_plus(
        self, batch_text_or_text_pairs, is_pair=None, *marks_and_labels, **options
    ) -> BatchEncoding:
        """Model inputs of a list of examples: words, or (with `is_pair`) a question and words."""
        marks, labels, settings = self._take(marks_and_labels, options)
        return self._encode_examples(list(batch_text_or_text_pairs), bool(is_pair), marks, labels, settings)

    def _encode_example(self, text, text_pair, marks, labels, options: CallOptions) -> BatchEncoding:
        raise NotImplementedError(f"{type(self).__name__} must define _encode_example: inputs of one example")

    def _encode_examples(self, examples, pairs: bool, marks, labels, options: CallOptions) -> BatchEncoding:
        raise NotImplementedError(f"{type(self).__name__} must define _encode_examples: inputs of a list")

    def _fills(self) -> dict[str, Any]:
        return {**self._special_mark("pad"), "labels": self.pad_token_label}


class PythonWordMarks(WordMarks, PreTrainedTokenizer):
    """Marked words in Python; these cut from the end only."""

    overflow_names: dict[str, str] = {"bbox": "overflowing_token_boxes"}
    marks_frame: tuple[str, ...] = ("cls", "A", "sep", "B", "sep")
    cuts_in_turn = False  # longest_first keeps what it cuts
    mark_between = False  # a question's marks end with that of a separator, as its boxes always did

    def prepare_for_model(self, text, text_pair=None, *marks_and_labels, prepend_batch_axis=False, **options):  # type: ignore[override]
        """Model inputs of one example."""
        marks, labels, settings = self._take(marks_and_labels, options)
        return self._prepared(text, text_pair, marks, labels, settings, prepend_batch_axis)

    def _encode_example(self, text, text_pair, marks, labels, options: CallOptions) -> BatchEncoding:
        self._refuse_offsets(options)
        return self._prepared(text, text_pair, marks, labels, options, True)

    def _prepared(
        self, text, text_pair, marks, labels, options: CallOptions, batch_axis: bool
    ) -> BatchEncoding:
        plan = self._plan_of(options)
        row = self._row(text, text_pair, marks, labels, options, plan)
        mask = self._wants("attention_mask", options.return_attention_mask)
        if plan.padding is not PaddingStrategy.DO_NOT_PAD or mask:
            row = dict(self._padded(row, plan, options, mask))
        if options.return_length:
            row["length"] = len(row["input_ids"])
        return BatchEncoding(row, tensor_type=options.return_tensors, prepend_batch_axis=batch_axis)

    def _encode_examples(self, examples, pairs: bool, marks, labels, options: CallOptions) -> BatchEncoding:
        self._refuse_offsets(options)
        plan = self._plan_of(options)
        rows: dict[str, list] = {}
        for i, example in enumerate(examples):
            text, text_pair = example if pairs else (example, None)
            row = self._row(text, text_pair, marks[i], None if labels is None else labels[i], options, plan)
            if options.return_length:
                row["length"] = len(row["input_ids"])
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
        mask = self._wants("attention_mask", options.return_attention_mask)
        return BatchEncoding(
            dict(self._padded(rows, plan, options, mask)), tensor_type=options.return_tensors
        )

    def _of_words(self, words, marks, labels) -> tuple[list[int], list[dict], list[int]]:
        tokens: list[str] = []
        token_marks: list[dict] = []
        token_labels: list[int] = []
        for i, (word, mark) in enumerate(zip(words, marks)):
            if not word:
                continue
            pieces = self.tokenize(word)
            tokens += pieces
            token_marks += [self._mark(mark)] * len(pieces)
            if labels is not None:
                first = self.only_label_first_subword
                token_labels += [
                    labels[i] if not k or not first else self.pad_token_label for k in range(len(pieces))
                ]
        return self.convert_tokens_to_ids(tokens), token_marks, token_labels

    def _row(self, text, text_pair, marks, labels, options: CallOptions, plan: Plan) -> dict:
        """One unpadded example."""
        b_ids: list[int] | None = None
        b_marks: list[dict] = []
        if text_pair is None:
            a_ids, a_marks, a_labels = self._of_words(text, marks, labels)
        else:
            a_ids = self.convert_tokens_to_ids(self.tokenize(text))
            a_marks, a_labels = [self._special_mark("pad")] * len(a_ids), []
            if self.mark_between:
                a_marks.append(self._special_mark("sep"))
            b_ids, b_marks, _ = self._of_words(text_pair, marks, None)
            b_ids = b_ids or None
        longest = plan.truncation is TruncationStrategy.LONGEST_FIRST
        if options.return_overflowing_tokens and longest and b_ids is not None and not self.cuts_in_turn:
            raise TokenizerInputError(
                "overflowing tokens of a pair cut longest_first are not defined: use only_first, only_second"
            )
        special = options.add_special_tokens
        total = (
            len(a_ids)
            + len(b_ids or ())
            + (self.num_special_tokens_to_add(b_ids is not None) if special else 0)
        )
        cut: tuple[list, list, list] = ([], [], [])
        if (
            plan.truncation is not TruncationStrategy.DO_NOT_TRUNCATE
            and plan.max_length
            and total > plan.max_length
        ):
            state: list[Any] = [a_ids, a_marks, a_labels, b_ids, b_marks]
            cut = self._shorten(state, total - plan.max_length, plan.truncation, options.stride)
            a_ids, a_marks, a_labels, b_ids, b_marks = state
        if options.return_token_type_ids and not special:
            raise TokenizerInputError(
                "token types are not defined without special tokens: set return_token_type_ids to None"
            )
        row: dict = {}
        if options.return_overflowing_tokens:
            row["overflowing_tokens"], row["overflowing_labels"] = cut[0], cut[2]
            for key, name in self.overflow_names.items():
                row[name] = [mark[key] for mark in cut[1]]
            row["num_truncated_tokens"] = total - (plan.max_length or total)
        if special:
            row["input_ids"] = self.build_inputs_with_special_tokens(a_ids, b_ids)
            all_marks = self._framed(a_marks, b_marks, b_ids is not None)
            pad = [self.pad_token_label]
            a_labels = self._framed_labels(a_labels, pad) if a_labels else a_labels
        else:
            row["input_ids"] = a_ids + (b_ids or [])
            all_marks = a_marks + b_marks
        for key in self._special_mark("pad"):
            row[key] = [mark[key] for mark in all_marks]
        if self._wants("token_type_ids", options.return_token_type_ids):
            row["token_type_ids"] = (
                self.create_token_type_ids_from_sequences(a_ids, b_ids)
                if special
                else [0] * len(row["input_ids"])
            )
        if options.return_special_tokens_mask:
            row["special_tokens_mask"] = (
                self.get_special_tokens_mask(a_ids, b_ids) if special else [0] * len(row["input_ids"])
            )
        if a_labels:
            row["labels"] = a_labels
        self._warn_if_long(row["input_ids"], plan.max_length)
        return row

    def _framed_labels(self, labels: list[int], pad: list[int]) -> list[int]:
        return pad + labels + pad if "cls" in self.marks_frame else labels + pad

    def _framed(self, a_marks: list[dict], b_marks: list[dict], pair: bool) -> list[dict]:
        frame = (
            self.marks_frame if pair and b_marks else self.marks_frame[: self.marks_frame.index("sep") + 1]
        )
        framed: list[dict] = []
        for place in frame:
            framed += a_marks if place == "A" else b_marks if place == "B" else [self._special_mark(place)]
        return framed

    def _shorten(
        self, state: list, count: int, strategy: TruncationStrategy, stride: int
    ) -> tuple[list, list, list]:
        """Cut `count` tokens off the end, in place; returns what was cut with `stride` tokens before it."""
        longest = strategy is TruncationStrategy.LONGEST_FIRST
        if longest and (state[3] is not None or self.cuts_in_turn):
            return self._shorten_in_turn(state, count, stride)
        places = (3, 4) if strategy is TruncationStrategy.ONLY_SECOND else (0, 1, 2)
        if strategy is TruncationStrategy.ONLY_SECOND and state[3] is None:
            return [], [], []
        length = len(state[places[0]])
        if length <= count:
            log.error("%d tokens must go, but the sequence has only %d; nothing was cut", count, length)
            return [], [], []
        window = min(length, stride + count)
        cut = [state[place][-window:] for place in places]
        for place in places:
            state[place] = state[place][:-count]
        return cut[0], cut[1], cut[2] if len(cut) > 2 else []

    def _shorten_in_turn(self, state: list, count: int, stride: int) -> tuple[list, list, list]:
        cut: tuple[list, list, list] = ([], [], [])
        for _ in range(count):
            places = (0, 1, 2) if state[3] is None or len(state[0]) > len(state[3]) else (3, 4)
            window = 1 if cut[0] else min(len(state[places[0]]), stride + 1)
            for kept, place in zip(cut, places):
                if self.cuts_in_turn:
                    kept.extend(state[place][-window:])
                state[place] = state[place][:-1]
        return cut


class FastWordMarks(WordMarks, PreTrainedTokenizerFast):
    """Marked words on Rust."""

    splits_question = True
    empty_pieces = (
        "kept"  # which pieces pass the label of their word on: none, those of no width, those of no text
    )
    _tokenizer: Tokenizer

    def tokenize(self, text, pair=None, add_special_tokens=False, **options) -> list[str]:
        """The tokens of a text (and of a second one)."""
        batch = [(text, pair)] if pair else [text]
        return encode_batch(self._tokenizer, batch, add_special_tokens, False, type(self).__name__)[0].tokens

    def _encode_example(self, text, text_pair, marks, labels, options: CallOptions) -> BatchEncoding:
        example = [(text, text_pair)] if text_pair else [text]
        rows = self._encode_examples(
            example, text_pair is not None, [marks], None if labels is None else [labels], options
        )
        if options.return_tensors is not None or options.return_overflowing_tokens:
            return rows
        single = {k: v[0] if len(v) and isinstance(v[0], list) else v for k, v in rows.items()}
        return BatchEncoding(single, rows.encodings)

    def _encode_examples(self, examples, pairs: bool, marks, labels, options: CallOptions) -> BatchEncoding:
        if pairs:
            examples = [(text.split() if self.splits_question else [text], words) for text, words in examples]
        want_offsets = options.return_offsets_mapping or labels is not None
        with self._lock:  # lengths are state of the Rust tokenizer, which threads may share
            self._set_lengths(options)
            encodings = encode_batch(
                self._tokenizer, examples, options.add_special_tokens, True, type(self).__name__
            )
        rows: dict[str, list] = {}
        flat, source = [], []
        for i, encoding in enumerate(encodings):
            parts = [encoding, *encoding.overflowing] if options.return_overflowing_tokens else [encoding]
            for part in parts:
                flat.append(part)
                source.append(i)
                self._add_row(rows, part, dataclasses.replace(options, return_offsets_mapping=want_offsets))
        if options.return_overflowing_tokens:
            rows["overflow_to_sample_mapping"] = source
        for row in rows["input_ids"]:
            self._warn_if_long(row, options.max_length)
        for key in self._special_mark("pad"):
            rows[key] = []
        for part, i in zip(flat, source):
            token_marks = self._marks_of(part, marks[i], pairs)
            for key in self._special_mark("pad"):
                rows[key].append([mark[key] for mark in token_marks])
        if labels is not None:
            rows["labels"] = [self._labels_of(part, labels[i]) for part, i in zip(flat, source)]
            if not options.return_offsets_mapping:
                del rows["offset_mapping"]
        return BatchEncoding(rows, flat, tensor_type=options.return_tensors)

    def _marks_of(self, part, marks, pairs: bool) -> list[dict]:
        roles = {getattr(self, f"{role}_token_id"): role for role in ("pad", "sep", "cls")}
        found = []
        for index, sequence, word in zip(part.ids, part.sequence_ids, part.word_ids):
            if word is not None:
                question = pairs and sequence == 0
                found.append(self._special_mark("pad") if question else self._mark(marks[word]))
            elif index in roles:
                found.append(self._special_mark(roles[index]))
            else:
                raise TokenizerInputError(
                    f"token {self._token_of(index)!r} ({index}) belongs to no word and has no mark"
                )
        return found

    def _labels_of(self, part, labels) -> list[int]:
        found, after_empty = [], False
        for index, offset, word in zip(part.ids, part.offsets, part.word_ids):
            if word is None:
                found.append(self.pad_token_label)
            elif not self.only_label_first_subword:
                found.append(labels[word])
            else:
                first = offset[0] == 0 and not after_empty
                found.append(labels[word] if first else self.pad_token_label)
                if self.empty_pieces == "width":
                    after_empty = tuple(offset) == (0, 0)
                elif self.empty_pieces == "text":
                    after_empty = self.decode(index) == ""
        return found


class TreePaths(WordMarks):
    """Words whose marks are paths in a document tree, such as `/html/body/div/li[2]`."""

    marks_name = "xpaths"
    labels_name = "node_labels"

    def _take_paths(self) -> None:
        if self.tags_dict is None:
            raise ArgumentError(f"{type(self).__name__} needs tags_dict: the id of each tag")
        self.unk_tag_id = len(self.tags_dict)
        self.pad_tag_id = self.unk_tag_id + 1
        self.pad_xpath_tags_seq = [self.pad_tag_id] * self.max_depth
        self.pad_xpath_subs_seq = [self.pad_width] * self.max_depth

    def get_xpath_seq(self, xpath: str) -> tuple[list[int], list[int]]:
        """The ids of the tags of a path and their numbers among equals, both padded to `max_depth`."""
        units = [unit.strip().split("[") for unit in xpath.split("/") if unit.strip()][: self.max_depth]
        tags = [self.tags_dict.get(unit[0], self.unk_tag_id) for unit in units]
        numbers = [min(self.max_width, int(unit[1][:-1]) if len(unit) > 1 else 0) for unit in units]
        missing = self.max_depth - len(units)
        return tags + [self.pad_tag_id] * missing, numbers + [self.pad_width] * missing

    def _mark(self, mark) -> dict:
        tags, numbers = self.get_xpath_seq(mark)
        return {"xpath_tags_seq": tags, "xpath_subs_seq": numbers}

    def _special_mark(self, role: str) -> dict:
        return {"xpath_tags_seq": self.pad_xpath_tags_seq, "xpath_subs_seq": self.pad_xpath_subs_seq}


class BoxesOrText(WordMarks):
    """Sources are words with boxes, targets are plain text."""

    def __call__(  # type: ignore[override]
        self,
        text=None,
        text_pair=None,
        boxes=None,
        word_labels=None,
        text_target=None,
        text_pair_target=None,
        **options,
    ):
        """Model inputs of words with boxes; targets become `labels`."""
        if text is None and text_target is None:
            raise TokenizerInputError("text must be words, or text_target a text, but both are None")
        source = target = None
        if text is not None:
            self._switch_to_input_mode()
            source = self.call_boxes(text, text_pair, boxes, word_labels, **options)
        if text_target is not None:
            self._switch_to_target_mode()
            target = self._call_one(text_target, text_pair_target, self._options(dict(options)))
            self._switch_to_input_mode()
        if source is None or target is None:
            return target if source is None else source
        source["labels"] = target["input_ids"]
        return source

    def call_boxes(self, text, text_pair=None, boxes=None, word_labels=None, **options) -> BatchEncoding:
        """Model inputs of words with boxes."""
        return self._call_marked(text, text_pair, boxes, word_labels, **options)

    def encode_boxes(self, text, text_pair=None, boxes=None, word_labels=None, **options):
        """The input ids of one example of words with boxes."""
        return WordMarks.encode_plus(self, text, text_pair, boxes, word_labels, **options)["input_ids"]

    def encode_plus_boxes(
        self, text, text_pair=None, boxes=None, word_labels=None, **options
    ) -> BatchEncoding:
        """Model inputs of one example of words with boxes."""
        return WordMarks.encode_plus(self, text, text_pair, boxes, word_labels, **options)

    def batch_encode_plus_boxes(
        self, batch_text_or_text_pairs, is_pair=None, boxes=None, word_labels=None, **options
    ):
        """Model inputs of a list of examples of words with boxes."""
        return WordMarks.batch_encode_plus(
            self, batch_text_or_text_pairs, is_pair, boxes, word_labels, **options
        )

    def encode(self, text, text_pair=None, **options):  # type: ignore[override]
        """The input ids of a plain text or pair."""
        return PreTrainedTokenizerBase.encode(self, text, text_pair, **options)

    def encode_plus(self, text, text_pair=None, **options) -> BatchEncoding:
        """Model inputs of a plain text or pair."""
        return PreTrainedTokenizerBase.encode_plus(self, text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs, **options) -> BatchEncoding:  # type: ignore[override]
        """Model inputs of a list of plain texts or pairs."""
        return PreTrainedTokenizerBase.batch_encode_plus(self, batch_text_or_text_pairs, **options)
