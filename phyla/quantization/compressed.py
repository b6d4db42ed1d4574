"""compressed-tensors (vLLM project): packed and plain whole numbers, eight-bit floats, NVFP4 and MXFP4.

`weight_packed` int32 holds numbers of 1 to 8 bits along the inputs, moved up by half their range; with
`weight_shape`, `weight_scale` (out, groups), and, asymmetric, `weight_zero_point` packed along the outputs.
`weight` int8 or fp8 with `weight_scale` stands as it is. `weight_packed` uint8 holds pairs of E2M1 codes, low
one first, with scales of fp8 (NVFP4, divided by `weight_global_scale`) or exponents biased by 127 (MXFP4).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.errors import ArgumentError, ConfigError
from phyla.quantization.fp8 import E4M3, LARGEST, by_group, has_nan
from phyla.quantization.numbers import Numbers
from phyla.quantization.scheme import (
    FLOATS,
    Facts,
    Parts,
    Scheme,
    demand,
    demand_dtype,
    demand_shape,
    order_of,
)
from phyla.quantization.tables import E2M1, expand, pairs
from phyla.quantization.words import from_halves, halves, pack, unpack, word_count

FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mixed-precision", "dense",
)  # fmt: skip
_HALF_BYTES = {E4M3: 16, torch.uint8: 32}  # dtype of the scales -> values that share one


@dataclass(frozen=True)
class Compressed(Scheme):
    """bits, group, symmetric, floats: of what is made, from the first group of the configuration.

    group: inputs that share a scale, None for one an output, 0 for one in all. block: (outputs, inputs) that
    share one. choices: the bits of all groups of the configuration.
    """

    method: ClassVar[str] = "compressed-tensors"
    dense_maps: ClassVar[str] = "ignore"
    markers = ("weight_scale",)
    needed = ("weight_scale",)
    leaves = (
        "weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
        "weight_global_scale",
    )  # fmt: skip

    bits: int = 4
    group: int | None = 128
    symmetric: bool = True
    floats: bool = False
    form: str = "pack-quantized"
    block: tuple[int, int] | None = None
    choices: tuple[int, ...] = (4,)
    told: Any = None

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Compressed":
        """From a `quantization_config`; ConfigError for sparse and other formats that are not read."""
        groups = config.get("config_groups") or {}
        weights = [g.get("weights") or {} for g in groups.values() if isinstance(g, dict)] or [{}]
        form = str(config.get("format") or "dense")
        if form not in FORMATS:
            raise ConfigError(
                f"quantization_config.format must be one of {', '.join(FORMATS)}, but is {form!r}; save the "
                "checkpoint dense, or in one of those, with llm-compressor"
            )
        sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
        if sparsity != "dense":
            raise ConfigError(
                f"quantization_config.sparsity_config.format must be dense, but is {sparsity!r}: sparse "
                "weights are not read; save the checkpoint without save_compressed"
            )
        first = weights[0]
        strategy, block = first.get("strategy"), first.get("block_structure")
        group: int | None = first.get("group_size")
        group = 0 if strategy == "tensor" else None if strategy == "channel" else group
        return cls(
            int(first.get("num_bits") or 4), group, bool(first.get("symmetric", True)),
            first.get("type") == "float", form,
            (block[0], block[1]) if strategy == "block" and block else None,
            tuple(int(w.get("num_bits") or 4) for w in weights), config,
        )  # fmt: skip

    def modules(self, names: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        # Dense files hold the scales that their weights were rounded with, too.
        return iter(()) if self.form == "dense" else super().modules(names)

    def passes_over(self, leaf: str, quantised: bool = True) -> bool:
        # Activations and the cache are quantised beside dense weights, too.
        return super().passes_over(leaf) or (self.form == "dense" and leaf in self.leaves[2:])

    def check(self, parts: Parts) -> Facts:
        if "weight_packed" not in parts:
            demand("weight" in parts, "weight", "must be there beside weight_scale, but is not")
            return Facts(self._plain_shape(parts), (0, _is_ordered(parts)))
        if demand_dtype(parts, "weight_packed", torch.int32, torch.uint8).dtype == torch.uint8:
            return Facts(self._half_byte_shape(parts))
        words = parts["weight_packed"]
        demand("weight_shape" in parts, "weight_shape", "must be there beside weight_packed, but is not")
        sizes = [int(n) for n in demand_shape(parts, "weight_shape", (2,))]
        demand(
            words.dim() == 2 and words.shape[0] == sizes[0] and sizes[1] > 0,
            "weight_packed",
            f"must have {sizes[0]} rows by weight_shape {sizes}, but has shape {tuple(words.shape)}",
        )
        out, width = sizes
        bits = self._bits(words.shape[1], width)
        demand(
            bits > 0,
            "weight_packed",
            f"must have rows of {width} numbers of {self.choices} bits, but has {words.shape[1]} words",
        )
        groups = self._group_count(parts, (out, width))
        if "weight_zero_point" in parts:
            zeros = demand_dtype(parts, "weight_zero_point", torch.int32, torch.int8)
            rows = word_count(out, bits) if zeros.dtype == torch.int32 else out
            demand_shape(parts, "weight_zero_point", (rows, groups))
        return Facts((out, width), (bits, _is_ordered(parts)))

    def _bits(self, words: int, width: int) -> int:
        return next((b for b in (*self.choices, *range(1, 9)) if word_count(width, b) == words), 0)

    def _group_count(self, parts: Parts, shape: tuple[int, int]) -> int:
        scale = demand_dtype(parts, "weight_scale", *FLOATS)
        out, width = shape
        if scale.numel() == 1:
            return 1
        demand(
            scale.dim() == 2 and len(scale) == out and 0 < scale.shape[1] <= width,
            "weight_scale",
            f"must have {out} rows and at most {width} groups, but has shape {tuple(scale.shape)}",
        )
        groups = scale.shape[1]
        if "weight_g_idx" in parts:
            index = demand_shape(parts, "weight_g_idx", (width,))
            demand(
                bool(((index >= -1) & (index < groups)).all()),
                "weight_g_idx",
                f"must name groups below {groups}, but does not",
            )
        else:
            size = self.group or -(-width // groups)
            demand(
                groups in (1, -(-width // size)),
                "weight_scale",
                f"must have 1 or {-(-width // size)} groups of {size}, but has {groups}",
            )
        return groups

    def _plain_shape(self, parts: Parts) -> tuple[int, int]:
        values = demand_dtype(parts, "weight", torch.int8, E4M3, torch.float8_e5m2)
        demand(values.dim() == 2, "weight", f"must be a matrix, but has shape {tuple(values.shape)}")
        out, width = values.shape
        demand_dtype(parts, "weight_scale", *FLOATS)
        if self.block is not None and parts["weight_scale"].dim() == 2:
            blocks = (-(-out // self.block[0]), -(-width // self.block[1]))
            demand_shape(parts, "weight_scale", blocks, (1, 1), (out, 1))
        elif parts["weight_scale"].dim() < 2:
            demand_shape(parts, "weight_scale", (), (1,), (out,))
        else:
            self._group_count(parts, (out, width))
        zeros = parts.get("weight_zero_point")
        if zeros is not None:
            demand_shape(parts, "weight_zero_point", tuple(parts["weight_scale"].shape))
        return out, width

    def _half_byte_shape(self, parts: Parts) -> tuple[int, int]:
        octets = parts["weight_packed"]
        demand(octets.dim() == 2, "weight_packed", f"must be a matrix, but has shape {tuple(octets.shape)}")
        out, width = octets.shape[0], 2 * octets.shape[1]
        scale = demand_dtype(parts, "weight_scale", *_HALF_BYTES)
        demand_shape(parts, "weight_scale", (out, -(-width // _HALF_BYTES[scale.dtype])))
        if "weight_global_scale" in parts:
            demand_shape(parts, "weight_global_scale", (), (1,))
        return out, width

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        scale, zeros = parts["weight_scale"], parts.get("weight_zero_point")
        index = None if facts.extra is None or facts.extra[1] else parts["weight_g_idx"]
        if "weight_packed" not in parts:
            values = parts["weight"].float()
            return self._grouped(values, scale, zeros, index)
        words = parts["weight_packed"]
        if words.dtype == torch.uint8:
            return _half_bytes(words, scale, parts.get("weight_global_scale"))
        (out, width), bits = facts.shape, facts.extra[0]
        half = 1 << bits - 1
        values = unpack(words, bits, width).float().sub_(half)
        if zeros is not None and zeros.dtype == torch.int32:
            zeros = unpack(zeros.t().contiguous(), bits, out).t().float() - half
        return self._grouped(values, scale, zeros, index)

    def numbers(self, parts: Parts, facts: Facts) -> Numbers | None:
        shape, zeros = (facts.shape[0], facts.shape[1]), parts.get("weight_zero_point")
        if "weight_packed" not in parts:
            codes, table = parts["weight"], None
            floats = codes.dtype != torch.int8
            if floats and (codes.dtype != E4M3 or zeros is not None or has_nan(codes)):
                return None
        elif parts["weight_packed"].dtype == torch.uint8:
            codes, table = halves(parts["weight_packed"]), torch.tensor(E2M1)
            scale = _half_byte_scale(parts["weight_scale"], parts.get("weight_global_scale"))
            return Numbers(codes, scale, _HALF_BYTES[parts["weight_scale"].dtype], table.to(codes.device))
        else:
            bits = facts.extra[0]
            codes, half = unpack(parts["weight_packed"], bits, shape[1]), 1 << bits - 1
            table = torch.arange(16.0, device=codes.device) - half
            if bits > 4:
                codes, table = (codes - half).view(torch.int8), None
            if zeros is not None and zeros.dtype == torch.int32:
                zeros = unpack(zeros.t().contiguous(), bits, shape[0]).t().float() - half
        scale, group = self._by_group(parts["weight_scale"].float(), shape)
        order = None
        if not facts.extra[1]:
            order = order_of(parts["weight_g_idx"].long(), group)
            if order is None:
                return None
        if zeros is not None:
            zeros, wanted = self._by_group(zeros.float(), shape)
            if wanted != group:
                return None
        return Numbers(codes, scale, group, table, zeros, order=order)

    def _by_group(self, number: Tensor, shape: tuple[int, int]) -> tuple[Tensor, int]:
        """Scales or zeros of whatever strategy as (out, groups), and the inputs of a group."""
        if self.block is not None and number.dim() == 2 and number.shape != (shape[0], 1):
            return by_group(number, shape, self.block)
        if number.numel() == 1 or number.dim() < 2 or number.shape[1] == 1:
            return by_group(number, shape, None)
        return number, self.group or -(-shape[1] // number.shape[1])

    def bulk(self, parts: Parts) -> str:
        return "weight_packed" if "weight_packed" in parts else "weight"

    def stored(self, codes: Tensor, like: Tensor, facts: Facts) -> Tensor:
        if like.dtype == torch.uint8:
            return from_halves(codes)
        if like.dtype != torch.int32:
            return codes
        bits = facts.extra[0]
        return pack(codes.view(torch.uint8) + (1 << bits - 1) if bits > 4 else codes, bits)

    def _grouped(self, values: Tensor, scale: Tensor, zeros: Tensor | None, index: Tensor | None) -> Tensor:
        """(values (out, in) - zeros) * scale, scales and zeros of whatever strategy."""
        out, width = values.shape
        for number, change in ((zeros, values.sub_), (scale, values.mul_)):
            if number is None:
                continue
            number, group = self._by_group(number.float(), (out, width))
            if number.shape[1] == 1:
                change(number)
            elif index is not None and self.block is None:
                change(number[:, index.long()])
            else:
                change(number.repeat_interleave(group, 1)[:, :width])
        return values

    def quantise(self, weight: Tensor) -> Parts:
        if self.form not in FORMATS[:4] or self.block is not None or self.group == 0:
            raise ArgumentError(
                "while loading, compressed-tensors makes pack-, int-, float- and naive-quantized weights "
                f"with the strategies group and channel, but is to make {self.form} with {self.told!r}"
            )
        out, width = weight.shape
        grouped = weight.float().unflatten(1, (-1, self.group or width))  # (out, groups, group)
        if self.floats:
            scale = (grouped.abs().amax(2) / LARGEST).clamp_min(1e-12)
            values = (grouped / scale[:, :, None]).clamp_(-LARGEST, LARGEST)
            return {"weight": values.flatten(1).to(E4M3), "weight_scale": scale}
        values, scale, zeros = rounded(grouped, self.bits, self.symmetric)
        parts = {"weight_scale": scale}
        half = 1 << self.bits - 1
        if self.form == "pack-quantized":
            parts["weight_packed"] = pack(values.flatten(1).int() + half, self.bits)
            parts["weight_shape"] = torch.tensor([out, width], device=weight.device)
            if zeros is not None:
                parts["weight_zero_point"] = pack(zeros.t().int() + half, self.bits).t().contiguous()
            return parts
        parts["weight"] = values.flatten(1).to(torch.int8)
        return parts if zeros is None else parts | {"weight_zero_point": zeros.to(torch.int8)}

    def packs(self, shape: Any) -> bool:
        return len(shape) == 2 and not (self.group and shape[1] % self.group)

    def completed(self, settings: dict[str, Any]) -> dict[str, Any]:
        settings = {**settings, "quantization_status": "compressed"}
        if self.form != "int-quantized":
            return settings
        # Version 0.20 takes weights of whole numbers without inputs for packed ones unless their group says.
        groups = settings.get("config_groups") or {}
        told = {name: {"format": self.form, **g} for name, g in groups.items() if isinstance(g, dict)}
        return {**settings, "config_groups": {**groups, **told}}

    def config(self) -> dict[str, Any]:
        if self.told:
            return dict(self.told)
        weights = {
            "num_bits": self.bits, "type": "float" if self.floats else "int", "symmetric": self.symmetric,
            "strategy": "group" if self.group else "channel", "group_size": self.group or None,
        }  # fmt: skip
        return {
            "quant_method": self.method, "format": self.form, "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }  # fmt: skip


def _is_ordered(parts: Parts) -> bool:
    """Whether the groups of the inputs follow each other; an index of -1 says so, too."""
    index = parts.get("weight_g_idx")
    return index is None or bool((index < 0).any())


def rounded(grouped: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Nearest whole numbers (out, groups, group) from -2^(bits-1), their scales and zeros (out, groups)."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    if symmetric:
        scale = (grouped.abs().amax(2) / ((high - low) / 2)).clamp_min(1e-12)
        return (grouped / scale[:, :, None]).round_().clamp_(low, high), scale, None
    least, most = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
    scale = ((most - least) / (high - low)).clamp_min(1e-12)
    zeros = (low - least / scale).round_().clamp_(low, high)
    return (grouped / scale[:, :, None]).add_(zeros[:, :, None]).round_().clamp_(low, high), scale, zeros


def _half_byte_scale(scale: Tensor, overall: Tensor | None) -> Tensor:
    factor = torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()
    return factor if overall is None else factor / overall.float()


def _half_bytes(octets: Tensor, scale: Tensor, overall: Tensor | None) -> Tensor:
    group, factor = _HALF_BYTES[scale.dtype], _half_byte_scale(scale, overall)
    values = expand(octets, pairs(E2M1, high_first=False))
    return values.mul_(factor.repeat_interleave(group, 1)[:, : values.shape[1]])
