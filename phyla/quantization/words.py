"""Whole numbers of a few bits in 32-bit words, lowest bits first, without gaps between them."""

import torch
import torch.nn.functional as F
from torch import Tensor

WORD = 32


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers of each row: words int32 (..., W) -> uint8 (..., count) below 2^bits.

    32 numbers lie in `bits` words; where `bits` does not divide 32, some lie across two words.
    """
    if bits in (4, 8):
        # Lowest byte first on all processors that torch runs on; a single column may have any stride.
        one = words.shape[-1] == 1
        words = words.clone(memory_format=torch.contiguous_format) if one else words.contiguous()
        octets = words.view(torch.uint8)
        if bits == 4:
            octets = halves(octets)
        return octets[..., :count]
    mask = (1 << bits) - 1
    groups = F.pad(words, (0, -words.shape[-1] % bits)).unflatten(-1, (-1, bits))
    made = []
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        value = groups[..., word] >> shift
        if shift + bits > WORD:
            low = (1 << WORD - shift) - 1
            value = (value & low) | (groups[..., word + 1] << WORD - shift)
        made.append((value & mask).to(torch.uint8))
    return torch.stack(made, -1).flatten(-2)[..., :count]


def pack(values: Tensor, bits: int) -> Tensor:
    """The inverse: whole numbers (..., count) -> int32 (..., ceil(count * bits / 32))."""
    count = values.shape[-1]
    if bits in (4, 8):
        octets = F.pad(values.to(torch.uint8), (0, -count % (WORD // bits)))
        if bits == 4:
            octets = from_halves(octets)
        return octets.contiguous().view(torch.int32)
    padded = F.pad(values.to(torch.int64), (0, -count % WORD)).unflatten(-1, (-1, WORD))
    words = torch.zeros(*padded.shape[:-1], bits, dtype=torch.int64, device=values.device)
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        words[..., word] |= padded[..., i] << shift & 0xFFFFFFFF
        if shift + bits > WORD:
            words[..., word + 1] |= padded[..., i] >> WORD - shift
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return words.flatten(-2)[..., : -(-count * bits // WORD)]


def halves(octets: Tensor) -> Tensor:
    """Both numbers of four bits of every byte, the low one first: uint8 (..., n) -> (..., 2 n)."""
    return torch.stack((octets & 15, octets >> 4), -1).flatten(-2)


def from_halves(values: Tensor) -> Tensor:
    """The inverse: uint8 (..., 2 n) below 16 -> (..., n)."""
    return values[..., ::2] | values[..., 1::2] << 4


def word_count(count: int, bits: int) -> int:
    """Words that `count` numbers fill."""
    return -(-count * bits // WORD)
