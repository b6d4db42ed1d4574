"""Memory for the weights of a model in a few large blocks, matrices of one layer side by side.

What reads the same stream (q, k, v; gate, up) can then be taken as one matrix without a copy.
"""

from collections.abc import Hashable, Iterable
from itertools import chain, groupby
from math import prod

import torch
from torch import Tensor

from phyla.blocks.memory import BLOCK, LINE, cut, memory

LEAST = 1 << 22  # smaller models gain nothing


class Arena:
    """Places for tensors, by key, in the order given; matrices of that order lie side by side.

    Those that follow each other with one `together` stay in one block. Keys that were never taken cost no
    memory: the system gives pages when they are first written to.
    """

    def __init__(self, tensors: Iterable[tuple[Hashable, tuple[int, ...], torch.dtype, Hashable]]) -> None:
        self.places: dict[Hashable, Tensor] = {}
        ordered = sorted(tensors, key=lambda t: len(t[1]) < 2)
        runs = [list(run) for _, run in groupby(ordered, key=lambda t: t[3])]
        sizes = [sum(_size(shape, dtype) for _, shape, dtype, _ in run) for run in runs]
        if sum(sizes) < LEAST:
            return
        at = 0
        while at < len(runs):
            end, total = at, 0
            while end < len(runs) and (end == at or total + sizes[end] <= BLOCK):
                total += sizes[end]
                end += 1
            block, offset = memory(total, beside=sum(sizes[:at])), 0
            for key, shape, dtype, _ in chain.from_iterable(runs[at:end]):
                length = prod(shape) * dtype.itemsize
                self.places[key] = cut(block, offset, length).view(dtype).view(shape)
                offset += _size(shape, dtype)
            at = end

    def take(self, key: Hashable) -> Tensor | None:
        """The place of a tensor, once; None where there is none."""
        return self.places.pop(key, None)


def _size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a tensor, to whole lines."""
    return -(-prod(shape) * dtype.itemsize // LINE) * LINE
