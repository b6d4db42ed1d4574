"""Safetensors files: a strict look at the header, then tensors read into memory of their own.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, then the data
without gaps).
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from phyla.checkpoints.json_file import parse_json
from phyla.checkpoints.paths import open_regular, read_exactly
from phyla.checkpoints.weights import TensorInfo, Weights
from phyla.errors import CorruptFileError

# Name in the file -> torch dtype, in the order in which the public writer ranks them (the last come first in
# a file).
_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
# Older torch lacks the newest.
DTYPES = {
    name: getattr(torch, attribute) for name, attribute in _TORCH_NAMES.items() if hasattr(torch, attribute)
}
# Types of less than a byte, kept in the bytes they are packed in: name -> bits per value.
PACKED_DTYPES = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_PAIR_OF_F4 = getattr(torch, "float4_e2m1fn_x2", torch.uint8)

READERS = 2
PARALLEL = 1 << 25  # bytes from which on several threads read
SMALLEST = 1 << 11  # bytes of a piece from which on parts of a tensor are read one by one
MAX_HEADER = 100_000_000  # the public reader's limit
_MAX_RANK = 64
_MAX_SIZE = (1 << 63) - 1


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: dtype name in the file, shape, and its bytes counted from the start of the
    file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(file, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors (in order of their bytes) and metadata of an open safetensors file; raises CorruptFileError for
    any departure from the format."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise CorruptFileError(
            f"{path} is cut short: a safetensors file starts with 8 bytes of header length, but the "
            f"file has {size}; download it again"
        )
    first = bytearray(min(size, 16))
    read_exactly(file, memoryview(first), 0, path)
    length = int.from_bytes(first[:8], "little")
    other = _other_format(bytes(first))
    if length > MAX_HEADER or length < 2 or (length > size - 8 and other):
        if other:
            raise CorruptFileError(
                f"{path} {other}, not a safetensors file; give it its right name, or download it again"
            )
        if length < 2 or length > size - 8:
            raise CorruptFileError(
                f"{path} is damaged: it claims a header of {length} bytes, but {size - 8} follow; "
                "download it again"
            )
        raise CorruptFileError(f"{path} claims a header of {length} bytes; at most {MAX_HEADER} are read")
    if length > size - 8:
        raise CorruptFileError(
            f"{path} is cut short: its header has {length} bytes, but only {size - 8} follow; download "
            "it again"
        )
    data = bytearray(length)
    read_exactly(file, memoryview(data), 8, path)
    if data[0] != 0x7B:
        raise CorruptFileError(
            f"{path} {other or 'is not a safetensors file'}: its header must start with "
            f"'{{', but starts with {bytes(data[:8])!r}"
        )
    value = parse_json(bytes(data), f"{path} (header)", CorruptFileError, max_depth=4, unique_keys=True)
    return _check_header(value, path, 8 + length, size)


def _other_format(first: bytes) -> str | None:
    if first[:1] == b"\x80" and first[1:2] in b"\x02\x03\x04\x05":
        return "starts with pickle bytes"
    for magic, name in (
        (b"PK\x03\x04", "a zip archive (a PyTorch file?)"),
        (b"GGUF", "a GGUF file"),
        (b"\x89HDF", "an HDF5 file"),
    ):
        if first.startswith(magic):
            return f"is {name}"
    if first.startswith(b"version ht"):
        return "is a Git LFS pointer, whose file was never fetched"
    if first.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page"
    return None


def _check_header(
    value: object, path: Path, data_start: int, size: int
) -> tuple[dict[str, Entry], dict[str, str]]:
    if not isinstance(value, dict):
        raise CorruptFileError(f"the header of {path} must be a JSON object, but is {type(value).__name__}")
    metadata = value.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CorruptFileError(
            f"the __metadata__ of {path} must map strings to strings, but is {str(metadata)[:200]}"
        )
    entries = [(name, _entry(name, line, path, data_start)) for name, line in value.items()]
    entries.sort(key=lambda item: (item[1].start, item[1].stop))
    end, before = data_start, ""
    for name, entry in entries:
        span = f"bytes {entry.start} to {entry.stop}"
        if entry.stop > size:
            raise CorruptFileError(
                f"{path} is cut short: tensor {name!r} ({entry.dtype} {list(entry.shape)}) needs {span}, "
                f"but the file has {size}; download it again"
            )
        if entry.start < end:
            raise CorruptFileError(
                f"{path} is damaged: tensors {before!r} and {name!r} share bytes {entry.start} to "
                f"{min(end, entry.stop)}"
            )
        if entry.start > end:
            raise CorruptFileError(
                f"{path} is damaged: bytes {end} to {entry.start}, before tensor {name!r}, belong to "
                "no tensor"
            )
        end, before = entry.stop, name
    if end != size:
        raise CorruptFileError(
            f"{path} must end with its last tensor at byte {end}, but {size - end} more bytes follow; "
            "download it again"
        )
    return dict(entries), metadata


def _entry(name: str, line: object, path: Path, data_start: int) -> Entry:
    where = f"tensor {name!r} of {path}"
    if not isinstance(line, dict) or set(line) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFileError(f"{where} must have dtype, shape and data_offsets, but has {str(line)[:200]}")
    dtype, shape, offsets = line["dtype"], line["shape"], line["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in DTYPES and dtype not in PACKED_DTYPES):
        raise CorruptFileError(
            f"{where} has the unknown dtype {str(dtype)[:200]!r}; known are "
            f"{', '.join((*DTYPES, *PACKED_DTYPES))}"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_RANK
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise CorruptFileError(
            f"{where} must have a shape of whole numbers from 0 up, but has {str(shape)[:200]}"
        )
    bits = PACKED_DTYPES[dtype] if dtype in PACKED_DTYPES else DTYPES[dtype].itemsize * 8
    count = prod(shape) * bits
    # Sizes with a zero among them still must not overflow when multiplied.
    if count > 8 * _MAX_SIZE or any(n > _MAX_SIZE for n in shape):
        raise CorruptFileError(f"{where} has the shape {str(shape)[:200]}, which is larger than any file")
    if count % 8:
        raise CorruptFileError(
            f"{where} has {prod(shape)} values of {bits} bits, which are no whole number of bytes"
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and 0 <= n <= _MAX_SIZE for n in offsets)
    ):
        raise CorruptFileError(f"{where} must have two data_offsets from 0 up, but has {str(offsets)[:200]}")
    start, stop = offsets
    if stop - start != count // 8:
        raise CorruptFileError(
            f"{where} has {dtype} of shape {shape}, which are {count // 8} bytes, but its data_offsets "
            f"{offsets} hold {stop - start}"
        )
    return Entry(dtype, tuple(shape), data_start + start, data_start + stop)


class SafetensorsFile(Weights):
    """One safetensors file, checked whole when opened; tensors are read when asked for."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.file = open_regular(self.path)
        try:
            self.state = _state(self.file)
            self.entries, metadata = read_header(self.file, self.path)
        except BaseException:
            self.file.close()
            raise
        infos = {}
        for name, entry in self.entries.items():
            dtype, shape = _torch_layout(entry)
            infos[name] = TensorInfo(name, shape, dtype, self.path)
        super().__init__(infos, metadata)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        # Each tensor has its own memory: one buffer for all would stay whole as long as any tensor of it
        # lives.
        tensor = self._read(name, None)
        return tensor if dtype is None else tensor.to(dtype)

    def _read(self, name: str, into: torch.Tensor | None) -> torch.Tensor:
        info, entry = self.info(name), self.entries[name]
        if self.file.closed:
            raise ValueError(f"{self.path} was closed; open it again to read more tensors")
        fits = into is not None and into.dtype == info.dtype and into.shape == info.shape
        if into is not None and fits and into.is_contiguous():
            data = into.view(-1).view(torch.uint8)
        else:
            data = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
        read_exactly(self.file, data.numpy().data, entry.start, self.path)
        if _state(self.file) != self.state:
            raise CorruptFileError(f"{self.path} was overwritten while it was read; load it again")
        return data.view(info.dtype).view(info.shape)

    def read_part(self, name: str, dim: int, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
        info, entry = self.info(name), self.entries[name]
        row = prod(info.shape[dim + 1 :]) * info.dtype.itemsize
        length = sum(stop - start for start, stop in runs)
        shape = (*info.shape[:dim], length, *info.shape[dim + 1 :])
        if prod(info.shape) * info.dtype.itemsize != entry.stop - entry.start or row * length < SMALLEST:
            return super().read_part(name, dim, runs)
        data = torch.empty(shape, dtype=info.dtype)
        buffer, at = data.view(-1).view(torch.uint8).numpy().data, 0
        for outer in range(prod(info.shape[:dim])):
            for start, stop in runs:
                size, place = (stop - start) * row, (outer * info.shape[dim] + start) * row
                read_exactly(self.file, buffer[at : at + size], entry.start + place, self.path)
                at += size
        if _state(self.file) != self.state:
            raise CorruptFileError(f"{self.path} was overwritten while it was read; load it again")
        return data

    def read_many(
        self,
        names: Iterable[str] | None = None,
        dtype: torch.dtype | None = None,
        into: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        chosen = set(self.infos if names is None else names)
        for name in chosen:
            self.info(name)
        # In the order of the file, which a disk reads fastest.
        names = [name for name in self.entries if name in chosen]
        places = [None if into is None else into.get(name) for name in names]
        size = sum(self.entries[name].stop - self.entries[name].start for name in names)
        if size < PARALLEL or not hasattr(os, "preadv"):
            tensors: Iterator[torch.Tensor] = map(self._read, names, places)
            yield from ((n, t if dtype is None else t.to(dtype)) for n, t in zip(names, tensors, strict=True))
            return
        # What the system has in memory is copied, page after page: two threads do that twice as fast.
        with ThreadPoolExecutor(READERS, thread_name_prefix="phyla-read") as pool:
            ahead: deque[tuple[str, Future[torch.Tensor]]] = deque()
            try:
                for name, place in zip(names, places, strict=True):
                    ahead.append((name, pool.submit(self._read, name, place)))
                    if len(ahead) > 4 * READERS:
                        done, future = ahead.popleft()
                        yield done, future.result() if dtype is None else future.result().to(dtype)
                while ahead:
                    done, future = ahead.popleft()
                    yield done, future.result() if dtype is None else future.result().to(dtype)
            finally:
                for _, future in ahead:
                    future.cancel()

    def close(self) -> None:
        self.file.close()


def _state(file) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _torch_layout(entry: Entry) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of the tensor made of an entry: types of less than a byte stay packed, two values of F4
    to an element."""
    if entry.dtype in DTYPES:
        return DTYPES[entry.dtype], entry.shape
    if entry.dtype == "F4" and entry.shape and entry.shape[-1] % 2 == 0:
        return _PAIR_OF_F4, (*entry.shape[:-1], entry.shape[-1] // 2)
    return torch.uint8, (entry.stop - entry.start,)
