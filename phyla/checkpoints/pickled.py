"""pytorch_model.bin: PyTorch's zip or bare pickle files, read by torch's safe unpickler after a look at what
they claim."""

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from phyla.checkpoints.paths import open_regular
from phyla.checkpoints.subclasses import stand_ins, unwrapped
from phyla.checkpoints.weights import HQQ_FILE, TensorInfo, Weights
from phyla.errors import CorruptFileError, UnsafeFormatError
from phyla.quantization.hqq import flattened

_MAX_ENTRIES = 1_000_000
_MAX_PICKLE = 1 << 30
_NESTED = ("state_dict", "model_state_dict")


class PickledFile(Weights):
    """One `.bin` file; it is read whole when opened, since its tensors cannot be listed otherwise."""

    def __init__(self, path: Path):
        self.path = Path(path)
        notes: dict[str, str] = {}
        self.tensors = load_pickled(self.path, notes)
        self._given: set[int] = set()
        super().__init__(
            {name: TensorInfo(name, tuple(t.shape), t.dtype, self.path) for name, t in self.tensors.items()},
            notes,
        )

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        self.info(name)
        if name not in self.tensors:
            raise ValueError(f"{self.path} was closed; open it again to read more tensors")
        tensor = self.tensors[name]
        if dtype is not None and dtype != tensor.dtype:
            return tensor.to(dtype, memory_format=torch.contiguous_format)
        # Tied weights are one storage in the file; who reads them decides anew whether they stay tied.
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        if not whole or storage.data_ptr() in self._given:
            return tensor.clone(memory_format=torch.contiguous_format)
        self._given.add(storage.data_ptr())
        return tensor

    def close(self) -> None:
        self.tensors = {}


def load_pickled(path: Path, notes: dict[str, str] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file by name; raises UnsafeFormatError if it holds anything but plain tensors
    in containers, or torchao's, whose parts take their place. notes: gets what is to be known of those."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        file.seek(0)
        if not head:
            raise CorruptFileError(f"{path} is empty; download it again")
        if _is_zip(head):
            _check_zip(file, path, size)
        elif not head.startswith(b"\x80"):
            raise CorruptFileError(f"{path} is no PyTorch file: it starts with {head!r}; download it again")
        file.seek(0)
        try:
            with warnings.catch_warnings():
                # Notes on pickle protocols are of no use to who loads a model.
                warnings.simplefilter("ignore")
                with torch.serialization.safe_globals(stand_ins(path) if _is_zip(head) else []):
                    value = torch.load(io.BufferedReader(file), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _unsafe(path, error) from error
        except Exception as error:
            # Whatever the unpickler trips over is a fault of the file.
            if "weights_only" in str(error):
                raise _unsafe(path, error) from error
            raise CorruptFileError(
                f"{path} cannot be read: {_first_line(error)}; download it again"
            ) from error
    return _state_dict(unwrapped(value, {} if notes is None else notes), path)


def _is_zip(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def _unsafe(path: Path, error: Exception) -> UnsafeFormatError:
    return UnsafeFormatError(
        f"{path} holds more than plain tensors ({_first_line(error)}), and unpickling it could run "
        "code, so it is not loaded; "
        "have its owner convert it: safetensors.torch.save_file(state_dict, 'model.safetensors')"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch puts its own advice (to trust the file) first and the fault itself last.
    named = [
        line for line in lines if "GLOBAL" in line or "Unsupported" in line or "weights_only cannot" in line
    ]
    return (named or lines or [type(error).__name__])[0][:300]


def _check_zip(file: io.FileIO, path: Path, size: int) -> None:
    """Refuse archives that torch.save never writes: packed entries, entries larger than the file, or far too
    many."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            f"{path} is a damaged or cut PyTorch file: {error}; download it again"
        ) from error
    if len(entries) > _MAX_ENTRIES:
        raise UnsafeFormatError(f"{path} holds {len(entries)} entries; at most {_MAX_ENTRIES} are read")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UnsafeFormatError(
                f"{path} holds the packed entry {entry.filename[:200]!r} ({entry.compress_size} bytes "
                "that claim to be "
                f"{entry.file_size}); PyTorch never packs weights, so nothing is unpacked; use a "
                "safetensors file"
            )
        if entry.filename.endswith("data.pkl") and entry.file_size > _MAX_PICKLE:
            raise UnsafeFormatError(
                f"{path} holds a pickle of {entry.file_size} bytes; at most {_MAX_PICKLE} are read"
            )
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise UnsafeFormatError(
            f"{path} has {size} bytes, but its entries claim {claimed}; use a safetensors file"
        )


def _state_dict(value: object, path: Path) -> dict[str, torch.Tensor]:
    for key in _NESTED:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if isinstance(value, dict) and path.name == HQQ_FILE:
        value = flattened(value)
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} must hold tensors by name, but holds {type(value).__name__}")
    tensors = {name: t for name, t in value.items() if isinstance(t, torch.Tensor)}
    if not tensors and value:
        raise CorruptFileError(
            f"{path} must hold tensors by name, but holds none: {', '.join(map(str, list(value)[:10]))}"
        )
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise CorruptFileError(
                f"{path} must name its tensors by strings, but has the key {str(name)[:200]!r}"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CorruptFileError(
                f"{path}: tensor {name!r} must be a plain dense tensor, but is {tensor.layout} on "
                f"{tensor.device}"
            )
    return {name: tensor.detach() for name, tensor in tensors.items()}
