"""BEiT (Bao et al. 2021, arXiv:2106.08254): ViT that learns to name hidden patches.

Public checkpoints: microsoft/beit-base-patch16-224, the document models microsoft/dit-*, and every
`model_type: beit`.
Differs from ViT in: biases by the offset of two patches in place of position vectors, a learned gain on each
branch, keys without bias, the mean of the patches in place of the class vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Attention, Block, Context, Encoder, Heads, Layer, LayerNorm, Linear, PatchEmbed, Pool, make,
    residual,
)  # fmt: skip
from phyla.blocks.pool import MeanPool
from phyla.blocks.position import Position
from phyla.blocks.residual import LayerScale, path_chances
from phyla.blocks.shapes import Bias, Keys, Queries
from phyla.blocks.spec import Spec
from phyla.blocks.stages import TokenMaps
from phyla.blocks.window import window_offsets
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import StagedConfig
from phyla.errors import ConfigError
from phyla.families.vit import layer_names, pair
from phyla.family import family
from phyla.heads import Backbone, Call, FeatureMaps, Head, HeadModule, ImageClassify
from phyla.heads.dense import ConvScores, FourScales, Segment, UperNet
from phyla.outputs import BeitModelOutputWithPooling, MaskedLMOutput, ModelOutput
from phyla.skeletons import BackboneModel, VisionModel


class Config(StagedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 8192
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list = 224
    patch_size: int | list = 16
    num_channels: int = 3
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    layer_scale_init_value: float = 0.1
    drop_path_rate: float = 0.1
    use_mean_pooling: bool = True
    pool_scales: list = [1, 2, 3, 6]
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float = 0.4
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False
    semantic_loss_ignore_index: int = 255
    out_features: Any = None
    out_indices: Any = None
    add_fpn: bool = False
    reshape_hidden_states: bool = True

    ALIASES = {"segmentation_indices": "out_indices"}

    def finish(self) -> None:
        self.name_stages(self.num_hidden_layers)


class GridBias(Block):
    """A learned bias for each head and offset of two patches, and for pairs with the class vector.

    grid: patches of the images that it was made for; for another grid the table is resampled bilinearly.
    """

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.sides = (2 * grid[0] - 1, 2 * grid[1] - 1)
        self.weight = nn.Parameter(torch.empty(self.sides[0] * self.sides[1] + 3, heads))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(1, H, P + 1, P + 1) for a grid of P patches."""
        offsets, special = self.weight[:-3], self.weight[-3:]
        sides = (2 * grid[0] - 1, 2 * grid[1] - 1)
        if sides != self.sides:
            table = offsets.T.unflatten(1, self.sides)[None]
            offsets = F.interpolate(table, size=sides, mode="bilinear")[0].flatten(1).T
        index = window_offsets(*grid, grid).to(self.weight.device)
        bias = F.embedding(index, offsets).permute(2, 0, 1)  # (H, P, P)
        to_class, from_class, own = special[:, :, None, None].unbind(0)  # each (H, 1, 1)
        patches = index.shape[0]
        top = torch.cat((own, to_class.expand(-1, 1, patches)), 2)
        rows = torch.cat((from_class.expand(-1, patches, 1), bias), 2)
        return torch.cat((top, rows), 1)[None]

    def reset(self, std: float) -> bool:
        nn.init.zeros_(self.weight)
        return True


