"""torchao: the tensor classes of its version 2 as it flattens them into safetensors.

`_weight_qdata`, `_weight_scale`, `_weight_zero_point`, ... stand for a weight; the file's header says, under
the weight's name, which class it is and how large its blocks are. Whole numbers: w = (qdata - zero_point) *
scale, or qdata * scale + zero_point for plain four bits; floats: qdata * scale.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.errors import ArgumentError, ConfigError, CorruptFileError
from phyla.quantization.fp8 import E4M3, LARGEST, has_nan, spread
from phyla.quantization.numbers import Numbers
from phyla.quantization.scheme import FLOATS, Facts, Parts, Scheme, demand, demand_dtype, demand_shape
from phyla.quantization.words import from_halves, halves

_PLAIN = ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor")
_NIBBLES, _TILED = "Int4Tensor", "Int4TilePackedTo4dTensor"
KINDS = (*_PLAIN, _NIBBLES, _TILED)
# What is made, by its public name; inputs stay as they are.
MADE = {
    "int8_weight_only": "Int8Tensor", "int8_dynamic_activation_int8_weight": "Int8Tensor",
    "float8_weight_only": "Float8Tensor", "float8_dynamic_activation_float8_weight": "Float8Tensor",
}  # fmt: skip
# Where in a word of four bits' tiles value 0, 1, ... of eight stands.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class TorchAO(Scheme):
    """kind: the tensor class of one weight. block: (outputs, inputs) that share a scale. shape: (out, in)."""

    method: ClassVar[str] = "torchao"
    markers = ("_weight_qdata",)
    needed = ("_weight_qdata",)
    leaves = tuple(
        f"_weight_{leaf}"
        for leaf in (
            "qdata", "scale", "zero_point", "scale_and_zero", "act_pre_scale", "act_quant_scale",
            "act_quant_zero_point",
        )
    )  # fmt: skip

    kind: str = "Int8Tensor"
    block: tuple[int, int] | None = None
    shape: tuple[int, int] | None = None
    dtype: torch.dtype = torch.float32
    noted: str | None = None

    @classmethod
    def read(cls, config: dict[str, Any]) -> "TorchAO":
        """From a `quantization_config`; what each weight is stands in the header of its file."""
        return cls()

    @classmethod
    def making(cls, config: dict[str, Any]) -> "TorchAO":
        """What settings with a `quant_type` ask for; ArgumentError for types that are not made."""
        name = quant_type(config)
        if name not in MADE:
            raise ArgumentError(
                f"TorchAoConfig.quant_type must be int4_weight_only, {', '.join(MADE)} here, but is {name!r}"
            )
        return cls(kind=MADE[name])

    def one(self, name: str, notes: Mapping[str, str], shape: tuple[int, ...] | None) -> "TorchAO":
        if not notes:  # it is to be made
            block = None if shape is None else (1, shape[1])
            return replace(self, block=block, shape=None if shape is None else (shape[0], shape[1]))
        try:
            told = json.loads(notes[name])
            kind, data = told["_type"], told.get("_data") or {}
            block, size = data.get("block_size"), data.get("shape")
            block = None if block is None else (int(block[-2]), int(block[-1]))
            size = None if size is None else (int(size[-2]), int(size[-1]))
            dtype = getattr(torch, str((data.get("dtype") or {}).get("_data")), None) or self.dtype
            noted = None if told.get("_pickled") else notes[name]
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise CorruptFileError(
                f"the file's header must say how torchao stores {name}, as JSON with _type and block_size, "
                f"but fails: {type(error).__name__}: {error}"
            ) from None
        if kind not in KINDS:
            raise ConfigError(
                f"{name} must be one of torchao's {', '.join(KINDS)}, but is {kind!r}; save the checkpoint "
                "dense, or in one of those"
            )
        return replace(self, kind=kind, block=block, shape=size, dtype=dtype, noted=noted)

    def check(self, parts: Parts) -> Facts:
        for leaf in ("scale_and_zero",) if self.kind == _TILED else ("scale",):
            demand(f"_weight_{leaf}" in parts, f"_weight_{leaf}", "must be there, but is not")
        shape = self._plain(parts) if self.kind in _PLAIN else self._fours(parts)
        if "_weight_act_pre_scale" in parts:
            demand_shape(parts, "_weight_act_pre_scale", (shape[1],), (1, shape[1]), ())
        return Facts(shape)

    def _plain(self, parts: Parts) -> tuple[int, int]:
        allowed = (E4M3, torch.float8_e5m2) if self.kind == "Float8Tensor" else (torch.int8,)
        values = demand_dtype(parts, "_weight_qdata", *allowed)
        demand(values.dim() == 2, "_weight_qdata", f"must be a matrix, but has shape {tuple(values.shape)}")
        out, width = values.shape
        rows, columns = self.block or (1, width)
        demand(
            min(rows, columns) > 0 and out % rows == 0 and width % columns == 0,
            "_weight_qdata",
            f"must be of whole blocks {(rows, columns)}, but has shape {tuple(values.shape)}",
        )
        grid = (out // rows, width // columns)
        each = [grid, (grid[0],) if grid[1] == 1 else grid, () if grid == (1, 1) else grid]
        demand_dtype(parts, "_weight_scale", *FLOATS)
        demand_shape(parts, "_weight_scale", *dict.fromkeys(each))
        if "_weight_zero_point" in parts:
            demand_dtype(parts, "_weight_zero_point", torch.int8, torch.int32, torch.int64, *FLOATS)
            demand_shape(parts, "_weight_zero_point", *dict.fromkeys(each))
        return out, width

    def _fours(self, parts: Parts) -> tuple[int, int]:
        allowed = (torch.int32,) if self.kind == _TILED else (torch.int8, torch.uint8)
        values = demand_dtype(parts, "_weight_qdata", *allowed)
        group = self.block[1] if self.block else 0
        if self.kind == _NIBBLES:
            demand(values.dim() == 2, "_weight_qdata", f"must be a matrix, but has {tuple(values.shape)}")
            out, width = values.shape[0], 2 * values.shape[1]
            demand(
                group > 0 and width % group == 0,
                "_weight_qdata",
                f"must have groups of {group}, but has {width}",
            )
            for leaf in ("_weight_scale", "_weight_zero_point"):
                demand(leaf in parts, leaf, "must be there, but is not")
                demand_dtype(parts, leaf, *FLOATS)
                demand_shape(parts, leaf, (width // group, out))
            return out, width
        demand(
            values.dim() == 4 and values.shape[2] == 32 and self.shape is not None,
            "_weight_qdata",
            f"must have shape (out / 8, in / 128, 32, 4), but has {tuple(values.shape)}",
        )
        padded = (values.shape[0] * 8, values.shape[1] * values.shape[3] * 32)
        out, width = self.shape or padded
        demand(
            out <= padded[0] and width <= padded[1] and group > 0 and padded[1] % group == 0,
            "_weight_qdata",
            f"must hold {(out, width)} in groups of {group}, but holds {padded}",
        )
        demand_dtype(parts, "_weight_scale_and_zero", *FLOATS)
        demand_shape(parts, "_weight_scale_and_zero", (padded[1] // group, padded[0], 2))
        return out, width

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        values = parts["_weight_qdata"]
        if self.kind in _PLAIN:
            values, block = values.float(), self.block or (1, facts.shape[1])
            if "_weight_zero_point" in parts:
                values.sub_(_spread(parts["_weight_zero_point"], facts.shape, block))
            values.mul_(_spread(parts["_weight_scale"], facts.shape, block))
        elif self.kind == _NIBBLES:
            octets, group = values.view(torch.uint8), self.block[1]  # type: ignore[index]
            values = (halves(octets) ^ 8).float().sub_(8)
            values.mul_(parts["_weight_scale"].float().t().repeat_interleave(group, 1))
            values.add_(parts["_weight_zero_point"].float().t().repeat_interleave(group, 1))
        else:
            values, told = untiled(values).float().sub_(8), parts["_weight_scale_and_zero"].float()
            group = self.block[1]  # type: ignore[index]
            values.mul_(told[..., 0].t().repeat_interleave(group, 1))
            values.add_(told[..., 1].t().repeat_interleave(group, 1))
            values = values[: facts.shape[0], : facts.shape[1]].contiguous()
        # Inputs are to be multiplied by it, which is the same as the columns.
        ahead = parts.get("_weight_act_pre_scale")
        return values if ahead is None else values.mul_(ahead.float())

    def numbers(self, parts: Parts, facts: Facts) -> Numbers | None:
        shape, codes = (facts.shape[0], facts.shape[1]), parts["_weight_qdata"]
        if self.kind == _TILED or "_weight_act_pre_scale" in parts:
            return None
        if self.kind == _NIBBLES:
            codes = halves(codes.view(torch.uint8)) ^ 8
            scale, zero = parts["_weight_scale"].float().t(), parts["_weight_zero_point"].float().t()
            table = torch.arange(-8.0, 8.0, device=codes.device)
            return Numbers(codes, scale, shape[1] // scale.shape[1], table, zero, relative=False)
        zeros = parts.get("_weight_zero_point")
        if codes.dtype != torch.int8 and (codes.dtype != E4M3 or has_nan(codes) or zeros is not None):
            return None
        rows, columns = self.block or (1, shape[1])
        grid = (shape[0] // rows, shape[1] // columns)
        scale = parts["_weight_scale"].float().reshape(grid).repeat_interleave(rows, 0)
        if zeros is None or not zeros.any():
            return Numbers(codes, scale, columns)
        return Numbers(codes, scale, columns, None, zeros.float().reshape(grid).repeat_interleave(rows, 0))

    def bulk(self, parts: Parts) -> str:
        return "_weight_qdata"

    def stored(self, codes: Tensor, like: Tensor, facts: Facts) -> Tensor:
        if self.kind != _NIBBLES:
            return codes
        return from_halves(codes ^ 8).view(like.dtype)

    def quantise(self, weight: Tensor) -> Parts:
        numbers = weight.float()
        largest = numbers.abs().amax(1, keepdim=True)
        if self.kind == "Float8Tensor":
            scale = (largest / LARGEST).clamp_min(1e-12)
            values = (numbers / scale).clamp_(-LARGEST, LARGEST).to(E4M3)
            return {"_weight_qdata": values, "_weight_scale": scale}
        scale = (largest / 127.5).clamp_min(torch.finfo(torch.float32).eps)
        values = (numbers / scale).round_().clamp_(-128, 127).to(torch.int8)
        return {
            "_weight_qdata": values, "_weight_scale": scale,
            "_weight_zero_point": torch.zeros_like(scale, dtype=torch.int8),
        }  # fmt: skip

    def note(self) -> str | None:
        if self.noted is not None:
            return self.noted
        block, dtype = list(self.block or ()), _typed("torch.dtype", str(self.dtype).removeprefix("torch."))
        data: dict[str, Any] = {"block_size": block, "dtype": dtype}
        names = ["qdata", "scale", "zero_point"]
        if self.kind == "Int8Tensor":
            data |= {"act_quant_kwargs": None, "reduce_range": False}
        elif self.kind == "Float8Tensor":
            preference = _typed("KernelPreference", "AUTO")
            data |= {"act_quant_kwargs": None, "mm_config": None, "kernel_preference": preference}
            names = names[:2]
        elif self.kind in _PLAIN:
            data |= {"target_dtype": _typed("torch.dtype", "int8"), "activation_quantization": None}
        else:
            data = {"block_size": block, "shape": list(self.shape or ())}
            names = ["qdata", "scale_and_zero"] if self.kind == _TILED else names
        return json.dumps({"_type": self.kind, "_data": data, "_tensor_data_names": names})

    def completed(self, settings: dict[str, Any]) -> dict[str, Any]:
        if isinstance(settings.get("quant_type"), dict):
            return settings
        told: dict[str, Any] = {"set_inductor_config": True}
        by_row = _typed("PerRow", {"dim": -1}, 1)
        if self.kind == "Int8Tensor":
            name, told = "Int8WeightOnlyConfig", {**told, "granularity": by_row, "group_size": None}
        elif self.kind == "Float8Tensor":
            weights = _typed("torch.dtype", "float8_e4m3fn")
            name, told = "Float8WeightOnlyConfig", {**told, "granularity": by_row, "weight_dtype": weights}
        elif self.kind in _PLAIN:
            name, told = "IntxWeightOnlyConfig", {
                "weight_dtype": _typed("torch.dtype", "int8"),
                "granularity": _typed("PerAxis", {"axis": 0}, 1),
                "mapping_type": _typed("MappingType", "SYMMETRIC"), "scale_dtype": None,
                "intx_packing_format": _typed("IntxPackingFormat", "UNPACKED_TO_INT8"),
                "intx_choose_qparams_algorithm": _typed("IntxChooseQParamsAlgorithm", "AFFINE"),
            }  # fmt: skip
        else:
            name, told = "Int4WeightOnlyConfig", {**told, "group_size": self.block[1] if self.block else 128}
        return {
            "quant_method": self.method, "quant_type": {"default": _typed(name, told, 2)},
            "include_input_output_embeddings": False, "untie_embedding_weights": False,
        }  # fmt: skip

    def config(self) -> dict[str, Any]:
        return self.completed({})


def _typed(name: str, data: Any, version: int | None = None) -> dict[str, Any]:
    """A value as torchao writes it into JSON."""
    return {"_type": name, "_data": data} | ({} if version is None else {"_version": version})


def quant_type(config: dict[str, Any]) -> str:
    """The short name of what a `quantization_config` asks for; newer files hold settings by class."""
    told = config.get("quant_type")
    if not isinstance(told, dict):
        return str(told)
    name = str((told.get("default") or told).get("_type"))
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removesuffix("Config")).lower()


def untiled(words: Tensor) -> Tensor:
    """Codes (out, in) of words int32 (out / 8, in / 32 n, 32, n) in the order of tensor cores of m16n8k16.

    A word of thread t = 4 row + quarter holds, for two tiles of 16 inputs, inputs 2 quarter + {0, 1, 8, 9}.
    """
    nibbles = (words[..., None] >> torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)) & 15
    ordered = nibbles[..., list(_PLACES)].unflatten(-1, (2, 2, 2)).unflatten(2, (8, 4))
    rows, outer, _, _, pairs = ordered.shape[:5]  # then: tile, eight, one
    return ordered.permute(0, 2, 1, 4, 5, 6, 3, 7).reshape(rows * 8, outer * pairs * 32)


def _spread(number: Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> Tensor:
    """Scales or zeros, one for each block, in a shape that goes with a weight (out, in)."""
    if number.numel() == 1 or block == (1, shape[1]):
        return spread(number.float(), shape, None)
    return spread(number.float().reshape(shape[0] // block[0], -1), shape, block)
