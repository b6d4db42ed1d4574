"""bitsandbytes: NF4 and FP4 (Dettmers et al. 2023, arXiv:2305.14314), LLM.int8() (2022, arXiv:2208.07339).

Four bits: `weight` is bytes of two codes, high one first, in blocks of (mostly) 64 values with one scale each
(`weight.absmax`); double quantisation stores the scales as codes of their own. A JSON text in bytes
(`weight.quant_state.bitsandbytes__nf4`) says shapes and sizes. Eight bits: w = weight * SCB / 127.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.errors import ShapeMismatchError
from phyla.quantization.numbers import Numbers
from phyla.quantization.scheme import Facts, Parts, Scheme, demand, demand_dtype, demand_shape
from phyla.quantization.tables import FP4, NF4, dynamic_map, expand, nearest_codes

KINDS = {"nf4": NF4, "fp4": FP4}
_STATE = "weight.quant_state.bitsandbytes__"
_BLOCK, _NESTED_BLOCK = 64, 256
_LEAST_GROUP = 16  # values below which a scale for each group costs more than it saves
_STORES = (torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class FourBits(Scheme):
    """What is made: kind nf4 or fp4, nested: its scales are quantised too, dtype: that of the weight."""

    method: ClassVar[str] = "bitsandbytes"
    dense_maps: ClassVar[str] = "llm_int8_skip_modules"
    markers = tuple(_STATE + kind for kind in KINDS)
    needed = ("weight", "weight.absmax", "weight.quant_map")
    leaves = (
        "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
        *markers,
    )  # fmt: skip

    kind: str = "nf4"
    nested: bool = False
    dtype: torch.dtype = torch.float32

    def check(self, parts: Parts) -> Facts:
        state = _state(parts)
        shape, block = state["shape"], state["blocksize"]
        numel = shape[0] * shape[1]
        blocks = -(-numel // block)
        octets = demand_dtype(parts, "weight", *_STORES)
        held = octets.numel() * octets.element_size()
        demand(
            -(-numel // 2) <= held < -(-numel // 2) + 8,
            "weight",
            f"must hold {-(-numel // 2)} bytes for {shape}, but holds {held}",
        )
        demand_shape(parts, "weight.quant_map", (16,))
        demand_shape(parts, "weight.absmax", (blocks,))
        if state.get("nested_blocksize") is None:
            demand_dtype(parts, "weight.absmax", torch.float32)
            return Facts(shape, state)
        demand_dtype(parts, "weight.absmax", torch.uint8)
        for leaf in ("weight.nested_absmax", "weight.nested_quant_map"):
            demand(leaf in parts, leaf, "must be there where the scales are quantised too, but is not")
        demand_shape(parts, "weight.nested_quant_map", (256,))
        demand_shape(parts, "weight.nested_absmax", (-(-blocks // state["nested_blocksize"]),))
        return Facts(shape, state)

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        state, (out, width), scales = facts.extra, facts.shape, self._scales(parts, facts)
        table, octets = parts["weight.quant_map"].float(), torch.arange(256, device=scales.device)
        pairs = torch.stack((table[octets >> 4], table[octets & 15]), -1)
        codes = parts["weight"].contiguous().view(torch.uint8).flatten()
        values = expand(codes, pairs)[: out * width]
        return _scaled(values, scales, state["blocksize"]).view(out, width)

    def _scales(self, parts: Parts, facts: Facts) -> Tensor:
        """One for each block of values in a row."""
        state, scales = facts.extra, parts["weight.absmax"]
        nested = state.get("nested_blocksize")
        if nested is None:
            return scales
        table = parts["weight.nested_quant_map"].float()
        scales = _scaled(table[scales.int()], parts["weight.nested_absmax"].float(), nested)
        return scales + state["nested_offset"]

    def numbers(self, parts: Parts, facts: Facts) -> Numbers | None:
        (out, width), block = facts.shape, facts.extra["blocksize"]
        group = math.gcd(width, block)  # blocks run on from row to row
        if group < _LEAST_GROUP:
            return None
        octets = parts["weight"].contiguous().view(torch.uint8).flatten()
        codes = torch.stack((octets >> 4, octets & 15), -1).flatten()[: out * width].view(out, width)
        starts = torch.arange(0, out * width, group, device=codes.device)
        scales = self._scales(parts, facts)[starts // block].view(out, -1)
        return Numbers(codes, scales, group, parts["weight.quant_map"].float())

    def stored(self, codes: Tensor, like: Tensor, facts: Facts) -> Tensor:
        pairs = torch.nn.functional.pad(codes.flatten(), (0, codes.numel() % 2)).view(-1, 2)
        octets = pairs[:, 0] << 4 | pairs[:, 1]
        held = like.numel() * like.element_size()
        octets = torch.nn.functional.pad(octets, (0, held - len(octets)))
        return octets.view(like.dtype).view(like.shape)

    def quantise(self, weight: Tensor) -> Parts:
        values, shape = weight.float().flatten(), list(weight.shape)
        table = torch.tensor(KINDS[self.kind], device=weight.device)
        codes, scales = _in_blocks(values, table, _BLOCK)
        codes = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
        state: dict[str, Any] = {
            "quant_type": self.kind, "blocksize": _BLOCK, "shape": shape,
            "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip
        parts = {"weight": (codes[:, 0] << 4 | codes[:, 1])[:, None], "weight.quant_map": table}
        if self.nested:
            offset = scales.mean()
            moved = dynamic_map().to(weight.device)
            scales, parts["weight.nested_absmax"] = _in_blocks(scales - offset, moved, _NESTED_BLOCK)
            parts["weight.nested_quant_map"] = moved
            state |= {
                "nested_blocksize": _NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(offset),
            }  # fmt: skip
        parts["weight.absmax"] = scales
        text = json.dumps(state).encode()
        parts[_STATE + self.kind] = torch.tensor(list(text), dtype=torch.uint8, device=weight.device)
        return parts


def _in_blocks(values: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes (n) and the largest magnitude of each block of values (n); the last block may be shorter."""
    padded = torch.nn.functional.pad(values, (0, -len(values) % block)).view(-1, block)
    largest = padded.abs().amax(1)
    scaled = (padded / largest.clamp_min(1e-38)[:, None]).clamp_(-1, 1)
    return nearest_codes(scaled.flatten()[: len(values)], table), largest


