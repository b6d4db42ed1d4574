"""Attention to a few learned points of maps of several sizes (Zhu et al. 2020, arXiv:2010.04159)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phyla.blocks.context import Context
from phyla.blocks.conv import ConvNorm
from phyla.blocks.detector import Look, shrunk
from phyla.blocks.linear import Linear
from phyla.blocks.residual import Mixer
from phyla.blocks.spec import Block, Spec, make
from phyla.blocks.stack import Decoder, StackOutput
from phyla.blocks.wave import GroupNorm
from phyla.errors import ConfigError


@dataclass
class Levels:
    """Maps laid out as one row of K places: (Y, X) of each, what is real (B, K), and how much of them.

    ratios (B, L, 2): shares of the columns and of the rows that are real.
    """

    sizes: tuple[tuple[int, int], ...]
    mask: Tensor | None
    ratios: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor], masks: Sequence[Tensor] | None) -> "Levels":
        """The levels of maps (B, D, Y, X) whose real places are `masks` (B, Y, X); None: all."""
        sizes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
        if masks is None:
            return cls(sizes, None, maps[0].new_ones((len(maps[0]), len(maps), 2), dtype=torch.float32))
        shares = [torch.stack((m[:, 0].float().mean(1), m[:, :, 0].float().mean(1)), -1) for m in masks]
        return cls(sizes, torch.cat([m.flatten(1) for m in masks], 1), torch.stack(shares, 1))

    @property
    def counts(self) -> list[int]:
        """Places of each level."""
        return [y * x for y, x in self.sizes]

    def centres(self) -> Tensor:
        """Of each place the column and row (K, 2), as shares of its map."""
        found = []
        for y, x in self.sizes:
            rows = (torch.arange(y, device=self.ratios.device) + 0.5) / y
            columns = (torch.arange(x, device=self.ratios.device) + 0.5) / x
            grid = torch.stack((columns.expand(y, -1), rows[:, None].expand(-1, x)), -1)
            found.append(grid.flatten(0, 1))
        return torch.cat(found)

    def by_place(self, ratios: Tensor) -> Tensor:
        """Of each place (B, K, 2) the ratio of its own level."""
        return torch.cat(
            [r.expand(-1, n, -1) for r, n in zip(ratios.split(1, 1), self.counts, strict=True)], 1
        )

    def points(self) -> Tensor:
        """Of each place the point (B, K, L, 2) that it stands at in every level."""
        own = self.centres() / self.by_place(self.ratios)
        return own[:, :, None] * self.ratios[:, None]

    def scaled(self, points: Tensor) -> Tensor:
        """Points (B, Q, 2) or boxes (B, Q, 4) of the real image as every level has them, (B, Q, L, ...)."""
        ratios = self.ratios if points.shape[-1] == 2 else torch.cat((self.ratios, self.ratios), -1)
        return points[:, :, None] * ratios[:, None]

    def proposals(self) -> tuple[Tensor, Tensor]:
        """A box for each place as logits (B, K, 4), larger on smaller maps; and which are used, (B, K).

        Those at the edge of the image and in padding have infinite logits (arXiv:2010.04159, A.4).
        """
        centres = self.centres() / self.by_place(self.ratios)
        sizes = torch.cat([centres.new_full((n,), 0.05 * 2.0**i) for i, n in enumerate(self.counts)])
        boxes = torch.cat((centres, sizes[None, :, None].expand(len(centres), -1, 2)), -1)
        used = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
        if self.mask is not None:
            used = used & self.mask
        return torch.log(boxes / (1 - boxes)).masked_fill(~used[..., None], float("inf")), used


def sample(values: Tensor, sizes: Sequence[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of values at places, bilinearly; outside of a map they are 0.

    values (B, K, H, E), places (B, Q, H, L, P, 2) as shares of each map, weights (B, Q, H, L, P); gives
    (B, Q, H * E).
    """
    b, _, heads, width = values.shape
    queries, points = places.shape[1], places.shape[4]
    grids = (2 * places - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B * H, Q, P, 2)
    found, first = [], 0
    for level, (y, x) in enumerate(sizes):
        part = values[:, first : first + y * x].permute(0, 2, 3, 1).reshape(b * heads, width, y, x)
        found.append(F.grid_sample(part, grids[level], align_corners=False))  # (B * H, E, Q, P)
        first += y * x
    share = weights.transpose(1, 2).reshape(b * heads, 1, queries, len(sizes) * points)
    y_ = (torch.cat(found, -1) * share).sum(-1)  # (B * H, E, Q)
    return y_.view(b, heads * width, queries).transpose(1, 2)


