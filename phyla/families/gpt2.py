"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Public checkpoints: openai-community/gpt2, distilbert/distilgpt2, openai-community/gpt2-xl, ...
Differs from the plain decoder in: learned positions, token types looked up in the token table, scores
that may shrink with the depth, matrices stored transposed and q, k, v fused in files, perhaps attention
to an encoder.
"""

from phyla.blocks import (
    FFN, Attention, Causal, Decoder, Embed, Heads, Layer, LayerNorm, Learned, Spec, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Transpose
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, DoubleHeads, Span, TokenClassify
from phyla.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    SequenceClassifierOutputWithPast,
)
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. reorder_and_upcast_attn is moot: softmax is in float32."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    summary_type: str = "cls_index"
    summary_use_proj: bool = True
    summary_activation: str | None = None
    summary_proj_to_labels: bool = True
    summary_first_dropout: float = 0.1
    scale_attn_weights: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list | None = 50256
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False

    ALIASES = {
        "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }  # fmt: skip


def layer(c: Config, index: int) -> Spec:
    norm = LayerNorm(c.n_embd, eps=c.layer_norm_epsilon)
    heads = Heads(c.n_head)
    scale = heads.resolve(c.n_embd)[2] ** -0.5 if c.scale_attn_weights else 1.0
    if c.scale_attn_by_inverse_layer_idx:
        scale /= index + 1

    def branch(mixer: Spec) -> Spec:
        return residual(mixer, pre=norm, dropout=c.resid_pdrop)

    branches = {"attn": branch(Attention(c.n_embd, heads, mask=Causal(), scale=scale, dropout=c.attn_pdrop))}
    if c.add_cross_attention:
        branches["cross"] = branch(Attention(c.n_embd, heads, scale=scale, dropout=c.attn_pdrop, cross=True))
    branches["ffn"] = branch(FFN(c.n_embd, c.n_inner or 4 * c.n_embd, act=c.activation_function))
    return Layer(**branches)


def build(c: Config) -> Decoder:
    position = Learned(c.n_positions, c.n_embd)
    return Decoder(
        embed=Embed(c.vocab_size, c.n_embd, position=position, segments="tokens", dropout=c.embd_pdrop),
        layers=tuple(layer(c, index) for index in range(c.n_layer)),
        norm=LayerNorm(c.n_embd, eps=c.layer_norm_epsilon),
    )


NAMES = NameMap(
    {
        "embed.tokens": "wte",
        "embed.position": "wpe",
        "layers.{i}.attn.pre_norm": "h.{i}.ln_1",
        "layers.{i}.attn.q|k|v": split("h.{i}.attn.c_attn", transpose=True),
        "layers.{i}.attn.o": To("h.{i}.attn.c_proj", Transpose()),
        "layers.{i}.cross.pre_norm": "h.{i}.ln_cross_attn",
        "layers.{i}.cross.q": To("h.{i}.crossattention.q_attn", Transpose()),
        "layers.{i}.cross.k|v": split("h.{i}.crossattention.c_attn", transpose=True),
        "layers.{i}.cross.o": To("h.{i}.crossattention.c_proj", Transpose()),
        "layers.{i}.ffn.pre_norm": "h.{i}.ln_2",
        "layers.{i}.ffn.up": To("h.{i}.mlp.c_fc", Transpose()),
        "layers.{i}.ffn.down": To("h.{i}.mlp.c_proj", Transpose()),
        "norm": "ln_f",
    },
    prefix="transformer",
    ignore=(r"(transformer\.)?h\.\d+\.(attn|crossattention)\.(bias|masked_bias)",),
)

HEADS = {
    "GPT2Model": Backbone(output=BaseModelOutputWithPastAndCrossAttentions),
    "GPT2LMHeadModel": CausalLM(names={"out": "lm_head"}, output=CausalLMOutputWithCrossAttentions),
    "GPT2DoubleHeadsModel": DoubleHeads(
        names={"lm.out": "lm_head", "summary.out": "multiple_choice_head.summary"}, changes={"num_labels": 1}
    ),
    "GPT2ForSequenceClassification": Classify(
        on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
    ),
    "GPT2ForTokenClassification": TokenClassify(
        names={"out": "classifier"}, dropout=("classifier_dropout", "hidden_dropout", 0.1)
    ),
    "GPT2ForQuestionAnswering": Span(names={"out": "qa_outputs"}),
}

family("gpt2", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="GPT2")
