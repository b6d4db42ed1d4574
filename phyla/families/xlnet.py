"""XLNet (Yang et al. 2019, arXiv:1906.08237).

Public checkpoints: xlnet/xlnet-base-cased, xlnet/xlnet-large-cased, ...
Differs from BERT in: texts read in any order by two streams, relative distances, memories of earlier
segments.
"""

from phyla.blocks import FFN, Encoder, Heads, Layer, LayerNorm, Spec, repeat, residual
from phyla.blocks.two_stream import BlankEmbed, TwoStreamAttention
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape, Swapped
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, BeamSpan, CausalLM, Span, SummaryChoice, SummaryClassify, TokenClassify
from phyla.outputs import (
    XLNetForMultipleChoiceOutput, XLNetForQuestionAnsweringSimpleOutput, XLNetForSequenceClassificationOutput,
    XLNetForTokenClassificationOutput, XLNetLMHeadModelOutput, XLNetModelOutput,
)  # fmt: skip
from phyla.skeletons import MemoryTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32000
    d_model: int = 1024
    n_layer: int = 24
    n_head: int = 16
    d_inner: int = 4096
    ff_activation: str = "gelu"
    untie_r: bool = True
    attn_type: str = "bi"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    mem_len: int | None = 512
    reuse_len: int | None = None
    use_mems_eval: bool = True
    use_mems_train: bool = False
    bi_data: bool = False
    clamp_len: int = -1
    same_length: bool = False
    summary_type: str = "last"
    summary_use_proj: bool = True
    summary_activation: str | None = "tanh"
    summary_last_dropout: float = 0.1
    start_n_top: int = 5
    end_n_top: int = 5
    pad_token_id: int | None = 5
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2

    ALIASES = {
        "n_token": "vocab_size", "hidden_size": "d_model", "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }  # fmt: skip

    def finish(self) -> None:
        if self.attn_type not in ("bi", "uni"):
            raise ConfigError(f'attn_type must be "bi" or "uni", but is {self.attn_type!r}')
        width = self.__dict__.get("d_head", self.d_model // self.n_head)
        if self.d_model % self.n_head or width != self.d_model // self.n_head:
            raise ConfigError(
                f"d_model ({self.d_model}) must be n_head ({self.n_head}) times d_head, but d_head is {width}"
            )
        self.d_head = width


def build(c: Config) -> Spec:
    norm, heads = LayerNorm(c.d_model, eps=c.layer_norm_eps), Heads(c.n_head)
    attn = TwoStreamAttention(c.d_model, heads, c.mem_len, c.dropout)
    ffn = FFN(c.d_model, c.d_inner, act=c.ff_activation, dropout=c.dropout)
    layer = Layer(
        attn=residual(attn, post=norm, dropout=c.dropout), ffn=residual(ffn, post=norm, dropout=c.dropout)
    )
    return Encoder(
        embed=BlankEmbed(c.vocab_size, c.d_model, c.dropout), layers=repeat(c.n_layer, layer),
        dropout=c.dropout, record="raw",
    )  # fmt: skip


def names(c: Config) -> NameMap:
    at, shape = "layer.{i}.rel_attn", (c.d_model, c.n_head, c.d_model // c.n_head)
    lines: dict[str, str | To] = {
        f"layers.{{i}}.attn.{part}.weight": To(f"{at}.{part}", Swapped(Reshape(shape))) for part in "qkvr"
    }
    return NameMap(
        lines
        | {
            "embed.tokens": "word_embedding",
            "embed.blank": "mask_emb",
            "layers.{i}.attn.o.weight": To(f"{at}.o", Reshape(shape)),
            "layers.{i}.attn.content_bias": f"{at}.r_w_bias",
            "layers.{i}.attn.distance_bias": f"{at}.r_r_bias",
            "layers.{i}.attn.segment_bias": f"{at}.r_s_bias",
            "layers.{i}.attn.segment": f"{at}.seg_embed",
            "layers.{i}.attn.post_norm": f"{at}.layer_norm",
            "layers.{i}.ffn.up": "layer.{i}.ff.layer_1",
            "layers.{i}.ffn.down": "layer.{i}.ff.layer_2",
            "layers.{i}.ffn.post_norm": "layer.{i}.ff.layer_norm",
        },
        prefix="transformer",
    )


SUMMARY = {"summary.out": "sequence_summary.summary", "out": "logits_proj"}

HEADS = {
    "XLNetModel": Backbone(output=XLNetModelOutput),
    "XLNetLMHeadModel": CausalLM(
        names={"out": "lm_loss"}, bias=True, shifted=False, output=XLNetLMHeadModelOutput
    ),
    "XLNetForSequenceClassification": SummaryClassify(
        names=SUMMARY, output=XLNetForSequenceClassificationOutput
    ),
    "XLNetForTokenClassification": TokenClassify(
        names={"out": "classifier"}, output=XLNetForTokenClassificationOutput
    ),
    "XLNetForMultipleChoice": SummaryChoice(names=SUMMARY, output=XLNetForMultipleChoiceOutput),
    "XLNetForQuestionAnsweringSimple": Span(
        names={"out": "qa_outputs"}, output=XLNetForQuestionAnsweringSimpleOutput
    ),
    "XLNetForQuestionAnswering": BeamSpan(
        names={
            "start": "start_logits.dense", "end_dense": "end_logits.dense_0",
            "end_norm": "end_logits.LayerNorm", "end": "end_logits.dense_1",
            "answer_dense": "answer_class.dense_0", "answer": "answer_class.dense_1",
        }
    ),
}  # fmt: skip

family(
    "xlnet", config=Config, build=build, names=names, heads=HEADS, skeleton=MemoryTextModel, public="XLNet",
    width=lambda c: c.d_model,
)  # fmt: skip
