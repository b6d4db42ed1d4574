"""BigBird (Zaheer et al. 2020, arXiv:2007.14062).

Public checkpoints: google/bigbird-roberta-base, google/bigbird-base-trivia-itc, ...
Differs from BERT in: block-sparse attention for long texts, dropout before the norm of the embeddings, a
deeper head for questions. As a decoder it attends fully.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Causal, Context, Decoder, Embed, Encoder, Full, Heads, Layer, LayerNorm, Learned, Linear,
    Pool, Spec, make, residual,
)  # fmt: skip
from phyla.blocks.blocksparse import BlockSparseAttention
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError, nearest
from phyla.families import bert
from phyla.family import family
from phyla.heads import (
    Backbone, Call, CausalLM, Classify, Head, HeadModule, MaskedLM, MultipleChoice, Pretraining, Span,
    TokenClassify,
)  # fmt: skip
from phyla.outputs import BaseModelOutputWithPoolingAndCrossAttentions, CausalLMOutputWithCrossAttentions
from phyla.skeletons import FillingTextModel, QuestionTextModel, TextModel

KINDS = ("block_sparse", "original_full")


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50358
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 4096
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    sep_token_id: int | None = 66
    attention_type: str = "block_sparse"
    use_bias: bool = True
    rescale_embeddings: bool = False
    block_size: int = 64
    num_random_blocks: Any = 3
    classifier_dropout: float | None = None

    def finish(self) -> None:
        kind = self.attention_type
        if kind not in KINDS:
            raise ConfigError(
                f"attention_type must be one of {KINDS}, but is {kind!r}.{nearest(kind, KINDS)}"
            )
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError("add_cross_attention needs a decoder: set is_decoder to true")


class DroppedNorm(LayerNorm):
    """A norm behind dropout. x (B, S, D)."""

    def __init__(self, width: int, eps: float, dropout: float) -> None:
        super().__init__(width, eps)
        self.dropout_prob = dropout

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, self.dropout_prob, self.training))


def build(c: Config) -> Spec:
    width, drop, heads = c.hidden_size, c.hidden_dropout_prob, Heads(c.num_attention_heads)
    norm, dropout = LayerNorm(width, eps=c.layer_norm_eps), c.attention_probs_dropout_prob
    full = Attention(
        width,
        heads,
        mask=Causal() if c.is_decoder else Full(),
        bias=c.use_bias,
        out_bias=True,
        dropout=dropout,
    )
    sparse = BlockSparseAttention(width, heads, c.block_size, c.num_random_blocks, c.use_bias, dropout)
    dense = c.is_decoder or c.attention_type == "original_full"
    ffn = FFN(width, c.intermediate_size, act=c.hidden_act)
    layers = []
    for index in range(c.num_hidden_layers):
        mixers = {"attn": full if dense else sparse.but(seed=index)}
        if c.add_cross_attention:
            mixers["cross"] = full.but(cross=True)
        mixers["ffn"] = ffn
        layers.append(Layer(**{name: residual(m, post=norm, dropout=drop) for name, m in mixers.items()}))
    return (Decoder if c.is_decoder else Encoder)(
        embed=Embed(
            c.vocab_size, width, position=Learned(c.max_position_embeddings, width),
            segments=c.type_vocab_size, norm=DroppedNorm(width, c.layer_norm_eps, drop),
            scale=width**0.5 if c.rescale_embeddings else None, scale_rounded=c.rescale_embeddings,
            padding=c.pad_token_id,
        ),
        layers=layers,
        pool=Pool(width),
    )  # fmt: skip


class Answer(HeadModule):
    """A feed-forward of its own before the scores of start and end."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.dropout_prob = config.hidden_dropout_prob
        self.ffn = make(FFN(width, config.intermediate_size, act=config.hidden_act))
        self.out = Linear(width, 2)
        self.norm = make(LayerNorm(width, eps=config.layer_norm_eps))

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        h = self.ffn(F.dropout(x, self.dropout_prob, self.training), Context.of(x))
        x = self.norm(x + F.dropout(h, self.dropout_prob, self.training))
        start, end = self.out(x).unbind(-1)
        return {"start_logits": start.contiguous(), "end_logits": end.contiguous()}


@dataclass(frozen=True)
class LongSpan(Span):
    """Questions about long texts."""

    def make(self, config: Any, width: int) -> HeadModule:
        return Answer(config, width)


LINES = {k: v for k, v in bert.NAMES.lines.items() if not k.endswith(".position") or k == "embed.position"}
NAMES = bert.NAMES.but(lines=LINES | {"pool.dense": "pooler"})
ANSWER = NameMap(
    {
        "ffn.up": "qa_classifier.intermediate.dense",
        "ffn.down": "qa_classifier.output.dense",
        "norm": "qa_classifier.output.LayerNorm",
        "out": "qa_classifier.qa_outputs",
    }
)
LM: dict[str, Any] = {**bert.LM, "pool": True}  # files of these classes hold a pool that they do not use
DROP = bert.DROPOUT

HEADS: dict[str, Head] = {
    "BigBirdModel": Backbone(output=BaseModelOutputWithPoolingAndCrossAttentions, pool=True),
    "BigBirdForPreTraining": Pretraining(names=bert.BOTH, transform=bert.transform, bias=True, alone=True),
    "BigBirdForMaskedLM": MaskedLM(**LM, skeleton=FillingTextModel),
    "BigBirdForCausalLM": CausalLM(**LM, output=CausalLMOutputWithCrossAttentions),
    "BigBirdForSequenceClassification": Classify(
        on="first", dense="hidden_act", dropout=DROP, pool=True,
        names={"dense": "classifier.dense", "out": "classifier.out_proj"},
    ),
    "BigBirdForTokenClassification": TokenClassify(names={"out": "classifier"}, dropout=DROP, pool=True),
    "BigBirdForQuestionAnswering": LongSpan(names=ANSWER, skeleton=QuestionTextModel),
    "BigBirdForMultipleChoice": MultipleChoice(names={"out": "classifier"}, dropout=DROP, pool=True),
}  # fmt: skip

family("big_bird", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="BigBird")
