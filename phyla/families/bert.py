"""BERT (Devlin et al. 2018, arXiv:1810.04805), also as a decoder (Rothe et al. 2019, arXiv:1907.12461).

Public checkpoints: google-bert/bert-base-uncased, all-MiniLM-L6-v2 and every `model_type: bert`.
Differs from the plain encoder in: norms after the residual sums, segments, normed embeddings, a pooled token.
"""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Causal, Decoder, Embed, Encoder, Full, Heads, Layer, LayerNorm, Learned, Pool,
    RelativeKeys, Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError, nearest
from phyla.family import family
from phyla.heads import (
    Backbone, CausalLM, Classify, Head, MaskedLM, MultipleChoice, NextSentence, Pretraining, Span,
    TokenClassify, Transform,
)  # fmt: skip
from phyla.outputs import BaseModelOutputWithPoolingAndCrossAttentions, CausalLMOutputWithCrossAttentions
from phyla.skeletons import TextModel

POSITIONS = ("absolute", "relative_key", "relative_key_query")


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
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None

    def finish(self) -> None:
        check_positions(self)


def check_positions(c: PretrainedConfig) -> None:
    """Refuse an unknown position_embedding_type, and cross-attention in an encoder."""
    kind = c.position_embedding_type
    if kind not in POSITIONS:
        raise ConfigError(
            f"position_embedding_type must be one of {POSITIONS}, but is {kind!r}.{nearest(kind, POSITIONS)}"
        )
    if c.add_cross_attention and not c.is_decoder:
        raise ConfigError("add_cross_attention needs a decoder: set is_decoder to true")


class Kept(Learned):
    """A position table that files hold although the model, having relative positions, does not read it."""

    def forward(self, index: Tensor) -> Tensor:
        return torch.zeros((), dtype=self.weight.dtype, device=self.weight.device)


def relative_keys(c: PretrainedConfig) -> Spec | None:
    """What tells attention how far apart tokens stand; None where only their embeddings know places."""
    if c.position_embedding_type == "absolute":
        return None
    width = Heads(c.num_attention_heads).resolve(c.hidden_size)[2]
    queries = c.position_embedding_type == "relative_key_query"
    return RelativeKeys(c.max_position_embeddings, width, queries=queries)


def layers(c: PretrainedConfig, position: Spec | None = None) -> tuple[Spec, ...]:
    """BERT's layers, with what tells their attention where tokens stand."""
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    attn = Attention(c.hidden_size, Heads(c.num_attention_heads), dropout=c.attention_probs_dropout_prob)
    branches = {"attn": attn.but(position=position, mask=Causal() if c.is_decoder else Full())}
    if c.add_cross_attention:
        branches["cross"] = attn.but(cross=True)
    branches["ffn"] = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    layer = Layer(**{name: residual(mixer, post=norm, dropout=drop) for name, mixer in branches.items()})
    return repeat(c.num_hidden_layers, layer, c.pruned_heads)


def build(c: PretrainedConfig, table: Spec | None = None) -> Spec:
    """BERT's stack; relatives pass the position table of their embeddings."""
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    table = table or Learned(c.max_position_embeddings, c.hidden_size)
    if c.position_embedding_type != "absolute":
        table = Kept(c.max_position_embeddings, c.hidden_size)
    stack = Decoder if c.is_decoder else Encoder
    return stack(
        embed=Embed(
            c.vocab_size, c.hidden_size, position=table, segments=c.type_vocab_size, norm=norm,
            dropout=drop, padding=c.pad_token_id,
        ),
        layers=layers(c, relative_keys(c)),
        pool=Pool(c.hidden_size),
    )  # fmt: skip


def attention_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of a layer's attention to itself or to the encoder."""
    inner = {"q": "query", "k": "key", "v": "value", "position": "distance_embedding"}
    outer = {"o": "dense", "post_norm": "LayerNorm"}
    at, to = f"layers.{{i}}.{ours}", f"encoder.layer.{{i}}.{theirs}"
    lines = {f"{at}.{part}": f"{to}.self.{name}" for part, name in inner.items()}
    return lines | {f"{at}.{part}": f"{to}.output.{name}" for part, name in outer.items()}


NAMES = NameMap(
    {
        "embed.tokens": "embeddings.word_embeddings",
        "embed.position": "embeddings.position_embeddings",
        "embed.segment": "embeddings.token_type_embeddings",
        "embed.norm": "embeddings.LayerNorm",
        **attention_names("attn", "attention"),
        **attention_names("cross", "crossattention"),
        "layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
        "layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
        "layers.{i}.ffn.post_norm": "encoder.layer.{i}.output.LayerNorm",
        "pool.dense": "pooler.dense",
    },
    prefix="bert",
    ignore=(r"(bert\.)?embeddings\.(position_ids|token_type_ids)",),
)


def lm_names(inner: str, ahead: str = "") -> dict[str, str]:
    """Public names of the scores over the vocabulary; `ahead` is where they stand in the head."""
    return {
        f"{ahead}dense": f"{inner}.transform.dense",
        f"{ahead}norm": f"{inner}.transform.LayerNorm",
        f"{ahead}out.weight": f"{inner}.decoder.weight",
        f"{ahead}out.bias": f"{inner}.bias",
    }


def transform(c: Config) -> Transform:
    """The layer between the states and the vocabulary."""
    return Transform(c.hidden_act, c.layer_norm_eps)


LM: dict[str, Any] = {
    "names": NameMap(lm_names("cls.predictions"), aliases={"out.bias": ("cls.predictions.decoder.bias",)}),
    "transform": transform,
    "bias": True,
}
BOTH = NameMap(
    {**lm_names("cls.predictions", "lm."), "pair.out": "cls.seq_relationship"},
    aliases={"lm.out.bias": ("cls.predictions.decoder.bias",)},
)
DROPOUT = ("classifier_dropout", "hidden_dropout_prob")

HEADS: dict[str, Head] = {
    "BertModel": Backbone(output=BaseModelOutputWithPoolingAndCrossAttentions, pool=True),
    "BertForPreTraining": Pretraining(names=BOTH, transform=transform, bias=True),
    "BertForMaskedLM": MaskedLM(**LM),
    "BertLMHeadModel": CausalLM(**LM, output=CausalLMOutputWithCrossAttentions),
    "BertForNextSentencePrediction": NextSentence(names={"out": "cls.seq_relationship"}),
    "BertForSequenceClassification": Classify(names={"out": "classifier"}, dropout=DROPOUT, pool=True),
    "BertForTokenClassification": TokenClassify(names={"out": "classifier"}, dropout=DROPOUT),
    "BertForQuestionAnswering": Span(names={"out": "qa_outputs"}),
    "BertForMultipleChoice": MultipleChoice(names={"out": "classifier"}, dropout=DROPOUT, pool=True),
}

family("bert", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Bert")
