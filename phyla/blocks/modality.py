"""Inputs of any kind as vectors with positions, several kinds joined, and queries for outputs of any kind."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.conv import BatchNorm, Conv2d, ConvNorm
from phyla.blocks.linear import Linear
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError


class PixelVectors(Block):
    """Each pixel is a vector: (B, C, Y, X) -> (B, Y, X, C); `out` channels by a convolution of one pixel."""

    def __init__(self, out: int | None = None) -> None:
        super().__init__()
        self.conv = Conv2d(3, out, 1) if out is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.conv is None else self.conv(x)).permute(0, 2, 3, 1)


class Downsampled(Block):
    """A strided convolution and a pool: (B, 3, Y, X) -> (B, about Y / 4, X / 4, C)."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.down = make(ConvNorm(3, out, 7, 2, norm=BatchNorm(out), act="relu"))
        self.down.conv.he = False

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.down(x), 3, 2).permute(0, 2, 3, 1)


class FramePatches(Block):
    """Cubes of `time` x `space` x `space` as vectors: (B, T, C, Y, X) -> (B, T', Y', X', C'), one T' dropped.

    lift: (from, to) widths of a projection behind it.
    """

    def __init__(self, time: int, space: int, lift: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.time, self.space = time, space
        self.lift = Linear(*lift) if lift is not None else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(4, (-1, self.space)).unflatten(3, (-1, self.space)).unflatten(1, (-1, self.time))
        x = x.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4)  # (B, T', Y', X', C')
        x = x.squeeze(1) if x.shape[1] == 1 else x
        return x if self.lift is None else self.lift(x)


class SoundPatches(Block):
    """`size` samples are a vector: (B, samples, 1) -> (B, N, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.size)


class Placed(Block):
    """Vectors on a grid with their positions beside them: (B, N, C + P)."""

    def __init__(self, vectors: Spec, position: Spec) -> None:
        super().__init__()
        self.vectors, self.position = make(vectors), make(position)

    def forward(self, x: Tensor, interpolate: bool) -> Tensor:
        x = self.vectors(x)
        places = self.position(x.shape[1:-1], interpolate).to(x.dtype)
        return torch.cat((x.flatten(1, -2), places.expand(len(x), -1, -1)), -1)


class OneVector(Block):
    """Scores of labels as a single vector: (B, C) -> (B, 1, C)."""

    def forward(self, x: Tensor, interpolate: bool) -> Tensor:
        return x[:, None]


class Modalities(Block):
    """Several inputs, padded to one width by learned vectors and joined by name; `hidden` is masked out."""

    def __init__(self, parts: Mapping[str, Spec], widths: Mapping[str, int], width: int, hidden: str) -> None:
        super().__init__()
        self.hidden = hidden
        self.parts = nn.ModuleDict({name: make(part) for name, part in parts.items()})
        self.padding = padding_of(widths, width)
        self.mask = nn.ParameterDict({name: nn.Parameter(torch.empty(1, width)) for name in widths})

    def forward(self, inputs: Mapping[str, Tensor], interpolate: bool) -> Tensor:
        if not isinstance(inputs, Mapping) or set(inputs) != set(self.parts):
            raise ArgumentError(f"inputs must be tensors by name: {sorted(self.parts)}")
        joined = []
        for name in sorted(self.parts):
            x = self.parts[name](inputs[name], interpolate)
            x = torch.cat((x, self.padding[name].expand(*x.shape[:2], -1)), -1)
            joined.append(self.mask[name].expand_as(x) if name == self.hidden else x)
        return torch.cat(joined, 1)


def padding_of(widths: Mapping[str, int], width: int) -> nn.ParameterDict:
    """What fills the vectors of each modality up to `width`."""
    return nn.ParameterDict({name: nn.Parameter(torch.empty(1, width - own)) for name, own in widths.items()})


class ModalityQueries(Block):
    """Queries for the outputs of three modalities, padded to one width: (N, width), joined by name."""

    def __init__(
        self, audio: Spec, image: Spec, label: Spec, grids: Mapping[str, Sequence[int]],
        widths: Mapping[str, int], width: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grids = grids
        self.parts = nn.ModuleDict({"audio": make(audio), "image": make(image), "label": make(label)})
        self.padding = padding_of(widths, width)

    def forward(self, points: Mapping[str, Tensor] | None) -> Tensor:
        joined = []
        for name in self.grids:
            part: Any = self.parts[name]
            chosen, grid = (points or {}).get(name), self.grids[name]
            x = part(grid) if chosen is None or name == "label" else part.chosen(chosen, grid)
            joined.append(torch.cat((x, self.padding[name].expand(len(x), -1)), -1))
        return torch.cat(joined)


class Queries(Block):
    """A learned query for each of `count` outputs: (count, width)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, points: Mapping[str, Tensor] | None) -> Tensor:
        return self.weight
