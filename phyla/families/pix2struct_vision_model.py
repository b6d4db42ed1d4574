"""The vision encoder of Pix2Struct (Lee et al. 2022, arXiv:2210.03347, section 3.2).

Public checkpoints: the image encoder of google/pix2struct-base, google/deplot, google/matcha-base.
Differs from ViT in: images of any shape come as flattened patches with their rows and columns, which have
tables; T5's unscaled attention, RMS norms and gated feed-forward, no biases.
"""

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Attention, Block, Encoder, GatedFFN, Heads, Layer, Linear, RMSNorm, repeat, residual
from phyla.blocks.embed import Tokens
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.skeletons.patches import PatchesModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    patch_embed_hidden_size: int = 768
    d_ff: int = 2048
    d_kv: int = 64
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    dense_act_fn: str = "gelu_new"
    layer_norm_eps: float = 1e-6
    dropout_rate: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 1e-10
    initializer_factor: float = 1.0
    seq_len: int = 4096
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128


class FlatPatches(Block):
    """Patches (B, P, 2 + F), whose first two numbers are row and column, to vectors (B, P, D)."""

    def __init__(self, pixels: int, width: int, most: int, dropout: float) -> None:
        super().__init__()
        self.projection, self.dropout_prob = Linear(pixels, width), dropout
        self.row, self.column = Tokens(most, width), Tokens(most, width)

    def forward(self, patches: Tensor) -> Tensor:
        row, column = patches[..., 0].long(), patches[..., 1].long()
        x = self.projection(patches[..., 2:].to(self.projection.weight.dtype))
        x = x + self.row(row) + self.column(column)
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x


def build(c: PretrainedConfig) -> Encoder:
    norm, heads = RMSNorm(c.hidden_size, eps=c.layer_norm_eps), Heads(c.num_attention_heads, width=c.d_kv)
    attn = Attention(c.hidden_size, heads, bias=False, scale=1.0, dropout=c.attention_dropout)
    ffn = GatedFFN(c.hidden_size, c.d_ff, act=c.dense_act_fn, dropout=c.dropout_rate)
    return Encoder(
        embed=FlatPatches(c.patch_embed_hidden_size, c.hidden_size, c.seq_len, c.dropout_rate),
        layers=repeat(c.num_hidden_layers, Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))),
        norm=norm,
        record="raw",
    )


NAMES = NameMap(
    {
        "embed.projection": "embeddings.patch_projection",
        "embed.row": "embeddings.row_embedder",
        "embed.column": "embeddings.column_embedder",
        "layers.{i}.attn.pre_norm": "encoder.layer.{i}.pre_attention_layer_norm",
        "layers.{i}.attn.q": "encoder.layer.{i}.attention.query",
        "layers.{i}.attn.k": "encoder.layer.{i}.attention.key",
        "layers.{i}.attn.v": "encoder.layer.{i}.attention.value",
        "layers.{i}.attn.o": "encoder.layer.{i}.attention.output",
        "layers.{i}.ffn.pre_norm": "encoder.layer.{i}.pre_mlp_layer_norm",
        "layers.{i}.ffn.gate": "encoder.layer.{i}.mlp.wi_0",
        "layers.{i}.ffn.up": "encoder.layer.{i}.mlp.wi_1",
        "layers.{i}.ffn.down": "encoder.layer.{i}.mlp.wo",
        "norm": "layernorm",
    },
    prefix="encoder",
    ignore=(r"decoder\..*",),
)

HEADS: dict[str, Head] = {"Pix2StructVisionModel": Backbone()}

family(
    "pix2struct_vision_model", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=PatchesModel,
    public="Pix2StructVision", inside="encoder", bases=("Pix2StructPreTrainedModel",),
)  # fmt: skip
