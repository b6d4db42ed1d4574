"""DPR (Karpukhin et al. 2020, arXiv:2004.04906): BERT towers that find passages for questions, and a reader.

Public checkpoints: facebook/dpr-question_encoder-single-nq-base, facebook/dpr-reader-multiset-base, ...
Differs from BERT in: one vector a text (its first token's, perhaps projected) or, for the reader, spans and
the relevance of each passage; padding is told from the ids.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from phyla.blocks import Linear
from phyla.config import PretrainedConfig
from phyla.families import bert
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.base import Call, HeadModule
from phyla.outputs import DPRContextEncoderOutput, DPRQuestionEncoderOutput, DPRReaderOutput
from phyla.skeletons import TextModel
from phyla.skeletons.retrieval import VectorModel


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
    projection_dim: int = 0  # 0 for none

    def finish(self) -> None:
        bert.check_positions(self)

    @staticmethod
    def _check_size(name: str, value: int, where: str) -> None:
        if name != "projection_dim" or value:
            PretrainedConfig._check_size(name, value, where)


class TextVector(HeadModule):
    """The first token's state, projected where the configuration has a width for it."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.project = Linear(width, inner) if inner > 0 else None

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state[:, 0]
        return {"pooler_output": x if self.project is None else self.project(x)}


class Reader(HeadModule):
    """Start and end of the answer in each passage, and whether the passage has it."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        # Files may hold a projection, which the scores do not go through.
        self.project: nn.Module | None = Linear(width, inner) if inner > 0 else None
        self.span, self.relevance = Linear(inner or width, 2), Linear(inner or width, 1)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        start, end = self.span(x).unbind(-1)  # (N, S) each
        relevance = self.relevance(x[:, 0])[:, 0]
        return {
            "start_logits": start.contiguous(),
            "end_logits": end.contiguous(),
            "relevance_logits": relevance,
        }


@dataclass(frozen=True)
class Vector(Backbone):
    """One vector a text."""

    def make(self, config: Any, width: int) -> HeadModule:
        return TextVector(config.projection_dim, width)


@dataclass(frozen=True)
class Passages(Backbone):
    """The reader."""

    def make(self, config: Any, width: int) -> HeadModule:
        return Reader(config.projection_dim, width)


# Older files hold a pooler that is not used, and a counter.
NAMES = bert.NAMES.but(ignore=(r"(.*\.)?pooler\.dense\.(weight|bias)", r"(.*\.)?embeddings\.position_ids"))
HEADS: dict[str, Head] = {
    "DPRQuestionEncoder": Vector(
        names={"project": "question_encoder.encode_proj"},
        prefix="question_encoder.bert_model",
        output=DPRQuestionEncoderOutput,
        skeleton=VectorModel,
    ),
    "DPRContextEncoder": Vector(
        names={"project": "ctx_encoder.encode_proj"},
        prefix="ctx_encoder.bert_model",
        output=DPRContextEncoderOutput,
        skeleton=VectorModel,
    ),
    "DPRReader": Passages(
        names={
            "project": "span_predictor.encoder.encode_proj",
            "span": "span_predictor.qa_outputs",
            "relevance": "span_predictor.qa_classifier",
        },
        prefix="span_predictor.encoder.bert_model",
        output=DPRReaderOutput,
    ),
}

family(
    "dpr", config=Config, build=bert.build, names=NAMES, heads=HEADS, skeleton=TextModel, public="DPR",
    bases=(
        "DPRPreTrainedModel", "DPRPretrainedContextEncoder", "DPRPretrainedQuestionEncoder",
        "DPRPretrainedReader",
    ),
)  # fmt: skip
