"""ModernBERT (Warner et al. 2024, arXiv:2412.13663).

Public checkpoints: answerdotai/ModernBERT-base and every `model_type: modernbert`. Differs from the plain
encoder in: rotary positions, attention within a window in most layers, gated feed-forward, no biases, no norm
before the first attention, heads behind a dense layer with its norm, scores of chosen tokens alone on demand.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    Attention, Embed, Encoder, Full, GatedFFN, Heads, Layer, LayerNorm, Linear, Rotary, Spec, Window,
    activation, make, residual,
)  # fmt: skip
from phyla.blocks.embed import Tokens
from phyla.blocks.pool import first_token
from phyla.checkpoints.names import NameMap, split
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Call, Classify, Head, HeadModule, MaskedLM, TokenClassify, Transform
from phyla.heads.lm import TokenScores
from phyla.heads.loss import cross_entropy, label_loss
from phyla.outputs import BaseModelOutput
from phyla.skeletons import TextModel

POOLINGS = ("cls", "mean")


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    initializer_cutoff_factor: float | None = 2.0
    norm_eps: float = 1e-5
    norm_bias: bool = False
    pad_token_id: int | None = 50283
    eos_token_id: int | list | None = 50282
    bos_token_id: int | None = 50281
    cls_token_id: int | None = 50281
    sep_token_id: int | None = 50282
    global_rope_theta: float = 160000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    local_rope_theta: float | None = 10000.0
    embedding_dropout: float = 0.0
    mlp_bias: bool = False
    mlp_dropout: float = 0.0
    decoder_bias: bool = True
    classifier_pooling: str = "cls"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    deterministic_flash_attn: bool = False
    sparse_prediction: bool = False
    sparse_pred_ignore_index: int = -100
    reference_compile: bool | None = None
    repad_logits_with_grad: bool = False

    def finish(self) -> None:
        if self.classifier_pooling not in POOLINGS:
            raise ConfigError(
                f"classifier_pooling must be one of {POOLINGS}, but is {self.classifier_pooling!r}"
            )


def build(c: Config) -> Encoder:
    norm, heads = LayerNorm(c.hidden_size, eps=c.norm_eps, bias=c.norm_bias), Heads(c.num_attention_heads)
    width = heads.resolve(c.hidden_size)[2]
    near = c.global_rope_theta if c.local_rope_theta is None else c.local_rope_theta
    ffn = GatedFFN(
        c.hidden_size, c.intermediate_size, act=c.hidden_activation, bias=c.mlp_bias, dropout=c.mlp_dropout
    )

    def layer(number: int) -> Spec:
        local = number % c.global_attn_every_n_layers
        attn = Attention(
            c.hidden_size, heads, position=Rotary(width, near if local else c.global_rope_theta),
            mask=Window(c.local_attention // 2) if local else Full(), bias=c.attention_bias,
            dropout=c.attention_dropout,
        )  # fmt: skip
        return Layer(
            attn=residual(attn, pre=norm if number else None, dropout=c.attention_dropout),
            ffn=residual(ffn, pre=norm),
        )

    return Encoder(
        embed=Embed(
            c.vocab_size, c.hidden_size, norm=norm, dropout=c.embedding_dropout, padding=c.pad_token_id
        ),
        layers=tuple(layer(i) for i in range(c.num_hidden_layers)),
        norm=norm,
        record="raw",
    )


NAMES = NameMap(
    {
        "embed.tokens": "embeddings.tok_embeddings",
        "embed.norm": "embeddings.norm",
        "layers.{i}.attn.pre_norm": "layers.{i}.attn_norm",
        "layers.{i}.attn.q|k|v": split("layers.{i}.attn.Wqkv"),
        "layers.{i}.attn.o": "layers.{i}.attn.Wo",
        "layers.{i}.ffn.pre_norm": "layers.{i}.mlp_norm",
        "layers.{i}.ffn.gate|up": split("layers.{i}.mlp.Wi"),
        "layers.{i}.ffn.down": "layers.{i}.mlp.Wo",
        "norm": "final_norm",
    },
    prefix="model",
)


class ModernModel(TextModel):
    """Fresh weights end at `initializer_cutoff_factor` deviations; those behind a branch are smaller."""

    def init_weights(self) -> None:
        super().init_weights()
        c: Any = self.config
        behind = c.initializer_range / math.sqrt(2.0 * c.num_hidden_layers)
        labels = isinstance(self.head, Labels)
        for name, module in self.named_modules():
            if isinstance(module, Linear) and not (name == "head.out" and getattr(self.head, "tied", False)):
                std = (
                    behind
                    if name.endswith((".o", ".down", "head.dense", "head.out"))
                    else c.initializer_range
                )
                std = c.hidden_size**-0.5 if labels and name == "head.out" else std
            elif isinstance(module, Tokens):
                std = c.initializer_range
            else:
                continue
            limit = std * (c.initializer_cutoff_factor or 3)
            nn.init.trunc_normal_(module.weight, std=std, a=-limit, b=limit)


class Labels(HeadModule):
    """dense, activation and norm, then labels of each token or of one vector a row."""

    def __init__(self, config: Any, width: int, rows: bool) -> None:
        super().__init__()
        self.rows, self.pooling, self.dropout_prob = (
            rows,
            config.classifier_pooling,
            config.classifier_dropout,
        )
        self.dense = Linear(width, width, bias=config.classifier_bias)
        self.act = activation(config.classifier_activation)
        self.norm = make(LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias))
        self.out = Linear(width, config.num_labels)

    def pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, D) of x (B, S, D): the first token's vector or the mean of the real ones."""
        if self.pooling == "cls":
            return first_token(x, mask)
        if mask is None:
            return x.mean(1)
        real = mask.to(x.dtype)[..., None]
        return (x * real).sum(1) / real.sum(1)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = self.pooled(out.last_hidden_state, call.attention_mask) if self.rows else out.last_hidden_state
        x = self.norm(self.act(self.dense(x)))
        logits = self.out(F.dropout(x, self.dropout_prob, self.training))
        loss = None
        if call.labels is not None and self.rows:
            loss = label_loss(logits, call.labels, call.config)
        elif call.labels is not None:
            loss = cross_entropy(logits, call.labels)
        return {"loss": loss, "logits": logits}


