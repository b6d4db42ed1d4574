"""ALBERT (Lan et al. 2019, arXiv:1909.11942).

Public checkpoints: albert/albert-base-v2 and every `model_type: albert`. Differs from BERT in: embeddings
narrower than the stream, layers that share their weights by groups, the order of sentences in pretraining,
no dropout behind the feed-forward, relative scores beside the scaled ones.
"""

from typing import Any

from torch import Tensor, nn

from phyla.blocks import FFN, Context, Encoder, Layer, LayerNorm, RelativeKeys, Spec, repeat, residual
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import bert, electra
from phyla.family import family
from phyla.heads import Backbone, Classify, Head, MaskedLM, MultipleChoice, Span, TokenClassify, Transform
from phyla.heads.order import SentenceOrder
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_layers: int = 12
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0
    attention_probs_dropout_prob: float = 0
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout_prob: float = 0.1
    position_embedding_type: str = "absolute"
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list | None = 3

    def finish(self) -> None:
        bert.check_positions(self)


class Unscaled(RelativeKeys):
    """Relative scores that the attention scale does not reach."""

    def bias(self, q: Tensor, k: Tensor, first: int, scale: float, ctx: Context) -> Tensor:
        return super().bias(q, k, first, 1.0, ctx)


class Shared(Encoder):
    """An encoder of `count` layers that takes the given ones in turn, each several times in a row."""

    def __init__(self, embed: Spec, layers: Any, pool: Spec | None, count: int) -> None:
        super().__init__(embed, layers, pool=pool)
        kinds = list(self.layers)
        self.layers = nn.ModuleList(kinds[group_of(i, count, len(kinds))] for i in range(count))


def group_of(layer: int, layers: int, groups: int) -> int:
    """Which group of weights a layer has."""
    return int(layer / (layers / groups))


def build(c: Config) -> Spec:
    stack, norm = bert.build(c), LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    attn = stack.layers[0].branches["attn"].but(heads=bert.Heads(c.num_attention_heads))
    if attn.position is not None:
        attn = attn.but(position=Unscaled(**attn.position.args))
    ffn = residual(FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act), post=norm)
    inner = c.inner_group_num
    plain = repeat(c.num_hidden_groups * inner, Layer(attn=attn, ffn=ffn), c.pruned_heads)
    groups = [
        Layer(**{f"{k}{i or ''}": v for i in range(inner) for k, v in plain[at + i].branches.items()})
        for at in range(0, len(plain), inner)
    ]
    embed = electra.narrow(stack.embed, c.embedding_size, c.layer_norm_eps, c.hidden_size)
    return Shared(embed, groups, stack.pool, c.num_hidden_layers)


def names(c: Config) -> NameMap:
    """ALBERT's public names: a group's first layer has the weights of all its layers."""
    lines = {k: v for k, v in bert.NAMES.lines.items() if k.startswith("embed.")}
    lines |= {"embed.lift": "encoder.embedding_hidden_mapping_in", "pool.dense": "pooler"}
    parts = {
        "attn{i}.q": "attention.query",
        "attn{i}.k": "attention.key",
        "attn{i}.v": "attention.value",
        "attn{i}.position": "attention.distance_embedding",
        "attn{i}.o": "attention.dense",
        "attn{i}.post_norm": "attention.LayerNorm",
        "ffn{i}.up": "ffn",
        "ffn{i}.down": "ffn_output",
        "ffn{i}.post_norm": "full_layer_layer_norm",
    }
    first: dict[int, int] = {}
    for layer in range(c.num_hidden_layers):
        first.setdefault(group_of(layer, c.num_hidden_layers, c.num_hidden_groups), layer)
    for group, layer in first.items():
        for i in range(c.inner_group_num):
            public = f"encoder.albert_layer_groups.{group}.albert_layers.{i}"
            lines |= {
                f"layers.{layer}.{k.replace('{i}', str(i or ''))}": f"{public}.{v}" for k, v in parts.items()
            }
    return NameMap(lines, prefix="albert", ignore=(r"(albert\.)?embeddings\.(position_ids|token_type_ids)",))


def lm_names(ahead: str = "") -> dict[str, str]:
    """Public names of the scores over the vocabulary."""
    return {
        f"{ahead}dense": "predictions.dense",
        f"{ahead}norm": "predictions.LayerNorm",
        f"{ahead}out.weight": "predictions.decoder.weight",
        f"{ahead}out.bias": "predictions.bias",
    }


LM: dict[str, Any] = {
    "transform": lambda c: Transform(c.hidden_act, c.layer_norm_eps, c.embedding_size),
    "bias": True,
}
MASKED = NameMap(lm_names(), aliases={"out.bias": ("predictions.decoder.bias",)})
ORDER = NameMap(
    {**lm_names("lm."), "pair": "sop_classifier.classifier"},
    aliases={"lm.out.bias": ("predictions.decoder.bias",)},
)
OUT, DROPOUT = {"out": "classifier"}, ("classifier_dropout_prob",)

HEADS: dict[str, Head] = {
    "AlbertModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "AlbertForPreTraining": SentenceOrder(**LM, names=ORDER, dropout=DROPOUT),
    "AlbertForMaskedLM": MaskedLM(**LM, names=MASKED),
    "AlbertForSequenceClassification": Classify(names=OUT, dropout=DROPOUT, pool=True),
    "AlbertForTokenClassification": TokenClassify(names=OUT, dropout=DROPOUT),
    "AlbertForQuestionAnswering": Span(names={"out": "qa_outputs"}),
    "AlbertForMultipleChoice": MultipleChoice(names=OUT, dropout=DROPOUT, pool=True),
}

family("albert", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="Albert")
