"""The vision tower of BLIP-2 (Li et al. 2023, arXiv:2301.12597): a ViT-g of EVA-CLIP (arXiv:2211.07636).

Public checkpoints: the image encoders of Salesforce/blip2-opt-2.7b, Salesforce/blip2-flan-t5-xl, ...
Differs from ViT in: the vector of an image is the first state, normed a second time.
"""

from typing import Any

from phyla.blocks import (
    FFN, Attention, Encoder, Full, Heads, Layer, LayerNorm, PatchEmbed, StackOutput, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 1e-10
    qkv_bias: bool = True


class Tower(Encoder):
    """An encoder whose pooled vector is its first state under the same norm again."""

    def run(self, *args: Any, **options: Any) -> StackOutput:
        out = super().run(*args, **options)
        out.pooler_output = self.norm(out.last_hidden_state[:, 0])
        return out


def build(c: PretrainedConfig) -> Tower:
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads), mask=Full(), bias=c.qkv_bias, out_bias=True,
        dropout=c.attention_dropout,
    )  # fmt: skip
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    image, patch = (c.image_size, c.image_size), (c.patch_size, c.patch_size)
    return Tower(
        embed=PatchEmbed(image, patch, 3, c.hidden_size),
        layers=repeat(c.num_hidden_layers, Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))),
        norm=norm,
        record="raw",
    )


def names(c: PretrainedConfig) -> NameMap:
    layer = "encoder.layers.{i}"
    return NameMap(
        {
            "embed.class_token": To("embeddings.class_embedding", Reshape((1, 1, -1))),
            "embed.position": To("embeddings.position_embedding", Reshape((1, -1, c.hidden_size))),
            "embed.projection": "embeddings.patch_embedding",
            "layers.{i}.attn.pre_norm": f"{layer}.layer_norm1",
            "layers.{i}.attn.q|k|v": split(f"{layer}.self_attn.qkv"),
            "layers.{i}.attn.o": f"{layer}.self_attn.projection",
            "layers.{i}.ffn.pre_norm": f"{layer}.layer_norm2",
            "layers.{i}.ffn.up": f"{layer}.mlp.fc1",
            "layers.{i}.ffn.down": f"{layer}.mlp.fc2",
            "norm": "post_layernorm",
        },
        prefix="vision_model",
        ignore=(r"(language_model|qformer|language_projection)\..*", "query_tokens"),
    )


HEADS: dict[str, Head] = {"Blip2VisionModel": Backbone(output=BaseModelOutputWithPooling)}

family(
    "blip_2_vision_model", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel,
    public="Blip2Vision", inside="vision_model", bases=("Blip2PreTrainedModel",),
)  # fmt: skip
