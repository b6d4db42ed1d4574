"""Chinese tokens with the ids of their shapes and of their pronunciations beside their own."""

from pathlib import Path
from typing import Any

from phyla.errors import TokenizerFileError

from .base import CallOptions
from .batch import BatchEncoding
from .jsonfile import read_json, write_json
from .strategy import PaddingStrategy, Plan, TruncationStrategy
from .wordpiece import PythonWordPiece

_KINDS = {"word_shape": "input_shape_ids", "word_pronunciation": "input_pronunciation_ids"}


class Glyphs(list):
    """The ids of a text, with the ids of the shapes and pronunciations of its tokens."""

    beside: dict[str, list[int]]


class PythonGlyphPieces(PythonWordPiece):
    """WordPiece with shapes and pronunciations."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        for kind in _KINDS:
            path = settings.get(f"{kind}_file")
            if path is None or not Path(path).is_file():
                raise TokenizerFileError(
                    f"{type(self).__name__} needs {kind}_file ({kind}.json), but finds {path}"
                )
            setattr(self, kind, read_json(Path(path)))

    def _beside(self, kind: str, tokens) -> list[int]:
        table = getattr(self, kind)
        return [table.get(token, table.get(self.unk_token)) for token in tokens]

    def convert_tokens_to_shape_ids(self, tokens):
        """The ids of the tokens' shapes."""
        return self._one_or_all("word_shape", tokens)

    def convert_tokens_to_pronunciation_ids(self, tokens):
        """The ids of the tokens' pronunciations."""
        return self._one_or_all("word_pronunciation", tokens)

    def _one_or_all(self, kind: str, tokens):
        if tokens is None:
            return None
        return self._beside(kind, [tokens])[0] if isinstance(tokens, str) else self._beside(kind, tokens)

    def _glyphs(self, text, options: CallOptions) -> Glyphs:
        extra = {}
        if options.split_special_tokens is not None:
            extra["split_special_tokens"] = options.split_special_tokens
        if isinstance(text, str):
            tokens = self.tokenize(text, **extra)
        elif text and isinstance(text[0], int):
            found = Glyphs(text)
            found.beside = {kind: [0] * len(text) for kind in _KINDS}
            return found
        elif options.is_split_into_words:
            tokens = [
                token for word in text for token in self.tokenize(word, is_split_into_words=True, **extra)
            ]
        else:
            tokens = list(text)
        found = Glyphs(self.convert_tokens_to_ids(tokens))
        found.beside = {kind: self._beside(kind, tokens) for kind in _KINDS}
        return found

    def build_inputs_with_special_tokens(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        cls_token_id: int | None = None,
        sep_token_id: int | None = None,
    ) -> list[int]:
        """`cls A sep` or `cls A sep B sep`, with other ids for the special tokens where given."""
        cls = [self.cls_token_id if cls_token_id is None else cls_token_id]
        sep = [self.sep_token_id if sep_token_id is None else sep_token_id]
        first = cls + token_ids_0 + sep
        return first if token_ids_1 is None else first + token_ids_1 + sep

    def _row(self, first: Glyphs, second: Glyphs | None, plan: Plan, options: CallOptions) -> dict:
        special = options.add_special_tokens
        row = self._joined(list(first), None if second is None else list(second), plan, options)
        total = (
            len(first)
            + len(second or ())
            + (self.num_special_tokens_to_add(second is not None) if special else 0)
        )
        excess = total - (plan.max_length or total)
        if plan.truncation is TruncationStrategy.DO_NOT_TRUNCATE:
            excess = 0
        for kind, name in _KINDS.items():
            a, b = first.beside[kind], None if second is None else second.beside[kind]
            if excess > 0:
                a, b, _ = self.truncate_sequences(a, b, excess, plan.truncation)
            unknown = getattr(self, kind)["[UNK]"]
            row[name] = (
                self.build_inputs_with_special_tokens(a, b, unknown, unknown) if special else a + (b or [])
            )
        return row

    def _encode_plus(self, text, text_pair, options: CallOptions) -> BatchEncoding:
        self._refuse_offsets(options)
        second = None if text_pair is None else self._glyphs(text_pair, options)
        return self._prepared(
            self._glyphs(text, options), second, options, options.return_tensors is not None
        )

    def _prepared(
        self, first: Glyphs, second: Glyphs | None, options: CallOptions, batch_axis: bool
    ) -> BatchEncoding:
        plan = self._plan_of(options)
        row = self._row(first, second, plan, options)
        mask = self._wants("attention_mask", options.return_attention_mask)
        if plan.padding is not PaddingStrategy.DO_NOT_PAD or mask:
            row = dict(self._padded(row, plan, options, mask))
        if options.return_length:
            row["length"] = len(row["input_ids"])
        return BatchEncoding(row, tensor_type=options.return_tensors, prepend_batch_axis=batch_axis)

    def prepare_for_model(  # type: ignore[override]
        self,
        ids,
        shape_ids,
        pronunciation_ids,
        pair_ids=None,
        pair_shape_ids=None,
        pair_pronunciation_ids=None,
        prepend_batch_axis: bool = False,
        **options,
    ) -> BatchEncoding:
        """Model inputs from the ids of one sequence or a pair, of their shapes and their pronunciations."""
        first, second = Glyphs(ids), None if pair_ids is None else Glyphs(pair_ids)
        first.beside = {"word_shape": shape_ids, "word_pronunciation": pronunciation_ids}
        if second is not None:
            second.beside = {"word_shape": pair_shape_ids, "word_pronunciation": pair_pronunciation_ids}
        return self._prepared(first, second, self._options(options), prepend_batch_axis)

    def _row_of(self, first, second, plan: Plan, options: CallOptions) -> dict:
        pair = None if second is None else self._glyphs(second, options)
        return self._row(self._glyphs(first, options), pair, plan, options)

    def _fills(self) -> dict[str, Any]:
        return dict.fromkeys(_KINDS.values(), self.pad_token_id)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.txt and both tables; returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        tables = (
            write_json(
                Path(save_directory) / f"{prefix}{self.vocab_files_names[f'{kind}_file']}",
                getattr(self, kind),
            )
            for kind in _KINDS
        )
        return (*super().save_vocabulary(save_directory, filename_prefix), *tables)