class Offsets(Linear):
    """Where the points of each head lie; fresh ones stand in a ring, further out by number."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__(width, heads * levels * points * 2)
        self.shape = (heads, levels, points, 2)

    def reset(self, std: float) -> bool:
        heads, _, points, _ = self.shape
        angles = torch.arange(heads).float() * (2 * math.pi / heads)
        ring = torch.stack((angles.cos(), angles.sin()), -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1).float()
        nn.init.zeros_(self.weight)
        self.bias.copy_((ring[:, None, None] * steps[:, None]).expand(*self.shape).flatten())
        return True


class Shares(Linear):
    """Weights of the points, alike when fresh."""

    def reset(self, std: float) -> bool:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        return True


class DeformableAttention(Mixer):
    """Sums of values at `points` learned places a level around each query's point (arXiv:2010.04159, eq. 3).

    ctx.memo["levels"]: Levels; ["points"]: (B, Q, L or 1, 2), or boxes (..., 4), whose size then scales the
    offsets; ["places"]: joins the queries. own: the values are the stream itself, else ctx.memory.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int, own: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"the width must be a multiple of the number of heads ({heads}), but is {width}"
            )
        self.heads, self.levels, self.count, self.own = heads, levels, points, own
        self.offsets = Offsets(width, heads, levels, points)
        self.weights = Shares(width, heads * levels * points)
        self.v, self.o = Linear(width, width), Linear(width, width)

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        levels, points, places = ctx.memo["levels"], ctx.memo["points"], ctx.memo.get("places")
        h = x if places is None else x + places
        memory: Any = x if self.own else ctx.memory
        values = self.v(memory)
        if levels.mask is not None:
            values = values.masked_fill(~levels.mask[..., None], 0.0)
        values = values.unflatten(-1, (self.heads, -1))  # (B, K, H, E)
        offsets = self.offsets(h).unflatten(-1, (self.heads, self.levels, self.count, 2))
        weights = self.weights(h).unflatten(-1, (self.heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.levels, self.count))  # (B, Q, H, L, P)
        at = points[:, :, None, :, None]
        if points.shape[-1] == 2:
            sides = torch.tensor([(x_, y) for y, x_ in levels.sizes], device=x.device, dtype=offsets.dtype)
            where = at + offsets / sides[:, None]
        else:
            where = at[..., :2] + offsets / self.count * at[..., 2:] * 0.5
        record = ctx.attentions if self.own else ctx.cross_attentions
        if record is not None:
            record.append(weights)
        return self.o(sample(values, levels.sizes, where.to(values.dtype), weights))


class LevelProject(Block):
    """Maps of a network at one width, and further ones of half the size each, to `count` levels."""

    def __init__(self, channels: Sequence[int], width: int, count: int) -> None:
        super().__init__()
        given = list(channels) if count > 1 else list(channels)[-1:]
        norm = GroupNorm(32, width)
        convs = [ConvNorm(c, width, 1, bias=True, norm=norm) for c in given]
        for number in range(count - len(given)):
            convs.append(ConvNorm(width if number else given[-1], width, 3, 2, bias=True, norm=norm))
        self.given = len(given)
        self.convs = make(convs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        # Norms of a group's few values depend on the layout in the last digits, which later norms amplify.
        maps = [x.contiguous() for x in maps[-self.given :]]
        found = [conv(x) for conv, x in zip(self.convs, maps, strict=False)]
        for number, conv in enumerate(list(self.convs)[self.given :]):
            found.append(conv(found[-1] if number else maps[-1]))
        return found


class LevelMaps(Block):
    """Base of detectors that look at several maps at once: a network, its maps at one width, their places."""

    def __init__(self, features: Spec, levels: Spec, place: Spec, width: int, count: int) -> None:
        super().__init__()
        self.features, self.place, self.levels = make(features), make(place), make(levels)
        self.level_places = nn.Parameter(torch.empty(count, width))

    def rows(self, look: Look) -> tuple[Tensor, Tensor, Levels]:
        """All places of all maps as one row (B, K, D), their vectors (B, K, D), and how they lie."""
        real = look.real()
        pixels = look.pixels.to(self.level_places.dtype)
        found = self.levels(self.features(pixels, look.implementation).feature_maps)
        masks = [shrunk(real, m.shape[-2:]) for m in found]
        places = [
            (self.place(m, mask) + level[:, None, None]).flatten(2)
            for m, mask, level in zip(found, masks, self.level_places, strict=True)
        ]
        x = torch.cat([m.flatten(2) for m in found], 2).transpose(1, 2)  # (B, K, D)
        levels = Levels.of(found, None if look.mask is None else masks)
        return x, torch.cat(places, 2).transpose(1, 2), levels


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)), with x kept between 0 and 1 and both sides at least eps."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def moved(points: Tensor, change: Tensor) -> Tensor:
    """Logits of boxes (B, Q, 4): the change, from the points (B, Q, 2) or boxes it belongs to."""
    if points.shape[-1] == 4:
        return change + inverse_sigmoid(points)
    return torch.cat((change[..., :2] + inverse_sigmoid(points), change[..., 2:]), -1)


class PointDecoder(Decoder):
    """Queries with a point each; ctx.memo["refine"] (a block a layer, states to changes) moves the points.

    The states behind all layers, normed where there is a norm, are ctx.memo["kept"] (B, L, Q, D), the points
    ctx.memo["moved"]. waves: from points (B, Q, L, 2 or 4) to the places of the queries (B, Q, D).
    """

    def __init__(self, layers: Sequence[Spec], norm: Spec | None = None, waves: Spec | None = None) -> None:
        super().__init__(None, layers, norm)
        self.waves = make(waves)

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StackOutput:
        levels, points, refine = ctx.memo["levels"], ctx.memo["points"], ctx.memo.get("refine")
        states, kept, path = [x if self.norm is None else self.norm(x)], [], []
        for index, layer in enumerate(self.layers):
            # Each layer has its own context: a layer computed again must find its own points.
            memo = {**ctx.memo, "points": levels.scaled(points)}
            if self.waves is not None:
                memo["places"] = self.waves(memo["points"]).to(x.dtype)
            own = replace(ctx, layer=index, memo=memo)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, own, use_reentrant=False)
            else:
                x = layer(x, own)
            if refine is not None:
                points = moved(points, refine[index](x)).sigmoid().detach()
            path.append(points)
            kept.append(x if self.norm is None else self.norm(x))
            states.append(kept[-1])
        ctx.memo["kept"], ctx.memo["moved"] = torch.stack(kept, 1), torch.stack(path, 1)
        return StackOutput(
            kept[-1],
            hidden_states=tuple(states) if record_states else None,
            attentions=None if ctx.attentions is None else tuple(ctx.attentions),
            cross_attentions=None if ctx.cross_attentions is None else tuple(ctx.cross_attentions),
        )
