"""MXFP4 (Open Compute Project's microscaling formats 1.0) as gpt-oss stores its experts.

`NAME_blocks` uint8 (X, out, in / 32, 16) holds pairs of E2M1 codes, low one first, `NAME_scales` uint8
(X, out, in / 32) the exponents of powers of two, biased by 127. NAME is then (X, in, out).
"""

from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.quantization.scheme import Facts, Parts, Scheme, demand, demand_dtype, demand_shape
from phyla.quantization.tables import E2M1, expand, pairs

GROUP, BIAS = 32, 127


class MXFP4(Scheme):
    """Blocks of 32 with a power of two each; read only."""

    method: ClassVar[str] = "mxfp4"
    linear: ClassVar[bool] = False  # stacks of experts
    leaves = ("blocks", "scales")
    needed = leaves

    @classmethod
    def read(cls, config: dict[str, Any]) -> "MXFP4":
        """From a `quantization_config`."""
        return cls()

    def modules(self, names: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name in names:
            stem = name.removesuffix("_blocks")
            if stem != name:
                yield stem, tuple(leaf for leaf in self.leaves if self.file_name(stem, leaf) in names)

    def dense_name(self, module: str) -> str:
        return module

    def file_name(self, module: str, leaf: str) -> str:
        return f"{module}_{leaf}"

    def check(self, parts: Parts) -> Facts:
        blocks = demand_dtype(parts, "blocks", torch.uint8)
        demand(
            blocks.dim() >= 3 and blocks.shape[-1] == GROUP // 2,
            "blocks",
            f"must have shape (..., out, groups, 16), but has {tuple(blocks.shape)}",
        )
        demand_dtype(parts, "scales", torch.uint8)
        demand_shape(parts, "scales", tuple(blocks.shape[:-1]))
        *ahead, out, groups, _ = blocks.shape
        return Facts((*ahead, groups * GROUP, out))

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        values = expand(parts["blocks"], pairs(E2M1, high_first=False))  # (..., out, groups, 32)
        values = torch.ldexp(values, parts["scales"].int()[..., None] - BIAS)
        return values.flatten(-2).transpose(-1, -2).contiguous()
