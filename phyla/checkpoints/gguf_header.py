"""The header of a GGUF file (metadata and tensor table), read without tensor data, torch or the package gguf.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

import os
import stat
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from phyla.errors import CheckpointError, CorruptFileError, MissingFileError

# ggml type number -> (name, values per block, bytes per block).
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_MAGIC = b"GGUF"
_BOOL, _STRING, _ARRAY = 7, 8, 9
# Value type number -> struct code.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 8  # ggml has 4
_MAX_ARRAY_DEPTH = 4
# Every array entry costs a Python object; the largest public vocabularies need about two million entries with
# their merges.
_MAX_ENTRIES = 1 << 23
_MAX_ALIGNMENT = 1 << 20
_CHUNK = 1 << 20


class GGUFTensor(NamedTuple):
    """One line of the tensor table.

    `shape` is row-major, slowest axis first (the reverse of the file's order), in values, not blocks;
    `offset` counts bytes from the header's `data_offset`.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the stored blocks."""
        _, values, width = GGML_TYPES[self.ggml_type]
        return prod(self.shape) // values * width


@dataclass(frozen=True)
class GGUFHeader:
    """All of a GGUF file but its tensor data; `byteorder` is "<" or ">" (of numbers in the data too)."""

    metadata: dict[str, object]
    tensors: list[GGUFTensor]
    data_offset: int
    path: Path
    version: int
    byteorder: str


def read_header(path: str | os.PathLike) -> GGUFHeader:
    """Metadata and tensor table of a GGUF file.

    Every count, length and offset is checked against the file's size before it is used. Raises
    MissingFileError for no such file and CorruptFileError for anything that is not a whole GGUF file.
    """
    path = Path(path)
    try:
        # Non-blocking, so that a FIFO of that name does not hang the open.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no GGUF file {path}") from error
    except OSError as error:
        raise CheckpointError(f"GGUF file {path} cannot be read: {error.strerror}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise CorruptFileError(f"a GGUF file must be a regular file, but {path} is not")
    with open(handle, "rb", buffering=0) as file:
        return _Reader(file, status.st_size, path).header()


class _Reader:
    """A cursor over the start of a file that fetches more bytes as they are asked for."""

    def __init__(self, file, size: int, path: Path):
        self.file, self.size, self.path = file, size, path
        self.data, self.at = b"", 0
        self.entries = 0
        self.order = "<"

    def fail(self, what: str) -> CorruptFileError:
        return CorruptFileError(
            f"{self.path} is not a whole GGUF file: {what} (at byte {self.at} of {self.size})"
        )

    def need(self, count: int, what: str) -> None:
        """Have `count` more bytes in memory, or fail because the file is too short for them."""
        end = self.at + count
        if end <= len(self.data):
            return
        if end > self.size:
            raise self.fail(f"{what} needs {count} bytes, {self.size - self.at} are left")
        # Doubling keeps the copies linear in the header's size.
        want = min(self.size, max(end, 2 * len(self.data), _CHUNK)) - len(self.data)
        parts = [self.data]
        while want > 0:
            part = self.file.read(want)
            if not part:
                raise self.fail("the file shrank while it was read")
            parts.append(part)
            want -= len(part)
        self.data = b"".join(parts)

    def numbers(self, code: str, count: int, what: str) -> tuple:
        width = struct.calcsize(self.order + code)
        self.need(width * count, what)
        found = struct.unpack_from(f"{self.order}{count}{code}", self.data, self.at)
        self.at += width * count
        return found

    def number(self, code: str, what: str):
        return self.numbers(code, 1, what)[0]

    def text(self, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        self.need(length, what)
        try:
            found = self.data[self.at : self.at + length].decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error
        self.at += length
        return found

    def texts(self, count: int, what: str) -> list[str]:
        # The plain loop of `text`, flattened: vocabularies have 100,000s of entries.
        unpack = struct.Struct(self.order + "Q").unpack_from
        found: list[str] = []
        append, data, at, have = found.append, self.data, self.at, len(self.data)
        for i in range(count):
            if at + 8 > have:
                self.at = at
                self.need(8, f"the length of {what}[{i}]")
                data, have = self.data, len(self.data)
            (length,) = unpack(data, at)
            at += 8
            if at + length > have:
                self.at = at
                self.need(length, f"{what}[{i}]")
                data, have = self.data, len(self.data)
            try:
                append(data[at : at + length].decode())
            except UnicodeDecodeError as error:
                self.at = at
                raise self.fail(f"{what}[{i}] is not UTF-8") from error
            at += length
        self.at = at
        return found

    def value(self, kind: int, what: str, depth: int = 0):
        if kind == _STRING:
            return self.text(what)
        if kind in _SCALARS:
            number = self.number(_SCALARS[kind], what)
            return bool(number) if kind == _BOOL else number
        if kind != _ARRAY:
            raise self.fail(f"{what} has the unknown value type {kind}")
        if depth >= _MAX_ARRAY_DEPTH:
            raise self.fail(f"{what} nests arrays deeper than {_MAX_ARRAY_DEPTH}")
        entry_kind, count = self.number("I", f"the type of {what}"), self.number("Q", f"the length of {what}")
        self.entries += count
        if self.entries > _MAX_ENTRIES:
            raise self.fail(f"{what} claims {count} entries; arrays may hold {_MAX_ENTRIES} in all")
        if entry_kind == _STRING:
            self.check_count(count, 8, what)
            return self.texts(count, what)
        if entry_kind in _SCALARS:
            found = self.numbers(_SCALARS[entry_kind], count, what)
            return [bool(x) for x in found] if entry_kind == _BOOL else list(found)
        self.check_count(count, 12, what)
        return [self.value(entry_kind, f"{what}[{i}]", depth + 1) for i in range(count)]

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold at `least` bytes an entry."""
        if count * least > self.size - self.at:
            raise self.fail(f"{what} claims {count} entries, more than the rest of the file can hold")

    def header(self) -> GGUFHeader:
        self.need(4, "the magic number")
        if self.data[:4] != _MAGIC:
            raise CorruptFileError(
                f"{self.path} is not a GGUF file: it starts with {self.data[:4]!r}, not {_MAGIC!r}"
            )
        self.at = 4
        self.need(4, "the version")
        # Big-endian files have the same magic; their small version number sits in the other half.
        self.order = "<" if self.data[4:6] != b"\0\0" else ">"
        version = self.number("I", "the version")
        if version not in (2, 3):
            raise CorruptFileError(
                f"{self.path} is a GGUF file of version {version}; versions 2 and 3 can be read, "
                "so convert the model again with a current llama.cpp"
            )
        num_tensors, num_values = self.numbers("Q", 2, "the counts")
        self.check_count(num_values, 13, "the metadata")
        metadata: dict[str, object] = {}
        for i in range(num_values):
            key = self.text(f"metadata key {i}")
            if key in metadata:
                raise self.fail(f"metadata key {key!r} stands there twice")
            metadata[key] = self.value(self.number("I", f"the type of {key!r}"), repr(key))
        self.check_count(num_tensors, 24, "the tensor table")
        tensors = [self.tensor(i) for i in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.fail(f"general.alignment must be a power of two, but is {alignment!r}")
        data_offset = -(-self.at // alignment) * alignment
        self.check_extents(tensors, alignment, data_offset)
        return GGUFHeader(metadata, tensors, data_offset, self.path, version, self.order)

    def tensor(self, index: int) -> GGUFTensor:
        name = self.text(f"the name of tensor {index}")
        num_dimensions = self.number("I", f"the rank of tensor {name!r}")
        if num_dimensions > _MAX_DIMENSIONS:
            raise self.fail(f"tensor {name!r} claims {num_dimensions} dimensions")
        shape = tuple(reversed(self.numbers("Q", num_dimensions, f"the shape of tensor {name!r}")))
        kind, offset = (
            self.number("I", f"the type of tensor {name!r}"),
            self.number("Q", f"the offset of tensor {name!r}"),
        )
        if kind not in GGML_TYPES:
            raise self.fail(f"tensor {name!r} has the unknown ggml type {kind}")
        type_name, values, _ = GGML_TYPES[kind]
        if (shape[-1] if shape else 1) % values:
            raise self.fail(
                f"rows of tensor {name!r} {shape} must be whole {type_name} blocks of {values} values"
            )
        return GGUFTensor(name, shape, kind, offset)

    def check_extents(self, tensors: list[GGUFTensor], alignment: int, data_offset: int) -> None:
        """Each tensor lies whole in the file, aligned, under its own name, and shares no byte."""
        names: set[str] = set()
        end, previous = 0, ""
        for tensor in sorted(tensors, key=lambda t: t.offset):
            first = data_offset + tensor.offset
            if tensor.name in names:
                raise self.fail(f"tensor {tensor.name!r} stands there twice")
            names.add(tensor.name)
            if tensor.offset % alignment:
                raise self.fail(
                    f"tensor {tensor.name!r} starts at {tensor.offset}, not a multiple of {alignment}"
                )
            if first + tensor.nbytes > self.size:
                raise CorruptFileError(
                    f"{self.path} is cut short: tensor {tensor.name!r} {tensor.shape} needs bytes {first} to "
                    f"{first + tensor.nbytes}, but the file has {self.size}; download it again"
                )
            if tensor.nbytes and tensor.offset < end:
                raise self.fail(f"tensors {previous!r} and {tensor.name!r} share bytes")
            if tensor.nbytes:
                end, previous = tensor.offset + tensor.nbytes, tensor.name
