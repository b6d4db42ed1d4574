"""Tokenizers of words with marks, in Python and on Rust, one for each way to cut words into tokens."""

from tokenizers import Tokenizer, decoders, pre_tokenizers

from phyla.errors import TokenizerInputError

from . import backends
from .byte_level import PythonByteLevel
from .fast_kinds import FastFramedByteLevel, FastPieces, FastWordPiece, TableFast
from .more_pieces import PythonShiftedPieces
from .pieces import PrefixByHand, PythonSentinelPieces
from .slow import PreTrainedTokenizer
from .word_marks import BoxesOrText, FastWordMarks, PythonWordMarks, TreePaths
from .wordpiece import PythonWordPiece


class PythonBoxedWordPiece(PythonWordMarks, PythonWordPiece):
    """WordPiece of words with boxes."""


class FastBoxedWordPiece(FastWordMarks, FastWordPiece):
    """The same on Rust."""


class PythonBoxedByteLevel(PythonWordMarks, PythonByteLevel):
    """Byte-level BPE of words with boxes."""

    marks_frame = ("cls", "A", "sep", "sep", "B", "sep")

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """Put a space before the text, unless it begins with an added token."""
        prefix = options.pop("add_prefix_space", self.add_prefix_space)
        plain = (
            bool(text) and not text[0].isspace() and not text.startswith(tuple(self._added_tokens_encoder))
        )
        return (" " + text if (is_split_into_words or prefix) and plain else text), options


class FastBoxedByteLevel(FastWordMarks, FastFramedByteLevel):
    """The same on Rust."""

    empty_pieces = "width"


class PythonBoxedShiftedPieces(PythonWordMarks, PythonShiftedPieces):
    """Shifted pieces of words with boxes."""

    mark_between = True
    cuts_in_turn = True


class FastBoxedPieces(FastWordMarks, FastPieces):
    """Unigram pieces of words with boxes on Rust."""


class PythonBoxedSentinelPieces(BoxesOrText, PythonWordMarks, PythonSentinelPieces):
    """Pieces of words with boxes, and of plain targets."""

    marks_frame = ("A", "sep", "B", "sep")
    cuts_in_turn = True
    call_options: tuple[str, ...] = ("boxes", "word_labels")
    _load = PrefixByHand._load
    prepare_for_model = PreTrainedTokenizer.prepare_for_model  # type: ignore[assignment]
    prepare_for_model_boxes = PythonWordMarks.prepare_for_model

    def get_sentinel_tokens(self) -> list[str]:
        """The additional special tokens, which are the sentinels."""
        return list(dict.fromkeys(self.additional_special_tokens))


class FastBoxedSentinelPieces(BoxesOrText, FastWordMarks, FastPieces):
    """The same on Rust."""

    empty_pieces = "text"


class PythonPathByteLevel(TreePaths, PythonWordMarks, PythonByteLevel):
    """Byte-level BPE of words with paths in a document tree."""

    overflow_names = {
        "xpath_tags_seq": "overflowing_xpath_tags_seq",
        "xpath_subs_seq": "overflowing_xpath_subs_seq",
    }
    special_mask_frame = True

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self._take_paths()


class FastPathByteLevel(TreePaths, FastWordMarks, TableFast):
    """The same on Rust."""

    splits_question = False
    settle = staticmethod(backends.settle_frame)

    def _load(self, settings: dict, given: dict) -> None:
        if settings.get("trim_offsets"):
            raise TrimmedOffsetsError("trim_offsets must be False here: words keep the space before them")
        self._take_paths()

    def _build_backend(self, settings: dict) -> Tokenizer:
        model, vocab = backends.bpe(settings, self, unk=str(settings["unk_token"]))
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings["add_prefix_space"]))
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = backends.templated(self, settings, vocab)
        return backend


class TrimmedOffsetsError(TokenizerInputError, NotImplementedError):
    """Offsets that this tokenizer cannot trim."""
