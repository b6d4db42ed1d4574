"""BLOOM (BigScience 2022, arXiv:2211.05100). Public checkpoints: bigscience/bloom-560m, ...

Differs from the plain decoder in: ALiBi in place of position vectors, a norm after the embedding,
queries, keys and values fused head by head in files.
"""

from phyla.blocks import (
    FFN, Alibi, Attention, Causal, Decoder, Embed, Heads, Layer, LayerNorm, Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, split
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Span, TokenClassify
from phyla.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    SequenceClassifierOutputWithPast,
)
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. pretraining_tp and slow_but_exact change no result."""

    vocab_size: int = 250880
    hidden_size: int = 64
    n_layer: int = 2
    n_head: int = 8
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    apply_residual_connection_post_layernorm: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    pretraining_tp: int = 1
    slow_but_exact: bool = False

    ALIASES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"}


def build(c: Config) -> Decoder:
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon)
    attn = Attention(
        c.hidden_size, Heads(c.n_head), position=Alibi(c.n_head), mask=Causal(), dropout=c.attention_dropout
    )
    ffn = FFN(c.hidden_size, 4 * c.hidden_size, act="gelu_pytorch_tanh")

    def branch(mixer: Spec) -> Spec:
        keep_norm = c.apply_residual_connection_post_layernorm
        return residual(mixer, pre=norm, dropout=c.hidden_dropout, keep_norm=keep_norm)

    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, norm=norm),
        layers=repeat(c.n_layer, Layer(attn=branch(attn), ffn=branch(ffn))),
        norm=norm,
    )


def names(c: Config) -> NameMap:
    return NameMap(
        {
            "embed.tokens": "word_embeddings",
            "embed.norm": "word_embeddings_layernorm",
            "layers.{i}.attn.pre_norm": "h.{i}.input_layernorm",
            "layers.{i}.attn.q|k|v": split("h.{i}.self_attention.query_key_value", groups=c.n_head),
            "layers.{i}.attn.o": "h.{i}.self_attention.dense",
            "layers.{i}.ffn.pre_norm": "h.{i}.post_attention_layernorm",
            "layers.{i}.ffn.up": "h.{i}.mlp.dense_h_to_4h",
            "layers.{i}.ffn.down": "h.{i}.mlp.dense_4h_to_h",
            "norm": "ln_f",
        },
        prefix="transformer",
    )


HEADS = {
    "BloomModel": Backbone(output=BaseModelOutputWithPastAndCrossAttentions),
    "BloomForCausalLM": CausalLM(names={"out": "lm_head"}, output=CausalLMOutputWithCrossAttentions),
    "BloomForSequenceClassification": Classify(
        on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
    ),
    "BloomForTokenClassification": TokenClassify(
        names={"out": "classifier"}, dropout=("classifier_dropout", "hidden_dropout")
    ),
    "BloomForQuestionAnswering": Span(names={"out": "qa_outputs"}),
}

family("bloom", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="Bloom")
