"""Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929); masked patches (SimMIM, arXiv:2111.09886).

Public checkpoints: google/vit-base-patch16-224 and every `model_type: vit`.
Differs from the plain encoder in: patches behind a class vector, norms before each branch and at the end.
"""

from functools import partial

from phyla.blocks import (
    FFN, Attention, Encoder, Heads, Layer, LayerNorm, PatchEmbed, Pool, repeat, residual,
)  # fmt: skip
from phyla.blocks.spec import Spec
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, Head, ImageClassify, MaskedImage
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

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
    qkv_bias: bool = True
    encoder_stride: int = 16
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"

    def finish(self) -> None:
        if self.pooler_output_size is None:
            self.pooler_output_size = self.hidden_size


def pair(size: int | list) -> tuple[int, int]:
    """(height, width) of a size that config.json gives as one number or as two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def layers(c: PretrainedConfig) -> tuple[Spec, ...]:
    """The layers of ViT, for all whose configurations have its keys."""
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads), bias=c.qkv_bias, out_bias=True,
        dropout=c.attention_probs_dropout_prob,
    )  # fmt: skip
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    layer = Layer(attn=residual(attn, pre=norm, dropout=drop), ffn=residual(ffn, pre=norm, dropout=drop))
    return repeat(c.num_hidden_layers, layer, c.pruned_heads)


def build(c: PretrainedConfig, mask_token: bool = False) -> Encoder:
    """ViT's stack; the option `use_mask_token` of from_pretrained gives the bare backbone a mask token."""
    return Encoder(
        embed=PatchEmbed(
            pair(c.image_size), pair(c.patch_size), c.num_channels, c.hidden_size,
            mask_token=mask_token or getattr(c, "use_mask_token", False), dropout=c.hidden_dropout_prob,
        ),
        layers=layers(c),
        norm=LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
        pool=Pool(c.hidden_size, act=c.pooler_act, out=c.pooler_output_size),
        record="raw",
    )  # fmt: skip


def attention_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of q, k, v: BERT's words for them, which most image models have taken over."""
    return {f"{ours}.{o}": f"{theirs}.{t}" for o, t in (("q", "query"), ("k", "key"), ("v", "value"))}


def layer_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of one of `layers`."""
    return {
        f"{ours}.attn.pre_norm": f"{theirs}.layernorm_before",
        **attention_names(f"{ours}.attn", f"{theirs}.attention.attention"),
        f"{ours}.attn.o": f"{theirs}.attention.output.dense",
        f"{ours}.ffn.pre_norm": f"{theirs}.layernorm_after",
        f"{ours}.ffn.up": f"{theirs}.intermediate.dense",
        f"{ours}.ffn.down": f"{theirs}.output.dense",
    }


def names(c: PretrainedConfig) -> NameMap:
    """ViT's public names; its embeddings have a leading dimension of one."""
    return NameMap(
        {
            "embed.class_token": To("embeddings.cls_token", Reshape((1, 1, c.hidden_size))),
            "embed.mask_token": To("embeddings.mask_token", Reshape((1, 1, c.hidden_size))),
            "embed.position": To("embeddings.position_embeddings", Reshape((1, -1, c.hidden_size))),
            "embed.projection": "embeddings.patch_embeddings.projection",
            **layer_names("layers.{i}", "encoder.layer.{i}"),
            "norm": "layernorm",
            "pool.dense": "pooler.dense",
        },
        prefix="vit",
    )


HEADS: dict[str, Head] = {
    "ViTModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "ViTForImageClassification": ImageClassify(names={"out": "classifier"}),
    "ViTForMaskedImageModeling": MaskedImage(
        names={"out": "decoder.0"}, build=partial(build, mask_token=True)
    ),
}

family("vit", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel, public="ViT")
