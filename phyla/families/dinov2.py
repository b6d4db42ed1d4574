"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193): ViT that learned without labels.

Public checkpoints: facebook/dinov2-small ... -giant, and every `model_type: dinov2`.
Differs from ViT in: a learned gain on each branch, images of any size, a gated feed-forward in the giant,
labels read from the class vector beside the mean of the patches.
"""

from typing import Any

from phyla.blocks import (
    FFN, Attention, Encoder, GatedFFN, Heads, Layer, LayerNorm, PatchEmbed, Pool, repeat, residual,
)  # fmt: skip
from phyla.blocks.residual import LayerScale
from phyla.blocks.spec import Spec
from phyla.blocks.stages import TokenMaps
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Reshape
from phyla.config import StagedConfig
from phyla.family import family
from phyla.families.vit import attention_names, pair
from phyla.heads import Backbone, FeatureMaps, Head, ImageClassify
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import BackboneModel, VisionModel


class Config(StagedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int | float = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list = 224
    patch_size: int | list = 14
    num_channels: int = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    out_features: Any = None
    out_indices: Any = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    use_mask_token: bool = True

    def finish(self) -> None:
        self.name_stages(self.num_hidden_layers)


def build(c: Config) -> Encoder:
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads), bias=c.qkv_bias, out_bias=True,
        dropout=c.attention_probs_dropout_prob,
    )  # fmt: skip
    inner = int(c.hidden_size * c.mlp_ratio)
    ffn: Spec
    if c.use_swiglu_ffn:
        ffn = GatedFFN(c.hidden_size, (int(inner * 2 / 3) + 7) // 8 * 8, act="silu", bias=True)
    else:
        ffn = FFN(c.hidden_size, inner, act=c.hidden_act)
    gain, chance = LayerScale(c.hidden_size, c.layerscale_value), c.drop_path_rate
    return Encoder(
        embed=PatchEmbed(
            pair(c.image_size), pair(c.patch_size), c.num_channels, c.hidden_size,
            mask_token=c.use_mask_token, dropout=drop, any_size=True,
        ),
        layers=repeat(
            c.num_hidden_layers,
            Layer(
                attn=residual(attn, pre=norm, dropout=drop, scale=gain, path_dropout=chance),
                ffn=residual(ffn, pre=norm, scale=gain, path_dropout=chance),
            ),
            c.pruned_heads,
        ),
        norm=norm,
        pool=Pool(c.hidden_size, act=None),
        record="raw",
    )  # fmt: skip


def names(c: Config) -> NameMap:
    """DINOv2's public names; its embeddings have a leading dimension of one."""
    at, theirs = "layers.{i}", "encoder.layer.{i}"
    ffn: dict[str, str | To] = {f"{at}.ffn.up": f"{theirs}.mlp.fc1", f"{at}.ffn.down": f"{theirs}.mlp.fc2"}
    if c.use_swiglu_ffn:
        ffn = {
            f"{at}.ffn.gate|up": split(f"{theirs}.mlp.weights_in"),
            f"{at}.ffn.down": f"{theirs}.mlp.weights_out",
        }
    return NameMap(
        {
            "embed.class_token": To("embeddings.cls_token", Reshape((1, 1, c.hidden_size))),
            "embed.mask_token": To("embeddings.mask_token", Reshape((1, c.hidden_size))),
            "embed.position": To("embeddings.position_embeddings", Reshape((1, -1, c.hidden_size))),
            "embed.projection": "embeddings.patch_embeddings.projection",
            f"{at}.attn.pre_norm": f"{theirs}.norm1",
            **attention_names(f"{at}.attn", f"{theirs}.attention.attention"),
            f"{at}.attn.o": f"{theirs}.attention.output.dense",
            f"{at}.attn.layer_scale.weight": f"{theirs}.layer_scale1.lambda1",
            f"{at}.ffn.pre_norm": f"{theirs}.norm2",
            f"{at}.ffn.layer_scale.weight": f"{theirs}.layer_scale2.lambda1",
            **ffn,
            "norm": "layernorm",
        },
        prefix="dinov2",
    )


HEADS: dict[str, Head] = {
    "Dinov2Model": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "Dinov2ForImageClassification": ImageClassify(names={"out": "classifier"}, on="both"),
    "Dinov2Backbone": FeatureMaps(
        skeleton=BackboneModel,
        maps=lambda c: TokenMaps(
            c.out_indices, pair(c.patch_size), final=c.apply_layernorm, reshape=c.reshape_hidden_states
        ),
    ),
}

family("dinov2", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel, public="Dinov2")
