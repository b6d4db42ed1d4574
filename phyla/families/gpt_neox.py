"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745). Public checkpoints: EleutherAI/pythia-160m, ...

Differs from the plain decoder in: rotation of a part of each head, attention and feed-forward side by
side (each with its own norm), queries, keys and values fused head by head in files.
"""

from phyla.blocks import (
    FFN, Attention, Causal, Decoder, Embed, Heads, Layer, LayerNorm, Parallel, Rotary, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, split
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Span, TokenClassify
from phyla.outputs import BaseModelOutputWithPast, SequenceClassifierOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50432
    hidden_size: int = 6144
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    intermediate_size: int = 24576
    hidden_act: str = "gelu"
    rotary_pct: float = 0.25
    rotary_emb_base: float = 10000
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    classifier_dropout: float = 0.1
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    tie_word_embeddings: bool = False
    use_parallel_residual: bool = True
    rope_scaling: dict | None = None
    attention_bias: bool = True

    def finish(self) -> None:
        self.partial_rotary_factor = self.rotary_pct
        self.rope_theta = self.rotary_emb_base


def build(c: Config) -> Decoder:
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    width = c.hidden_size // c.num_attention_heads
    rotary = Rotary(int(width * c.rotary_pct), c.rotary_emb_base, c.rope_scaling, c.max_position_embeddings)
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads), position=rotary, mask=Causal(), bias=c.attention_bias,
        dropout=c.attention_dropout,
    )  # fmt: skip
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    layer = (Parallel if c.use_parallel_residual else Layer)(
        attn=residual(attn, pre=norm, dropout=c.hidden_dropout),
        ffn=residual(ffn, pre=norm, dropout=c.hidden_dropout),
    )
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, dropout=c.hidden_dropout),
        layers=repeat(c.num_hidden_layers, layer),
        norm=norm,
    )


def names(c: Config) -> NameMap:
    return NameMap(
        {
            "embed.tokens": "embed_in",
            "layers.{i}.attn.pre_norm": "layers.{i}.input_layernorm",
            "layers.{i}.attn.q|k|v": split(
                "layers.{i}.attention.query_key_value", groups=c.num_attention_heads
            ),
            "layers.{i}.attn.o": "layers.{i}.attention.dense",
            "layers.{i}.ffn.pre_norm": "layers.{i}.post_attention_layernorm",
            "layers.{i}.ffn.up": "layers.{i}.mlp.dense_h_to_4h",
            "layers.{i}.ffn.down": "layers.{i}.mlp.dense_4h_to_h",
            "norm": "final_layer_norm",
        },
        prefix="gpt_neox",
        ignore=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    )


HEADS = {
    "GPTNeoXModel": Backbone(output=BaseModelOutputWithPast),
    "GPTNeoXForCausalLM": CausalLM(names={"out": "embed_out"}),
    "GPTNeoXForSequenceClassification": Classify(
        on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
    ),
    "GPTNeoXForTokenClassification": TokenClassify(
        names={"out": "classifier"}, dropout=("classifier_dropout",)
    ),
    "GPTNeoXForQuestionAnswering": Span(names={"out": "qa_outputs"}),
}

family("gpt_neox", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="GPTNeoX")
