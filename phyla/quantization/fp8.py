"""Weights of eight-bit floats: with one scale for each block of 128 x 128 (DeepSeek-V3, arXiv:2412.19437),
for each output (FBGEMM), or for all. w = value * scale; scales of activations are passed over.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.errors import ConfigError
from phyla.quantization.numbers import Numbers
from phyla.quantization.scheme import FLOATS, Facts, Parts, Scheme, demand, demand_dtype

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of E4M3


@dataclass(frozen=True)
class FP8(Scheme):
    """block: (outputs, inputs) that share a scale, None for one scale an output; leaf: the scale's name."""

    method: ClassVar[str] = "fp8"

    block: tuple[int, int] | None = (128, 128)
    leaf: str = "weight_scale_inv"
    dynamic: bool = True

    @classmethod
    def read(cls, config: dict[str, Any]) -> "FP8":
        """From a `quantization_config` of method fp8."""
        block = config.get("weight_block_size")
        if block is None:
            return cls(None, "weight_scale", config.get("activation_scheme", "dynamic") == "dynamic")
        if len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
            raise ConfigError(
                f"quantization_config.weight_block_size must be two whole numbers above 0, but is {block!r}"
            )
        return cls((block[0], block[1]))

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.leaf,)

    @property
    def needed(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("weight", self.leaf)

    @property
    def leaves(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("weight", self.leaf)

    def check(self, parts: Parts) -> Facts:
        values = demand_dtype(parts, "weight", E4M3, torch.float8_e5m2)
        demand_dtype(parts, self.leaf, *FLOATS)
        return Facts(check_scales(parts, self.leaf, tuple(values.shape), self.block))

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        values = parts["weight"].float()
        return values.mul_(spread(parts[self.leaf].float(), facts.shape, self.block))

    def numbers(self, parts: Parts, facts: Facts) -> Numbers | None:
        values, scale, (out, width) = parts["weight"], parts[self.leaf].float(), facts.shape
        if values.dtype != E4M3 or has_nan(values):
            return None
        return Numbers(values, *by_group(scale, (out, width), self.block))

    def quantise(self, weight: Tensor) -> Parts:
        rows, columns = self.block or (1, weight.shape[1])
        out, width = weight.shape
        padded = F.pad(weight.float(), (0, -width % columns, 0, -out % rows))
        tiles = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))  # (a, rows, b, columns)
        scale = (tiles.abs().amax((1, 3)) / LARGEST).clamp_min(1e-12)
        tiles = (tiles / scale[:, None, :, None]).clamp_(-LARGEST, LARGEST)
        values = tiles.flatten(2).flatten(0, 1)[:out, :width]
        return {"weight": values.to(E4M3).contiguous(), self.leaf: scale}

    def config(self) -> dict[str, Any]:
        block = None if self.block is None else list(self.block)
        scheme = "dynamic" if self.dynamic else "static"
        return {"quant_method": self.method, "activation_scheme": scheme, "weight_block_size": block}


@dataclass(frozen=True)
class FBGEMM(FP8):
    """One scale an output."""

    method: ClassVar[str] = "fbgemm_fp8"

    block: tuple[int, int] | None = None
    leaf: str = "weight_scale"

    def config(self) -> dict[str, Any]:
        return {"quant_method": self.method}


def check_scales(
    parts: Parts, leaf: str, shape: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int]:
    """The shape of the weight, whose scales (one, one an output, one a group, one a block) must fit."""
    demand(len(shape) == 2, "weight", f"must be a matrix, but has shape {shape}")
    out, width = shape
    allowed = [(), (1,), (1, 1), (out,), (out, 1)]
    if block is not None:
        allowed = [(-(-out // block[0]), -(-width // block[1]))]
    got = tuple(parts[leaf].shape)
    demand(got in allowed, leaf, f"must have shape {' or '.join(map(str, allowed))}, but has {got}")
    return out, width


def spread(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int] | None) -> Tensor:
    """Scales in a shape that multiplies a weight (out, in)."""
    if block is None:
        return scale if scale.numel() == 1 else scale.reshape(-1, 1)
    scale = scale.repeat_interleave(block[0], 0)[: shape[0]]
    return scale.repeat_interleave(block[1], 1)[:, : shape[1]]


def by_group(scale: Tensor, shape: tuple[int, int], block: tuple[int, int] | None) -> tuple[Tensor, int]:
    """Scales (out, groups) and the inputs of a group, from scales of each block, each output, or all."""
    if block is None:
        return scale.reshape(-1, 1).expand(shape[0], 1), shape[1]
    return scale.repeat_interleave(block[0], 0)[: shape[0]], block[1]


def has_nan(values: Tensor) -> bool:
    """Whether one of some eight-bit floats (E4M3) is none."""
    return bool((values.view(torch.uint8) & 127 == 127).any())
