"""The backbone of ViTPose (Xu et al. 2022, arXiv:2204.12484 and 2212.04246).

Public checkpoints: inside of usyd-community/vitpose-base-simple and vitpose-plus-base.
Differs from ViT in: no class vector (its position is added to every patch), padded patches, and in ViTPose+ a
part of each feed-forward's output by an expert for the data set of the image.
"""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Attention, Context, Encoder, Heads, Layer, LayerNorm, Linear, Mixer, PatchEmbed, activation, repeat,
    residual,
)  # fmt: skip
from phyla.blocks.conv import Conv2d
from phyla.blocks.shapes import NewStream, Stream
from phyla.blocks.spec import Spec
from phyla.blocks.stages import TokenMaps
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import StagedConfig
from phyla.errors import ArgumentError
from phyla.families.vit import layer_names, pair
from phyla.family import family
from phyla.heads import FeatureMaps, Head
from phyla.skeletons.vision import ExpertBackboneModel


class Config(StagedConfig):
    """Keys and defaults of the public config.json."""

    image_size: int | list = [256, 192]
    patch_size: int | list = [16, 16]
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int | float = 4
    num_experts: int = 1
    part_features: int = 256
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    out_features: Any = None
    out_indices: Any = None

    def finish(self) -> None:
        self.name_stages(self.num_hidden_layers)


class PaddedPatches(PatchEmbed):
    """Patches of an image padded by two pixels; the first row of positions is added to all of them."""

    def __init__(
        self, image: tuple[int, int], patch: tuple[int, int], channels: int, width: int, dropout: float = 0.0
    ) -> None:
        super().__init__(image, patch, channels, width, class_token=False, dropout=dropout)
        self.projection = Conv2d(channels, width, patch, patch, padding=2)
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1] + 1, width))

    def positions(self, rows: int, columns: int) -> Tensor:
        return self.position[1:] + self.position[:1]


class PartFFN(Mixer):
    """A feed-forward whose last `part` elements are an expert's, by the call's data sets (B)."""

    def __init__(self, width: int, inner: int, act: str, experts: int, part: int) -> None:
        super().__init__()
        self.act = activation(act)
        self.up, self.down = Linear(width, inner), Linear(inner, width - part)
        self.experts = nn.ModuleList(Linear(inner, part) for _ in range(experts))

    def mix(self, x: Stream, ctx: Context) -> NewStream:
        index = ctx.memo.get("dataset")
        if index is None:
            raise ArgumentError(
                f"pass dataset_index (batch), from 0 to {len(self.experts) - 1}: a model of several experts "
                "needs to know the data set of each image"
            )
        h, index = self.act(self.up(x)), index.view(-1, 1, 1)
        own: Any = 0
        for number, expert in enumerate(self.experts):
            own = own + expert(h) * (index == number)
        return torch.cat((self.down(h), own), -1)


def build(c: Config) -> Encoder:
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads), bias=c.qkv_bias, out_bias=True,
        dropout=c.attention_probs_dropout_prob,
    )  # fmt: skip
    inner = int(c.hidden_size * c.mlp_ratio)
    ffn: Spec
    if c.num_experts == 1:
        ffn = FFN(c.hidden_size, inner, act=c.hidden_act)
    else:
        ffn = PartFFN(c.hidden_size, inner, c.hidden_act, c.num_experts, c.part_features)
    layer = Layer(attn=residual(attn, pre=norm, dropout=drop), ffn=residual(ffn, pre=norm))
    return Encoder(
        embed=PaddedPatches(
            pair(c.image_size), pair(c.patch_size), c.num_channels, c.hidden_size, dropout=drop
        ),
        layers=repeat(c.num_hidden_layers, layer, c.pruned_heads),
        norm=norm,
        record="raw",
    )


def names(c: Config) -> NameMap:
    """The public names, close to ViT's."""
    at, theirs = "layers.{i}", "encoder.layer.{i}"
    return NameMap(
        {
            "embed.position": To("embeddings.position_embeddings", Reshape((1, -1, c.hidden_size))),
            "embed.projection": "embeddings.patch_embeddings.projection",
            **layer_names(at, theirs),
            f"{at}.ffn.up": f"{theirs}.mlp.fc1",
            f"{at}.ffn.down": f"{theirs}.mlp.fc2",
            f"{at}.ffn.experts.{{e}}": f"{theirs}.mlp.experts.{{e}}",
            "norm": "layernorm",
        },
        prefix="vit",
    )


HEADS: dict[str, Head] = {
    "VitPoseBackbone": FeatureMaps(
        skeleton=ExpertBackboneModel,
        maps=lambda c: TokenMaps(c.out_indices, pair(c.patch_size), front=0, reshape=False),
    ),
}

family(
    "vitpose_backbone", config=Config, build=build, names=names, heads=HEADS, skeleton=ExpertBackboneModel,
    public="VitPoseBackbone",
)  # fmt: skip
