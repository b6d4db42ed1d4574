"""A SentencePiece .model file as data: pieces, scores, kinds, and how text is normalised and cut.

Format: sentencepiece_model.proto of https://github.com/google/sentencepiece, read off the protobuf wire.
"""

import enum
import os
import stat
import struct
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phyla.errors import MissingFileError, TokenizerFileError

_MAX_BYTES = 256 << 20  # the largest public models are below 10 MB
_MAX_PIECE = 1 << 12  # characters


class PieceType(enum.IntEnum):
    """What a piece stands for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(enum.IntEnum):
    """How text is cut into pieces."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True)
class TrainerSpec:
    """What the training settings say about encoding; ids of -1 mean that there is no such piece."""

    model_type: ModelType = ModelType.UNIGRAM
    vocab_size: int = 8000
    treat_whitespace_as_suffix: bool = False
    split_digits: bool = False
    byte_fallback: bool = False
    user_defined_symbols: tuple[str, ...] = ()
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    unk_piece: str = "<unk>"
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"
    pad_piece: str = "<pad>"
    unk_surface: str = " \u2047 "


@dataclass(frozen=True)
class NormalizerSpec:
    """How text is changed before it is cut."""

    name: str = ""
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces in id order with their scores and kinds; `denormalizer` changes text after decoding."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[PieceType, ...]
    trainer: TrainerSpec = field(default_factory=TrainerSpec)
    normalizer: NormalizerSpec = field(default_factory=NormalizerSpec)
    denormalizer: NormalizerSpec | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def vocab(self) -> dict[str, int]:
        """Ids by piece."""
        return {piece: i for i, piece in enumerate(self.pieces)}

    @property
    def scored(self) -> list[tuple[str, float]]:
        """Pieces with their scores, as tokenizers.models.Unigram takes them."""
        return list(zip(self.pieces, self.scores, strict=True))

    @property
    def unk_id(self) -> int:
        """Id of the piece of kind UNKNOWN."""
        return self.types.index(PieceType.UNKNOWN)

    def of_type(self, *types: PieceType) -> list[tuple[int, str]]:
        """Ids and pieces of the given kinds, in id order."""
        return [
            (i, piece)
            for i, (piece, kind) in enumerate(zip(self.pieces, self.types, strict=True))
            if kind in types
        ]


def read_sentencepiece(path: str | os.PathLike) -> SentencePieceModel:
    """The model in a SentencePiece file; raises MissingFileError or TokenizerFileError naming the path."""
    path = Path(path)
    return parse_sentencepiece(read_bytes(path, "SentencePiece"), str(path))


