"""The public tokenizer classes, made from the table of rows: `<Name>Tokenizer` in Python,
`<Name>TokenizerFast` on Rust.
"""

from collections.abc import Callable

from . import backends
from .byte_level import PythonByteLevel, PythonComposedByteLevel
from .fast import PreTrainedTokenizerFast
from .files import TOKENIZER_FILE
from .languages import Languages, PythonAddedLanguagePieces, PythonLanguagePieces, PythonSpacedLanguagePieces
from .more_pieces import (
    PythonBracketPieces,
    PythonCleanedPieces,
    PythonFrontedPieces,
    PythonJoinedPieces,
    PythonPaddedPieces,
    PythonPunctuatedPieces,
    PythonShiftedPieces,
    PythonSpacedPieces,
    PythonTightPieces,
    PythonWholePieces,
)
from .pieces import PythonPieces, PythonPlainPieces, PythonPrefixedPieces, PythonSentinelPieces
from .rows import ROWS
from .sentinels import with_sentinels
from .slow import PreTrainedTokenizer
from .table import FromTable, Row
from .word_end import PythonWordEnd, WordEndDecoding
from .wordpiece import BasicTokenizer, PythonWordPiece, WordpieceTokenizer

__all__ = ["BasicTokenizer", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "WordpieceTokenizer"]


class TableFast(FromTable, PreTrainedTokenizerFast):
    """A fast tokenizer of the table."""

    build: Callable | None = None
    settle: Callable | None = None

    def _load(self, settings: dict, given: dict) -> None:
        """Hook: complete the settings before the pipeline is read or built."""

    def _build_backend(self, settings: dict):
        build = type(self).build
        return super()._build_backend({}) if build is None else build(self, settings)

    def _settle(self, settings: dict) -> None:
        super()._settle(settings)
        settle = type(self).settle
        if settle is not None:
            settle(self, settings, settings)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary files of the slow class to a folder; returns their paths."""
        if [name for name in type(self).row.files if name == "merges_file"] or type(
            self
        ).row.kind == "word_piece":
            return super().save_vocabulary(save_directory, filename_prefix)
        from pathlib import Path

        prefix = f"{filename_prefix}-" if filename_prefix else ""
        return self._copy_vocabulary(Path(save_directory), prefix, ["vocab_file"])


class CopiesModel(TableFast):
    """Fast tokenizers whose vocabulary file can only be copied, so only while it is there."""

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether the vocabulary file is still there."""
        return backends.file_exists(self)


