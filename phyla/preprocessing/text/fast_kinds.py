"""Tokenizers on Rust: what the kinds of the table add to `PreTrainedTokenizerFast`."""

from collections.abc import Callable

from . import backends
from .fast import PreTrainedTokenizerFast
from .languages import Languages
from .pieces import PythonSentinelPieces
from .sentinels import with_sentinels
from .table import FromTable
from .word_end import WordEndDecoding


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
    settle: Callable | None = staticmethod(backends.settle_cleaning)


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

    build: Callable | None = staticmethod(backends.unigram_pieces)
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
