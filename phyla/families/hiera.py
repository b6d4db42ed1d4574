"""Hiera (Ryali et al. 2023, arXiv:2306.00989): a hierarchy of plain layers that halves its maps by maxima.

Public checkpoints: facebook/hiera-tiny-224-hf and every `model_type: hiera`.
Differs from ViT in: early stages attend inside units of the map, the first layer of a stage widens and takes
the maximum of four queries, tokens stand in an order in which those four lie apart by a fixed stride.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Context, FFN, Layer, LayerNorm, Linear, Mixer, make, residual
from phyla.blocks.attention import attend
from phyla.blocks.conv import Conv2d, check_pixels
from phyla.blocks.patch import keep_some
from phyla.blocks.pool import MeanPool
from phyla.blocks.residual import drop_path, path_chances
from phyla.blocks.shapes import NewStream, Stream
from phyla.blocks.spec import Spec
from phyla.blocks.stages import Stage, StageMaps, StagesOutput
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Reshape
from phyla.config import StagedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.family import family
from phyla.heads import Backbone, Call, FeatureMaps, Head, HeadModule, ImageClassify
from phyla.heads.feature_maps import stage_norm_names, stage_norms
from phyla.outputs import (
    HieraForImageClassificationOutput, HieraForPreTrainingOutput, HieraModelOutput, ModelOutput,
)  # fmt: skip
from phyla.skeletons import BackboneModel, VisionModel
from phyla.skeletons.vision import NoisyVisionModel


class Config(StagedConfig):
    """Keys and defaults of the public config.json."""

    embed_dim: int = 96
    image_size: list = [224, 224]
    patch_size: list = [7, 7]
    patch_stride: list = [4, 4]
    patch_padding: list = [3, 3]
    mlp_ratio: float = 4.0
    depths: list = [2, 3, 16, 3]
    num_heads: list = [1, 2, 4, 8]
    embed_dim_multiplier: float = 2.0
    num_query_pool: int = 3
    query_stride: list = [2, 2]
    masked_unit_size: list = [8, 8]
    masked_unit_attention: list = [True, True, False, False]
    drop_path_rate: float = 0.0
    num_channels: int = 3
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_init: float = 1.0
    layer_norm_eps: float = 1e-6
    decoder_hidden_size: Any = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None
    normalize_pixel_loss: bool = True
    mask_ratio: float = 0.6
    out_features: Any = None
    out_indices: Any = None

    ALIASES = {"num_hidden_layers": "num_layers"}

    def finish(self) -> None:
        steps = len(self.depths) - 1
        if self.masked_unit_size[0] % self.query_stride[0] ** steps:
            raise ConfigError(
                f"masked_unit_size must be a multiple of {self.query_stride[0] ** steps} (query_stride to "
                f"the power of the number of stages less one), but is {self.masked_unit_size}"
            )
        if self.num_query_pool > steps:
            raise ConfigError(
                f"num_query_pool must be below the number of stages ({steps + 1}), but is "
                f"{self.num_query_pool}"
            )
        self.num_layers = len(self.depths)
        self.hidden_size = widths(self)[-1]
        self.name_stages(len(self.depths))


def widths(c: Config) -> list[int]:
    """Widths of all stages."""
    return [int(c.embed_dim * c.embed_dim_multiplier**i) for i in range(len(c.depths))]


def unrolled(x: Tensor, strides: Sequence[Sequence[int]]) -> Tensor:
    """A map (B, Y, X, D) as tokens (B, Y * X, D): offsets inside each stride outermost, the finest first."""
    for level, (sy, sx) in enumerate(strides):  # (B, [sy, sx] * level, Y, X, D)
        at = 1 + 2 * level
        x = x.unflatten(at + 1, (-1, sx)).unflatten(at, (-1, sy)).movedim((at + 1, at + 3), (at, at + 1))
    return x.flatten(1, -2)


def rerolled(x: Tensor, strides: Sequence[Sequence[int]], grid: tuple[int, ...]) -> Tensor:
    """Tokens back as a map (B, *grid * strides, D); grid is (Y, X), or (units,) of which each is a map."""
    levels = [n for stride in strides for n in stride]
    x = x.unflatten(1, (*levels, *grid))
    depth, at = len(strides), 1 + len(levels)
    rows, columns = [1 + 2 * i for i in range(depth)][::-1], [2 + 2 * i for i in range(depth)][::-1]
    if len(grid) == 2:
        x = x.permute(0, at, *rows, at + 1, *columns, at + 2)
        return x.flatten(2 + depth, 2 + 2 * depth).flatten(1, 1 + depth)
    x = x.permute(0, at, *rows, *columns, at + 1)
    if not depth:
        return x[:, :, None, None]
    return x.flatten(2 + depth, 1 + 2 * depth).flatten(2, 1 + depth)


class UnitEmbed(Block):
    """Overlapping patches with positions, in unrolled order: pixels (B, C, Y, X) -> (B, P, D).

    hide: share of the units whose pixels are set to 0 and whose tokens fall away; which, the call's noise
    (B, units) says. strides: of the order (none leaves the tokens row by row).
    """

    site_kind = "stream"

    def __init__(
        self,
        image: Sequence[int],
        conv: Sequence[Sequence[int]],
        channels: int,
        width: int,
        strides: Sequence[Sequence[int]],
        unit: Sequence[int],
        hide: float | None = None,
    ) -> None:
        super().__init__()
        size, stride, padding = ((v[0], v[1]) for v in conv)
        self.image, self.channels, self.strides, self.hide = tuple(image), channels, strides, hide
        self.grid = (image[0] // stride[0], image[1] // stride[1])
        self.units = (self.grid[0] // unit[0], self.grid[1] // unit[1])
        self.projection = Conv2d(channels, width, size, stride, padding)
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], width))
        self.register_module("site", None)

    def positions(self, grid: tuple[int, int], interpolate: bool) -> Tensor:
        """The position table (1, Y, X, D) for a grid, resampled bicubically from another."""
        table = self.position.unflatten(0, self.grid)[None]
        if grid == self.grid:
            return table
        if not interpolate:
            raise ArgumentError(
                f"images must be {self.image[0]} x {self.image[1]} pixels; resize them or pass "
                "interpolate_pos_encoding=True"
            )
        table = F.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor, noise: Tensor | None = None, interpolate: bool = False) -> Any:
        check_pixels(pixels, self.channels)
        pixels = pixels.to(self.projection.weight.dtype)
        if self.hide is None:
            x = self.projection(pixels).permute(0, 2, 3, 1)
            x = unrolled(x + self.positions((x.shape[1], x.shape[2]), interpolate), self.strides)
            return x if self.site is None else self.site(x)
        count = self.units[0] * self.units[1]
        if noise is None:
            noise = torch.rand(len(pixels), count, device=pixels.device)
        kept = int(count * (1 - self.hide))
        order, hidden, back = keep_some(noise, kept)
        seen = hidden == 0
        shown = F.interpolate(seen.unflatten(1, self.units)[:, None].to(pixels.dtype), size=pixels.shape[2:])
        x = self.projection(pixels * shown).permute(0, 2, 3, 1)
        x = unrolled(x + self.positions((x.shape[1], x.shape[2]), interpolate), self.strides)
        x = x.unflatten(1, (-1, count))  # (B, places of a unit, units, D)
        places = order.sort(1).values[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        x = x.gather(2, places).flatten(1, 2)
        return (x if self.site is None else self.site(x)), {"bool_masked_pos": seen, "ids_restore": back}


class UnitAttention(Mixer):
    """Attention inside units, from the maxima of `stride` queries (section 3.2): D to `out` elements.

    unit: tokens of a unit behind the maxima, or 0 where all attend to all. widens: the sum around it starts
    from the maxima of a linear map of the normed stream.
    """

    def __init__(self, width: int, out: int, heads: int, stride: int = 1, unit: int = 0) -> None:
        super().__init__()
        self.q, self.k, self.v = Linear(width, out), Linear(width, out), Linear(width, out)
        self.o = Linear(out, out)
        self.project = Linear(width, out) if width != out else None
        self.num_heads, self.stride, self.unit = heads, stride, unit
        self.scale = (out // heads) ** -0.5

    def forward(self, x: Stream, ctx: Context) -> NewStream:
        if self.project is None:
            return super().forward(x, ctx)
        h = self.normed(x)
        start = self.project(h).unflatten(1, (self.stride, -1)).amax(1)
        return start + self.change(h, x, ctx)

    def change(self, h: Tensor, x: Tensor, ctx: Context) -> Tensor:
        """What is added to the stream: fewer and wider tokens than x has, where the layer halves the map."""
        y = self.mix(h, ctx)
        if self.training and self.path_dropout:
            y = drop_path(y, self.path_dropout)
        return y if self.site is None else self.site(y, x, self)

    def mix(self, x: Stream, ctx: Context) -> NewStream:
        units = x.shape[1] // (self.stride * self.unit) if self.unit else 1

        def parted(y: Tensor) -> Tensor:
            y = y.unflatten(2, (self.num_heads, -1)).unflatten(1, (-1, units))
            return y.permute(0, 3, 2, 1, 4)  # (B, H, units, tokens of a unit, E)

        q, k, v = parted(self.q(x)), parted(self.k(x)), parted(self.v(x))
        if self.stride > 1:
            q = q.unflatten(3, (self.stride, -1)).amax(3)
        if ctx.attentions is None and ctx.implementation != "eager" and ctx.head_mask is None:
            q, k, v = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)
            y = attend(q, k, v, None, None, False, self.scale, 0.0)
            y = y.unflatten(1, (-1, units))
        else:
            weights = torch.softmax(q * self.scale @ k.transpose(-1, -2), -1)
            if ctx.head_mask is not None:
                weights = weights * ctx.head_mask[ctx.layer][:, :, None]
            y = weights @ v
            if ctx.attentions is not None:
                ctx.attentions.append(weights)
        return self.o(y.transpose(1, 3).flatten(3).flatten(1, 2))


class Hierarchy(Block):
    """Stages on tokens in unrolled order; states also as maps (B, Y, X, D) or (B, units, y, x, D).

    strides: of the order. pools: number of stages that take maxima. patch: pixels between two places.
    """

    def __init__(
        self,
        embed: Spec,
        layers: Sequence[Spec],
        strides: Sequence[Sequence[int]],
        pools: int,
        patch: Sequence[int],
        pool: Spec | None = None,
    ) -> None:
        super().__init__()
        self.embed, self.layers, self.pool = make(embed), make(list(layers)), make(pool)
        self.strides, self.pools, self.patch = strides, pools, tuple(patch)

    def as_map(self, x: Tensor, stage: int, ctx: Context) -> Tensor:
        """Tokens of a stage as a map."""
        strides = self.strides[min(stage, self.pools) :]
        places = math.prod(n for stride in strides for n in stride)
        grid: tuple[int, ...] = (x.shape[1] // places,)
        if self.embed.hide is None:
            size = [n // p for n, p in zip(ctx.memo["pixels"], self.patch, strict=True)]
            for stride in self.strides[: min(stage, self.pools)]:
                size = [n // s for n, s in zip(size, stride, strict=True)]
            for stride in strides:
                size = [n // s for n, s in zip(size, stride, strict=True)]
            grid = tuple(size)
        return rerolled(x, strides, grid)

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StagesOutput:
        """From embedded tokens x (B, P, D) to the output."""
        states = [x]
        for index, stage in enumerate(self.layers):
            ctx.layer, seen = index, len(ctx.attentions or ())
            x = stage(x, ctx)
            states.append(x)
            if ctx.attentions is not None:
                ctx.attentions[seen:] = ctx.attentions[-1:]
        out = StagesOutput(x, None if self.pool is None else self.pool(x, None, ctx))
        out.attentions = None if ctx.attentions is None else tuple(ctx.attentions)
        if record_states:
            out.hidden_states = tuple(states)
            out.reshaped_hidden_states = tuple(
                self.as_map(s, max(i - 1, 0), ctx) for i, s in enumerate(states)
            )
        return out


def layer(c: Config, attn: Spec, width: int, out: int, chance: float = 0.0) -> Spec:
    """One layer from `width` to `out` elements."""
    ffn = FFN(out, int(out * c.mlp_ratio), act=c.hidden_act)
    return Layer(
        attn=residual(attn, pre=LayerNorm(width, eps=c.layer_norm_eps), path_dropout=chance),
        ffn=residual(ffn, pre=LayerNorm(out, eps=c.layer_norm_eps), path_dropout=chance),
    )


def build(c: Config, hides: bool = False, unroll: bool = True) -> Hierarchy:
    """Hiera's stages; hides: units fall away. The public feature extractor leaves tokens row by row."""
    chances = iter(path_chances(c.drop_path_rate, sum(c.depths)))
    area, step = math.prod(c.masked_unit_size), math.prod(c.query_stride)
    stages, width = [], c.embed_dim
    for i, (out, depth) in enumerate(zip(widths(c), c.depths, strict=True)):
        unit, layers = int(area * step**-i), []
        for j in range(depth):
            inside = c.masked_unit_attention[i] or (j == 0 and c.masked_unit_attention[max(i - 1, 0)])
            stride = step if j == 0 and 0 < i <= c.num_query_pool else 1
            attn = UnitAttention(width, out, c.num_heads[i], stride, unit if inside else 0)
            layers.append(layer(c, attn, width, out, next(chances)))
            width = out
        stages.append(Stage(layers))
    strides = [c.query_stride] * (len(c.depths) - 1)
    conv = (c.patch_size, c.patch_stride, c.patch_padding)
    return Hierarchy(
        embed=UnitEmbed(
            c.image_size[-2:], conv, c.num_channels, c.embed_dim, strides if unroll else [],
            c.masked_unit_size, c.mask_ratio if hides or getattr(c, "is_mae", False) else None,
        ),
        layers=stages, strides=strides, pools=c.num_query_pool, patch=c.patch_stride,
        pool=MeanPool(norm=LayerNorm(c.hidden_size, eps=c.layer_norm_eps)),
    )  # fmt: skip


