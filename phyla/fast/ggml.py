"""Quantised GGUF blocks as matrices of 4-bit codes.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. The kinds of LOSSLESS keep their
values exactly. The others have scales for fewer than 32 values, or tables; they are expanded and coded anew
with 8 bits a value and a scale for each 32, which moves a value by at most 1/510 of the range of its 32.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from phyla.checkpoints.gguf_quants import dequantize
from phyla.checkpoints.weights import PackedTensor
from phyla.errors import ShapeMismatchError
from phyla.fast.nibbles import GROUP, NibbleMatrix

# Codes (N, K) uint8, scale and offset (N, K / 32) float32: w = code * scale + offset.
Affine = tuple[Tensor, Tensor, Tensor]
# Rows converted at a time, so that the intermediate tensors stay small beside the weights.
_ROWS = 4096


def nibble_matrix(packed: PackedTensor, exact: bool) -> NibbleMatrix:
    """The matrix (N, K) of a quantised tensor; exact: keep all bits of its scales for float32 products.

    Raises ShapeMismatchError where the tensor is no matrix of whole groups of 32.
    """
    if len(packed.shape) != 2 or packed.shape[1] % GROUP or len(packed.blocks) != packed.shape[0]:
        raise ShapeMismatchError(
            f"a packed weight must be a matrix with rows of a multiple of {GROUP}, but is {packed.shape} in "
            f"{tuple(packed.blocks.shape)} bytes of {packed.ggml_type} blocks"
        )
    read, bits = _READERS.get(packed.ggml_type, (None, 8))
    pieces = []
    for rows in packed.blocks.split(_ROWS):
        code, scale, offset = read(rows) if read else _recode(rows, packed)
        pieces.append(_planes(code.view(len(rows), -1), scale, offset, bits))
    codes, scales, zeros = (torch.cat(part, 1) for part in zip(*pieces, strict=True))
    return NibbleMatrix.build(codes, scales, zeros, exact)


def _planes(code: Tensor, scale: Tensor, offset: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (planes, N, K) in one plane of 4 bits or in two; scales and zeros (planes, N, K / 32)."""
    if bits == 4:
        return code[None], scale[None], (offset + 8 * scale)[None]
    # Codes are moved to the middle of 0..255, so that the zero stays small and bfloat16 keeps it well.
    shift = 128 - (1 << bits - 1)
    code = code + shift
    zero = offset + (136 - shift) * scale
    return (
        torch.stack((code >> 4, code & 15)),
        torch.stack((16 * scale, scale)),
        torch.stack((zero, torch.zeros_like(zero))),
    )


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
    scale = _half(blocks, 0)
    return _nibbles(blocks[..., 2:]), scale, -8 * scale


def _q4_1(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 20)
    return _nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2)


def _q5_0(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 22)
    scale = _half(blocks, 0)
    return _nibbles(blocks[..., 6:]) | _fifth_bits(blocks, 2), scale, -16 * scale


def _q5_1(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 24)
    return _nibbles(blocks[..., 8:]) | _fifth_bits(blocks, 4), _half(blocks, 0), _half(blocks, 2)


def _q8_0(rows: Tensor) -> Affine:
    blocks = rows.view(len(rows), -1, 34)
    scale = _half(blocks, 0)
    return blocks[..., 2:] ^ 128, scale, -128 * scale


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
    return low | (((blocks[..., None, 16:48] >> shifts) & 1) << 4), *_k_scales(blocks)


def _recode(rows: Tensor, packed: PackedTensor) -> Affine:
    values = dequantize(rows.reshape(-1), packed.ggml_type).view(len(rows), -1, GROUP)
    low, high = values.aminmax(dim=-1)
    scale = (high - low) / 255
    code = (values - low[..., None]).div_(scale.clamp_min(1e-38)[..., None]).round_().to(torch.uint8)
    return code, scale, low


_READERS: dict[str, tuple[Callable[[Tensor], Affine], int]] = {
    "Q4_0": (_q4_0, 4),
    "Q4_1": (_q4_1, 4),
    "Q5_0": (_q5_0, 5),
    "Q5_1": (_q5_1, 5),
    "Q8_0": (_q8_0, 8),
    "Q4_K": (_q4_k, 4),
    "Q5_K": (_q5_k, 5),
}
LOSSLESS = frozenset(_READERS)
