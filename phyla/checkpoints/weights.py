"""What every kind of weight file answers: names, shapes, dtypes, and tensors in memory of their own."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch

from phyla.errors import MissingFileError, MissingWeightsError, UnsafeFormatError, nearest

HQQ_FILE = "qmodel.pt"  # what HQQ saves by itself
# In the order in which they are looked for.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    HQQ_FILE,
)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that a checkpoint holds, before it is read; `quant` names the ggml type of quantised
    blocks."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    quant: str | None = None


@dataclass(frozen=True)
class PackedTensor:
    """Raw quantised blocks: `blocks` is uint8 of (rows, bytes per row), `ggml_type` their kind, `shape` that
    of the values."""

    blocks: torch.Tensor
    ggml_type: str
    shape: tuple[int, ...]


@dataclass
class Weights:
    """The tensors of a checkpoint by public name; subclasses read one kind of file, and close it when they
    are closed or collected."""

    infos: dict[str, TensorInfo] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict | None = None

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor in memory of its own (the file may change afterwards), as stored or in `dtype`; raises
        MissingWeightsError."""
        raise NotImplementedError(f"{type(self).__name__} must define read(name, dtype)")

    def read_many(
        self,
        names: Iterable[str] | None = None,
        dtype: torch.dtype | None = None,
        into: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of many tensors, in whatever order and grouping the file is read fastest.

        into: memory of the right shape and dtype; a file that can reads a tensor there and returns it.
        """
        for name in self.infos if names is None else names:
            yield name, self.read(name, dtype)

    def read_part(self, name: str, dim: int, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Of a tensor, the elements start .. stop of dimension `dim` for each of the runs, one behind the
        other."""
        whole = self.read(name)
        return torch.cat([whole.narrow(dim, start, stop - start) for start, stop in runs], dim)

    def read_packed(self, name: str) -> PackedTensor | None:
        """The quantised blocks of a tensor as they stand in the file, or None where they are plain
        numbers."""
        self.info(name)
        return None

    def info(self, name: str) -> TensorInfo:
        """What is known of one tensor; raises MissingWeightsError with the nearest names."""
        try:
            return self.infos[name]
        except KeyError:
            raise MissingWeightsError(
                f"the checkpoint has no tensor {name!r}.{nearest(name, self.infos)}"
            ) from None

    def close(self) -> None:
        """Let go of the files; what was read stays."""

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def find_weights(path: str | os.PathLike) -> Path:
    """The weight file or index that a folder is loaded from (or `path` itself if it is no folder); raises
    MissingFileError."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if os.path.lexists(path / name):
            return path / name
    ggufs = sorted(p.name for p in path.glob("*.gguf"))
    if len(ggufs) == 1:
        return path / ggufs[0]
    looked = ", ".join((*WEIGHT_FILES, "*.gguf"))
    if ggufs:
        raise MissingFileError(
            f"{path} holds {len(ggufs)} GGUF files; give the path of one of them: {', '.join(ggufs[:20])}"
        )
    present = sorted(p.name for p in path.iterdir())[:20]
    raise MissingFileError(
        f"{path} holds no weights: looked for {looked}; found "
        f"{', '.join(present) if present else 'an empty folder'}"
    )


def open_weights(path: str | os.PathLike, allow_pickle: bool = True) -> Weights:
    """Open a weight file, an index, or the first of these that a folder holds (safetensors, .bin, GGUF).

    Raises CheckpointError kinds for anything damaged; `.bin` files are read by torch's safe unpickler only,
    or not at all.
    """
    while True:
        file = find_weights(path)
        try:
            if file.name.endswith(".index.json"):
                from phyla.checkpoints.index import ShardedWeights

                return ShardedWeights(file, allow_pickle)
            return open_weight_file(file, allow_pickle)
        except MissingFileError:
            # A save that changes from one file to shards (or back) in this moment leaves another file to go
            # by.
            if find_weights(path) == file:
                raise


def open_weight_file(file: Path, allow_pickle: bool = True) -> Weights:
    """Open one weight file by its suffix."""
    if file.suffix == ".gguf":
        from phyla.checkpoints.gguf import GGUFFile

        return GGUFFile(file)
    if file.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        if not allow_pickle:
            raise UnsafeFormatError(
                f"{file} is a pickle and pickles are turned off (allow_pickle=False); convert it once with "
                f"`phyla convert {file.parent} NEW_FOLDER`"
            )
        from phyla.checkpoints.pickled import PickledFile

        return PickledFile(file)
    from phyla.checkpoints.safetensors_file import SafetensorsFile

    return SafetensorsFile(file)
