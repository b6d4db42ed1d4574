"""RoBERTa (Liu et al. 2019, arXiv:1907.11692).

Public checkpoints: FacebookAI/roberta-base, FacebookAI/roberta-large and every `model_type: roberta`.
Differs from BERT in: positions counted over tokens other than padding, from pad_token_id + 1 on; its heads.
"""

from typing import Any

from phyla.blocks import Learned, Spec
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import bert
from phyla.family import family
from phyla.heads import (
    Backbone,
    CausalLM,
    Classify,
    Head,
    MaskedLM,
    MultipleChoice,
    Span,
    TokenClassify,
    Transform,
)
from phyla.outputs import BaseModelOutputWithPoolingAndCrossAttentions, CausalLMOutputWithCrossAttentions
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50265
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
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None

    def finish(self) -> None:
        bert.check_positions(self)


def build(c: PretrainedConfig) -> Spec:
    table = Learned(c.max_position_embeddings, c.hidden_size, count="tokens", padding=c.pad_token_id)
    return bert.build(c, table=table)


NAMES = bert.NAMES.but(prefix="roberta", ignore=(r"(roberta\.)?embeddings\.(position_ids|token_type_ids)",))

LM: dict[str, Any] = {
    "names": NameMap(
        {
            "dense": "lm_head.dense",
            "norm": "lm_head.layer_norm",
            "out.weight": "lm_head.decoder.weight",
            "out.bias": "lm_head.bias",
        },
        aliases={"out.bias": ("lm_head.decoder.bias",)},
    ),
    "transform": lambda c: Transform("gelu", c.layer_norm_eps),
    "bias": True,
}


def roberta_heads(stem: str) -> dict[str, Head]:
    """The public classes that RoBERTa and its relatives have."""
    drop, out = ("classifier_dropout", "hidden_dropout_prob"), {"out": "classifier"}
    labels = {"dense": "classifier.dense", "out": "classifier.out_proj"}
    return {
        f"{stem}Model": Backbone(output=BaseModelOutputWithPoolingAndCrossAttentions, pool=True),
        f"{stem}ForMaskedLM": MaskedLM(**LM),
        f"{stem}ForCausalLM": CausalLM(**LM, output=CausalLMOutputWithCrossAttentions, from_zero=True),
        f"{stem}ForSequenceClassification": Classify(on="first", dense="tanh", names=labels, dropout=drop),
        f"{stem}ForTokenClassification": TokenClassify(names=out, dropout=drop),
        f"{stem}ForQuestionAnswering": Span(names={"out": "qa_outputs"}),
        f"{stem}ForMultipleChoice": MultipleChoice(names=out, dropout=("hidden_dropout_prob",), pool=True),
    }


HEADS = roberta_heads("Roberta")

family("roberta", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Roberta")
