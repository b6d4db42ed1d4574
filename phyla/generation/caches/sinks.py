"""Keys and values of which only the first and the last stay."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import KVCache
from phyla.blocks.context import Context
from phyla.errors import ArgumentError


class SinkKV(KVCache):
    """The first `sinks` positions and the newest, `most` in all (Xiao et al. 2023, arXiv:2309.17453).

    Positions count within what is kept: when some are dropped, the first ones are turned after the others.
    """

    def __init__(self, batch: int, most: int, sinks: int, position: Any) -> None:
        super().__init__(batch, most + 1)
        self.most, self.sinks, self.position = most, sinks, position
        self.shift = None  # type: ignore[assignment]  # positions count within what is kept: rows go together

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """As `KVCache.update`."""
        over = self.used + k.shape[2] - self.most
        if over > 0 and self.used > self.sinks:
            self._drop(min(over, self.used - self.sinks))
        return super().update(k, v)

    def _drop(self, count: int) -> None:
        keys, values = self.room(0)
        begin, end = self.sinks, self.used - count
        if self.position is not None and begin:
            keys[:, :, :begin] = self._turned(keys[:, :, :begin], count)
        for t in (keys, values):
            t[:, :, begin:end] = t[:, :, begin + count : self.used].clone()
        self.first, self.used = self.first + count, end

    def _turned(self, keys: Tensor, count: int) -> Tensor:
        """Keys (B, G, K, E) as if they stood `count` positions further on."""
        places = torch.full((1, keys.shape[2]), count, device=keys.device)
        turned = self.position.rotate(keys, keys, Context(positions=places, length=keys.shape[2]))[1]
        return turned / getattr(getattr(self.position, "table", None), "factor", 1.0)

    def truncate(self, length: int) -> None:
        """As `KVCache.truncate`, while nothing has been dropped."""
        if self.first:
            raise ArgumentError("a cache with sinks that has dropped positions cannot be cut back")
        super().truncate(length)
