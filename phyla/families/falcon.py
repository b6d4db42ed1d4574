"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867). Public checkpoints: tiiuae/falcon-7b, tiiuae/falcon-40b, tiiuae/falcon-rw-1b, ...

Differs from the plain decoder in: one key/value head (or a few) for all queries, attention and feed-forward side by
side under one norm or two, rotary positions or ALiBi, hardly any biases, q, k and v fused in files.
"""

from phyla.blocks import (
    FFN, Alibi, Attention, Causal, Decoder, Embed, Heads, Layer, LayerNorm, Parallel, Rotary, Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, split
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Span, TokenClassify
from phyla.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    SequenceClassifierOutputWithPast,
)
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 65024
    hidden_size: int = 4544
    num_hidden_layers: int = 32
    num_attention_heads: int = 71
    num_ln_in_parallel_attn: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    num_kv_heads: int | None = None
    alibi: bool = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    bias: bool = False
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    bos_token_id: int | None = 11
    eos_token_id: int | list | None = 11
    ffn_hidden_size: int | None = None
    activation: str = "gelu"

    # Spellings of the first Falcon files.
    ALIASES = {
        "n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
        "n_head_kv": "num_kv_heads",
    }  # fmt: skip

    def finish(self) -> None:
        if self.num_kv_heads is None:
            self.num_kv_heads = self.num_attention_heads
        if self.ffn_hidden_size is None:
            self.ffn_hidden_size = 4 * self.hidden_size
        if self.new_decoder_architecture and not self.parallel_attn:
            raise ConfigError("falcon's new_decoder_architecture needs parallel_attn to be true, but it is false")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary(self) -> bool:
        return not self.alibi


def kv_heads(c: Config) -> int:
    """Key/value heads: num_kv_heads of the new architecture, one for multi_query, else as many as query heads."""
    if c.new_decoder_architecture:
        return c.num_kv_heads
    return 1 if c.multi_query else c.num_attention_heads


def build(c: Config) -> Decoder:
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon)
    position: Spec = Rotary(c.head_dim, c.rope_theta, c.rope_scaling, c.max_position_embeddings)
    if c.alibi:
        position = Alibi(c.num_attention_heads, rounded=True, scaled=True)
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads, kv=kv_heads(c)), position=position, mask=Causal(), bias=c.bias,
        dropout=c.attention_dropout,
    )  # fmt: skip
    ffn = FFN(c.hidden_size, c.ffn_hidden_size, act=c.activation, bias=c.bias)
    if not c.parallel_attn:
        attn = residual(attn, pre=norm, dropout=c.attention_dropout)
        layer = Layer(attn=attn, ffn=residual(ffn, pre=norm, dropout=c.hidden_dropout))
    elif two_norms(c):
        layer = Parallel(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm), dropout=c.hidden_dropout)
    else:
        layer = Parallel(pre=norm, attn=residual(attn), ffn=residual(ffn), dropout=c.hidden_dropout)
    embed = Embed(c.vocab_size, c.hidden_size)
    return Decoder(embed=embed, layers=repeat(c.num_hidden_layers, layer), norm=norm)


def two_norms(c: Config) -> bool:
    """Whether attention and feed-forward, side by side, have a norm each."""
    count = c.num_ln_in_parallel_attn
    return count == 2 or (count is None and c.new_decoder_architecture)


def names(c: Config) -> NameMap:
    groups = 1 if c.multi_query and not c.new_decoder_architecture else kv_heads(c)
    norms = {
        "layers.{i}.attn.pre_norm": "h.{i}.input_layernorm",
        "layers.{i}.ffn.pre_norm": "h.{i}.post_attention_layernorm",
    }
    if c.parallel_attn:
        norms = {"layers.{i}.pre_norm": "h.{i}.input_layernorm"}
        if two_norms(c):
            norms = {"layers.{i}.attn.pre_norm": "h.{i}.ln_attn", "layers.{i}.ffn.pre_norm": "h.{i}.ln_mlp"}
    lines = {
        "embed.tokens": "word_embeddings",
        "layers.{i}.attn.q|k|v": split("h.{i}.self_attention.query_key_value", groups=groups),
        "layers.{i}.attn.o": "h.{i}.self_attention.dense",
        "layers.{i}.ffn.up": "h.{i}.mlp.dense_h_to_4h",
        "layers.{i}.ffn.down": "h.{i}.mlp.dense_4h_to_h",
        "norm": "ln_f",
    }
    return NameMap(
        lines | norms, prefix="transformer",
        ignore=(r"(transformer\.)?h\.\d+\.self_attention\.(maybe_rotary|rotary_emb)\.inv_freq",),
    )  # fmt: skip


HEADS = {
    "FalconModel": Backbone(output=BaseModelOutputWithPastAndCrossAttentions),
    "FalconForCausalLM": CausalLM(names={"out": "lm_head"}, output=CausalLMOutputWithCrossAttentions),
    "FalconForSequenceClassification": Classify(
        on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
    ),
    "FalconForTokenClassification": TokenClassify(
        names={"out": "classifier"}, dropout=("classifier_dropout", "hidden_dropout")
    ),
    "FalconForQuestionAnswering": Span(names={"out": "qa_outputs"}),
}

family("falcon", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="Falcon")
