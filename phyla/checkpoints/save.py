"""Saving weights as safetensors, in one file or shards, so that a reader finds the old checkpoint or the new
one, never a mix."""

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from phyla.checkpoints.atomic import (
    atomic_write,
    discard,
    folder_lock,
    leftovers,
    prepare_folder,
    sync_folder,
    write_temporary,
)
from phyla.checkpoints.index import read_index
from phyla.checkpoints.paths import name_fault
from phyla.checkpoints.safetensors_file import DTYPES
from phyla.errors import ArgumentError, CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# A new set of shards takes the first series of names that the checkpoint in place does not use.
_SERIES = ("model", *(f"model-{letter}" for letter in "bcdefgh"))
_SHARD = re.compile(r"model(-[b-h])?-[0-9]{5,}-of-[0-9]{5,}\.safetensors")
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


def save_weights(
    tensors: Mapping[str, torch.Tensor],
    folder: str | os.PathLike,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = {"format": "pt"},
    files: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Save tensors by public name to a folder, and small files (`files`: name -> bytes) with them; the names
    of the weight files.

    Whatever happens, the folder holds the old checkpoint or the new one; tensors that share memory are saved
    once for each name.
    Raises ArgumentError for what cannot be saved and OSError (naming the file) for what cannot be written.
    """
    folder = Path(folder)
    files = dict(files or {})
    for name in files:
        if name_fault(name) or "/" in name:
            raise ArgumentError(f"a file of a checkpoint must have a plain name, but has {name!r}")
    _check_tensors(tensors, metadata)
    plan = plan_shards(tensors, parse_size(max_shard_size))
    prepare_folder(folder)
    with folder_lock(folder) as alone:
        if alone:
            discard(leftovers(folder))
        return _Save(folder, tensors, dict(metadata or {}), files).run(plan)


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 2_000_000, "500MB" (decimal) or "2GiB"."""
    if isinstance(size, str) and (match := _SIZE.fullmatch(size)):
        number = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    elif isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        raise ArgumentError(
            f'max_shard_size must be a number of bytes or a size such as "5GB", but is {size!r}'
        )
    if number < 1:
        raise ArgumentError(f"max_shard_size must be at least one byte, but is {size!r}")
    return number


def plan_shards(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    """Tensor names of each shard: in order, at most `limit` bytes a shard, larger tensors alone (as the
    public library splits)."""
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name, tensor in tensors.items():
        size = _nbytes(tensor)
        if size > limit:
            shards.append([name])
            continue
        if filled + size > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += size
    if current or not shards:
        shards.append(current)
    return shards


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or not name.isprintable():
            raise ArgumentError(f"a tensor must be named by plain text, but is named {name!r}")
        if not isinstance(tensor, torch.Tensor):
            raise ArgumentError(f"{name!r} must be a tensor to be saved, but is {type(tensor).__name__}")
        if tensor.device.type == "meta":
            raise ArgumentError(
                f"{name!r} has no values to save: it is on the meta device; load or initialise the "
                "model first"
            )
        if tensor.layout != torch.strided or tensor.dtype not in _NAMES:
            raise ArgumentError(
                f"{name!r} must be a dense tensor of one of {', '.join(map(str, _NAMES))} to be saved, "
                f"but is {tensor.layout} of {tensor.dtype}"
            )
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ArgumentError(f"metadata must map strings to strings, but has {key!r}: {value!r}")


def file_parts(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[memoryview]:
    """The bytes of a safetensors file, piece by piece, in the public writer's order (wide dtypes first, then
    by name)."""
    order = sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + _nbytes(tensor)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in order:
        tensor = tensors[name].detach().resolve_conj().resolve_neg().cpu().contiguous()
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


@dataclass
class _Save:
    """One save under the folder's lock. Nothing that the checkpoint in place needs is touched before the one
    rename (or removal)
    that readers go by: they look for the single file first, then for the index."""

    folder: Path
    tensors: Mapping[str, torch.Tensor]
    metadata: dict[str, str]
    files: dict[str, bytes]

    def __post_init__(self) -> None:
        self.single, self.index = self.folder / SINGLE, self.folder / INDEX
        self.temporaries: list[Path] = []
        self.placed: list[Path] = []
        self.replaced: dict[Path, bytes | None] = {}
        self.deciding: Path | None = None

    def run(self, plan: list[list[str]]) -> list[str]:
        in_use = self._shards_in_use()
        try:
            if len(plan) == 1:
                names = [SINGLE]
                self._commit_single()
            else:
                series = next(s for s in _SERIES if not any(n.startswith(f"{s}-0") for n in in_use))
                names = [f"{series}-{i:05d}-of-{len(plan):05d}.safetensors" for i in range(1, len(plan) + 1)]
                self._commit_shards(dict(zip(names, plan, strict=True)))
        except BaseException:
            # An interrupt may come right after the deciding step; then the new checkpoint stands.
            if self.deciding is None or os.path.lexists(self.deciding):
                self._roll_back()
            raise
        sync_folder(self.folder)
        self._remove_stale(names, in_use)
        return names

    def _shards_in_use(self) -> set[str]:
        if not os.path.lexists(self.index):
            return set()
        with suppress(CheckpointError):
            return set(read_index(self.index)[0].values())
        return set()

    def _commit_single(self) -> None:
        weights = self._write(self.single, file_parts(self.tensors, self.metadata))
        small = self._write_files()
        self.deciding = weights
        self._place_files(small)
        os.replace(weights, self.single)

    def _commit_shards(self, shards: dict[str, list[str]]) -> None:
        new = {}
        for name, keys in shards.items():
            parts = file_parts({key: self.tensors[key] for key in keys}, self.metadata)
            new[name] = self._write(self.folder / name, parts)
        table = {key: name for name, keys in shards.items() for key in keys}
        total = sum(_nbytes(self.tensors[key]) for key in table)
        text = (
            json.dumps({"metadata": {"total_size": total}, "weight_map": table}, indent=2, sort_keys=True)
            + "\n"
        )
        index = self._write(self.index, iter([memoryview(text.encode())]))
        small = self._write_files()
        # Readers go by the single file as long as it is there; an index beside it does not count yet.
        self.deciding = self.single if os.path.lexists(self.single) else index
        for name, temporary in new.items():
            self.placed.append(self.folder / name)
            os.replace(temporary, self.folder / name)
        # The shards must be there for good before an index names them.
        sync_folder(self.folder)
        self._place_files(small)
        if self.deciding == self.single:
            self.placed.append(self.index)
            os.replace(index, self.index)
            sync_folder(self.folder)
            os.unlink(self.single)
        else:
            os.replace(index, self.index)

    def _write(self, path: Path, parts: Iterator[memoryview]) -> Path:
        temporary = write_temporary(path, parts)
        self.temporaries.append(temporary)
        return temporary

    def _write_files(self) -> dict[Path, Path]:
        """Small files that differ from what is there, written but not yet in place."""
        new = {}
        for name, data in self.files.items():
            path = self.folder / name
            old = path.read_bytes() if path.is_file() else None
            if old != data:
                self.replaced[path] = old
                new[path] = self._write(path, iter([memoryview(data)]))
        return new

    def _place_files(self, new: dict[Path, Path]) -> None:
        for path, temporary in new.items():
            os.replace(temporary, path)

    def _roll_back(self) -> None:
        discard([*self.temporaries, *self.placed])
        for path, old in self.replaced.items():
            with suppress(OSError):
                if old is None:
                    discard([path])
                elif path.read_bytes() != old:
                    atomic_write(path, old)

    def _remove_stale(self, names: list[str], in_use: set[str]) -> None:
        keep = {*names, *([INDEX] if len(names) > 1 else [])}
        ours = {*in_use, INDEX}
        stale = [n for n in os.listdir(self.folder) if (n in ours or _SHARD.fullmatch(n)) and n not in keep]
        left = discard(self.folder / name for name in stale)
        if left:
            shown = ", ".join(str(path) for path in left)
            warnings.warn(
                f"the checkpoint is saved, but old files could not be removed: {shown}", stacklevel=4
            )
