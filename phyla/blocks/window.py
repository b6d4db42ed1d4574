"""Attention inside windows of a map, shifted in every second layer, and the maps around it (Swin)."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.attention import Attention, Heads
from phyla.blocks.context import Context
from phyla.blocks.conv import check_pixels
from phyla.blocks.linear import Linear
from phyla.blocks.norm import LayerNorm
from phyla.blocks.position import Position
from phyla.blocks.shapes import Bias, Keys, Queries, Stream
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, Y, X, D) -> (B * windows, wy * wx, D)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # (B, ny, wy, nx, wx, D)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(x: Tensor, window: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(B * windows, wy * wx, D) -> (B, Y, X, D) for a grid of whole windows."""
    ny, nx = grid[0] // window[0], grid[1] // window[1]
    x = x.unflatten(1, window).unflatten(0, (-1, ny, nx))  # (B, ny, nx, wy, wx, D)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def window_offsets(rows: int, columns: int, reach: tuple[int, int]) -> Tensor:
    """(S, S) numbers of the offset between two places of rows x columns, of 2 r - 1 a side of `reach`."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None] + reach[0] - 1
    dx = x[:, None] - x[None] + reach[1] - 1
    return dy * (2 * reach[1] - 1) + dx


class WindowBias(Position):
    """A learned bias for each head and offset inside a window (Liu et al. 2021, arXiv:2103.14030, eq. 4)."""

    computed = ("index",)

    def __init__(self, window: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.window = window
        self.weight = nn.Parameter(torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), heads))
        area = window[0] * window[1]
        self.register_buffer("index", torch.empty(area, area, dtype=torch.long))

    def fill_buffers(self) -> None:
        self.index.copy_(window_offsets(self.window[0], self.window[1], self.window))

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias:
        window = ctx.memo.get("window", self.window)
        index = self.index
        if window != self.window:  # a map smaller than the window: the offsets that it has
            index = window_offsets(window[0], window[1], self.window).to(index.device)
        return F.embedding(index, self.weight).permute(2, 0, 1)[None].to(q.dtype)  # (1, H, S, S)

    def reset(self, std: float) -> bool:
        nn.init.zeros_(self.weight)
        self.fill_buffers()
        return True


class WindowAttention(Attention):
    """Attention among the places of each window of a map (Liu et al. 2021, arXiv:2103.14030, section 3.2).

    Stream (B, Y * X, D) with (Y, X) in ctx.memo["grid"], padded to whole windows. shift: windows begin that
    many places later, and places from opposite edges score -100 against each other. shrinks: a map not
    larger than the window is one window without shift (of its smaller side).
    """

    def __init__(
        self,
        width: int,
        heads: Heads,
        window: int,
        shift: int = 0,
        bias: bool = True,
        dropout: float = 0.0,
        shrinks: bool = True,
        position: Spec | None = None,
    ) -> None:
        place = WindowBias((window, window), heads.q) if position is None else position
        super().__init__(width, heads, position=place, bias=bias, out_bias=True, dropout=dropout)
        self.window, self.shift, self.shrinks = window, shift, shrinks

    def mix(self, x: Stream, ctx: Context) -> Stream:
        rows, columns = ctx.memo["grid"]
        window, shift = self.window, self.shift
        if self.shrinks and min(rows, columns) <= window:
            window, shift = min(rows, columns), 0
        down, right = -rows % window, -columns % window
        y = x.unflatten(1, (rows, columns))
        if down or right:
            y = F.pad(y, (0, 0, 0, right, 0, down))
        if shift:
            y = y.roll((-shift, -shift), (1, 2))
        grid, sides = (rows + down, columns + right), (window, window)
        mask = None
        if shift:
            mask = ctx.once(("edges", grid, window, shift), lambda: edges(grid, window, shift, x))
            mask = mask.repeat(x.shape[0], 1, 1, 1)
        inner = replace(ctx, attention_mask=mask, length=window * window, memo={"window": sides})
        y = from_windows(super().mix(to_windows(y, sides), inner), sides, grid)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        return y[:, :rows, :columns].flatten(1, 2)


def edges(grid: tuple[int, int], window: int, shift: int, like: Tensor) -> Tensor:
    """(windows, 1, w * w, w * w): -100 between places that the shift brought from opposite edges."""
    regions = []
    for size in grid:
        place = torch.arange(size, device=like.device)
        regions.append((place >= size - window).int() + (place >= size - shift).int())
    number = (3 * regions[0][:, None] + regions[1][None])[None, ..., None]  # (1, Y, X, 1)
    number = to_windows(number, (window, window))[..., 0]  # (windows, w * w)
    apart = number[:, None] != number[..., None]
    return (apart.to(like.dtype) * -100)[:, None]


class PatchMerge(Block):
    """Squares of four neighbours (B, Y, X, D) become one of twice the width; odd sides are padded."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = make(LayerNorm(4 * width, eps=eps))
        self.reduce = Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        if rows % 2 or columns % 2:
            x = F.pad(x, (0, 0, 0, columns % 2, 0, rows % 2))
        x = torch.cat((x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]), -1)
        return self.reduce(self.norm(x))


class PatchMap(Block):
    """Patches of an image as a map (B, Y, X, D), normed; the image is padded to whole patches.

    position: a table of one vector a patch of an image of `image` pixels, with an unused row in front.
    """

    site_kind = "stream"

    def __init__(
        self,
        image: tuple[int, int],
        patch: tuple[int, int],
        channels: int,
        width: int,
        norm: Spec | None = None,
        mask_token: bool = False,
        position: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch, self.channels, self.dropout_prob = patch, channels, dropout
        self.grid = (image[0] // patch[0], image[1] // patch[1])
        self.projection = nn.Conv2d(channels, width, patch, patch)
        self.norm = make(norm)
        self.mask_token = nn.Parameter(torch.empty(width)) if mask_token else None
        patches = self.grid[0] * self.grid[1]
        self.position: Any = nn.Parameter(torch.empty(patches + 1, width)) if position else None
        self.register_module("site", None)

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, interpolate: bool = False) -> Tensor:
        check_pixels(pixels, self.channels)
        down, right = -pixels.shape[2] % self.patch[0], -pixels.shape[3] % self.patch[1]
        if down or right:
            pixels = F.pad(pixels, (0, right, 0, down))
        x = self.projection(pixels.to(self.projection.weight.dtype)).permute(0, 2, 3, 1)  # (B, Y, X, D)
        if self.norm is not None:
            x = self.norm(x)
        if hidden is not None:
            if self.mask_token is None:
                raise ArgumentError(
                    "bool_masked_pos needs a model with a mask token: pass use_mask_token=True"
                )
            hidden = hidden.bool().unflatten(1, (x.shape[1], x.shape[2]))[..., None]
            x = torch.where(hidden, self.mask_token.to(x.dtype), x)
        if self.position is not None:
            x = x + self.positions(x.shape[1], x.shape[2], interpolate)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        return x if self.site is None else self.site(x)

    def positions(self, rows: int, columns: int, interpolate: bool) -> Tensor:
        """The position table (1, rows, columns, D), resampled bicubically where the grid is another."""
        table = self.position[1:].unflatten(0, self.grid).permute(2, 0, 1)[None]
        if (rows, columns) != self.grid:
            if not interpolate:
                raise ArgumentError(
                    f"images must have {self.grid[0]} x {self.grid[1]} patches, but have {rows} x {columns}; "
                    "resize them or pass interpolate_pos_encoding=True"
                )
            table = F.interpolate(table, size=(rows, columns), mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1)
