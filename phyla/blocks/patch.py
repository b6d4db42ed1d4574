"""From pixels to the stream."""

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
    interpolate=True.
    """

    site_kind = "stream"

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
    ) -> None:
        super().__init__()
        self.image, self.patch, self.channels = image, patch, channels
        self.grid = (image[0] // patch[0], image[1] // patch[1])
        self.projection = nn.Conv2d(channels, width, patch, patch, bias=bias)
        self.class_token = nn.Parameter(torch.empty(width)) if class_token else None
        self.mask_token = nn.Parameter(torch.empty(width)) if mask_token else None
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1] + int(class_token), width))
        self.norm, self.dropout_prob = make(norm), dropout
        self.register_module("site", None)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position table for a grid of rows x columns patches, resampled bicubically from another."""
        if (rows, columns) == self.grid:
            return self.position
        front = int(self.class_token is not None)
        table = self.position[front:].T.reshape(1, -1, *self.grid)
        table = F.interpolate(table, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((self.position[:front], table.flatten(2)[0].T))

    def forward(self, pixels: Pixels, hidden: Tensor | None, interpolate: bool) -> Patches:
        size = tuple(pixels.shape[-2:])
        if pixels.dim() != 4 or pixels.shape[1] != self.channels:
            raise ArgumentError(
                f"pixel_values must be (batch, {self.channels}, height, width), but are {tuple(pixels.shape)}"
            )
        if size != tuple(self.image) and not interpolate:
            raise ArgumentError(
                f"images must be {self.image[0]} x {self.image[1]} pixels, but are {size[0]} x {size[1]}; "
                "resize them or pass interpolate_pos_encoding=True"
            )
        x = self.projection(pixels.to(self.projection.weight.dtype))  # (B, D, rows, columns)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # (B, P, D)
        if hidden is not None:
            if self.mask_token is None:
                raise ArgumentError(
                    "bool_masked_pos needs a model with a mask token: pass use_mask_token=True"
                )
            x = torch.where(hidden.bool()[..., None], self.mask_token.to(x.dtype), x)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), 1)
        x = x + self.positions(rows, columns)
        if self.norm is not None:
            x = self.norm(x)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        return x if self.site is None else self.site(x)
