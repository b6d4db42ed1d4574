"""Swin (Liu et al. 2021, arXiv:2103.14030): attention inside windows that shift, in stages.

Public checkpoints: microsoft/swin-tiny-patch4-window7-224 and every `model_type: swin`.
Differs from ViT in: windows with a learned bias, every second layer shifted; four neighbours merge between
stages; no class vector.
"""

from functools import partial

from typing import Any

from phyla.blocks import FFN, Heads, Layer, LayerNorm, residual
from phyla.blocks.conv import ChannelNorm
from phyla.blocks.pool import MeanPool
from phyla.blocks.residual import path_chances
from phyla.blocks.spec import Spec
from phyla.blocks.stages import Stage, StageMaps, Stages
from phyla.blocks.window import PatchMap, PatchMerge, WindowAttention
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import StagedConfig
from phyla.family import family
from phyla.families.vit import attention_names, pair
from phyla.heads import Backbone, FeatureMaps, Head, ImageClassify, MaskedImage
from phyla.heads.feature_maps import stage_norm_names, stage_norms
from phyla.outputs import SwinImageClassifierOutput, SwinMaskedImageModelingOutput, SwinModelOutput
from phyla.skeletons import BackboneModel, VisionModel


class Config(StagedConfig):
    """Keys and defaults of the public config.json."""

    image_size: int | list = 224
    patch_size: int | list = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: list = [2, 2, 6, 2]
    num_heads: list = [3, 6, 12, 24]
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    encoder_stride: int = 32
    out_features: Any = None
    out_indices: Any = None

    ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    def finish(self) -> None:
        self.num_layers = len(self.depths)
        self.hidden_size = int(self.embed_dim * 2 ** (len(self.depths) - 1))
        self.name_stages(len(self.depths))


def layer(c: Config, width: int, heads: int, number: int, chance: float, shrinks: bool) -> Spec:
    """Layer `number` of a stage; only the first branch is ever dropped as a whole."""
    norm = LayerNorm(width, eps=c.layer_norm_eps)
    shift, drop = c.window_size // 2 if number % 2 else 0, c.hidden_dropout_prob
    attn = WindowAttention(
        width, Heads(heads), c.window_size, shift, c.qkv_bias, c.attention_probs_dropout_prob, shrinks
    )
    ffn = residual(FFN(width, int(c.mlp_ratio * width), act=c.hidden_act), pre=norm, dropout=drop)
    return Layer(attn=residual(attn, pre=norm, dropout=drop, path_dropout=chance), ffn=ffn)


def build(c: Config, mask_token: bool = False, features: bool = False) -> Stages:
    """Swin's stages; the option `use_mask_token` of from_pretrained gives the bare backbone a mask token.

    features: as an extractor has them: windows never shrink, states before merging, no last norm.
    """
    chances = iter(path_chances(c.drop_path_rate, sum(c.depths)))
    stages = []
    for number, (depth, heads) in enumerate(zip(c.depths, c.num_heads, strict=True)):
        width = c.embed_dim * 2**number
        layers = [layer(c, width, heads, i, next(chances), not features) for i in range(depth)]
        last = number == len(c.depths) - 1
        stages.append(Stage(layers, leave=None if last else PatchMerge(width), tokens=True))
    return Stages(
        embed=PatchMap(
            pair(c.image_size), pair(c.patch_size), c.num_channels, c.embed_dim, norm=LayerNorm(c.embed_dim),
            mask_token=mask_token or getattr(c, "use_mask_token", False),
            position=c.use_absolute_embeddings, dropout=c.hidden_dropout_prob,
        ),
        layers=stages,
        norm=None if features else LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
        pool=MeanPool() if getattr(c, "add_pooling_layer", True) else None,
        before=features, one_attention=True,
    )  # fmt: skip


def widths(c: Config) -> list[int]:
    """Widths of the stem and of all stages."""
    return [c.embed_dim, *(c.embed_dim * 2**i for i in range(len(c.depths)))]


def names(c: Config) -> NameMap:
    """Swin's public names; its embeddings have a leading dimension of one."""
    at, theirs = "layers.{i}.layers.{j}", "encoder.layers.{i}.blocks.{j}"
    return NameMap(
        {
            "embed.projection": "embeddings.patch_embeddings.projection",
            "embed.norm": "embeddings.norm",
            "embed.mask_token": To("embeddings.mask_token", Reshape((1, 1, c.embed_dim))),
            "embed.position": To("embeddings.position_embeddings", Reshape((1, -1, c.embed_dim))),
            f"{at}.attn.pre_norm": f"{theirs}.layernorm_before",
            **attention_names(f"{at}.attn", f"{theirs}.attention.self"),
            f"{at}.attn.o": f"{theirs}.attention.output.dense",
            f"{at}.attn.position.weight": f"{theirs}.attention.self.relative_position_bias_table",
            f"{at}.attn.position.index": f"{theirs}.attention.self.relative_position_index",
            f"{at}.ffn.pre_norm": f"{theirs}.layernorm_after",
            f"{at}.ffn.up": f"{theirs}.intermediate.dense",
            f"{at}.ffn.down": f"{theirs}.output.dense",
            "layers.{i}.leave.norm": "encoder.layers.{i}.downsample.norm",
            "layers.{i}.leave.reduce": "encoder.layers.{i}.downsample.reduction",
            "norm": "layernorm",
        },
        prefix="swin",
    )


HEADS: dict[str, Head] = {
    "SwinModel": Backbone(output=SwinModelOutput, pool=True),
    "SwinForImageClassification": ImageClassify(
        names={"out": "classifier"}, on="pool", pool=True, output=SwinImageClassifierOutput
    ),
    "SwinForMaskedImageModeling": MaskedImage(
        names={"out": "decoder.0"}, front=0, build=partial(build, mask_token=True),
        output=SwinMaskedImageModelingOutput,
    ),
    "SwinBackbone": FeatureMaps(
        skeleton=BackboneModel,
        channels=widths,
        build=partial(build, features=True),
        maps=lambda c: StageMaps(c.out_indices, stage_norms(c, widths(c), lambda w: ChannelNorm(w, 1e-5))),
        names=stage_norm_names,
    ),
}  # fmt: skip

family("swin", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel, public="Swin")
