"""Quanto (optimum-quanto): whole numbers of 8, 4 and 2 bits and floats of eight.

`weight._data` int8 or float8 (out, in) times `weight._scale` (out, 1). Below eight bits `weight._data._data`
bytes hold groups (n, group) of codes cut into equal bands of rows, the first in the lowest bits; w = code *
`weight._scale` - `weight._shift`, each (n, 1). Files do not say the weight's shape: that is the model's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.errors import ConfigError
from phyla.quantization.fp8 import E4M3, by_group, has_nan
from phyla.quantization.numbers import Numbers
from phyla.quantization.scheme import FLOATS, Facts, Parts, Scheme, demand, demand_dtype, demand_shape

QMAP = "quanto_qmap.json"
_EIGHTS = (torch.int8, E4M3, torch.float8_e5m2)
_BITS = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}
_NAMES = {torch.int8: "qint8", E4M3: "qfloat8_e4m3fn", torch.float8_e5m2: "qfloat8_e5m2"}


@dataclass(frozen=True)
class Quanto(Scheme):
    """kind: what is made (int8, int4, int2, float8). shape: of one weight (out, in)."""

    method: ClassVar[str] = "quanto"
    markers = ("weight._data", "weight._data._data")
    needed = ("weight._scale",)
    leaves = (
        "weight._data", "weight._data._data", "weight._scale", "weight._shift", "input_scale", "output_scale",
    )  # fmt: skip

    kind: str = "int8"
    shape: tuple[int, int] | None = None

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Quanto":
        """From a `quantization_config`, or what stands for one beside a map of Quanto's own."""
        kind = config.get("weights") or "int8"
        if kind not in _BITS:
            raise ConfigError(
                f"quantization_config.weights must be one of {', '.join(_BITS)}, but is {kind!r}"
            )
        return cls(kind)

    def one(self, name: str, notes: Mapping[str, str], shape: tuple[int, ...] | None) -> "Quanto":
        return replace(self, shape=(shape[0], shape[1]) if shape is not None and len(shape) == 2 else None)

    def check(self, parts: Parts) -> Facts:
        demand_dtype(parts, "weight._scale", *FLOATS)
        if "weight._data" in parts:
            values = demand_dtype(parts, "weight._data", *_EIGHTS)
            demand(values.dim() == 2, "weight._data", f"must be a matrix, but has {tuple(values.shape)}")
            demand_shape(parts, "weight._scale", (values.shape[0], 1), ())
            return Facts(tuple(values.shape))
        octets = demand_dtype(parts, "weight._data._data", torch.uint8)
        demand(octets.dim() == 2, "weight._data._data", f"must be a matrix, but has {tuple(octets.shape)}")
        demand("weight._shift" in parts, "weight._shift", "must be there beside packed codes, but is not")
        rows, group = parts["weight._scale"].shape[0] if parts["weight._scale"].dim() else 0, octets.shape[1]
        for leaf in ("weight._scale", "weight._shift"):
            demand_shape(parts, leaf, (rows, 1))
        demand_dtype(parts, "weight._shift", *FLOATS, torch.int8, torch.uint8)
        bits = _bits(parts)
        demand(
            bits > 0,
            "weight._data._data",
            f"must have a half or a quarter of the {rows} rows of weight._scale, but has {octets.shape[0]}",
        )
        shape = self.shape or (rows, group)
        demand(
            shape[0] * shape[1] == rows * group,
            "weight._data._data",
            f"must hold the {shape[0] * shape[1]} codes of {shape}, but holds {rows * group}",
        )
        return Facts(shape, bits)

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        scale = parts["weight._scale"].float()
        if "weight._data" in parts:
            return parts["weight._data"].float().mul_(scale)
        shift = parts["weight._shift"]
        values = _from_bands(parts["weight._data._data"], facts.extra, len(scale)).float()
        if shift.is_floating_point():
            return values.mul_(scale).sub_(shift.float()).view(facts.shape)
        return values.sub_(shift.float()).mul_(scale).view(facts.shape)

    def numbers(self, parts: Parts, facts: Facts) -> Numbers | None:
        out, width = facts.shape
        scale, codes = parts["weight._scale"].float(), parts.get("weight._data")
        if codes is not None:
            taken = codes.dtype == torch.int8 or (codes.dtype == E4M3 and not has_nan(codes))
            return Numbers(codes, *by_group(scale, (out, width), None)) if taken else None
        octets, shift = parts["weight._data._data"], parts["weight._shift"]
        group = octets.shape[1]
        if width % group:
            return None
        bands = _from_bands(octets, facts.extra, len(scale))
        relative = not shift.is_floating_point()
        zero = (shift.float() if relative else -shift.float()).view(out, -1)
        table = torch.arange(16.0, device=octets.device)
        return Numbers(bands.view(out, width), scale.view(out, -1), group, table, zero, relative)

    def bulk(self, parts: Parts) -> str:
        return "weight._data" if "weight._data" in parts else "weight._data._data"

    def stored(self, codes: Tensor, like: Tensor, facts: Facts) -> Tensor:
        return codes if facts.extra is None else _in_bands(codes.view(-1, like.shape[1]), facts.extra)

    def quantise(self, weight: Tensor) -> Parts:
        one = torch.ones((), dtype=weight.dtype, device=weight.device)
        parts = {"input_scale": one, "output_scale": one.clone()}
        numbers, bits = weight.float(), _BITS[self.kind]
        if bits == 8:
            dtype = torch.int8 if self.kind == "int8" else E4M3
            top = 127.0 if self.kind == "int8" else torch.finfo(E4M3).max
            scale = (numbers.abs().amax(1, keepdim=True) / top).clamp_min(1e-12).to(weight.dtype)
            values = (numbers / scale.float()).clamp_(-top - (dtype == torch.int8), top)
            values = values.round_() if dtype == torch.int8 else values
            return {"weight._data": values.to(dtype), "weight._scale": scale, **parts}
        grouped = numbers.reshape(-1, group_of(weight.shape[1]))
        least, most = grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
        scale = ((most - least) / ((1 << bits) - 1)).clamp_min(1e-12).to(weight.dtype)
        shift = (-least).to(weight.dtype)
        codes = (
            ((grouped + shift.float()) / scale.float()).round_().clamp_(0, (1 << bits) - 1).to(torch.uint8)
        )
        return {
            "weight._data._data": _in_bands(codes, bits),
            "weight._scale": scale, "weight._shift": shift, **parts,
        }  # fmt: skip

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": self.method, "weights": self.kind, "activations": None,
            "modules_to_not_convert": None,
        }  # fmt: skip

    def completed(self, settings: dict[str, Any]) -> None:
        return None  # its tools look for a file of their own, and others would take settings for theirs

    def files(self, maps: Mapping[str, Parts]) -> dict[str, bytes]:
        told = {name: {"weights": _kind(parts), "activations": "none"} for name, parts in maps.items()}
        return {QMAP: (json.dumps(told, indent=4) + "\n").encode()}


