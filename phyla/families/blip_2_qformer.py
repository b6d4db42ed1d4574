"""The Q-Former of BLIP-2 (Li et al. 2023, arXiv:2301.12597, section 3.1).

Public checkpoints: the part between image and text of Salesforce/blip2-opt-2.7b and relatives.
Differs from BERT in: learned queries stand in front of the text (or alone), look at the image in every second
layer, and have a feed-forward of their own; the norm of the embeddings is the caller's vectors' first one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Block, Context, Encoder, Heads, LayerNorm, Spec, make, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from phyla.skeletons.query import QueryModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    cross_attention_frequency: int = 2
    encoder_hidden_size: int = 1408
    use_qformer_text_input: bool = False

    def finish(self) -> None:
        if self.position_embedding_type != "absolute":
            raise ConfigError(
                'position_embedding_type must be "absolute" (queries and an image have no distance), '
                f"but is {self.position_embedding_type!r}"
            )


class Vectors(Block):
    """The norm and dropout that vectors (B, S, D) of queries and words pass first."""

    def __init__(self, width: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm, self.dropout_prob = make(LayerNorm(width, eps)), dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x


class QueryLayer(Block):
    """Self-attention of queries and words; then queries look at the image, and each kind has its
    feed-forward.
    """

    site_kind = "stream"

    def __init__(self, attn: Spec, cross: Spec | None, query: Spec, ffn: Spec | None) -> None:
        super().__init__()
        self.attn, self.cross, self.query, self.ffn = make(attn), make(cross), make(query), make(ffn)
        self.register_module("site", None)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        count = ctx.memo["queries"]
        x = self.attn(x, ctx)
        parts = []
        if count:
            queries = x[:, :count]
            if self.cross is not None:
                queries = self.cross(queries, ctx)
            parts.append(self.query(queries, ctx))
        if x.shape[1] > count and self.ffn is not None:
            parts.append(self.ffn(x[:, count:], ctx))
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return x if self.site is None else self.site(x)


def build(c: PretrainedConfig) -> Encoder:
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    attn = Attention(c.hidden_size, Heads(c.num_attention_heads), dropout=c.attention_probs_dropout_prob)
    ffn = residual(FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act), post=norm, dropout=drop)
    cross = residual(attn.but(cross=True, kv_width=c.encoder_hidden_size), post=norm, dropout=drop)
    text = ffn if c.use_qformer_text_input else None
    layers = [
        QueryLayer(
            residual(attn, post=norm, dropout=drop),
            cross if i % c.cross_attention_frequency == 0 else None, ffn, text,
        )
        for i in range(c.num_hidden_layers)
    ]  # fmt: skip
    return Encoder(embed=Vectors(c.hidden_size, c.layer_norm_eps, drop), layers=layers)


def _names() -> dict[str, str]:
    lines = {"embed.norm": "layernorm"}
    inner = {"q": "attention.query", "k": "attention.key", "v": "attention.value"}
    inner |= {"o": "output.dense", "post_norm": "output.LayerNorm"}
    at, to = "layers.{i}", "encoder.layer.{i}"
    for ours, theirs in (("attn", "attention"), ("cross", "crossattention")):
        lines |= {f"{at}.{ours}.{part}": f"{to}.{theirs}.{name}" for part, name in inner.items()}
    for ours, mark in (("ffn", ""), ("query", "_query")):
        lines[f"{at}.{ours}.up"] = f"{to}.intermediate{mark}.dense"
        lines[f"{at}.{ours}.down"] = f"{to}.output{mark}.dense"
        lines[f"{at}.{ours}.post_norm"] = f"{to}.output{mark}.LayerNorm"
    return lines


NAMES = NameMap(_names(), prefix="qformer", ignore=(r"(vision_model|language_model)\..*",))

HEADS: dict[str, Head] = {"Blip2QFormerModel": Backbone(output=BaseModelOutputWithPoolingAndCrossAttentions)}

family(
    "blip_2_qformer", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=QueryModel,
    public="Blip2QFormer", inside="qformer", bases=("Blip2PreTrainedModel",),
)  # fmt: skip
