"""GPTQ (Frantar et al. 2022, arXiv:2210.17323), as AutoGPTQ and GPTQModel store it.

`qweight` int32 (in * bits / 32, out) holds whole numbers along the inputs, `qzeros` int32 (groups,
out * bits / 32) those of the zeros along the outputs, `scales` (groups, out), `g_idx` (in) the group of each
input. w = scale * (number - zero). The first version of the format ("gptq") stores each zero less one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.errors import ConfigError
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
from phyla.quantization.words import WORD, pack, unpack

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GPTQ(Scheme):
    """bits: of a number. less_one: whether zeros are stored less one."""

    method: ClassVar[str] = "gptq"
    markers = ("qweight",)
    needed = ("qweight", "qzeros", "scales")
    leaves = ("qweight", "qzeros", "scales", "g_idx")

    bits: int = 4
    group_size: int = 128
    less_one: bool = True

    @classmethod
    def read(cls, config: dict[str, Any]) -> "GPTQ":
        """From a `quantization_config`."""
        bits, form = config.get("bits"), str(config.get("checkpoint_format") or "gptq")
        if bits not in BITS:
            raise ConfigError(f"quantization_config.bits must be one of {BITS} for GPTQ, but is {bits!r}")
        if form not in ("gptq", "gptq_v2"):
            raise ConfigError(
                f"quantization_config.checkpoint_format must be gptq, gptq_v2 or marlin, but is {form!r}; "
                "save the checkpoint in one of those with GPTQModel"
            )
        return cls(bits, int(config.get("group_size") or -1), form == "gptq")

    def check(self, parts: Parts) -> Facts:
        numbers = demand_dtype(parts, "qweight", torch.int32)
        demand(numbers.dim() == 2, "qweight", f"must be a matrix, but has shape {tuple(numbers.shape)}")
        out, width = numbers.shape[1], numbers.shape[0] * WORD // self.bits
        demand(
            numbers.shape[0] * WORD % self.bits == 0,
            "qweight",
            f"must have a multiple of {self.bits} rows, but has {len(numbers)}",
        )
        groups = -(-width // self._group(width))
        demand_dtype(parts, "scales", *FLOATS)
        demand_shape(parts, "scales", (groups, out))
        demand_dtype(parts, "qzeros", torch.int32)
        demand_shape(parts, "qzeros", (groups, -(-out * self.bits // WORD)))
        if "g_idx" in parts:
            index = demand_dtype(parts, "g_idx", torch.int32, torch.int64)
            demand_shape(parts, "g_idx", (width,))
            low, high = (int(v) for v in index.aminmax()) if width else (0, 0)
            demand(
                -groups <= low and high < groups,
                "g_idx",
                f"must name groups below {groups}, but names {low} to {high}",
            )
        return Facts((out, width))

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        scales, words = parts["scales"].float(), parts["qweight"]
        out, width = facts.shape
        zeros = self._zeros(parts, out).float() * scales
        index = parts.get("g_idx")
        follow = torch.arange(width, device=words.device) // self._group(width)
        index = follow if index is None else index.long()
        numbers = unpack(words.t().contiguous(), self.bits, width).float()  # (out, in)
        numbers *= scales.t().contiguous()[:, index]
        return numbers.sub_(zeros.t().contiguous()[:, index])

    def _group(self, width: int) -> int:
        return width if self.group_size == -1 else self.group_size

    def _zeros(self, parts: Parts, out: int) -> Tensor:
        zeros = unpack(parts["qzeros"], self.bits, out)  # (groups, out)
        return (zeros + 1) & (1 << self.bits) - 1 if self.less_one else zeros

    def numbers(self, parts: Parts, facts: Facts) -> Numbers | None:
        out, width = facts.shape
        group, order = self._group(width), None
        if "g_idx" in parts:
            order = order_of(parts["g_idx"].long() % len(parts["scales"]), group)
            if order is None:
                return None
            if torch.equal(order, torch.arange(width, device=order.device)):
                order = None
        codes, zeros = (
            unpack(parts["qweight"].t().contiguous(), self.bits, width),
            self._zeros(parts, out).t(),
        )
        scales = parts["scales"].t()
        if self.bits == 8:
            codes, zeros = (codes ^ 128).view(torch.int8), zeros.int() - 128
            return Numbers(codes, scales, group, None, zeros, order=order)
        return Numbers(codes, scales, group, torch.arange(16.0, device=codes.device), zeros, order=order)

    def bulk(self, parts: Parts) -> str:
        return "qweight"

    def stored(self, codes: Tensor, like: Tensor, facts: Facts) -> Tensor:
        numbers = codes.view(torch.uint8) ^ 128 if self.bits == 8 else codes
        return pack(numbers, self.bits).t().contiguous()
