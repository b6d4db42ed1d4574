"""Keys and values as 8-bit floating numbers: each position of a head has its scale beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phyla.blocks.cache import KVCache

KIND = torch.float8_e4m3fn
_LARGEST = torch.finfo(KIND).max
_LEAST = torch.finfo(torch.float32).tiny


def packed(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes (..., width) of 8-bit floats, and float32 scales (..., 1) of these rows."""
    scale = (numbers.abs().amax(-1, keepdim=True).float() / _LARGEST).clamp(min=_LEAST)
    codes = (numbers.float() / scale).clamp(-_LARGEST, _LARGEST).to(KIND)
    return codes.view(torch.uint8), scale


def whole(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers, nearly."""
    return (codes.contiguous().view(KIND).float() * scale).to(dtype)


class Float8KV:
    """Keys and values (B, G, capacity, E) in a byte a number, written in place, and their scales.

    The reference has one scale for all, found in the first call; one a position makes rows independent of
    each other, and has no position that does not fit.
    """

    keys = torch.empty(0, dtype=torch.uint8)  # nothing that a kernel could read in place

    def __init__(self, batch: int, length: int, window: int | None = None) -> None:
        self.codes, self.scales = KVCache(batch, length, window), KVCache(batch, length, window)
        self.dtype = torch.float32

    @property
    def first(self) -> int:
        """The slot of the first position that is kept."""
        return self.codes.first

    @first.setter
    def first(self, value: int) -> None:
        self.codes.first = self.scales.first = value

    @property
    def window(self) -> int | None:
        """Of a layer that slides."""
        return self.codes.window

    @property
    def batch(self) -> int:
        """Rows."""
        return self.codes.batch

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self.codes.capacity

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """As `KVCache.update`; the first positions come back as they are, later all nearly."""
        self.dtype, fresh = k.dtype, not self.codes.used
        (keys, key_scales), (values, value_scales) = packed(k), packed(v)
        keys, values, first = self.codes.update(keys, values)
        key_scales, value_scales, _ = self.scales.update(key_scales, value_scales)
        if fresh:
            return k, v, first
        return whole(keys, key_scales, k.dtype), whole(values, value_scales, v.dtype), first

    def read(self) -> tuple[Tensor, Tensor] | None:
        """As `KVCache.read`, nearly."""
        codes, scales = self.codes.read(), self.scales.read()
        if codes is None or scales is None:
            return None
        return whole(codes[0], scales[0], self.dtype), whole(codes[1], scales[1], self.dtype)

    def reorder(self, index: Tensor) -> None:
        """As `KVCache.reorder`."""
        for part in (self.codes, self.scales):
            part.reorder(index)

    def truncate(self, length: int) -> None:
        """As `KVCache.truncate`."""
        for part in (self.codes, self.scales):
            part.truncate(length)

    def shift(self, by: Sequence[int]) -> None:
        """As `KVCache.shift`."""
        for part in (self.codes, self.scales):
            part.shift(by)

    def forget(self, count: int) -> None:
        """As `KVCache.forget`."""
        for part in (self.codes, self.scales):
            part.forget(count)