def _scaled(values: Tensor, scales: Tensor, block: int) -> Tensor:
    """Values (n) times the scale of their block."""
    if len(values) == len(scales) * block:
        return (values.view(-1, block) * scales[:, None]).flatten()
    return values * scales.repeat_interleave(block)[: len(values)]


def _state(parts: Parts) -> dict[str, Any]:
    """The JSON text beside a weight, its sizes checked."""
    leaf = next(name for name in parts if name.startswith(_STATE))
    try:
        state = json.loads(bytes(demand_dtype(parts, leaf, torch.uint8).flatten().tolist()))
        shape = tuple(int(n) for n in state["shape"])
        sizes = [int(state["blocksize"]), *shape]
        if state.get("nested_blocksize") is not None:
            sizes.append(int(state["nested_blocksize"]))
            state["nested_offset"] = float(state["nested_offset"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShapeMismatchError(
            f"{leaf} must be JSON with shape and blocksize, but fails: {error}"
        ) from None
    demand(
        len(shape) == 2 and all(0 < n < 2**31 for n in sizes),
        leaf,
        f"must have two sizes and a block size above 0, but has {sizes}",
    )
    return state | {"shape": shape}


@dataclass(frozen=True)
class EightBits(Scheme):
    """A whole number from -127 to 127 and one scale for each output."""

    method: ClassVar[str] = "bitsandbytes"
    dense_maps: ClassVar[str] = "llm_int8_skip_modules"
    markers = ("SCB",)
    needed = ("weight", "SCB")
    leaves = ("weight", "SCB", "weight_format")

    def check(self, parts: Parts) -> Facts:
        numbers = demand_dtype(parts, "weight", torch.int8)
        demand(numbers.dim() == 2, "weight", f"must be a matrix, but has shape {tuple(numbers.shape)}")
        demand_dtype(parts, "SCB", torch.float32, torch.float16)
        demand_shape(parts, "SCB", (len(numbers),))
        order = parts.get("weight_format")
        demand(
            order is None or not order.any(),
            "weight_format",
            "must be 0 (rows in order), but is not: save the checkpoint anew with bitsandbytes 0.44 or later",
        )
        return Facts(tuple(numbers.shape))

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        return parts["weight"].float().mul_(parts["SCB"].float()[:, None] / 127)

    def numbers(self, parts: Parts, facts: Facts) -> Numbers:
        return Numbers(parts["weight"], parts["SCB"].float()[:, None] / 127, facts.shape[1])

    def quantise(self, weight: Tensor) -> Parts:
        largest = weight.abs().amax(1).float()
        numbers = torch.round(weight.float() * (127 / largest.clamp_min(1e-30))[:, None])
        return {
            "weight": numbers.to(torch.int8), "SCB": largest,
            "weight_format": torch.zeros((), dtype=torch.uint8, device=weight.device),
        }  # fmt: skip
