"""FNet (Lee-Thorp et al. 2021, arXiv:2105.03824).

Public checkpoints: google/fnet-base, google/fnet-large and every `model_type: fnet`. Differs from BERT in:
the real part of a Fourier transform over tokens and channels in place of attention, so that padding counts;
embeddings projected behind their norm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Context, Embed, Encoder, Layer, LayerNorm, Learned, Mixer, Pool, Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import bert
from phyla.family import family
from phyla.heads import (
    Backbone, Classify, Head, MaskedLM, MultipleChoice, NextSentence, Pretraining, Span, TokenClassify,
)  # fmt: skip
from phyla.outputs import BaseModelOutputWithPooling, FNetForPreTrainingOutput
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 4
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    use_tpu_fourier_optimizations: bool = False
    tpu_short_seq_length: int = 512
    pad_token_id: int | None = 3
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2


class Fourier(Mixer):
    """The real part of the transform over tokens and channels (eq. 3). x (B, S, D)."""

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        return torch.fft.fft2(x.float(), dim=(1, 2)).real.to(x.dtype)


class Projected(Embed):
    """Embeddings whose dropout stands behind the projection."""

    def __init__(
        self, vocabulary: int, width: int, position: Spec, segments: int, norm: Spec, dropout: float,
        padding: int | None,
    ) -> None:  # fmt: skip
        super().__init__(vocabulary, width, position, segments, norm, padding=padding, out=width)
        self.late_dropout = dropout

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, segment_ids: Tensor | None, ctx: Context
    ) -> Tensor:
        return F.dropout(super().forward(ids, vectors, segment_ids, ctx), self.late_dropout, self.training)


def build(c: Config) -> Encoder:
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    return Encoder(
        embed=Projected(
            c.vocab_size, c.hidden_size, Learned(c.max_position_embeddings, c.hidden_size),
            c.type_vocab_size, norm, drop, c.pad_token_id,
        ),
        layers=repeat(
            c.num_hidden_layers,
            Layer(fourier=residual(Fourier(), post=norm), ffn=residual(ffn, post=norm, dropout=drop)),
        ),
        pool=Pool(c.hidden_size),
    )  # fmt: skip


NAMES = NameMap(
    {
        **{k: v for k, v in bert.NAMES.lines.items() if ".attn." not in k and ".cross." not in k},
        "embed.lift": "embeddings.projection",
        "layers.{i}.fourier.post_norm": "encoder.layer.{i}.fourier.output.LayerNorm",
    },
    prefix="fnet",
    ignore=(
        r"(fnet\.)?embeddings\.(position_ids|token_type_ids)",
        r"(fnet\.)?encoder\.layer\.\d+\.fourier\.self\.dft_mat_(hidden|seq)",
    ),
)

OUT, DROPOUT = {"out": "classifier"}, ("hidden_dropout_prob",)
BOTH: dict[str, Any] = {"names": bert.BOTH, "transform": bert.transform, "bias": True}

HEADS: dict[str, Head] = {
    "FNetModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "FNetForPreTraining": Pretraining(**BOTH, output=FNetForPreTrainingOutput),
    "FNetForMaskedLM": MaskedLM(**bert.LM, pool=True),
    "FNetForNextSentencePrediction": NextSentence(names={"out": "cls.seq_relationship"}),
    "FNetForSequenceClassification": Classify(names=OUT, dropout=DROPOUT, pool=True),
    "FNetForTokenClassification": TokenClassify(names=OUT, dropout=DROPOUT, pool=True),
    "FNetForQuestionAnswering": Span(names={"out": "qa_outputs"}, pool=True),
    "FNetForMultipleChoice": MultipleChoice(names=OUT, dropout=DROPOUT, pool=True),
}

family("fnet", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="FNet")
