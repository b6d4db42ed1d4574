"""Sharded checkpoints: an index file that says which shard holds which tensor."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from phyla.checkpoints.json_file import parse_json, read_bytes
from phyla.checkpoints.paths import safe_join
from phyla.checkpoints.weights import PackedTensor, Weights, open_weight_file
from phyla.errors import CorruptFileError, MissingFileError, MissingWeightsError

ATTEMPTS = 20
_SUFFIXES = (".safetensors", ".bin")


def read_index(path: Path) -> tuple[dict[str, str], dict]:
    """Tensor name -> shard name, and the metadata, of an index file; every shard name is a plain path inside
    the folder.

    Raises CorruptFileError, UnsafePathError or MissingFileError.
    """
    value = parse_json(
        read_bytes(path, CorruptFileError), str(path), CorruptFileError, max_depth=16, unique_keys=True
    )
    if not isinstance(value, dict) or "weight_map" not in value:
        raise CorruptFileError(
            f"{path} must be a JSON object with a weight_map, but holds {str(value)[:200]}"
        )
    table, metadata = value["weight_map"], value.get("metadata")
    if not isinstance(table, dict):
        raise CorruptFileError(f"weight_map of {path} must be an object, got {type(table).__name__}")
    for shard in set(_shard_names(table, path)):
        where = f"{path}, key {next(key for key, name in table.items() if name == shard)!r}"
        safe_join(path.parent, shard, where)
        if not shard.endswith(_SUFFIXES):
            raise CorruptFileError(f"{where}: a shard must end in {' or '.join(_SUFFIXES)}, but is {shard!r}")
    return table, metadata if isinstance(metadata, dict) else {}


def _shard_names(table: dict, path: Path) -> Iterator[str]:
    for key, name in table.items():
        if not isinstance(name, str):
            raise CorruptFileError(
                f"{path}, key {key!r}: a shard must be named by a string, but is {str(name)[:200]}"
            )
        yield name


class ShardedWeights(Weights):
    """All shards of an index as one; every promised tensor is known to be there once it is open."""

    def __init__(self, path: Path, allow_pickle: bool = True):
        self.path = Path(path)
        # A save that replaces the checkpoint meanwhile puts its index in place of the one that was read: then
        # the shards that were opened may be of either.
        for attempt in range(ATTEMPTS):
            before = _identity(self.path)
            table, _ = read_index(self.path)
            try:
                self.shards = _open_shards(self.path, table, allow_pickle)
            except (MissingFileError, MissingWeightsError):
                if attempt == ATTEMPTS - 1 or _identity(self.path) == before:
                    raise
                continue
            if _identity(self.path) == before:
                break
            for shard in self.shards.values():
                shard.close()
        else:
            raise CorruptFileError(f"{self.path} was replaced whenever it was read; load it once that ends")
        self.owner = {key: self.shards[shard] for key, shard in table.items()}
        metadata: dict[str, str] = {}
        for shard in self.shards.values():
            metadata.update(shard.metadata)
        super().__init__({key: self.owner[key].infos[key] for key in table}, metadata)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        self.info(name)
        return self.owner[name].read(name, dtype)

    def read_many(
        self,
        names: Iterable[str] | None = None,
        dtype: torch.dtype | None = None,
        into: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        groups: dict[int, list[str]] = defaultdict(list)
        for name in self.infos if names is None else names:
            self.info(name)
            groups[id(self.owner[name])].append(name)
        for shard in self.shards.values():
            if id(shard) in groups:
                yield from shard.read_many(groups[id(shard)], dtype, into)

    def read_part(self, name: str, dim: int, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
        self.info(name)
        return self.owner[name].read_part(name, dim, runs)

    def read_packed(self, name: str) -> PackedTensor | None:
        self.info(name)
        return self.owner[name].read_packed(name)

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _open_shards(path: Path, table: dict[str, str], allow_pickle: bool) -> dict[str, Weights]:
    keys: dict[str, list[str]] = defaultdict(list)
    for key, shard in table.items():
        keys[shard].append(key)
    shards: dict[str, Weights] = {}
    try:
        for shard, promised in sorted(keys.items()):
            try:
                shards[shard] = open_weight_file(safe_join(path.parent, shard, str(path)), allow_pickle)
            except MissingFileError as error:
                raise MissingFileError(
                    f"{path} names the shard {shard!r} for {_some(promised)}, but {error}"
                ) from error
            missing = [key for key in promised if key not in shards[shard].infos]
            if missing:
                raise MissingWeightsError(
                    f"{path} says that {shard} holds {_some(missing, 1000)}, but it does not; download "
                    "it again"
                )
    except BaseException:
        for opened in shards.values():
            opened.close()
        raise
    return shards


def _some(names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(name) for name in names[:count]) + more