def layer_names(ours: str, theirs: str) -> dict[str, str | To]:
    """Lines of one layer."""
    return {
        f"{ours}.attn.pre_norm": f"{theirs}.layernorm_before",
        f"{ours}.attn.q|k|v": split(f"{theirs}.attn.qkv"),
        f"{ours}.attn.o": f"{theirs}.attn.proj",
        f"{ours}.attn.project": f"{theirs}.proj",
        f"{ours}.ffn.pre_norm": f"{theirs}.layernorm_after",
        f"{ours}.ffn.up": f"{theirs}.mlp.fc1",
        f"{ours}.ffn.down": f"{theirs}.mlp.fc2",
    }


def names(c: Config) -> NameMap:
    """Hiera's public names."""
    return NameMap(
        {
            "embed.projection": "embeddings.patch_embeddings.projection",
            "embed.position": To("embeddings.position_embeddings", Reshape((1, -1, c.embed_dim))),
            **layer_names("layers.{i}.layers.{j}", "encoder.stages.{i}.layers.{j}"),
            "pool.norm": "pooler.layernorm",
        },
        prefix="hiera",
    )


class _Painter(HeadModule):
    """Maps of the units seen -> pixels of all places of the last map."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        pools, width = c.num_query_pool, c.decoder_hidden_size
        self.final = [m // s**pools for m, s in zip(c.masked_unit_size, c.query_stride, strict=True)]
        grid = [i // s for i, s in zip(c.image_size, c.patch_stride, strict=True)]
        self.grid = [g // s**pools for g, s in zip(grid, c.query_stride, strict=True)]
        unit, self.fuse = c.masked_unit_size, nn.ModuleList()
        for i in range(pools):
            kernel = [u // f for u, f in zip(unit, self.final, strict=True)]
            self.fuse.append(Conv2d(widths(c)[i], c.hidden_size, tuple(kernel), tuple(kernel)))
            unit = [u // s for u, s in zip(unit, c.query_stride, strict=True)]
        self.fused_norm = make(LayerNorm(c.hidden_size, eps=c.layer_norm_eps))
        self.embed = Linear(c.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(math.prod(self.grid), width))
        attn = UnitAttention(width, width, c.decoder_num_heads)
        self.layers = make([layer(c, attn, width, width)] * c.decoder_depth)
        self.norm = make(LayerNorm(width, eps=c.layer_norm_eps))
        self.side = c.patch_stride[-1] * c.query_stride[-1] ** pools
        self.out = Linear(width, self.side**2 * c.num_channels)

    def whole(self, x: Tensor) -> Tensor:
        """Units (B, units, y, x, D) as one row of places (B, Y * X, D)."""
        rows = x.unflatten(1, (self.grid[0] // self.final[0], -1))  # (B, Y / y, X / x, y, x, D)
        return rows.transpose(2, 3).flatten(1, 4)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        maps = out.reshaped_hidden_states[1:]
        x = maps[-1]
        for conv, level in zip(self.fuse, maps, strict=False):
            fused = conv(level.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = x + fused.unflatten(0, level.shape[:2])
        x = self.embed(self.fused_norm(x))  # (B, units seen, y, x, W)
        seen = out.bool_masked_pos
        places = torch.argsort(seen.int(), dim=1, descending=True, stable=True)[:, : x.shape[1]]
        blank = self.mask_token.to(x.dtype).expand(len(x), seen.shape[1], *x.shape[2:])
        full = blank.scatter(1, places[:, :, None, None, None].expand(x.shape), x)
        x = self.whole(full) + self.position
        shown = self.whole(seen[:, :, None, None, None].expand(-1, -1, *self.final, 1))[..., 0]
        ctx = Context(positions=torch.arange(x.shape[1], device=x.device)[None], length=x.shape[1])
        for block in self.layers:
            x = block(x, ctx)
        logits = self.out(self.norm(x))
        loss = self.loss(logits, shown, call)
        return {"loss": loss, "logits": logits, "bool_masked_pos": shown}

    def loss(self, logits: Tensor, shown: Tensor, call: Call) -> Tensor:
        """Mean squared error of the pixels of hidden places."""
        assert call.pixel_values is not None
        target = call.pixel_values.permute(0, 2, 3, 1)
        target = target.unfold(1, self.side, self.side).unfold(2, self.side, self.side)
        target = target.flatten(1, 2).flatten(2)  # (B, Y * X, C * y * x)
        if call.config.normalize_pixel_loss:
            mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (var + 1e-6) ** 0.5
        hidden = (~shown).to(logits.dtype)
        return ((logits - target).square().mean(-1) * hidden).sum() / hidden.sum()


@dataclass(frozen=True)
class PaintUnits(Head):
    """Rebuilds the pixels of hidden units from the maps of all stages."""

    task: ClassVar[str] = "pretraining"
    needs_states: ClassVar[bool] = True
    output: type[ModelOutput] = HieraForPreTrainingOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Painter(config)


def painter_names(c: Config) -> dict[str, str | To]:
    """Lines of the fusion and of the decoder."""
    return {
        "fuse.{i}": "multiscale_fusion.multi_scale_fusion_heads.{i}",
        "fused_norm": "encoder_norm",
        "embed": "decoder.decoder_embeddings",
        "mask_token": To("decoder.mask_token", Reshape((1, 1, c.decoder_hidden_size))),
        "position": To("decoder.decoder_position_embeddings", Reshape((1, -1, c.decoder_hidden_size))),
        **layer_names("layers.{i}", "decoder.decoder_block.layers.{i}"),
        "norm": "decoder.decoder_norm",
        "out": "decoder.decoder_pred",
    }


HEADS: dict[str, Head] = {
    "HieraModel": Backbone(output=HieraModelOutput, pool=True),
    "HieraForImageClassification": ImageClassify(
        names={"out": "classifier"}, on="pool", pool=True, output=HieraForImageClassificationOutput,
        skeleton=VisionModel,
    ),
    "HieraForPreTraining": PaintUnits(names=painter_names, build=partial(build, hides=True)),
    "HieraBackbone": FeatureMaps(
        skeleton=BackboneModel,
        build=partial(build, unroll=False),
        channels=lambda c: [c.embed_dim, *widths(c)],
        maps=lambda c: StageMaps(
            c.out_indices, stage_norms(c, [c.embed_dim, *widths(c)], LayerNorm), channels_last=True
        ),
        names=stage_norm_names,
    ),
}  # fmt: skip

family(
    "hiera", config=Config, build=build, names=names, heads=HEADS, skeleton=NoisyVisionModel, public="Hiera"
)
