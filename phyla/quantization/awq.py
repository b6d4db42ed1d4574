"""AWQ (Lin et al. 2023, arXiv:2306.00978), as AutoAWQ stores it for its GEMM kernel.

`qweight` int32 (in, out / 8) holds eight outputs a word, in the order 0 2 4 6 1 3 5 7 from the lowest bits,
`qzeros` int32 (groups, out / 8) likewise, `scales` (groups, out). w = scale * (number - zero).
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
    four_bits,
)
from phyla.quantization.words import pack, unpack

# Where output 0, 1, ... of a word stands in it.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_MANY = 8


@dataclass(frozen=True)
class AWQ(Scheme):
    """group_size: inputs that share a scale, -1 for all."""

    method: ClassVar[str] = "awq"
    markers = ("qweight",)
    needed = ("qweight", "qzeros", "scales")
    leaves = ("qweight", "qzeros", "scales")

    group_size: int = 128

    @classmethod
    def read(cls, config: dict[str, Any]) -> "AWQ":
        """From a `quantization_config`."""
        group, version = four_bits(config, "for AWQ"), str(config.get("version", "gemm")).lower()
        if version not in ("gemm", "exllama", "ipex"):
            raise ConfigError(
                "quantization_config.version must be gemm, exllama, ipex, gemv, gemv_fast or marlin, but is "
                f"{version!r}; save the checkpoint with version='gemm'"
            )
        return cls(int(group))

    def check(self, parts: Parts) -> Facts:
        numbers = demand_dtype(parts, "qweight", torch.int32)
        demand(numbers.dim() == 2, "qweight", f"must be a matrix, but has shape {tuple(numbers.shape)}")
        width, out = numbers.shape[0], numbers.shape[1] * _MANY
        group = width if self.group_size == -1 else self.group_size
        demand(
            group > 0 and width % group == 0,
            "qweight",
            f"must have a multiple of {group} rows (group_size), but has {width}",
        )
        demand_dtype(parts, "scales", *FLOATS)
        demand_shape(parts, "scales", (width // group, out))
        demand_dtype(parts, "qzeros", torch.int32)
        demand_shape(parts, "qzeros", (width // group, out // _MANY))
        return Facts((out, width))

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        scales = parts["scales"].float()
        numbers, zeros = (_in_order(parts[leaf]).float() for leaf in ("qweight", "qzeros"))
        grouped = numbers.unflatten(0, (len(scales), -1))  # (groups, group, out)
        grouped.sub_(zeros[:, None]).mul_(scales[:, None])
        return numbers.t().contiguous()

    def numbers(self, parts: Parts, facts: Facts) -> Numbers:
        codes, zeros = (_in_order(parts[leaf]).t() for leaf in ("qweight", "qzeros"))
        group, table = facts.shape[1] // len(parts["scales"]), torch.arange(16.0, device=codes.device)
        return Numbers(codes, parts["scales"].t(), group, table, zeros)

    def bulk(self, parts: Parts) -> str:
        return "qweight"

    def stored(self, codes: Tensor, like: Tensor, facts: Facts) -> Tensor:
        numbers = codes.t().unflatten(-1, (-1, _MANY))
        placed = torch.empty_like(numbers, memory_format=torch.contiguous_format)
        placed[..., list(_PLACES)] = numbers
        return pack(placed.flatten(-2), 4)


def _in_order(words: Tensor) -> Tensor:
    """Numbers (rows, 8 W) of words (rows, W)."""
    numbers = unpack(words, 4, words.shape[1] * _MANY).unflatten(-1, (-1, _MANY))
    return numbers[..., list(_PLACES)].flatten(-2)