class Chosen(TokenScores):
    """Scores of all tokens, or with sparse_prediction of those alone that have a label: (N, V)."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        if call.labels is None or not call.config.sparse_prediction:
            return super().forward(out, call)
        kept = call.labels != call.config.sparse_pred_ignore_index
        logits = self.scores(out.last_hidden_state[kept])
        return {"loss": cross_entropy(logits, call.labels[kept], call.num_items_in_batch), "logits": logits}


@dataclass(frozen=True)
class RowLabels(Classify):
    """Labels of a row."""

    def make(self, config: Any, width: int) -> HeadModule:
        return Labels(config, width, rows=True)


@dataclass(frozen=True)
class TokenLabels(TokenClassify):
    """Labels of every token."""

    def make(self, config: Any, width: int) -> HeadModule:
        return Labels(config, width, rows=False)


@dataclass(frozen=True)
class ChosenLM(MaskedLM):
    """Scores of the tokens behind masks."""

    def make(self, config: Any, width: int) -> HeadModule:
        return Chosen(self, config, width)


def transform(c: Config) -> Transform:
    """The layer between the states and the vocabulary."""
    return Transform(c.classifier_activation, c.norm_eps, bias=c.classifier_bias, norm_bias=c.norm_bias)


DENSE = {"dense": "head.dense", "norm": "head.norm"}

HEADS: dict[str, Head] = {
    "ModernBertModel": Backbone(output=BaseModelOutput),
    "ModernBertForMaskedLM": ChosenLM(
        names={**DENSE, "out": "decoder"}, transform=transform, bias="decoder_bias"
    ),
    "ModernBertForSequenceClassification": RowLabels(names={**DENSE, "out": "classifier"}),
    "ModernBertForTokenClassification": TokenLabels(names={**DENSE, "out": "classifier"}),
}

family(
    "modernbert", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=ModernModel,
    public="ModernBert",
)  # fmt: skip
