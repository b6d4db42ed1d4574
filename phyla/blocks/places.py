"""Places on feature maps: waves and tables for rows and columns, and attention that reads places."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phyla.blocks.attention import Attention
from phyla.blocks.cache import CrossCache
from phyla.blocks.context import Context
from phyla.blocks.spec import Block
from phyla.errors import ArgumentError


def frequencies(width: int, base: float, like: Tensor) -> Tensor:
    """Divisors (width) of waves: pairs of sine and cosine whose length grows from 1 to `base`."""
    index = torch.arange(width, device=like.device)
    return base ** (2 * (index // 2).float() / width)


def waves(x: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """Numbers (...) as `width` sines and cosines in turn, (..., width)."""
    angles = x[..., None] / frequencies(width, base, x)
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(-2)


class PlaceWaves(Block):
    """Rows, then columns of the real part of an image as waves (Carion et al. 2020, arXiv:2005.12872, A.4).

    width: of the whole vector. base: longest wave, or those of rows and columns. shift: of the counts before
    they become shares of a turn. scale None: counts stay counts. eps: joins the divisor. Maps (B, D, Y, X).
    """

    def __init__(
        self,
        width: int,
        base: float | int | Sequence[float] = 10000.0,
        shift: float = 0.0,
        scale: float | None = 2 * math.pi,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.width, self.shift, self.scale, self.eps = width, shift, scale, eps
        self.bases = tuple(base) if isinstance(base, list | tuple) else (base, base)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask (B, Y, X): True at what is real."""
        half, found = self.width // 2, []
        for dim, base in zip((1, 2), self.bases, strict=True):
            count = mask.cumsum(dim, dtype=torch.float32)
            if self.scale is not None:
                last = count.narrow(dim, count.shape[dim] - 1, 1)
                count = (count + self.shift) / (last + self.eps) * self.scale
            found.append(waves(count, half, base))
        return torch.cat(found, -1).permute(0, 3, 1, 2).to(x.dtype)


class PlaceTable(Block):
    """Learned vectors of the columns, then of the rows; there are `count` of each. Maps (B, D, Y, X)."""

    def __init__(self, width: int, count: int = 50) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(count, width // 2))
        self.columns = nn.Parameter(torch.empty(count, width // 2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y, x_ = x.shape[-2:]
        if max(y, x_) > len(self.rows):
            raise ArgumentError(
                f"maps may have at most {len(self.rows)} rows and columns (their table of places), "
                f"but there are {y} x {x_}: use smaller images"
            )
        table = torch.cat(
            (self.columns[:x_].expand(y, -1, -1), self.rows[:y, None].expand(-1, x_, -1)), -1
        )  # (Y, X, D)
        return table.permute(2, 0, 1).expand(len(x), -1, -1, -1)


class PlacedAttention(Attention):
    """Attention whose queries and keys, not values, carry places (Carion et al. 2020, arXiv:2005.12872, A.3).

    ctx.memo["places"]: vectors (B or 1, S, D) of the stream; "memory_places": (B, K, D) of the memory.
    """

    def _project_and_turn(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        h = placed(x, ctx.memo.get("places"))
        return (
            self._split(self.q(h), self.num_heads),
            self._split(self.k(h), self.num_kv_heads),
            self._split(self.v(x), self.num_kv_heads),
        )

    def _cross(self, x: Tensor, ctx: Context, cache: CrossCache | None) -> tuple[Tensor, Tensor, Tensor]:
        if ctx.memory is None:
            raise ArgumentError("cross-attention needs the states of an image")
        h, keys = placed(x, ctx.memo.get("places")), placed(ctx.memory, ctx.memo.get("memory_places"))
        return (
            self._split(self.q(h), self.num_heads),
            self._split(self.k(keys), self.num_kv_heads),
            self._split(self.v(ctx.memory), self.num_kv_heads),
        )


def placed(x: Tensor, places: Tensor | None) -> Tensor:
    """The stream with its places."""
    return x if places is None else x + places
