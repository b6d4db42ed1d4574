"""The public tokenizer classes, made from the table of rows: `<Name>Tokenizer` in Python,
`<Name>TokenizerFast` on Rust.
"""

from .byte_level import PythonByteLevel, PythonComposedByteLevel
from .fast import PreTrainedTokenizerFast
from .fast_kinds import (
    FastByteLevel,
    FastComposedByteLevel,
    FastFramedByteLevel,
    FastFromFile,
    FastLanguagePieces,
    FastPieces,
    FastPlainPieces,
    FastPrefixedPieces,
    FastPunctuatedPieces,
    FastSentinelPieces,
    FastSwitchedByteLevel,
    FastTypedByteLevel,
    FastWordEnd,
    FastWordPiece,
)
from .files import TOKENIZER_FILE
from .languages import PythonAddedLanguagePieces, PythonLanguagePieces, PythonSpacedLanguagePieces
from .letter_rows import LETTER_ROWS
from .more_kinds import MORE_KINDS
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
from .more_rows import MORE_ROWS
from .pieces import PythonPieces, PythonPlainPieces, PythonPrefixedPieces, PythonSentinelPieces
from .rows import ROWS
from .slow import PreTrainedTokenizer
from .table import Row
from .two_tokenizers import TwoTokenizers
from .word_end import PythonWordEnd
from .word_rows import WORD_ROWS
from .wordpiece import BasicTokenizer, PythonWordPiece, WordpieceTokenizer

__all__ = ["BasicTokenizer", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "WordpieceTokenizer"]


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
    **MORE_KINDS,
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
    for name, row in {**ROWS, **MORE_ROWS, **LETTER_ROWS, **WORD_ROWS}.items():
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
RagTokenizer = type(
    "RagTokenizer", (TwoTokenizers,), {"__module__": __name__, "__doc__": TwoTokenizers.__doc__}
)
__all__ += ["RagTokenizer"]
