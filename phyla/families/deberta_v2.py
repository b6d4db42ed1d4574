"""DeBERTa v2 and v3 (He et al. 2020, arXiv:2006.03654; He et al. 2021, arXiv:2111.09543).

Public checkpoints: microsoft/deberta-v3-base, microsoft/deberta-v2-xlarge, ...
Differs from BERT in: disentangled relative positions in logarithmic buckets, padding zeroed in the
embeddings, a convolution beside the first layer (v2), a pooled vector that belongs to the heads.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Context, Encoder, Heads, Layer, LayerNorm, Learned, Spec, activation, make, repeat, residual,
)  # fmt: skip
from phyla.blocks.disentangled import (
    Disentangled, DisentangledAttention, DistanceTable, SummedEmbed, disentangled_scale,
)  # fmt: skip
from phyla.blocks.mask import Mutual
from phyla.blocks.spec import Block
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError, nearest
from phyla.family import family
from phyla.heads import Backbone, Classify, Head, MaskedLM, MultipleChoice, Span, TokenClassify, Transform
from phyla.heads.loss import graded_loss
from phyla.skeletons import TextModel

KINDS = ("c2p", "p2c")


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    relative_attention: bool = False
    max_relative_positions: Any = -1
    position_buckets: int = -1
    norm_rel_ebd: str = "none"
    share_att_key: bool = False
    pad_token_id: int | None = 0
    position_biased_input: bool = True
    pos_att_type: Any = None
    conv_kernel_size: Any = 0
    conv_groups: int = 1
    conv_act: str = "tanh"
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    pooler_hidden_size: int | None = None
    cls_dropout: float | None = None
    legacy: bool = True

    def finish(self) -> None:
        settle(self)


def settle(c: PretrainedConfig) -> None:
    """Fill what follows from other keys; refuse kinds of relative attention that do not exist."""
    if isinstance(c.pos_att_type, str):
        c.pos_att_type = [kind.strip() for kind in c.pos_att_type.lower().split("|")]
    for kind in c.pos_att_type or ():
        if kind not in KINDS:
            raise ConfigError(
                f"pos_att_type must be among {KINDS}, but has {kind!r}.{nearest(str(kind), KINDS)}"
            )
    if c.pooler_hidden_size is None:
        c.pooler_hidden_size = c.hidden_size


class Convolved(Layer):
    """A layer with a convolution of its input (B, S, D) beside it, joined by a norm; padding is zeroed."""

    def __init__(self, conv: Spec, **branches: Spec) -> None:
        super().__init__(**branches)
        self.conv = make(conv)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.conv(x, super().forward(x, ctx), ctx)


class LocalMix(Block):
    """norm(y + act(conv(x))) over neighbouring tokens; x, y (B, S, D)."""

    def __init__(self, width: int, kernel: int, groups: int, act: str, norm: Spec, dropout: float) -> None:
        super().__init__()
        self.taps = nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2, groups=groups)
        self.act, self.norm, self.dropout_prob = activation(act), make(norm), dropout

    def forward(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        mask = ctx.attention_mask
        real = mask[..., None] if mask is not None and mask.dim() == 2 else None
        z = self.taps(x.transpose(1, 2)).transpose(1, 2)  # (B, S, D)
        z = z if real is None else z.masked_fill(~real, 0.0)
        y = self.norm(y + self.act(F.dropout(z, self.dropout_prob, self.training)))
        return y if real is None else y * real.to(y.dtype)


def build(c: PretrainedConfig, first: bool = False) -> Spec:
    """DeBERTa's stack; the first generation has no buckets, no convolution and fewer biases."""
    drop, norm = c.hidden_dropout_prob, LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    heads, kinds = Heads(c.num_attention_heads), tuple(c.pos_att_type or ())
    reach = c.max_relative_positions if c.max_relative_positions >= 1 else c.max_position_embeddings
    buckets = 0 if first else max(c.position_buckets, 0)
    span = buckets or reach
    position = Disentangled(
        c.hidden_size, c.hidden_size, kinds, span if c.relative_attention else 0, buckets, reach,
        key_bias=not first, shared=not first and c.share_att_key, dropout=drop,
    )  # fmt: skip
    attn = DisentangledAttention(
        c.hidden_size, heads, position, Mutual(), "qv" if first else True,
        disentangled_scale(heads.resolve(c.hidden_size)[2], kinds), c.attention_probs_dropout_prob,
    )  # fmt: skip
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    branches = {
        "attn": residual(attn, post=norm, dropout=drop),
        "ffn": residual(ffn, post=norm, dropout=drop),
    }
    layers = repeat(c.num_hidden_layers, Layer(**branches))
    if not first and c.conv_kernel_size > 0 and layers:
        conv = LocalMix(c.hidden_size, c.conv_kernel_size, c.conv_groups, c.conv_act, norm, drop)
        layers = (Convolved(conv, **branches), *layers[1:])
    inner = getattr(c, "embedding_size", c.hidden_size)
    normed = not first and "layer_norm" in c.norm_rel_ebd.lower().replace(" ", "").split("|")
    table = DistanceTable(span, c.hidden_size, norm if normed else None)
    return Encoder(
        embed=SummedEmbed(
            c.vocab_size, c.hidden_size, inner, norm, segments=c.type_vocab_size, dropout=drop,
            position=Learned(c.max_position_embeddings, inner) if c.position_biased_input else None,
            padding=c.pad_token_id,
        ),
        layers=layers, position=table if c.relative_attention else None,
    )  # fmt: skip


