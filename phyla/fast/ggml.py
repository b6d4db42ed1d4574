"""Quantised GGUF blocks as matrices of codes.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. The kinds of LOSSLESS keep their
values exactly. The others are expanded and coded anew with 8 bits a value and a scale for each 32, which
moves a value by at most 1/510 of the range of its 32.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from phyla.blocks.memory import Room
from phyla.checkpoints.gguf_quants import dequantize
from phyla.checkpoints.weights import PackedTensor
from phyla.errors import ShapeMismatchError
from phyla.fast.codes import CodeMatrix
from phyla.quantization.numbers import Numbers

GROUP = 32
# Codes (N, K) below 16 or int8, scale and offset (N, groups): w = code * scale + offset.
Affine = tuple[Tensor, Tensor, Tensor | None]
# Rows converted at a time, so that the intermediate tensors stay small beside the weights.
_ROWS = 4096


def code_matrix(packed: PackedTensor, rooms: Mapping[str, Room] | None = None) -> CodeMatrix:
    """The matrix (N, K) of a quantised tensor, its parts in their rooms.

    Raises ShapeMismatchError where the tensor is no matrix of whole groups of 32.
    """
    if len(packed.shape) != 2 or packed.shape[1] % GROUP or len(packed.blocks) != packed.shape[0]:
        raise ShapeMismatchError(
            f"a packed weight must be a matrix with rows of a multiple of {GROUP}, but is {packed.shape} in "
            f"{tuple(packed.blocks.shape)} bytes of {packed.ggml_type} blocks"
        )
    read, values = _READERS.get(packed.ggml_type, (None, None))
    pieces = [read(rows) if read else _recode(rows, packed) for rows in packed.blocks.split(_ROWS)]
    codes, scale = (
        torch.cat([part.flatten(1) for part in parts])
        for parts in ([p[0] for p in pieces], [p[1] for p in pieces])
    )
    offsets = [piece[2].flatten(1) for piece in pieces if piece[2] is not None]
    zero = torch.cat(offsets) if offsets else None
    width = packed.shape[1]
    table = None if values is None else torch.tensor([*values], dtype=torch.float32)
    numbers = Numbers(codes, scale, width // scale.shape[1], table, zero, relative=False)
    return CodeMatrix.build(numbers, rooms)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 number at one byte of every block, as float32: blocks (N, B, bytes) -> (N, B)."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16).float().squeeze(-1)


def _nibbles(packed: Tensor) -> Tensor:
    """Low halves of all bytes, then the high halves: (..., n) -> (..., 2 n)."""
    return torch.cat((packed & 15, packed >> 4), -1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """The 32 bits of the 4 bytes at `at`, lowest first, each in place 4: (N, B, 32)."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (((blocks[..., at : at + 4, None] >> shifts) & 1) << 4).flatten(-2)


def _q4_0(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 18)
    return _nibbles(blocks[..., 2:]), _half(blocks, 0), None


def _q4_1(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 20)
    return _nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2)


def _q5_0(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 22)
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks, 2)
    return (codes - 16).view(torch.int8), _half(blocks, 0), None


def _q5_1(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 24)
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks, 4)
    return codes.view(torch.int8), _half(blocks, 0), _half(blocks, 2)


def _q8_0(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 34)
    return blocks[..., 2:].contiguous().view(torch.int8), _half(blocks, 0), None


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets of the 8 groups of 32 in a Q4_K or Q5_K block: (N, K / 32) each."""
    low, minimum, high = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), -1)
    minima = torch.cat((minimum & 63, (high >> 4) | ((minimum >> 2) & 48)), -1)
    scale, offset = scales * _half(blocks, 0)[..., None], minima * -_half(blocks, 2)[..., None]
    return scale.flatten(1), offset.flatten(1)


def _q4_k(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 144)
    return _nibbles(blocks[..., 16:].unflatten(-1, (4, 32))), *_k_scales(blocks)


def _q5_k(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 176)
    low = _nibbles(blocks[..., 48:].unflatten(-1, (4, 32)))  # (N, B, 4, 64)
    low = low.unflatten(-1, (2, 32)).flatten(2, 3)  # (N, B, 8, 32)
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    codes = low | (((blocks[..., None, 16:48] >> shifts) & 1) << 4)
    return codes.view(torch.int8), *_k_scales(blocks)


def _q6_k(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 210)
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64)))  # (N, B, 2, 128)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high = (blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts & 3).flatten(-2)  # (N, B, 2, 128)
    scale = blocks[..., 192:208].contiguous().view(torch.int8) * _half(blocks, 208)[..., None]
    return ((low | high << 4) - 32).view(torch.int8), scale, None


def _recode(rows: Tensor, packed: PackedTensor) -> Affine:
    values = dequantize(rows.reshape(-1), packed.ggml_type).view(len(rows), -1, GROUP)
    low, high = values.aminmax(dim=-1)
    scale = (high - low) / 255
    code = (values - low[..., None]).div_(scale.clamp_min(1e-38)[..., None]).round_().sub_(128)
    return code.to(torch.int8), scale, low + 128 * scale


_READERS: dict[str, tuple[Callable[[Tensor], Affine], Sequence[int] | None]] = {
    "Q4_0": (_q4_0, range(-8, 8)),
    "Q4_1": (_q4_1, range(16)),
    "Q5_0": (_q5_0, None),
    "Q5_1": (_q5_1, None),
    "Q8_0": (_q8_0, None),
    "Q4_K": (_q4_k, range(16)),
    "Q5_K": (_q5_k, None),
    "Q6_K": (_q6_k, None),
    "IQ4_NL": (_q4_0, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)),
}
LOSSLESS = frozenset(_READERS)
