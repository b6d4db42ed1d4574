"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): a discriminator of replaced tokens, and its generator.

Public checkpoints: google/electra-small-discriminator, google/electra-base-generator and every
`model_type: electra`. Differs from BERT in: embeddings narrower than the stream, no pool, its heads.
"""

from typing import Any

from phyla.blocks import LayerNorm, Spec
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import bert
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Head, MaskedLM, Span, TokenClassify, Transform
from phyla.heads.replaced import ReplacedTokens
from phyla.heads.summary import SummaryChoice
from phyla.outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    summary_type: str = "first"
    summary_use_proj: bool = True
    summary_activation: str | None = "gelu"
    summary_last_dropout: float = 0.1
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None

    def finish(self) -> None:
        bert.check_positions(self)


def narrow(embed: Spec, width: int, eps: float, out: int | None) -> Spec:
    """BERT's embeddings at another width, lifted to the stream's where `out` says so."""
    position = embed.position.but(width=width)
    return embed.but(width=width, position=position, norm=LayerNorm(width, eps=eps), out=out)


def build(c: Config) -> Spec:
    stack = bert.build(c)
    out = c.hidden_size if c.hidden_size != c.embedding_size else None
    return stack.but(embed=narrow(stack.embed, c.embedding_size, c.layer_norm_eps, out), pool=None)


NAMES = NameMap(
    {k: v for k, v in bert.NAMES.lines.items() if k != "pool.dense"} | {"embed.lift": "embeddings_project"},
    prefix="electra",
    ignore=(r"(electra\.)?embeddings\.(position_ids|token_type_ids)",),
)

LM: dict[str, Any] = {
    "names": {
        "dense": "generator_predictions.dense",
        "norm": "generator_predictions.LayerNorm",
        "out": "generator_lm_head",
    },
    "transform": lambda c: Transform("gelu", c.layer_norm_eps, c.embedding_size),
    "bias": True,
}
DROPOUT = ("classifier_dropout", "hidden_dropout_prob")
ROW = {"dense": "classifier.dense", "out": "classifier.out_proj"}
REPLACED = {"dense": "discriminator_predictions.dense", "out": "discriminator_predictions.dense_prediction"}

HEADS: dict[str, Head] = {
    "ElectraModel": Backbone(output=BaseModelOutputWithPastAndCrossAttentions),
    "ElectraForPreTraining": ReplacedTokens(names=REPLACED),
    "ElectraForMaskedLM": MaskedLM(**LM),
    "ElectraForCausalLM": CausalLM(**LM, output=CausalLMOutputWithCrossAttentions),
    "ElectraForSequenceClassification": Classify(on="first", dense="gelu", names=ROW, dropout=DROPOUT),
    "ElectraForTokenClassification": TokenClassify(names={"out": "classifier"}, dropout=DROPOUT),
    "ElectraForQuestionAnswering": Span(names={"out": "qa_outputs"}),
    "ElectraForMultipleChoice": SummaryChoice(
        names={"summary.out": "sequence_summary.summary", "out": "classifier"}
    ),
}

family("electra", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Electra")