def read_bytes(path: Path, kind: str) -> bytes:
    """All bytes of a regular file of at most 256 MB; raises MissingFileError or TokenizerFileError."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no {kind} file {path}") from error
    except OSError as error:
        raise TokenizerFileError(f"{kind} file {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise TokenizerFileError(f"a {kind} file must be a regular file, but {path} is not")
    if status.st_size > _MAX_BYTES:
        raise TokenizerFileError(f"{path} has {status.st_size} bytes; a {kind} file may have {_MAX_BYTES}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerFileError(f"{kind} file {path} cannot be read: {error.strerror}") from error


def parse_sentencepiece(data: bytes, where: str = "the model") -> SentencePieceModel:
    """The model in the bytes of a SentencePiece file; `where` names it in errors (TokenizerFileError)."""
    try:
        return _model(data)
    except (_WireError, UnicodeDecodeError, ValueError) as error:
        raise TokenizerFileError(f"{where} is not a SentencePiece file: {error}") from error


def bpe_merges(
    scored: Iterable[tuple[str, float]], vocab: Container[str] | None = None
) -> list[tuple[str, str]]:
    """Merges in rank order that make BPE pick pairs by the score of what they make, highest first.

    Each way to cut a piece of `scored` into two pieces of `vocab` (by default those of `scored`) is a merge.
    Of equal scores the longer left part goes first, then the longer right part, then the earlier piece: the
    order of public tokenizer.json files.
    """
    scores = dict(scored)
    vocab = scores if vocab is None else vocab
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, score in scores.items():
        length = len(piece)
        for cut in range(length - 1, 0, -1):
            left = piece[:cut]
            if left in vocab:
                right = piece[cut:]
                if right in vocab:
                    ranked.append((score, cut, length - cut, left, right))
    ranked.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for _, _, _, left, right in ranked]


class _WireError(ValueError):
    """Bytes that are no protobuf message of the expected shape."""


_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _WireError(f"a number is cut off at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Field number, wire type and raw value (an int for a varint, else bytes) of each field of a message."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _WireError(f"field number 0 before byte {at}")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _WireError(f"field {number} has the unknown wire type {wire}")
        if length > end - at:
            raise _WireError(f"field {number} needs {length} bytes at byte {at}, {end - at} are left")
        yield number, wire, data[at : at + length]
        at += length


def _expect(wire: int, wanted: int, name: str) -> None:
    if wire != wanted:
        raise _WireError(f"{name} has wire type {wire}, not {wanted}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _piece(data: bytes) -> tuple[str, float, PieceType]:
    piece, score, kind = "", 0.0, PieceType.NORMAL
    for number, wire, value in _fields(data):
        if number == 1:
            _expect(wire, _BYTES, "a piece")
            piece = value.decode()
            if len(piece) > _MAX_PIECE:
                raise _WireError(f"a piece has {len(piece)} characters")
        elif number == 2:
            _expect(wire, _FIXED32, "a score")
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            _expect(wire, _VARINT, "a piece's type")
            kind = PieceType(value)
    return piece, score, kind


# Field number -> (attribute, reader) of the two settings messages; other fields only matter to training.
_TRAINER_FIELDS = {
    3: ("model_type", ModelType),
    4: ("vocab_size", _signed),
    24: ("treat_whitespace_as_suffix", bool),
    25: ("split_digits", bool),
    35: ("byte_fallback", bool),
    40: ("unk_id", _signed),
    41: ("bos_id", _signed),
    42: ("eos_id", _signed),
    43: ("pad_id", _signed),
    44: ("unk_surface", bytes.decode),
    45: ("unk_piece", bytes.decode),
    46: ("bos_piece", bytes.decode),
    47: ("eos_piece", bytes.decode),
    48: ("pad_piece", bytes.decode),
}
_USER_DEFINED_SYMBOLS = 31
_NORMALIZER_FIELDS = {
    1: ("name", bytes.decode),
    2: ("precompiled_charsmap", bytes),
    3: ("add_dummy_prefix", bool),
    4: ("remove_extra_whitespaces", bool),
    5: ("escape_whitespaces", bool),
}


def _settings(data: bytes, table: dict) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, wire, value in _fields(data):
        if number in table:
            name, read = table[number]
            _expect(wire, _BYTES if read in (bytes, bytes.decode) else _VARINT, name)
            found[name] = read(value)
    return found


def _trainer(data: bytes) -> TrainerSpec:
    symbols = tuple(
        value.decode()
        for number, wire, value in _fields(data)
        if number == _USER_DEFINED_SYMBOLS and wire == _BYTES
    )
    return TrainerSpec(**_settings(data, _TRAINER_FIELDS), user_defined_symbols=symbols)


def _model(data: bytes) -> SentencePieceModel:
    rows: list[tuple[str, float, PieceType]] = []
    trainer, normalizer, denormalizer = TrainerSpec(), NormalizerSpec(), None
    for number, wire, value in _fields(data):
        if number in (1, 2, 3, 5):
            _expect(wire, _BYTES, f"field {number}")
        if number == 1:
            rows.append(_piece(value))
        elif number == 2:
            trainer = _trainer(value)
        elif number == 3:
            normalizer = NormalizerSpec(**_settings(value, _NORMALIZER_FIELDS))
        elif number == 5:
            denormalizer = NormalizerSpec(**_settings(value, _NORMALIZER_FIELDS))
    if not rows:
        raise _WireError("it has no pieces")
    pieces, scores, types = (tuple(column) for column in zip(*rows, strict=True))
    if types.count(PieceType.UNKNOWN) != 1:
        raise _WireError(f"it has {types.count(PieceType.UNKNOWN)} unknown pieces, not 1")
    if len(set(pieces)) != len(pieces):
        double = next(piece for i, piece in enumerate(pieces) if piece in pieces[:i])
        raise _WireError(f"piece {double!r} stands there twice")
    if not all(map(_is_finite, scores)):
        raise _WireError("a score is not finite")
    return SentencePieceModel(pieces, scores, types, trainer, normalizer, denormalizer)


def _is_finite(value: float) -> bool:
    return value - value == 0.0
