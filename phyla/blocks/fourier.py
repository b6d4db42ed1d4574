"""Positions of a grid of any number of axes, as vectors beside what stands there."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.linear import Linear
from phyla.blocks.spec import Block
from phyla.errors import ArgumentError


class FourierPositions(Block):
    """Places in [-1, 1], with their sines and cosines at `bands` rates an axis (arXiv:2103.03206, 3.2)."""

    def __init__(self, bands: int, resolution: Sequence[int]) -> None:
        super().__init__()
        self.bands, self.resolution = bands, tuple(resolution)
        self.register_buffer("rates", torch.empty(len(self.resolution), bands), persistent=False)

    def fill_buffers(self) -> None:
        self.rates.copy_(torch.stack([torch.linspace(1.0, r / 2, self.bands) for r in self.resolution]))

    def at(self, places: Tensor) -> Tensor:
        """(N, axes * (2 bands + 1)) of places (N, axes)."""
        angles = (math.pi * (places[..., None] * self.rates.float())).flatten(1)  # (N, axes * bands)
        return torch.cat((places, angles.sin(), angles.cos()), -1)

    def forward(self, sizes: Sequence[int], interpolate: bool = False) -> Tensor:
        axes = [torch.linspace(-1.0, 1.0, size, device=self.rates.device) for size in sizes]
        return self.at(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2))

    def chosen(self, points: Tensor, sizes: Sequence[int]) -> Tensor:
        """(N, ...) of flat numbers (N) of a grid of these sizes."""
        points = points.to(self.rates.device)
        places: list[Tensor] = []
        for size in reversed(sizes):
            places.insert(0, -1 + 2 * (points % size) / size)
            points = points // size
        return self.at(torch.stack(places, -1))


class TrainedPositions(Block):
    """A vector for each of `count` places, as they are or projected to `project`."""

    def __init__(self, count: int, width: int, project: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        self.project = Linear(width, project) if project is not None else None

    def forward(self, sizes: Sequence[int], interpolate: bool = False) -> Tensor:
        table: Tensor = self.weight
        count = len(table)
        if math.prod(sizes) != count:
            if not interpolate:
                raise ArgumentError(
                    f"there are {count} positions, but the inputs have {tuple(sizes)}; resize them or pass "
                    "interpolate_pos_encoding=True"
                )
            side = math.isqrt(count)
            grid = table.T.reshape(1, -1, side, side)
            table = (
                F.interpolate(grid, size=tuple(sizes), mode="bicubic", align_corners=False).flatten(2)[0].T
            )
        return table if self.project is None else self.project(table)