LINES: dict[str, Any] = {
    "embed.tokens": "embeddings.word_embeddings",
    "embed.position": "embeddings.position_embeddings",
    "embed.segment": "embeddings.token_type_embeddings",
    "embed.project": "embeddings.embed_proj",
    "embed.norm": "embeddings.LayerNorm",
    "position": "encoder.rel_embeddings",
    "position.norm": "encoder.LayerNorm",
    "layers.{i}.attn.o": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.attn.post_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
    "layers.{i}.ffn.post_norm": "encoder.layer.{i}.output.LayerNorm",
}
NAMES = NameMap(
    LINES
    | {
        "layers.{i}.attn.q": "encoder.layer.{i}.attention.self.query_proj",
        "layers.{i}.attn.k": "encoder.layer.{i}.attention.self.key_proj",
        "layers.{i}.attn.v": "encoder.layer.{i}.attention.self.value_proj",
        "layers.{i}.attn.position.q": "encoder.layer.{i}.attention.self.pos_query_proj",
        "layers.{i}.attn.position.k": "encoder.layer.{i}.attention.self.pos_key_proj",
        "layers.{i}.conv.taps": "encoder.conv.conv",
        "layers.{i}.conv.norm": "encoder.conv.LayerNorm",
    },
    prefix="deberta",
    ignore=(
        r"(deberta\.)?embeddings\.position_(ids|embeddings.*)",
        r"(mask_predictions|lm_predictions|cls)\..*",
    ),
)


def lm_names(c: PretrainedConfig) -> NameMap:
    """Public names of the scores over the vocabulary, of older and newer files."""
    if not c.legacy:
        return NameMap(
            {"dense": "lm_predictions.lm_head.dense", "norm": "lm_predictions.lm_head.LayerNorm",
             "out.weight": "lm_predictions.lm_head.weight", "out.bias": "lm_predictions.lm_head.bias"}
        )  # fmt: skip
    at = "cls.predictions"
    return NameMap(
        {"dense": f"{at}.transform.dense", "norm": f"{at}.transform.LayerNorm",
         "out.weight": f"{at}.decoder.weight", "out.bias": f"{at}.bias"},
        aliases={"out.bias": (f"{at}.decoder.bias",)},
    )  # fmt: skip


def transform(c: PretrainedConfig) -> Transform:
    """The layer between the states and the vocabulary."""
    return Transform(c.hidden_act, c.layer_norm_eps, getattr(c, "embedding_size", None) if c.legacy else None)


def deberta_heads(stem: str) -> dict[str, Head]:
    """The public classes that both generations have."""
    pooled: dict[str, Any] = {
        "on": "first", "dense": "pooler_hidden_act", "dropout_first": "pooler_dropout",
        "dropout": ("cls_dropout", "hidden_dropout_prob"),
        "names": {"dense": "pooler.dense", "out": "classifier"},
    }  # fmt: skip
    return {
        f"{stem}Model": Backbone(),
        f"{stem}ForMaskedLM": MaskedLM(
            names=lm_names,
            transform=transform,
            bias=True,
            tied=lambda c: c.tie_word_embeddings or not c.legacy,
        ),
        f"{stem}ForSequenceClassification": Classify(**pooled, loss=graded_loss),
        f"{stem}ForTokenClassification": TokenClassify(
            names={"out": "classifier"}, dropout=("hidden_dropout_prob",)
        ),
        f"{stem}ForQuestionAnswering": Span(names={"out": "qa_outputs"}),
        f"{stem}ForMultipleChoice": MultipleChoice(**pooled),
    }


HEADS = deberta_heads("DebertaV2")

family(
    "deberta-v2", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="DebertaV2", segments_required=False,
)  # fmt: skip