def group_of(width: int) -> int:
    """How many of the inputs share a scale: the largest of 128, 96, 64 and 32 that divides them, or all."""
    if width > 128:
        return next((group for group in (128, 96, 64, 32) if width % group == 0), width)
    return width


def _in_bands(codes: Tensor, bits: int) -> Tensor:
    """Bytes of equal bands of the rows of codes, the first in the lowest bits."""
    bands = -(-len(codes) * bits // 8)
    codes = torch.nn.functional.pad(codes, (0, 0, 0, bands * (8 // bits) - len(codes)))
    words = torch.zeros_like(codes[:bands])
    for i, band in enumerate(codes.split(bands)):
        words |= band << bits * i
    return words


def _from_bands(octets: Tensor, bits: int, rows: int) -> Tensor:
    """The inverse: codes of so many rows."""
    return torch.cat([octets >> i & (1 << bits) - 1 for i in range(0, 8, bits)])[:rows]


def _bits(parts: Parts) -> int:
    """Of packed codes, by how many bytes there are for the rows of scales; 0 for what cannot be."""
    rows, words = len(parts["weight._scale"]), len(parts["weight._data._data"])
    return next((bits for bits in (4, 2) if -(-rows * bits // 8) == words), 0)


def _kind(parts: Parts) -> str:
    """Quanto's name of what the parts hold."""
    return _NAMES[parts["weight._data"].dtype] if "weight._data" in parts else f"qint{_bits(parts)}"


def kind_of(qmap: bytes) -> str:
    """The kind of the weights that a map of Quanto's own names first."""
    names = {name: kind for kind, name in zip(("int8", "float8"), _NAMES.values(), strict=False)}
    told = json.loads(qmap)
    first = next((str(v.get("weights")) for v in told.values() if isinstance(v, dict)), "qint8")
    return names.get(first, first.removeprefix("q"))
