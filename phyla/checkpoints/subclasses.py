"""torchao's tensors in pickles, read without torchao: inert classes stand in for what the pickle names.

Versions 0.7 to 0.13 save quantised models as pickles of tensor subclasses. torch's safe unpickler makes the
stand-ins, which hold what was stored and run nothing; their parts then take the names that torchao's own
safetensors files give them.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PACKAGE = "torchao."
_NESTED = ("original_weight_tensor", "tensor_impl", "layout_tensor")
# Class of the tensor that holds the numbers -> (class of version 2, its tensors by those of version 2).
_INNERS: dict[str, tuple[str, dict[str, str]]] = {
    "PlainAQTTensorImpl": (
        "IntxUnpackedToInt8Tensor", {"qdata": "int_data", "scale": "scale", "zero_point": "zero_point"},
    ),
    "Float8AQTTensorImpl": ("Float8Tensor", {"qdata": "float8_data", "scale": "scale"}),
    "TensorCoreTiledAQTTensorImpl": (
        "Int4TilePackedTo4dTensor", {"qdata": "packed_weight", "scale_and_zero": "scale_and_zero"},
    ),
}  # fmt: skip
_PARTS = ("qdata", "scale", "zero_point", "scale_and_zero", "act_pre_scale")


class _Record:
    """Stands for a class or function that is no tensor: it keeps what it was called with."""

    def __init__(self, *given: Any) -> None:
        self.given = given


class _Wrapper(Tensor):
    """Stands for a tensor subclass: a shape and a dtype, with the stored attributes beside."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, *given: Any) -> Any:
        raise NotImplementedError(f"{cls.__name__} of a pickle holds numbers, but computes nothing")


def stand_ins(path: Path) -> list[Any]:
    """(class, full name) for every name of torchao that the pickle in a zip file mentions."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:
        return []  # whatever is wrong with the file, reading it says
    found: list[Any] = []
    for name in named:
        if name.startswith(_PACKAGE):
            short = name.rpartition(".")[2]
            base = _Wrapper if short.endswith(("Tensor", "TensorImpl")) else _Record
            found.append((type(short, (base,), {"__module__": __name__}), name))
    return found


def unwrapped(value: Any, notes: dict[str, str]) -> Any:
    """A loaded object, in whose dictionary torchao's tensors have given place to their parts.

    notes: gets, for each of them, what the header of a safetensors file would say.
    """
    if not isinstance(value, dict) or not any(isinstance(v, _Wrapper) for v in value.values()):
        return value
    plain: dict[Any, Any] = {}
    for name, held in value.items():
        if not isinstance(held, _Wrapper):
            plain[name] = held
            continue
        kind, parts, told = _opened(held)
        module, _, leaf = str(name).rpartition(".")
        notes[name] = json.dumps({"_type": kind, "_data": told, "_pickled": True})
        plain.update({f"{module}._{leaf}_{part}": tensor for part, tensor in parts.items()})
    return plain


def _opened(held: Tensor) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """(class of version 2, its tensors, its settings) of a stand-in."""
    dtype = {"_type": "torch.dtype", "_data": str(held.dtype).removeprefix("torch.")}
    told: dict[str, Any] = {"shape": list(held.shape), "dtype": dtype}
    while True:
        state = held.__dict__
        if "block_size" in state:
            told["block_size"] = [int(n) for n in state["block_size"]]
        inner = next((state[name] for name in _NESTED if isinstance(state.get(name), _Wrapper)), None)
        if inner is None:
            break
        held = inner
    name = type(held).__name__
    kind, places = _INNERS.get(name, (name, dict(zip(_PARTS, _PARTS, strict=True))))
    parts = {new: part for new, old in places.items() if isinstance(part := state.get(old), Tensor)}
    if kind == "IntxUnpackedToInt8Tensor" and "scale" in parts:
        kind, parts = _with_zeros(kind, parts, told)
    return kind, parts, told


def _with_zeros(kind: str, parts: dict[str, Tensor], told: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Whole numbers with scales and zeros in the shape that version 2 gives them."""
    zero, block = parts.get("zero_point"), told.get("block_size") or told["shape"]
    if zero is not None and zero.is_floating_point():
        return "AffineQuantizedTensor with zeros that are no whole numbers", parts
    grid = [size // max(n, 1) for size, n in zip(told["shape"], block, strict=True)]
    for name, part in {"scale": parts["scale"], "zero_point": zero}.items():
        if part is None:
            parts[name] = torch.zeros(grid, dtype=torch.int8)
        elif part.numel() == math.prod(grid):
            parts[name] = part.reshape(grid)
    if zero is not None and zero.numel() and torch.equal(zero.clamp(-128, 127), zero):
        parts["zero_point"] = parts["zero_point"].to(torch.int8)
    return kind, parts