class Switches(TableFast):
    """`add_bos_token` and `add_eos_token` can be set at any time."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in ("add_bos_token", "add_eos_token") and self.__dict__.get("_settled"):
            self.update_post_processor()

    def update_post_processor(self) -> None:
        """Make the Rust post-processor follow `add_bos_token`, `add_eos_token` and the tokens themselves."""
        backends.settle_template(self, {}, {})

    def _settle(self, settings: dict) -> None:
        super()._settle(settings)
        self._settled = True


def _rebuild_if_asked(self, settings: dict, given: dict) -> None:
    """`add_prefix_space` cannot be changed in a pipeline: where it is given the pipeline is built anew from
    the model file.
    """
    if settings.get("legacy", True) is None:
        settings["legacy"] = self.legacy = True
    if given.get("add_prefix_space") is not None and settings.get("vocab_file") is not None:
        settings["from_slow"] = True


class FastPrefixedPieces(Switches, CopiesModel):
    """Llama on Rust."""

    build = staticmethod(backends.prefixed_pieces)
    settle = staticmethod(backends.settle_template)
    _load = _rebuild_if_asked


class FastPlainPieces(Switches, CopiesModel):
    """Gemma on Rust."""

    build = staticmethod(backends.plain_pieces)
    settle = staticmethod(backends.settle_template)


class FastSentinelPieces(CopiesModel):
    """T5 on Rust."""

    build = staticmethod(backends.sentinel_pieces)
    get_sentinel_tokens = PythonSentinelPieces.get_sentinel_tokens
    get_sentinel_token_ids = PythonSentinelPieces.get_sentinel_token_ids

    def _load(self, settings: dict, given: dict) -> None:
        with_sentinels(settings, type(self).__name__)
        _rebuild_if_asked(self, settings, given)


class FastWordPiece(TableFast):
    """BERT on Rust."""

    build = staticmethod(backends.word_piece)
    settle = staticmethod(backends.settle_cleaning)


class FastByteLevel(TableFast):
    """GPT-2 on Rust."""

    words_need_prefix_space = True
    build = staticmethod(backends.byte_level_pipeline)


class FastSwitchedByteLevel(Switches):
    """GPT-NeoX on Rust."""

    build = staticmethod(backends.byte_level_pipeline)
    settle = staticmethod(backends.settle_template)


class FastFromFile(TableFast):
    """BLOOM on Rust; it has no other form."""

    words_need_prefix_space = True
    settle = staticmethod(backends.settle_inner_prefix)


class FastFramedByteLevel(TableFast):
    """RoBERTa on Rust."""

    words_need_prefix_space = True
    build = staticmethod(backends.framed_byte_level)
    settle = staticmethod(backends.settle_frame)


class FastTypedByteLevel(TableFast):
    """Byte-level BPE on Rust with special tokens and types by a template."""

    build = staticmethod(backends.typed_byte_level)


class FastComposedByteLevel(TableFast):
    """Qwen2 on Rust."""

    build = staticmethod(backends.composed_byte_level)


class FastWordEnd(WordEndDecoding, TableFast):
    """CLIP on Rust."""

    build = staticmethod(backends.word_end)


class FastPieces(CopiesModel):
    """Unigram pieces on Rust: what a row may change of the numbering and the cleaning."""

    build = staticmethod(backends.unigram_pieces)
    front: tuple[str, ...] = ()
    skip = 0
    tail: tuple[str, ...] = ()
    worst: tuple[str, ...] = ()
    unk_id: int | None = None
    commas_apart = False
    quotes_cleaned = False
    cleaned_after = False


class FastPunctuatedPieces(FastPieces):
    """Unigram pieces on Rust, cut at punctuation where `split_by_punct` says so."""

    build = staticmethod(backends.punctuated_pieces)


class FastLanguagePieces(Languages, FastPieces):
    """Translation tokenizers on Rust."""

    front = ("<s>", "<pad>", "</s>", "<unk>")
    skip = 3
    unk_id = 3

    def _load(self, settings: dict, given: dict) -> None:
        self._take_languages(settings)

    def _build_backend(self, settings: dict):
        return backends.unigram_pieces(self, settings)

    def _settle(self, settings: dict) -> None:
        super()._settle(settings)
        self.__dict__.pop("_code", None)
        self._use(self.src_lang)


KINDS: dict[str, tuple[type | None, type | None]] = {
    "word_piece": (PythonWordPiece, FastWordPiece),
    "byte_level": (PythonByteLevel, FastByteLevel),
    "switched_byte_level": (None, FastSwitchedByteLevel),
    "from_file": (None, FastFromFile),
    "framed_byte_level": (PythonByteLevel, FastFramedByteLevel),
    "typed_byte_level": (PythonByteLevel, FastTypedByteLevel),
    "composed_byte_level": (PythonComposedByteLevel, FastComposedByteLevel),
    "word_end": (PythonWordEnd, FastWordEnd),
    "prefixed_pieces": (PythonPrefixedPieces, FastPrefixedPieces),
    "plain_pieces": (PythonPlainPieces, FastPlainPieces),
    "language_pieces": (PythonLanguagePieces, FastLanguagePieces),
    "spaced_language_pieces": (PythonSpacedLanguagePieces, FastLanguagePieces),
    "added_language_pieces": (PythonAddedLanguagePieces, FastLanguagePieces),
    "padded_pieces": (PythonPaddedPieces, FastPieces),
    "whole_pieces": (PythonWholePieces, FastPieces),
    "punctuated_pieces": (PythonPunctuatedPieces, FastPunctuatedPieces),
    "bracket_pieces": (PythonBracketPieces, FastPieces),
    "tight_pieces": (PythonTightPieces, FastPieces),
    "spaced_pieces": (PythonSpacedPieces, FastPieces),
    "plain_joined_pieces": (PythonPieces, FastPieces),
    "cleaned_pieces": (PythonCleanedPieces, FastPieces),
    "joined_pieces": (PythonJoinedPieces, FastPieces),
    "shifted_pieces": (PythonShiftedPieces, FastPieces),
    "fronted_pieces": (PythonFrontedPieces, FastPieces),
    "sentinel_pieces": (PythonSentinelPieces, FastSentinelPieces),
}


def _make(name: str, base: type, row: Row, fast: bool, slow_class: type | None) -> type:
    files = dict(row.files)
    if fast:
        files["tokenizer_file"] = TOKENIZER_FILE
    what = "on the Rust library, with alignments" if fast else "in Python"
    fields = {
        "row": row,
        "model_input_names": list(row.inputs),
        "vocab_files_names": files,
        "__module__": __name__,
        "__doc__": f"The tokenizer of {row.kind.replace('_', ' ')} models {what}.",
    }
    if not isinstance(getattr(base, "layout", None), property):
        fields["layout"] = row.layout
    if fast:
        fields["slow_tokenizer_class"] = slow_class
    return type(name, (base,), {**fields, **(row.fast_class if fast else row.slow_class)})


def _make_all() -> dict[str, type]:
    made = {}
    for name, row in ROWS.items():
        slow_base, fast_base = KINDS[row.kind]
        slow = None
        if row.slow and slow_base is not None:
            slow = made[f"{name}Tokenizer"] = _make(f"{name}Tokenizer", slow_base, row, False, None)
        if row.fast is not None and fast_base is not None:
            made[f"{name}TokenizerFast"] = _make(f"{name}TokenizerFast", fast_base, row, True, slow)
    return made


TOKENIZERS = _make_all()
globals().update(TOKENIZERS)
__all__ += sorted(TOKENIZERS)
