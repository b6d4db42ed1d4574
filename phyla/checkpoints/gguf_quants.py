"""Values of ggml's quantised blocks in float32, bit for bit as the package gguf computes them.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. The kinds in common use are written
in torch here, the
others go through gguf itself.
"""

from collections.abc import Callable

import torch

from phyla.errors import CheckpointError, require

PLAIN_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
# Values per piece: small enough that a piece's intermediate tensors stay in the processor's cache.
_PIECE = 1 << 15

# A decoder fills `out`, float32 of (blocks, values per block), from `raw`, uint8 of (blocks, bytes per
# block).
Decoder = Callable[[torch.Tensor, torch.Tensor], None]


def dequantize(raw: torch.Tensor, ggml_type: str) -> torch.Tensor:
    """Float32 values, flat, of uint8 blocks, flat, of one ggml type; integer types stay integers."""
    if not len(raw):
        return torch.empty(0, dtype=_result_dtype(ggml_type))
    if ggml_type in PLAIN_TYPES:
        values = raw.view(PLAIN_TYPES[ggml_type])
        return values.float() if values.is_floating_point() else values
    if ggml_type not in _DECODERS:
        return _by_gguf(raw, ggml_type)
    decode, size, width = _DECODERS[ggml_type]
    blocks = raw.view(-1, width)
    out = torch.empty(len(blocks), size)
    step = _PIECE // size
    for start in range(0, len(blocks), step):
        decode(blocks[start : start + step], out[start : start + step])
    return out.view(-1)


def _result_dtype(ggml_type: str) -> torch.dtype:
    dtype = PLAIN_TYPES.get(ggml_type, torch.float32)
    return torch.float32 if dtype.is_floating_point else dtype


def _by_gguf(raw: torch.Tensor, ggml_type: str) -> torch.Tensor:
    quants = require("gguf.quants", "gguf", f"reading the GGUF type {ggml_type}")
    constants = require("gguf.constants", "gguf", f"reading the GGUF type {ggml_type}")
    try:
        kind = constants.GGMLQuantizationType[ggml_type]
        width = constants.GGML_QUANT_SIZES[kind][1]
        return torch.from_numpy(quants.dequantize(raw.numpy().reshape(-1, width), kind)).view(-1)
    except (KeyError, NotImplementedError) as error:
        raise CheckpointError(
            f"the installed gguf cannot read the type {ggml_type}; update it, or use a file quantised "
            "in another way"
        ) from error


def _half(raw: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 number at one byte of every block, as float32 of (blocks, 1)."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: torch.Tensor, out: torch.Tensor) -> None:
    half = packed.shape[-1]
    out[..., :half] = packed & 15
    out[..., half:] = packed >> 4


def _bits(words: torch.Tensor) -> torch.Tensor:
    """The 32 bits of 4 bytes, lowest first: uint8 of (blocks, 32)."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((words[:, :, None] >> shifts) & 1).view(len(words), 32)


def _q4_0(raw: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(raw[:, 2:], out)
    out.sub_(8).mul_(_half(raw, 0))


def _q4_1(raw: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(raw[:, 4:], out)
    out.mul_(_half(raw, 0)).add_(_half(raw, 2))


def _q5_0(raw: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(raw[:, 6:], out)
    out.add_(_bits(raw[:, 2:6]) << 4).sub_(16).mul_(_half(raw, 0))


def _q5_1(raw: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(raw[:, 8:], out)
    out.add_(_bits(raw[:, 4:8]) << 4).mul_(_half(raw, 0)).add_(_half(raw, 2))


def _q8_0(raw: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(raw[:, 2:].view(torch.int8)).mul_(_half(raw, 0))


def _k_scales(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minima of the 8 groups of a Q4_K or Q5_K block, float32 of (blocks, 8, 1) each."""
    low, minimum, high = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=1)
    minima = torch.cat([minimum & 63, (high >> 4) | ((minimum >> 2) & 48)], dim=1)
    return (scales * _half(raw, 0))[:, :, None], (minima * _half(raw, 2))[:, :, None]


def _q4_k(raw: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(raw[:, 16:].view(-1, 4, 32), out.view(-1, 4, 64))
    scales, minima = _k_scales(raw)
    out.view(-1, 8, 32).mul_(scales).sub_(minima)


def _q5_k(raw: torch.Tensor, out: torch.Tensor) -> None:
    groups = out.view(-1, 8, 32)
    _nibbles(raw[:, 48:].view(-1, 4, 32), out.view(-1, 4, 64))
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    groups.add_(((raw[:, None, 16:48] >> shifts) & 1) << 4)
    scales, minima = _k_scales(raw)
    groups.mul_(scales).sub_(minima)


def _q6_k(raw: torch.Tensor, out: torch.Tensor) -> None:
    # Two halves of 128 values: 64 bytes of low nibbles (32 values each side twice), 32 bytes of four 2-bit
    # tops.
    low = raw[:, :128].view(-1, 2, 1, 64)
    values = out.view(-1, 2, 2, 64)
    values[:, :, :1] = low & 15
    values[:, :, 1:] = low >> 4
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    tops = ((raw[:, 128:192].view(-1, 2, 1, 32) >> shifts) & 3) << 4
    out.view(-1, 2, 4, 32).add_(tops).sub_(32)
    scales = raw[:, 192:208].view(torch.int8) * _half(raw, 208)
    out.view(-1, 16, 16).mul_(scales[:, :, None])


# Type -> decoder, values per block, bytes per block.
_DECODERS: dict[str, tuple[Decoder, int, int]] = {
    "Q4_0": (_q4_0, 32, 18),
    "Q4_1": (_q4_1, 32, 20),
    "Q5_0": (_q5_0, 32, 22),
    "Q5_1": (_q5_1, 32, 24),
    "Q8_0": (_q8_0, 32, 34),
    "Q4_K": (_q4_k, 256, 144),
    "Q5_K": (_q5_k, 256, 176),
    "Q6_K": (_q6_k, 256, 210),
}
