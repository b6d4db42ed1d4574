"""Memory for weights in pages of 2 MiB, where Linux has them free: reading it misses fewer translations."""

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

PAGE = 1 << 21
BLOCK = 1 << 26  # given back only when nothing in it lives any more
LINE = 64
_HUGE = 14  # MADV_HUGEPAGE


def memory(size: int, beside: int = 0) -> Tensor:
    """So many bytes, uint8, not set, in large pages where they fill one and the system has them free.

    beside: bytes that were asked for before and are not yet written to.
    """
    ask = _advise()
    if size < PAGE or ask is None or free_large_pages() < size + beside:
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    # Pages that are never touched cost nothing.
    whole = torch.empty(size + 2 * PAGE, dtype=torch.uint8, device="cpu")
    begin = -whole.data_ptr() % PAGE
    ask(whole.data_ptr() + begin, -(-size // PAGE) * PAGE, _HUGE)
    return whole[begin : begin + size]


class Room:
    """Places in blocks of `memory`, one behind the other: tensors in turn lie side by side."""

    def __init__(self) -> None:
        self.block = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.used = 0

    def copy(self, t: Tensor) -> Tensor:
        """A contiguous copy of a tensor here."""
        size = t.numel() * t.element_size()
        if self.used + size > len(self.block):
            self.block, self.used = memory(max(size, BLOCK)), 0
        place = self.block[self.used : self.used + size].view(t.dtype).view(t.shape)
        self.used += -(-size // LINE) * LINE
        return place.copy_(t)


# Blocks that were cut, by where they begin, as long as a piece lives.
_blocks: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


def cut(block: Tensor, begin: int, size: int) -> Tensor:
    """Some bytes of a block of `memory`, in a storage of their own: a pickle of them holds no others.

    The block lives as long as one of its pieces.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    _blocks[block.data_ptr()] = block
    piece = (ctypes.c_ubyte * size).from_address(block.data_ptr() + begin)
    piece.block = block  # type: ignore[attr-defined]
    return torch.frombuffer(piece, dtype=torch.uint8)


def side_by_side(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors (n, ...) as one along the first dimension; None unless they follow each other in a storage or
    as pieces of a block."""
    first = tensors[0]
    storages, at = {t.untyped_storage().data_ptr() for t in tensors}, first.data_ptr()
    for t in tensors:
        if t.data_ptr() != at or not t.is_contiguous():
            return None
        at += t.numel() * t.element_size()
    shape = (sum(len(t) for t in tensors), *first.shape[1:])
    if len(storages) == 1:
        return first.as_strided(shape, first.stride())
    for begin, block in list(_blocks.items()) if first.is_cpu else ():
        if begin <= first.data_ptr() and at <= begin + len(block):
            return block[first.data_ptr() - begin : at - begin].view(first.dtype).view(shape)
    return None


def free_large_pages() -> int:
    """Bytes that lie free in whole large pages; to make more, the system would have to move memory about."""
    try:
        lines = Path("/proc/buddyinfo").read_text().splitlines()
    except OSError:
        return 0
    small, total = os.sysconf("SC_PAGE_SIZE"), 0
    for line in lines:  # "Node 0, zone Normal", then how many blocks of 1, 2, 4, ... small pages are free
        for order, count in enumerate(line.split()[4:]):
            total += int(count) * (small << order) if small << order >= PAGE else 0
    return total


@cache
def _advise() -> Any:
    """madvise of the C library, or None."""
    if sys.platform != "linux":
        return None
    try:
        ask = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    ask.argtypes, ask.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return ask
