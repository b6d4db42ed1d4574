"""Memory for the weights of a model in a few large blocks, matrices of one layer side by side.

What reads the same stream (q, k, v; gate, up) can then be taken as one matrix without a copy.
"""

from collections.abc import Hashable, Iterable
from math import prod

import torch
from torch import Tensor

BLOCK = 1 << 26  # a block is given back only when nothing in it lives any more
LINE = 64
LEAST = 1 << 22  # smaller models gain nothing


class Arena:
    """Places for tensors, by key, in the order given; matrices of that order lie side by side.

    Keys that were never taken cost no memory: the system gives pages when they are first written to.
    """

    def __init__(self, tensors: Iterable[tuple[Hashable, tuple[int, ...], torch.dtype]]) -> None:
        self.places: dict[Hashable, Tensor] = {}
        ordered = sorted(tensors, key=lambda t: len(t[1]) < 2)
        sizes = [-(-prod(shape) * dtype.itemsize // LINE) * LINE for _, shape, dtype in ordered]
        if sum(sizes) < LEAST:
            return
        at = 0
        while at < len(ordered):
            end, total = at, 0
            while end < len(ordered) and (end == at or total + sizes[end] <= BLOCK):
                total += sizes[end]
                end += 1
            block, offset = torch.empty(total, dtype=torch.uint8), 0
            for (key, shape, dtype), size in zip(ordered[at:end], sizes[at:end], strict=True):
                length = prod(shape) * dtype.itemsize
                self.places[key] = block[offset : offset + length].view(dtype).view(shape)
                offset += size
            at = end

    def take(self, key: Hashable) -> Tensor | None:
        """The place of a tensor, once; None where there is none."""
        return self.places.pop(key, None)
