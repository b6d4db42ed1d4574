"""From the maps of a network to vectors of pixels, for masks (Cheng et al. 2021, arXiv:2112.01527)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.conv import Conv2d, ConvNorm
from phyla.blocks.deformable import Levels
from phyla.blocks.detector import Look
from phyla.blocks.places import PlaceWaves
from phyla.blocks.spec import Block, Spec, make
from phyla.blocks.wave import GroupNorm


def all_places(place: Block, x: Tensor) -> Tensor:
    """Vectors (1, Y * X, D) of the places of a map without padding."""
    mask = torch.ones((1, *x.shape[-2:]), dtype=torch.bool, device=x.device)
    return place(x, mask).flatten(2).transpose(1, 2)


class PixelDecoder(Block):
    """The coarsest maps through deformable attention, then `finer` larger maps one by one.

    channels: of the given maps, from fine to coarse. Gives vectors of pixels (B, out, Y, X) of the finest map
    and the encoded maps, coarsest first.
    """

    def __init__(
        self, channels: Sequence[int], width: int, out: int, encoder: Spec, finer: int, count: int = 3
    ) -> None:
        super().__init__()
        norm = GroupNorm(32, width)
        coarse = list(channels)[-count:][::-1]
        self.projects = make([ConvNorm(c, width, 1, bias=True, norm=norm) for c in coarse])
        self.sides = make([ConvNorm(c, width, 1, norm=norm) for c in list(channels)[:finer]])
        self.smooths = make([ConvNorm(width, width, 3, norm=norm, act="relu")] * finer)
        self.place, self.encoder = make(PlaceWaves(width)), make(encoder)
        self.level_places = nn.Parameter(torch.empty(count, width))
        self.out = Conv2d(width, out, 1)

    def forward(self, maps: Sequence[Tensor], look: Look) -> tuple[Tensor, list[Tensor]]:
        coarse = list(maps)[::-1][: len(self.projects)]
        found = [project(x) for project, x in zip(self.projects, coarse, strict=True)]
        places = [
            all_places(self.place, x) + level for x, level in zip(found, self.level_places, strict=True)
        ]
        levels = Levels.of(found, None)
        x = torch.cat([m.flatten(2) for m in found], 2).transpose(1, 2)
        ctx = look.context(x, places=torch.cat(places, 1), levels=levels, points=levels.points())
        ctx.attentions = None
        x = self.encoder.run(x, ctx).last_hidden_state
        parts = x.transpose(1, 2).split(levels.counts, 2)
        outs = [p.unflatten(2, size) for p, size in zip(parts, levels.sizes, strict=True)]
        y = outs[-1]
        for side, smooth, x in reversed(list(zip(self.sides, self.smooths, maps, strict=False))):
            x = side(x)
            y = smooth(x + F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False))
        return self.out(y), outs
