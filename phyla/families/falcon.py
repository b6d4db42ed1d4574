"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867). Public checkpoints: tiiuae/falcon-7b, ...

Differs from the plain decoder in: one key/value head (or a few) for all queries, attention and feed-
forward side by side under one norm or two, rotary positions or ALiBi, hardly any biases, q, k and v
fused in files.
"""

from phyla.blocks import (
    FFN, Alibi, Attention, Causal, Decoder, Embed, Heads, Layer, LayerNorm, Parallel, Rotary, Spec,
    repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, To, split
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

    ALIASES = {
        "n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
        "n_head_kv": "num_kv_heads",
    }  # fmt: skip

    def finish(self) -> None:
        self.num_kv_heads = self.num_kv_heads or self.num_attention_heads
        self.ffn_hidden_size = self.ffn_hidden_size or 4 * self.hidden_size
        if self.new_decoder_architecture and not self.parallel_attn:
            raise ConfigError("new_decoder_architecture needs parallel_attn = true, but it is false (falcon)")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary(self) -> bool:
        return not self.alibi

    @property
    def kv(self) -> int:
        """Key/value heads: num_kv_heads of the new architecture, else one or as many as query heads."""
        if self.new_decoder_architecture:
            return self.num_kv_heads or self.num_attention_heads
        return 1 if self.multi_query else self.num_attention_heads

    @property
    def two_norms(self) -> bool:
        """Whether attention and feed-forward, side by side, have a norm each."""
        return (self.num_ln_in_parallel_attn or 1 + self.new_decoder_architecture) == 2


def build(c: Config) -> Decoder:
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon)
    rotary = Rotary(c.head_dim, c.rope_theta, c.rope_scaling, c.max_position_embeddings) if c.rotary else None
    position = rotary or Alibi(c.num_attention_heads, rounded=True, scaled=True)
    heads = Heads(c.num_attention_heads, kv=c.kv)
    attn = Attention(c.hidden_size, heads, position, Causal(), bias=c.bias, dropout=c.attention_dropout)
    ffn = FFN(c.hidden_size, c.ffn_hidden_size or 4 * c.hidden_size, act=c.activation, bias=c.bias)
    layer: Spec
    if not c.parallel_attn:
        branch = residual(attn, pre=norm, dropout=c.attention_dropout)
        layer = Layer(attn=branch, ffn=residual(ffn, pre=norm, dropout=c.hidden_dropout))
    elif c.two_norms:
        layer = Parallel(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm), dropout=c.hidden_dropout)
    else:
        layer = Parallel(pre=norm, attn=residual(attn), ffn=residual(ffn), dropout=c.hidden_dropout)
    embed = Embed(c.vocab_size, c.hidden_size)
    return Decoder(embed=embed, layers=repeat(c.num_hidden_layers, layer), norm=norm)


def names(c: Config) -> NameMap:
    first, second = "input_layernorm", "post_attention_layernorm"
    if c.parallel_attn:
        first, second = "ln_attn", "ln_mlp"
    norms = {"layers.{i}.attn.pre_norm": f"h.{{i}}.{first}", "layers.{i}.ffn.pre_norm": f"h.{{i}}.{second}"}
    if c.parallel_attn and not c.two_norms:
        norms = {"layers.{i}.pre_norm": "h.{i}.input_layernorm"}
    lines: dict[str, str | To] = {
        "embed.tokens": "word_embeddings",
        "layers.{i}.attn.q|k|v": split("h.{i}.self_attention.query_key_value", groups=c.kv),
        "layers.{i}.attn.o": "h.{i}.self_attention.dense",
        "layers.{i}.ffn.up": "h.{i}.mlp.dense_h_to_4h",
        "layers.{i}.ffn.down": "h.{i}.mlp.dense_4h_to_h",
        "norm": "ln_f",
    }
    tables = r"(transformer\.)?h\.\d+\.self_attention\.(maybe_rotary|rotary_emb)\.inv_freq"
    return NameMap(lines | norms, "transformer", ignore=(tables,))


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
