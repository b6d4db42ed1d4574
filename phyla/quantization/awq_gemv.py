"""AWQ as AutoAWQ stores it for its kernels for single tokens: versions gemv and gemv_fast.

gemv: `qweight` int32 (out, in / 8), the first of eight inputs in the lowest bits; `qzeros` int32 (out, words)
likewise, `scales` (out, 8 words), both wider than there are groups. gemv_fast: `qweight` int16 (out / 4, in),
four outputs interleaved; `scales` and `qzeros` (8 words, out), w = scale * code + qzero.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.quantization.scheme import (
    FLOATS,
    Facts,
    Parts,
    Scheme,
    demand,
    demand_dtype,
    demand_shape,
    four_bits,
)
from phyla.quantization.words import unpack

_SPAN = 64  # inputs of four outputs that stand together in gemv_fast


@dataclass(frozen=True)
class AWQGemv(Scheme):
    """group_size: inputs that share a scale, -1 for all."""

    method: ClassVar[str] = "awq"
    markers = ("qweight",)
    needed = ("qweight", "qzeros", "scales")
    leaves = ("qweight", "qzeros", "scales")

    group_size: int = 128

    @classmethod
    def read(cls, config: dict[str, Any]) -> "AWQGemv":
        """From a `quantization_config`; ConfigError for bits other than four."""
        return cls(int(four_bits(config, "for AWQ")))

    def _groups(self, width: int) -> int:
        group = width if self.group_size == -1 else self.group_size
        demand(
            group > 0 and width % group == 0,
            "qweight",
            f"must have a multiple of {group} inputs (group_size), but has {width}",
        )
        return width // group

    def check(self, parts: Parts) -> Facts:
        words = demand_dtype(parts, "qweight", torch.int32)
        demand(words.dim() == 2, "qweight", f"must be a matrix, but has shape {tuple(words.shape)}")
        out, width = words.shape[0], words.shape[1] * 8
        groups = self._groups(width)
        scales = demand_dtype(parts, "scales", *FLOATS)
        zeros = demand_dtype(parts, "qzeros", torch.int32)
        for leaf, part, least in (("scales", scales, groups), ("qzeros", zeros, -(-groups // 8))):
            demand(
                part.dim() == 2 and part.shape[0] == out and part.shape[1] >= least,
                leaf,
                f"must have {out} rows and at least {least} columns, but has shape {tuple(part.shape)}",
            )
        return Facts((out, width), groups)

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        (out, width), groups = facts.shape, facts.extra
        values = unpack(parts["qweight"], 4, width).float().view(out, groups, -1)
        zeros = unpack(parts["qzeros"], 4, parts["qzeros"].shape[1] * 8)[:, :groups, None].float()
        values.sub_(zeros).mul_(parts["scales"][:, :groups, None].float())
        return values.view(out, width)


class AWQGemvFast(AWQGemv):
    """gemv_fast."""

    def check(self, parts: Parts) -> Facts:
        words = demand_dtype(parts, "qweight", torch.int16)
        demand(words.dim() == 2, "qweight", f"must be a matrix, but has shape {tuple(words.shape)}")
        out, width = words.shape[0] * 4, words.shape[1]
        demand(width % _SPAN == 0, "qweight", f"must have a multiple of {_SPAN} columns, but has {width}")
        groups = self._groups(width)
        scales = demand_dtype(parts, "scales", *FLOATS)
        demand(
            scales.dim() == 2 and scales.shape[1] == out and scales.shape[0] >= groups,
            "scales",
            f"must have {out} columns and at least {groups} rows, but has shape {tuple(scales.shape)}",
        )
        demand_dtype(parts, "qzeros", *FLOATS)
        demand_shape(parts, "qzeros", tuple(scales.shape))
        return Facts((out, width), groups)

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        (out, width), groups = facts.shape, facts.extra
        words = parts["qweight"].int().view(out // 4, width // _SPAN, _SPAN)
        codes = torch.stack([words >> shift & 15 for shift in (0, 4, 8, 12)], -1)
        # Four outputs with 64 inputs each; of 32 inputs, 8 a + 2 b + e stands at place 8 b + 4 e + a.
        codes = codes.flatten(2).unflatten(2, (4, 2, 4, 2, 4))
        values = codes.permute(0, 2, 1, 3, 6, 4, 5).reshape(out, groups, -1).float()
        scales, zeros = (parts[leaf][:groups].float().t()[:, :, None] for leaf in ("scales", "qzeros"))
        return values.mul_(scales).add_(zeros).view(out, width)
