"""Biases of places on a grid in two parts, one by rows and one by columns, that depend on the query."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.context import Context
from phyla.blocks.position import Position
from phyla.blocks.shapes import Bias, Keys, Queries


class GridBias(Position):
    """q r_y + q r_x, r the vectors of the offsets (Li et al. 2021, arXiv:2112.01526, eq. 5).

    grid: (rows, columns) of the tables, resampled linearly for others. The call's grid is that of the window,
    ctx.memo["window"], or of the whole map, ctx.memo["grid"].
    """

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(2 * grid[0] - 1, width))
        self.columns = nn.Parameter(torch.empty(2 * grid[1] - 1, width))

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias:
        y, x = ctx.memo.get("window") or ctx.memo["grid"]
        q = q.unflatten(2, (y, x))  # (B, H, Y, X, E)
        rows = torch.einsum("bhyxe,yke->bhyxk", q, offsets(self.rows, y))
        columns = torch.einsum("bhyxe,xke->bhyxk", q, offsets(self.columns, x))
        return (rows[..., None] + columns[..., None, :]).flatten(4).flatten(2, 3)  # (B, H, S, S)


def offsets(table: Tensor, size: int) -> Tensor:
    """Vectors (size, size, E) of the offset from each place to each, from a table (2 n - 1, E)."""
    count = 2 * size - 1
    if len(table) != count:
        table = F.interpolate(table.T[None], size=count, mode="linear")[0].T
    place = torch.arange(size, device=table.device)
    return table[place[:, None] - place + size - 1]