class Offsets(Position):
    """The layer's own `GridBias`, that of the stack, or both."""

    def __init__(self, own: Spec | None, patch: tuple[int, int]) -> None:
        super().__init__()
        self.own, self.patch = make(own), patch

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias | None:
        size, shared = ctx.memo["pixels"], ctx.memo.get("stack-bias")
        grid = (size[0] // self.patch[0], size[1] // self.patch[1])
        bias = None if shared is None else ctx.once("shared", lambda: shared(grid))
        if self.own is not None:
            own = self.own(grid)
            bias = own if bias is None else own + bias
        return None if bias is None else bias.to(q.dtype)


class NeckMaps(Block):
    """Feature maps of the states, at four scales where `scales`."""

    def __init__(self, maps: Spec, scales: Spec | None) -> None:
        super().__init__()
        self.maps, self.scales = make(maps), make(scales)

    def forward(self, out: Any, body: Any, size: tuple[int, int]) -> tuple[Tensor, ...]:
        maps = self.maps(out, body, size)
        return maps if self.scales is None else self.scales(maps)


class SquareNeck(Block):
    """Four states of patches (by number) as maps of a square image, at four scales."""

    def __init__(self, indices: Sequence[int], side: int, width: int) -> None:
        super().__init__()
        self.indices, self.side = tuple(indices), side
        self.scales = make(FourScales(width))

    def forward(self, out: Any) -> tuple[Tensor, ...]:
        states = [out.hidden_states[i][:, 1:] for i in self.indices]
        return self.scales([x.unflatten(1, (self.side, -1)).permute(0, 3, 1, 2) for x in states])


def build(c: Config, norm: bool = True) -> Encoder:
    """BEiT's stack; the feature extractor has no last norm."""
    pre, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    image, patch = pair(c.image_size), pair(c.patch_size)
    table = GridBias((image[0] // patch[0], image[1] // patch[1]), c.num_attention_heads)
    gain = LayerScale(c.hidden_size, c.layer_scale_init_value) if c.layer_scale_init_value > 0 else None
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads), bias="qv", out_bias=True,
        position=Offsets(table if c.use_relative_position_bias else None, patch),
        dropout=c.attention_probs_dropout_prob,
    )  # fmt: skip
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    layers = tuple(
        Layer(
            attn=residual(attn, pre=pre, dropout=drop, scale=gain, path_dropout=chance),
            ffn=residual(ffn, pre=pre, dropout=drop, scale=gain, path_dropout=chance),
        )
        for chance in path_chances(c.drop_path_rate, c.num_hidden_layers)
    )
    mean = c.use_mean_pooling
    return Encoder(
        embed=PatchEmbed(
            image, patch, c.num_channels, c.hidden_size, mask_token=c.use_mask_token, dropout=drop,
            any_size=True, position=c.use_absolute_position_embeddings,
        ),
        layers=layers,
        norm=pre if norm and not mean else None,
        pool=MeanPool(norm=pre, front=1) if mean else Pool(c.hidden_size, act=None),
        position=table if c.use_shared_relative_position_bias else None,
        record="raw",
    )  # fmt: skip


def names(c: Config) -> NameMap:
    """BEiT's public names; its embeddings have a leading dimension of one."""
    at, theirs = "layers.{i}", "encoder.layer.{i}"
    table = "relative_position_bias.relative_position_bias_table"
    return NameMap(
        {
            "embed.class_token": To("embeddings.cls_token", Reshape((1, 1, c.hidden_size))),
            "embed.mask_token": To("embeddings.mask_token", Reshape((1, 1, c.hidden_size))),
            "embed.position": To("embeddings.position_embeddings", Reshape((1, -1, c.hidden_size))),
            "embed.projection": "embeddings.patch_embeddings.projection",
            **layer_names(at, theirs),
            f"{at}.attn.position.own.weight": f"{theirs}.attention.attention.{table}",
            f"{at}.attn.layer_scale.weight": f"{theirs}.lambda_1",
            f"{at}.ffn.layer_scale.weight": f"{theirs}.lambda_2",
            "position.weight": f"encoder.{table}",
            "norm": "layernorm",
            "pool.norm": "pooler.layernorm",
        },
        prefix="beit",
    )


class _Codes(HeadModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.norm = make(LayerNorm(width, eps=config.layer_norm_eps))
        self.out = Linear(width, config.vocab_size)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.out(self.norm(out.last_hidden_state)[:, 1:])
        loss = None
        if call.labels is not None and call.bool_masked_pos is not None:
            loss = F.cross_entropy(logits[call.bool_masked_pos.bool()], call.labels)
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class PatchCodes(Head):
    """The code (of a discrete autoencoder) of every patch; labels: those of the hidden ones, in order."""

    task: ClassVar[str] = "masked-patch-modeling"
    output: type[ModelOutput] = MaskedLMOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Codes(config, width)


def four(c: Config) -> list[int]:
    """The four chosen states; ConfigError for another number of them."""
    if len(c.out_indices) != 4:
        raise ConfigError(
            f"out_indices must name four layers, such as [3, 5, 7, 11] of twelve, but is {c.out_indices}"
        )
    return c.out_indices


def maps(c: Config) -> Spec:
    """The feature maps of BeitBackbone."""
    plain = TokenMaps(c.out_indices, pair(c.patch_size), final=False, reshape=c.reshape_hidden_states)
    eps = getattr(c, "batch_norm_eps", 1e-5)
    return NeckMaps(plain, FourScales(c.hidden_size, eps) if c.add_fpn and four(c) else None)


def conv_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of a convolution with batch norm."""
    return {f"{ours}.conv": f"{theirs}.conv", f"{ours}.norm": f"{theirs}.bn"}


NECK = {"first": "fpn1.0", "norm": "fpn1.1", "second": "fpn1.3", "twice": "fpn2.0"}
SCORES = {
    **{f"neck.scales.{ours}": theirs for ours, theirs in NECK.items()},
    **conv_names("main.pools.{i}", "decode_head.psp_modules.{i}.1"),
    **conv_names("main.bottleneck", "decode_head.bottleneck"),
    **conv_names("main.laterals.{i}", "decode_head.lateral_convs.{i}"),
    **conv_names("main.smooth.{i}", "decode_head.fpn_convs.{i}"),
    **conv_names("main.join", "decode_head.fpn_bottleneck"),
    "main.out": "decode_head.classifier",
    **conv_names("auxiliary.convs.{i}", "auxiliary_head.convs.{i}"),
    **conv_names("auxiliary.join", "auxiliary_head.conv_cat"),
    "auxiliary.out": "auxiliary_head.classifier",
}


def auxiliary(c: Config) -> Spec | None:
    """The further scores that count in the loss alone."""
    count, beside = c.auxiliary_num_convs, c.auxiliary_concat_input
    made = ConvScores(c.hidden_size, c.auxiliary_channels, c.num_labels, count, beside)
    return made if c.use_auxiliary_head else None


HEADS: dict[str, Head] = {
    "BeitModel": Backbone(output=BeitModelOutputWithPooling, pool=True),
    "BeitForMaskedImageModeling": PatchCodes(names={"norm": "layernorm", "out": "lm_head"}),
    "BeitForImageClassification": ImageClassify(names={"out": "classifier"}, on="pool", pool=True),
    "BeitForSemanticSegmentation": Segment(
        # The reference counts layers from one here, although 0 is the embedding.
        neck=lambda c: SquareNeck(
            [i - 1 for i in four(c)], pair(c.image_size)[0] // pair(c.patch_size)[0], c.hidden_size
        ),
        main=lambda c: UperNet([c.hidden_size] * 4, c.hidden_size, c.num_labels, c.pool_scales),
        auxiliary=auxiliary,
        names=SCORES,
    ),
    "BeitBackbone": FeatureMaps(
        skeleton=BackboneModel,
        build=partial(build, norm=False),
        maps=maps,
        names={f"scales.{ours}": theirs for ours, theirs in NECK.items()},
    ),
}

family("beit", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel, public="Beit")
