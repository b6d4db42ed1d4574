"""Texts with entities: spans of characters, perhaps with names, that become ids and token positions."""

from pathlib import Path

from phyla.errors import ArgumentError, TokenizerFileError, TokenizerInputError

from .assemble import lengthened
from .base import CallOptions
from .batch import BatchEncoding, framework_of, is_mapping, to_python
from .byte_level import PythonByteLevel, read_vocabulary
from .jsonfile import write_json
from .more_pieces import PythonShiftedPieces
from .slow import PreTrainedTokenizer
from .strategy import PaddingStrategy, Plan, TruncationStrategy
from .tokens import LIST_ROLE, AddedToken

_TASKS = {
    None: None,
    "entity_span_classification": None,
    "entity_classification": 1,
    "entity_pair_classification": 2,
}
_NAMES = ("entity_spans", "entity_spans_pair", "entities", "entities_pair")


class SplitEntitiesError(TokenizerInputError, NotImplementedError):
    """Split words where spans of characters are meant."""


class SpansTypeError(TokenizerInputError, TypeError):
    """Spans that are no list."""


class Marked(list):
    """The ids of a text, with its entities' ids and token spans (None where none were given)."""

    entity_ids: list[int] | None = None
    spans: list[tuple[int, int]] | None = None


class Entities(PreTrainedTokenizer):
    """Calls may give `entity_spans` (pairs of character positions) and `entities` (names) of a text."""

    call_options: tuple[str, ...] = (*_NAMES, "max_entity_length")

    def _take_entities(self, settings: dict) -> None:
        path = settings.get("entity_vocab_file")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs entity_vocab_file (entity_vocab.json)")
        self.entity_vocab = read_vocabulary(path)
        for kind in ("unk", "pad", "mask", "mask2"):
            token = settings[f"entity_{kind}_token"]
            if token not in self.entity_vocab:
                raise TokenizerFileError(f"{path} must hold entity_{kind}_token, which is {token!r}")
            setattr(self, f"entity_{kind}_token_id", self.entity_vocab[token])
        if self.task not in _TASKS:
            raise ArgumentError(f"task must be one of {list(_TASKS)}, but is {self.task!r}")
        self.max_entity_length = _TASKS[self.task] or settings["max_entity_length"]
        tokens = [settings[f"entity_token_{i}"] for i in (1, 2)]
        added = [AddedToken(t, normalized=True) if isinstance(t, str) else t for t in tokens]
        settings[LIST_ROLE] = [*(settings.get(LIST_ROLE) or []), *added]

    def __call__(  # type: ignore[override]
        self,
        text=None,
        text_pair=None,
        entity_spans=None,
        entity_spans_pair=None,
        entities=None,
        entities_pair=None,
        **options,
    ) -> BatchEncoding:
        """Model inputs of texts with entities."""
        values = (entity_spans, entity_spans_pair, entities, entities_pair)
        given = {name: value for name, value in zip(_NAMES, values) if value is not None}
        return super().__call__(text, text_pair, **given, **options)

    # ------------------------------------------------------------------ text to ids

    def _plain_ids(self, text: str) -> list[int]:
        return self.convert_tokens_to_ids(self.tokenize(text))

    def _spanned(self, text: str, spans) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text cut at the ends of spans, and the spans in tokens."""
        ids: list[int] = []
        place, found = 0, {}
        for end in sorted({position for span in spans for position in span}):
            cut = end - 1 if end > 0 and text[end - 1] == " " else end
            if cut != place:
                ids += self._plain_ids(text[place:cut])
                place = cut
            found[end] = len(ids)
        ids += self._plain_ids(text[place:])
        return ids, [(found[start], found[end]) for start, end in spans]

    @staticmethod
    def _check_spans(spans, names, count: int | None = None) -> None:
        if not isinstance(spans, list):
            raise SpansTypeError(f"entity_spans must be a list of (start, end), but is {spans!r}")
        if not all(isinstance(span, tuple) for span in spans) or (count is not None and len(spans) != count):
            wanted = "tuples" if count is None else f"{count} tuples"
            raise TokenizerInputError(
                f"entity_spans must be a list of {wanted} (start, end), but is {spans!r}"
            )
        if names is None:
            return
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or len(names) != len(spans)
        ):
            raise TokenizerInputError(f"entities must be as many names as there are spans, but are {names!r}")

    def _marked(self, text, spans, names) -> Marked:
        if not isinstance(text, str):
            marked = Marked(
                text if text and isinstance(text[0], int) else self.convert_tokens_to_ids(list(text))
            )
            return marked
        if self.task is None and spans is None:
            return Marked(self._plain_ids(text))
        if self.task is None:
            self._check_spans(spans, names)
        else:
            self._check_spans(spans if isinstance(spans, list) else [None], None, _TASKS[self.task])
            if not spans:
                raise TokenizerInputError("entity_spans must hold at least one span for this task")
        ids, token_spans = self._spanned(text, spans)
        if self.task in ("entity_classification", "entity_pair_classification"):
            ids, token_spans = self._enclosed(ids, token_spans)
        marked = Marked(ids)
        marked.spans = token_spans
        mask = self.entity_mask_token_id
        if self.task == "entity_pair_classification":
            marked.entity_ids = [mask, self.entity_mask2_token_id]
        elif self.task is None and names is not None:
            marked.entity_ids = [self.entity_vocab.get(name, self.entity_unk_token_id) for name in names]
        else:
            marked.entity_ids = [mask] * len(token_spans)
        return marked

    def _enclosed(
        self, ids: list[int], spans: list[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids with an entity token before and after each span, and the spans with these."""
        marks = self.additional_special_tokens_ids
        ordered = sorted(range(len(spans)), key=lambda i: (spans[i][0], -i))
        widened = list(spans)
        for rank, i in enumerate(ordered):
            start, end = spans[i]
            widened[i] = (start + 2 * rank, end + 2 * rank + 2)
        for i in reversed(ordered):
            start, end = spans[i]
            ids = [*ids[:start], marks[i], *ids[start:end], marks[i], *ids[end:]]
        return ids, widened

    # ------------------------------------------------------------------ assembling

    def _encode_plus(self, text, text_pair, options: CallOptions) -> BatchEncoding:
        self._refuse(options)
        extra = dict(options.extra)
        first = self._marked(text, extra.get("entity_spans"), extra.get("entities"))
        second = None
        if text_pair is not None:
            second = self._marked(text_pair, extra.get("entity_spans_pair"), extra.get("entities_pair"))
        plan = self._plan_of(options)
        limit = extra.get("max_entity_length") or self.max_entity_length
        row = self._row(first, second, plan, options, limit)
        return self._finished(row, plan, options, limit, True)

    def _refuse(self, options: CallOptions) -> None:
        self._refuse_offsets(options)
        if options.is_split_into_words:
            raise SplitEntitiesError("texts are strings here: leave is_split_into_words out")

    def batch_encode_plus(
        self,
        batch_text_or_text_pairs,
        batch_entity_spans_or_entity_spans_pairs=None,
        batch_entities_or_entities_pairs=None,
        **options,
    ) -> BatchEncoding:
        """Model inputs of a list of texts or pairs, each with its spans and names (or pairs of these)."""
        given = {
            "entity_spans": batch_entity_spans_or_entity_spans_pairs,
            "entities": batch_entities_or_entities_pairs,
        }
        kept = {name: value for name, value in given.items() if value is not None}
        return super().batch_encode_plus(batch_text_or_text_pairs, **kept, **options)

    def _batch_encode_plus(self, batch, options: CallOptions) -> BatchEncoding:
        self._refuse(options)
        extra = dict(options.extra)
        plan = self._plan_of(options)
        limit = extra.get("max_entity_length") or self.max_entity_length
        rows: dict[str, list] = {}
        for i, item in enumerate(batch):
            pair = isinstance(item, (list, tuple)) and not (item and isinstance(item[0], int))
            text, text_pair = item if pair else (item, None)
            spans, spans_pair = self._two(extra, "entity_spans", i, list)
            names, names_pair = self._two(extra, "entities", i, (list, tuple))
            second = None if text_pair is None else self._marked(text_pair, spans_pair, names_pair)
            row = self._row(self._marked(text, spans, names), second, plan, options, limit)
            if options.return_length:
                row["length"] = len(row["input_ids"])
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
        if not rows:
            rows = {"input_ids": []}
        mask = self._wants("attention_mask", options.return_attention_mask)
        padded = self._with_entities_padded(rows, plan, options, None, mask)
        return BatchEncoding(dict(padded), tensor_type=options.return_tensors)

    @staticmethod
    def _two(extra: dict, name: str, i: int, kind) -> tuple:
        """The spans or names of both texts of an example."""
        first, second = extra.get(name), extra.get(f"{name}_pair")
        if second is not None:
            return (None if first is None else first[i]), second[i]
        if first is None:
            return None, None
        own = first[i]
        return own if own and isinstance(own[0], kind) else (own, None)

    def prepare_for_model(  # type: ignore[override]
        self,
        ids,
        pair_ids=None,
        entity_ids=None,
        pair_entity_ids=None,
        entity_token_spans=None,
        pair_entity_token_spans=None,
        max_entity_length: int | None = None,
        prepend_batch_axis: bool = False,
        **options,
    ) -> BatchEncoding:
        """Model inputs from the ids of one sequence or a pair and of their entities."""
        settings = self._options(options)
        first, second = Marked(ids), None if pair_ids is None else Marked(pair_ids)
        first.entity_ids, first.spans = entity_ids, entity_token_spans
        if second is not None:
            second.entity_ids, second.spans = pair_entity_ids, pair_entity_token_spans
        plan, limit = self._plan_of(settings), max_entity_length or self.max_entity_length
        row = self._row(first, second, plan, settings, limit)
        return self._finished(row, plan, settings, limit, prepend_batch_axis)

    def _finished(
        self, row: dict, plan: Plan, options: CallOptions, limit: int, batch_axis: bool
    ) -> BatchEncoding:
        mask = self._wants("attention_mask", options.return_attention_mask)
        if plan.padding is not PaddingStrategy.DO_NOT_PAD or mask:
            row = dict(self._with_entities_padded(row, plan, options, limit, mask))
        if options.return_length:
            row["length"] = len(row["input_ids"])
        return BatchEncoding(row, tensor_type=options.return_tensors, prepend_batch_axis=batch_axis)

    def _with_entities_padded(
        self, rows: dict, plan: Plan, options: CallOptions, limit: int | None, mask: bool
    ) -> BatchEncoding:
        return self.pad(
            rows,
            padding=plan.padding.value,
            max_length=plan.max_length,
            max_entity_length=limit,
            pad_to_multiple_of=options.pad_to_multiple_of,
            padding_side=options.padding_side,
            return_attention_mask=mask,
        )

    def _row(
        self, first: Marked, second: Marked | None, plan: Plan, options: CallOptions, limit: int
    ) -> dict:
        special = options.add_special_tokens
        row = self._joined(list(first), None if second is None else list(second), plan, options)
        if first.entity_ids is None:
            return row
        total = (
            len(first)
            + len(second or ())
            + (self.num_special_tokens_to_add(second is not None) if special else 0)
        )
        lengths = [len(first), len(second or ())]
        cuts = plan.truncation is not TruncationStrategy.DO_NOT_TRUNCATE
        if cuts and plan.max_length and total > plan.max_length:
            a, b, _ = self.truncate_sequences(
                list(first),
                None if second is None else list(second),
                total - plan.max_length,
                plan.truncation,
            )
            lengths = [len(a), len(b or ())]
        parts: list = []
        for part, length in zip((first, second), lengths):
            if part is not None and part.entity_ids is not None:
                pairs = zip(part.entity_ids, part.spans or ())
                parts.append([(index, span) for index, span in pairs if span[1] <= length])
            else:
                parts.append(None)
        count = sum(len(part) for part in parts if part is not None)
        left_out: list = []
        if cuts and count > limit:
            parts[0], parts[1], left_out = self.truncate_sequences(
                parts[0], parts[1], count - limit, plan.truncation, options.stride
            )
        if options.return_overflowing_tokens:
            row["overflowing_entities"] = [index for index, _ in left_out]
            row["num_truncated_entities"] = count - limit
        offsets = (1, lengths[0] + 3) if special else (0, lengths[0])
        spans = [(a + o, b + o) for part, o in zip(parts, offsets) for _, (a, b) in part or ()]
        row["entity_ids"] = [index for part in parts for index, _ in part or ()]
        longest = self.max_mention_length
        row["entity_position_ids"] = [
            [*range(start, end)][:longest] + [-1] * (longest - end + start) for start, end in spans
        ]
        if self.task == "entity_span_classification":
            row["entity_start_positions"] = [start for start, _ in spans]
            row["entity_end_positions"] = [end - 1 for _, end in spans]
        if self._wants("token_type_ids", options.return_token_type_ids):
            row["entity_token_type_ids"] = [0] * len(spans)
        return row

    def pad(  # type: ignore[override]
        self,
        encoded_inputs,
        padding=True,
        max_length: int | None = None,
        max_entity_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors=None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad one example or a batch, tokens and entities, to one length each."""
        if isinstance(encoded_inputs, (list, tuple)) and encoded_inputs and is_mapping(encoded_inputs[0]):
            encoded_inputs = {key: [row[key] for row in encoded_inputs] for key in encoded_inputs[0]}
        given = {key: encoded_inputs[key] for key in encoded_inputs}
        own = {key: given.pop(key) for key in list(given) if key.startswith("entity_")}
        if own and return_tensors is None:
            return_tensors = framework_of(own["entity_ids"]) or framework_of(
                own["entity_ids"][0] if len(own["entity_ids"]) else None
            )
        padded = dict(
            super().pad(
                {key: to_python(value) for key, value in given.items()} if own else given,
                padding=padding,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_attention_mask=return_attention_mask,
                return_tensors=None if own else return_tensors,
                verbose=verbose,
            )
        )
        if not own:
            return BatchEncoding(padded, tensor_type=None)
        own = {key: to_python(value) for key, value in own.items()}
        batched = bool(padded["input_ids"]) and isinstance(padded["input_ids"][0], list)
        rows = (
            [{key: value[i] for key, value in own.items()} for i in range(len(padded["input_ids"]))]
            if batched
            else [own]
        )
        plan = self._plan(padding, None, max_length, verbose=verbose)
        length = None
        if plan.padding is PaddingStrategy.LONGEST:
            length = max(len(row["entity_ids"]) for row in rows)
        elif plan.padding is PaddingStrategy.MAX_LENGTH:
            length = self.max_entity_length if max_entity_length is None else max_entity_length
        if length is not None and pad_to_multiple_of:
            length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
        mask = self._wants("attention_mask", return_attention_mask)
        side = padding_side or self.padding_side
        done = [self._pad_entities(row, length, side, mask) for row in rows]
        padded.update({key: [row[key] for row in done] for key in done[0]} if batched else done[0])
        return BatchEncoding(padded, tensor_type=return_tensors)

    def _pad_entities(self, row: dict, length: int | None, side: str, mask: bool) -> dict:
        row = dict(row)
        if mask and "entity_attention_mask" not in row:
            row["entity_attention_mask"] = [1] * len(row["entity_ids"])
        missing = 0 if length is None else length - len(row["entity_ids"])
        fill = {"entity_ids": self.entity_pad_token_id, "entity_position_ids": [-1] * self.max_mention_length}
        for key, value in row.items():
            row[key] = lengthened(value, fill.get(key, 0), missing, side)
        return row

    def _save_entities(self, save_directory: str, filename_prefix: str | None) -> str:
        name = self.vocab_files_names["entity_vocab_file"]
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        return write_json(path, self.entity_vocab)


class PythonEntityByteLevel(Entities, PythonByteLevel):
    """Byte-level BPE of texts with entities."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self._take_entities(settings)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocabulary, merges and entities; returns their paths."""
        paths = PythonByteLevel.save_vocabulary(self, save_directory, filename_prefix)
        return (*paths, self._save_entities(save_directory, filename_prefix))


class PythonEntityPieces(Entities, PythonShiftedPieces):
    """Shifted pieces of texts with entities."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self._take_entities(settings)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the model file and write the entities; returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        paths = self._copy_vocabulary(Path(save_directory), prefix, ["vocab_file"])
        return (*paths, self._save_entities(save_directory, filename_prefix))
