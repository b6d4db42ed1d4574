"""Marlin (Frantar et al. 2024, arXiv:2408.11743): four bits in the order in which tensor cores take them.

Words int32 (in / 16, 2 out): four tiles of 16 x 16 (inputs, outputs) side by side stand as 1024 codes, 32
for each thread of a warp. Scales (groups, out) stand in an order of their own. w = scale * (code - 8).
GPTQ's files call them `B` and `s`, AWQ's `qweight` and `scales`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.quantization.scheme import Facts, Parts, Scheme, demand, demand_dtype, demand_shape, four_bits
from phyla.quantization.words import unpack

_TILE, _CHUNK = 16, 1024
_HALVES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Marlin(Scheme):
    """group_size: inputs that share a scale, -1 for all; words, scales: the leaves."""

    group_size: int = 128
    words: ClassVar[str]
    scales: ClassVar[str]

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Marlin":
        """From a `quantization_config`; ConfigError for bits other than four."""
        return cls(int(four_bits(config, "in Marlin's layout") or -1))

    def check(self, parts: Parts) -> Facts:
        words = demand_dtype(parts, self.words, torch.int32)
        demand(words.dim() == 2, self.words, f"must be a matrix, but has shape {tuple(words.shape)}")
        width, out = words.shape[0] * _TILE, words.shape[1] // 2
        group = width if self.group_size == -1 else self.group_size
        demand(
            words.shape[1] % 128 == 0 and group > 0 and width % group == 0,
            self.words,
            f"must have a multiple of 128 columns and of {group} / 16 rows, but has {tuple(words.shape)}",
        )
        demand_dtype(parts, self.scales, *_HALVES)
        demand_shape(parts, self.scales, (width // group, out))
        return Facts((out, width))

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        words, (out, width) = parts[self.words], facts.shape
        codes = unpack(words, 4, words.shape[1] * 8).view(-1, _CHUNK)
        placed = torch.empty_like(codes)
        placed[:, _order().to(codes.device)] = codes
        tiles = placed.view(width // _TILE, out // _TILE, _TILE, _TILE)
        values = tiles.permute(1, 3, 0, 2).reshape(out, width).float().sub_(8)
        stored = parts[self.scales].float()
        if len(stored) > 1:
            scales = stored.view(-1, 8, 8).transpose(1, 2).reshape(stored.shape)
        else:
            scales = stored.view(-1, 4, 4, 2).transpose(1, 2).reshape(stored.shape)
        return values.mul_(scales.t().repeat_interleave(width // len(stored), 1))


class GPTQMarlin(Marlin):
    """As AutoGPTQ saves it."""

    method: ClassVar[str] = "gptq"
    markers = ("B",)
    needed = ("B", "s")
    leaves = ("B", "s", "workspace")
    words, scales = "B", "s"


class AWQMarlin(Marlin):
    """As AutoAWQ saves it."""

    method: ClassVar[str] = "awq"
    markers = ("qweight",)
    needed = ("qweight", "scales")
    leaves = ("qweight", "scales", "workspace")
    words, scales = "qweight", "scales"


def _order() -> Tensor:
    """Which of 1024 codes (tile, input, output) stands at each place: by thread, tile, eight of a word."""
    thread, tile = torch.arange(32).view(32, 1, 1), torch.arange(4).view(1, 4, 1)
    # In a word the pair of inputs goes slowest, then the half of outputs, then the half of inputs.
    pair, block, half = (torch.arange(8).view(1, 1, 8) >> shift & 1 for shift in (2, 1, 0))
    row = 2 * (thread % 4) + pair + 8 * half
    return (256 * tile + 16 * row + thread // 4 + 8 * block).flatten()
