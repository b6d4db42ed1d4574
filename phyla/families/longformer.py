"""Longformer (Beltagy et al. 2020, arXiv:2004.05150).

Public checkpoints: allenai/longformer-base-4096, allenai/longformer-large-4096, ...
Differs from RoBERTa in: attention within a window of its own for each layer, global tokens with
projections of their own.
"""

from typing import Any

from phyla.blocks import FFN, Embed, Encoder, Heads, Layer, LayerNorm, Learned, Pool, Spec, residual
from phyla.blocks.local import BandedAttention
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import roberta
from phyla.family import family
from phyla.heads import Backbone, Classify, MaskedLM, MultipleChoice, Span, TokenClassify
from phyla.outputs import (
    LongformerBaseModelOutputWithPooling, LongformerMaskedLMOutput, LongformerMultipleChoiceModelOutput,
    LongformerQuestionAnsweringModelOutput, LongformerSequenceClassifierOutput,
    LongformerTokenClassifierOutput,
)  # fmt: skip
from phyla.skeletons import GlobalTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    attention_window: int | list = 512
    sep_token_id: int | None = 2
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
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
    onnx_export: bool = False

    def finish(self) -> None:
        windows(self, self.num_hidden_layers)


def windows(c: PretrainedConfig, layers: int) -> list[int]:
    """The window of each layer; ConfigError unless all are even and positive, one a layer."""
    given = c.attention_window
    found = [given] * layers if isinstance(given, int) else list(given)
    if len(found) < layers or any(not isinstance(w, int) or w <= 0 or w % 2 for w in found):
        raise ConfigError(
            f"attention_window must be an even positive number, or at least one for each of {layers} layers, "
            f"but is {given!r}"
        )
    return found[:layers]


def build(c: Config) -> Spec:
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    ffn = residual(FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act), post=norm, dropout=drop)
    layers = []
    for window in windows(c, c.num_hidden_layers):
        attn = BandedAttention(
            c.hidden_size, Heads(c.num_attention_heads), window, c.attention_probs_dropout_prob
        )
        layers.append(Layer(attn=residual(attn, post=norm, dropout=drop), ffn=ffn))
    positions = Learned(c.max_position_embeddings, c.hidden_size, count="tokens", padding=c.pad_token_id)
    return Encoder(
        embed=Embed(
            c.vocab_size, c.hidden_size, position=positions, segments=c.type_vocab_size, norm=norm,
            dropout=drop, padding=c.pad_token_id,
        ),
        layers=layers, pool=Pool(c.hidden_size),
    )  # fmt: skip


AT = "encoder.layer.{i}.attention.self"
NAMES = roberta.NAMES.but(
    lines={k: v for k, v in roberta.NAMES.lines.items() if ".cross" not in k and ".attn.position" not in k}
    | {
        "layers.{i}.attn.q_global": f"{AT}.query_global",
        "layers.{i}.attn.k_global": f"{AT}.key_global",
        "layers.{i}.attn.v_global": f"{AT}.value_global",
    },
    prefix="longformer",
    ignore=(r"(longformer\.)?embeddings\.(position_ids|token_type_ids)",),
)

DROP: tuple[str | float, ...] = ("hidden_dropout_prob",)
LM: dict[str, Any] = roberta.LM

HEADS = {
    "LongformerModel": Backbone(output=LongformerBaseModelOutputWithPooling, pool=True),
    "LongformerForMaskedLM": MaskedLM(**LM, output=LongformerMaskedLMOutput),
    "LongformerForSequenceClassification": Classify(
        on="first", dense="tanh", dropout=DROP, output=LongformerSequenceClassifierOutput,
        names={"dense": "classifier.dense", "out": "classifier.out_proj"},
    ),
    "LongformerForTokenClassification": TokenClassify(
        names={"out": "classifier"}, dropout=DROP, output=LongformerTokenClassifierOutput
    ),
    "LongformerForQuestionAnswering": Span(
        names={"out": "qa_outputs"}, output=LongformerQuestionAnsweringModelOutput
    ),
    "LongformerForMultipleChoice": MultipleChoice(
        names={"out": "classifier"}, dropout=DROP, pool=True, output=LongformerMultipleChoiceModelOutput
    ),
}  # fmt: skip

family(
    "longformer", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=GlobalTextModel,
    public="Longformer",
)  # fmt: skip
