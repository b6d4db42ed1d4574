"""From pixels to the stream."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.shapes import Patches, Pixels
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError


class PatchEmbed(Block):
    """Patches of an image as vectors, a class vector in front, positions added (Dosovitskiy et al., eq. 1).

    Pixels (B, C, Y, X) -> (B, P + 1, D). image, patch: (height, width) in pixels. class_token: a vector in
    front. mask_token: stands for the patches that `hidden` (B, P) marks. Sizes other than `image` need
    interpolate=True, unless any_size (DINOv2). teacher_token: a second vector in front (DeiT).
    """

    site_kind = "stream"
    resampling = "bicubic"

    def __init__(
        self,
        image: tuple[int, int],
        patch: tuple[int, int],
        channels: int,
        width: int,
        class_token: bool = True,
        mask_token: bool = False,
        norm: Spec | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        any_size: bool = False,
        teacher_token: bool = False,
        position: bool = True,
    ) -> None:
        super().__init__()
        self.image, self.patch, self.channels, self.any_size = image, patch, channels, any_size
        self.grid = (image[0] // patch[0], image[1] // patch[1])
        self.projection = nn.Conv2d(channels, width, patch, patch, bias=bias)
        self.class_token: Any = nn.Parameter(torch.empty(width)) if class_token else None
        self.mask_token = nn.Parameter(torch.empty(width)) if mask_token else None
        self.teacher_token = nn.Parameter(torch.empty(width)) if teacher_token else None
        self.front = int(class_token) + int(teacher_token)
        rows = self.grid[0] * self.grid[1] + self.front
        self.position: Any = nn.Parameter(torch.empty(rows, width)) if position else None
        self.norm, self.dropout_prob = make(norm), dropout
        self.register_module("site", None)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position table for a grid of rows x columns patches, resampled bicubically from another."""
        if (rows, columns) == self.grid:
            return self.position
        front = self.front
        table = self.position[front:].T.reshape(1, -1, *self.grid)
        table = F.interpolate(table, size=(rows, columns), mode=self.resampling, align_corners=False)
        return torch.cat((self.position[:front], table.flatten(2)[0].T))

    def patches(self, pixels: Pixels, interpolate: bool) -> tuple[Patches, tuple[int, int]]:
        """Vectors of the patches (B, P, D), row by row, and their (rows, columns)."""
        size = tuple(pixels.shape[-2:])
        if pixels.dim() != 4 or pixels.shape[1] != self.channels:
            raise ArgumentError(
                f"pixel_values must be (batch, {self.channels}, height, width), but are {tuple(pixels.shape)}"
            )
        if size != tuple(self.image) and not interpolate and not self.any_size:
            raise ArgumentError(
                f"images must be {self.image[0]} x {self.image[1]} pixels, but are {size[0]} x {size[1]}; "
                "resize them or pass interpolate_pos_encoding=True"
            )
        x = self.projection(pixels.to(self.projection.weight.dtype))  # (B, D, rows, columns)
        return x.flatten(2).transpose(1, 2), (x.shape[-2], x.shape[-1])

    def forward(self, pixels: Pixels, hidden: Tensor | None, interpolate: bool) -> Patches:
        x, (rows, columns) = self.patches(pixels, interpolate)
        if hidden is not None:
            if self.mask_token is None:
                raise ArgumentError(
                    "bool_masked_pos needs a model with a mask token: pass use_mask_token=True"
                )
            x = torch.where(hidden.bool()[..., None], self.mask_token.to(x.dtype), x)
        ahead = [t.expand(len(x), 1, -1) for t in (self.class_token, self.teacher_token) if t is not None]
        if ahead:
            x = torch.cat((*ahead, x), 1)
        if self.position is not None:
            x = x + self.positions(rows, columns)
        if self.norm is not None:
            x = self.norm(x)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        return x if self.site is None else self.site(x)


def grid_waves(width: int, rows: int, columns: int) -> Tensor:
    """(rows * columns, width): waves of the column, then of the row (He et al. 2021, appendix A)."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (x, y)]
    return torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], 1).float()


def keep_some(noise: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `kept` places of least noise (B, P) in its order, which are hidden (1.0), the way back."""
    order = noise.argsort(1)
    back = order.argsort(1)
    return order[:, :kept], (back >= kept).to(noise.dtype), back
