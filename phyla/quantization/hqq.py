"""HQQ (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models").

The weight's numbers, row after row, form a matrix of groups: (n, group) for axis 1, (group, n) for axis 0.
`W_q` holds its codes cut into equal bands of rows, one band above the other in a byte (3 bits: ten bands in
an int32), the first in the highest bits. w = (code - zero) * scale; small tensors tell sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.errors import ConfigError
from phyla.quantization.halfquadratic import search_zeros
from phyla.quantization.numbers import Numbers
from phyla.quantization.scheme import FLOATS, Facts, Parts, Scheme, demand, demand_dtype, demand_shape

# Bits -> (bands of rows in a word, bits of a band, name of the packing, dtype of a word).
_PACKINGS: dict[int, tuple[int, int, str, torch.dtype]] = {
    8: (1, 8, "8bit_u8", torch.uint8), 6: (1, 8, "8bit_u8", torch.uint8), 5: (1, 8, "8bit_u8", torch.uint8),
    4: (2, 4, "4bit_u8", torch.uint8), 3: (10, 3, "3bit_32", torch.int32), 2: (4, 2, "2bit_u8", torch.uint8),
    1: (8, 1, "1bit_u8", torch.uint8),
}  # fmt: skip
_SIZES = ("nbits", "group_size", "axis")


@dataclass(frozen=True)
class HQQ(Scheme):
    """bits, group, axis: of what is made, and of files that do not say. dtype: of scales and zeros made."""

    method: ClassVar[str] = "hqq"
    dense_maps: ClassVar[str] = "skip_modules"
    markers = ("W_q",)
    needed = ("W_q", "scale", "zero", "shape")
    leaves = (
        "W_q", "scale", "zero", "shape", "nbits", "group_size", "axis", "packing", "unpack_view_dtype",
        "view_as_float", "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict",
        "stores_quant_config", "channel_wise", "optimize", "round_zero",
    )  # fmt: skip

    bits: int = 4
    group: int = 64
    axis: int = 1
    dtype: torch.dtype = torch.float32

    @classmethod
    def read(cls, config: dict[str, Any]) -> "HQQ":
        """From a `quantization_config`; what the tensors themselves say goes first."""
        told = (config.get("quant_config") or {}).get("weight_quant_params") or {}
        bits, axis = told.get("nbits", 4), told.get("axis", 1)
        if bits not in _PACKINGS or axis not in (0, 1):
            raise ConfigError(
                f"quantization_config.quant_config must have nbits of {', '.join(map(str, _PACKINGS))} and "
                f"axis 0 or 1, but has {bits!r} and {axis!r}"
            )
        return cls(int(bits), int(told.get("group_size") or 0), int(axis))

    def check(self, parts: Parts) -> Facts:
        demand_dtype(parts, "shape", torch.int64, torch.int32)
        sizes = tuple(int(n) for n in demand_shape(parts, "shape", (2,)))
        demand(all(0 < n < 2**31 for n in sizes), "shape", f"must be two sizes above 0, but is {sizes}")
        bits, group, axis = (
            _number(parts, leaf, default)
            for leaf, default in zip(_SIZES, (self.bits, self.group, self.axis), strict=True)
        )
        demand(bits in _PACKINGS, "nbits", f"must be one of {tuple(_PACKINGS)}, but is {bits}")
        demand(axis in (0, 1), "axis", f"must be 0 or 1, but is {axis}")
        group = group or sizes[axis]
        count = sizes[0] * sizes[1]
        demand(
            group > 0 and count % group == 0,
            "group_size",
            f"must divide the {count} numbers of {sizes}, but is {group}",
        )
        grid = (count // group, group) if axis else (group, count // group)
        bands, _, _, word = _PACKINGS[bits]
        held = parts["W_q"]
        words = -(-grid[0] // bands) * grid[1] * word.itemsize
        demand(
            held.dim() == 2 and held.dtype in (word, *FLOATS) and held.numel() * held.itemsize == words,
            "W_q",
            f"must hold {words} bytes of {word} for {sizes} at {bits} bits, but has shape "
            f"{tuple(held.shape)} of {held.dtype}",
        )
        each = (grid[0], 1) if axis else (1, grid[1])
        for leaf in ("scale", "zero"):
            demand_dtype(parts, leaf, *FLOATS)
            demand_shape(parts, leaf, each, (), (1,), (1, 1))
        return Facts(sizes, (bits, grid))

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        bits, grid = facts.extra
        values = unbanded(parts["W_q"], bits, grid)
        values.sub_(parts["zero"].float()).mul_(parts["scale"].float())
        return values.view(facts.shape)

    def numbers(self, parts: Parts, facts: Facts) -> Numbers | None:
        (out, width), (bits, grid) = facts.shape, facts.extra
        if not _number(parts, "axis", self.axis) or width % grid[1]:
            return None
        codes = unbanded(parts["W_q"], bits, grid).to(torch.uint8).view(out, width)
        scale, zero = (
            parts[leaf].float().reshape(-1, 1).expand(grid[0], 1).reshape(out, -1)
            for leaf in ("scale", "zero")
        )
        if bits > 4:
            return Numbers((codes ^ 128).view(torch.int8), scale, grid[1], None, zero - 128)
        return Numbers(codes, scale, grid[1], torch.arange(16.0, device=codes.device), zero)

    def bulk(self, parts: Parts) -> str:
        return "W_q"

    def stored(self, codes: Tensor, like: Tensor, facts: Facts) -> Tensor:
        bits, grid = facts.extra
        numbers = codes.view(torch.uint8) ^ 128 if bits > 4 else codes
        return banded(numbers.view(grid), bits).view(like.dtype).view(like.shape)

    def packs(self, shape: Sequence[int]) -> bool:
        if len(shape) != 2:
            return False
        group = self.group or shape[self.axis]
        rows = shape[0] * shape[1] // group if self.axis else group
        bands = 1 if self.bits == 3 else _PACKINGS[self.bits][0]
        return shape[0] * shape[1] % group == 0 and rows % bands == 0

    def quantise(self, weight: Tensor) -> Parts:
        group = self.group or weight.shape[self.axis]
        numbers = weight.float()
        grouped = numbers.reshape(-1, group) if self.axis else numbers.reshape(group, -1).t().contiguous()
        codes, scale, zero = search_zeros(grouped, self.bits)
        if not self.axis:
            codes, scale, zero = codes.t(), scale.t(), zero.t()
        name, word = _PACKINGS[self.bits][2:]
        parts = {
            "W_q": banded(codes, self.bits),
            "scale": scale.to(self.dtype).contiguous(),
            "zero": zero.to(self.dtype).contiguous(),
            "shape": torch.tensor(list(weight.shape)),
            "packing": _text(name),
            "unpack_view_dtype": _text(str(word)),
            "compute_dtype": _text(str(self.dtype)),
        }
        for leaf, number in zip(_SIZES, (self.bits, group, self.axis), strict=True):
            parts[leaf] = torch.tensor(number, dtype=torch.int32)
        flags = {
            "view_as_float": False, "quant_scale": False, "quant_zero": False, "offload_meta": False,
            "encoded_state_dict": True, "stores_quant_config": True, "channel_wise": True, "optimize": True,
            "round_zero": self.bits == 4,
        }  # fmt: skip
        parts |= {leaf: torch.tensor(int(flag), dtype=torch.uint8) for leaf, flag in flags.items()}
        return {leaf: part.to(weight.device) for leaf, part in parts.items()}

    def config(self) -> dict[str, Any]:
        settings = {
            "nbits": self.bits, "channel_wise": True, "group_size": self.group or None, "optimize": True,
            "round_zero": self.bits == 4, "axis": self.axis, "view_as_float": False,
        }  # fmt: skip
        return {
            "quant_method": self.method, "skip_modules": [],
            "quant_config": {
                "weight_quant_params": settings, "scale_quant_params": None, "zero_quant_params": None,
                "offload_meta": False,
            },
        }  # fmt: skip


def unbanded(words: Tensor, bits: int, grid: tuple[int, int]) -> Tensor:
    """Codes (rows, columns) in float32 of words whose bits hold bands of rows, the first one highest."""
    bands, width, _, word = _PACKINGS[bits]
    if words.dtype != word:
        words = words.contiguous().view(word)
    words = words.reshape(-1, grid[1])
    mask = (1 << width) - 1
    found = [((words >> width * (bands - 1 - i)) & mask).float() for i in range(bands)]
    return torch.cat(found)[: grid[0]] if bands > 1 else found[0]


def banded(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `unbanded`."""
    bands, width, _, word = _PACKINGS[bits]
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -len(codes) % bands)).to(torch.int32)
    words = torch.zeros_like(padded[: len(padded) // bands])
    for i, band in enumerate(padded.chunk(bands)):
        words |= band << width * (bands - 1 - i)
    return words.to(word)


def _number(parts: Parts, leaf: str, default: int) -> int:
    if leaf not in parts:
        return default
    demand_shape(parts, leaf, (), (1,))
    return int(parts[leaf])


def _text(value: str) -> Tensor:
    return torch.tensor(list(value.encode()), dtype=torch.uint8)


def flattened(modules: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors by public name of the nested object that HQQ's own `qmodel.pt` holds, sizes as tensors too.

    Zeros and scales that are quantised themselves (files of 2023 and 2024) are expanded.
    """
    found: dict[str, Tensor] = {}
    for module, state in modules.items():
        if not isinstance(state, dict):
            continue
        flat = {**state, **(state.get("meta") or {})}
        if "zero_scale" in flat:
            both = flat.pop("zero_scale")
            names = ("zero_q", "scale_q") if both.dtype == torch.uint8 else ("zero", "scale")
            flat.update(zip(names, both, strict=True))
        for leaf in ("zero", "scale"):
            if f"{leaf}_q" in flat:
                flat[leaf] = _expanded(flat[f"{leaf}_q"], flat.get(f"meta_{leaf}") or {})
                flat[f"quant_{leaf}"] = False
        for leaf, value in flat.items():
            encoded = _encoded(value)
            if encoded is not None and ("W_q" not in flat or leaf in (*HQQ.leaves, "bias")):
                found[f"{module}.{leaf}"] = encoded
    return found


def _expanded(codes: Tensor, meta: dict[str, Any]) -> Tensor:
    shape = tuple(meta["shape"])
    group, axis, count = meta.get("group_size"), meta.get("axis", 0), math.prod(shape)
    rows = (count // group if axis else group) if group else shape[0]
    grid = (rows, count // rows)
    values = unbanded(codes, int(meta.get("nbits", 8)), grid)
    return ((values - meta["zero"].float()) * meta["scale"].float()).reshape(shape)


def _encoded(value: Any) -> Tensor | None:
    """A value as HQQ writes it into safetensors files."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, torch.Size):
        return torch.tensor(list(value))
    if isinstance(value, bool):
        return torch.tensor(int(value), dtype=torch.uint8)
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int32)
    return _text(str(value)) if isinstance(value, (str, torch.dtype)) else None
