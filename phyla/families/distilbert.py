"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108).

Public checkpoints: distilbert/distilbert-base-uncased and every `model_type: distilbert`.
Differs from BERT in: no segments, no pool, no dropout behind attention; sines as positions on demand.
"""

from typing import Any

import torch
from torch import nn

from phyla.blocks import FFN, Attention, Embed, Encoder, Heads, Layer, LayerNorm, Learned, repeat, residual
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, Classify, Head, MaskedLM, MultipleChoice, Span, TokenClassify, Transform
from phyla.outputs import BaseModelOutput
from phyla.skeletons import TextModel

EPS = 1e-12


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 4 * 768
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    initializer_range: float = 0.02
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    pad_token_id: int | None = 0

    ALIASES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}


class Sinusoids(Learned):
    """A position table of sines and cosines in turn, not trained (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__(positions, width)
        self.weight = nn.Parameter(self.weight, requires_grad=False)

    def reset(self, std: float) -> bool:
        positions, width = self.weight.shape
        rates = 10000.0 ** (-2.0 * torch.arange((width + 1) // 2, dtype=torch.float64) / width)
        angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates  # (positions, width / 2)
        self.weight.copy_(torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :width])
        return True


def build(c: Config) -> Encoder:
    norm = LayerNorm(c.dim, eps=EPS)
    positions = Sinusoids if c.sinusoidal_pos_embds else Learned
    attn = Attention(c.dim, Heads(c.n_heads), dropout=c.attention_dropout)
    ffn = residual(FFN(c.dim, c.hidden_dim, act=c.activation), post=norm, dropout=c.dropout)
    return Encoder(
        embed=Embed(
            c.vocab_size, c.dim, position=positions(c.max_position_embeddings, c.dim), norm=norm,
            dropout=c.dropout, padding=c.pad_token_id,
        ),
        layers=repeat(c.n_layers, Layer(attn=residual(attn, post=norm), ffn=ffn), c.pruned_heads),
    )  # fmt: skip


NAMES = NameMap(
    {
        "embed.tokens": "embeddings.word_embeddings",
        "embed.position": "embeddings.position_embeddings",
        "embed.norm": "embeddings.LayerNorm",
        "layers.{i}.attn.q": "transformer.layer.{i}.attention.q_lin",
        "layers.{i}.attn.k": "transformer.layer.{i}.attention.k_lin",
        "layers.{i}.attn.v": "transformer.layer.{i}.attention.v_lin",
        "layers.{i}.attn.o": "transformer.layer.{i}.attention.out_lin",
        "layers.{i}.attn.post_norm": "transformer.layer.{i}.sa_layer_norm",
        "layers.{i}.ffn.up": "transformer.layer.{i}.ffn.lin1",
        "layers.{i}.ffn.down": "transformer.layer.{i}.ffn.lin2",
        "layers.{i}.ffn.post_norm": "transformer.layer.{i}.output_layer_norm",
    },
    prefix="distilbert",
    ignore=(r"(distilbert\.)?embeddings\.position_ids",),
)

ROW: dict[str, Any] = {
    "on": "first",
    "dense": "relu",
    "dropout": ("seq_classif_dropout",),
    "dropout_first": False,
    "names": {"dense": "pre_classifier", "out": "classifier"},
}
SCORES = {"dense": "vocab_transform", "norm": "vocab_layer_norm", "out": "vocab_projector"}

HEADS: dict[str, Head] = {
    "DistilBertModel": Backbone(output=BaseModelOutput),
    "DistilBertForMaskedLM": MaskedLM(
        names=SCORES, transform=lambda c: Transform(c.activation, EPS), bias=True
    ),
    "DistilBertForSequenceClassification": Classify(**ROW),
    "DistilBertForTokenClassification": TokenClassify(names={"out": "classifier"}, dropout=("dropout",)),
    "DistilBertForQuestionAnswering": Span(names={"out": "qa_outputs"}, dropout=("qa_dropout",)),
    "DistilBertForMultipleChoice": MultipleChoice(**ROW),
}

family(
    "distilbert",
    config=Config,
    build=build,
    names=NAMES,
    heads=HEADS,
    skeleton=TextModel,
    public="DistilBert",
)
