"""OPT (Zhang et al. 2022, arXiv:2205.01068). Public checkpoints: facebook/opt-125m, facebook/opt-350m, ...

Differs from the plain decoder in: learned positions that count attended tokens, with two unused rows in
front; a token table that may be narrower than the stream (opt-350m, which also has its norms after the
sums).
"""

from typing import Any

from phyla.blocks import (
    FFN, Attention, Causal, Decoder, Embed, Heads, Layer, LayerNorm, Learned, Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Span
from phyla.outputs import BaseModelOutputWithPast, SequenceClassifierOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True
    _remove_final_layer_norm: bool = False
    word_embed_proj_dim: int | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.0
    num_attention_heads: int = 12
    activation_function: str = "relu"
    layerdrop: float = 0.0
    init_std: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | list | None = 2
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True

    def finish(self) -> None:
        if self.word_embed_proj_dim is None:
            self.word_embed_proj_dim = self.hidden_size


def build(c: Config) -> Decoder:
    inner = c.word_embed_proj_dim or c.hidden_size
    norm = LayerNorm(c.hidden_size, affine=c.layer_norm_elementwise_affine)
    heads = Heads(c.num_attention_heads)
    attn = Attention(c.hidden_size, heads, mask=Causal(), bias=c.enable_bias, dropout=c.attention_dropout)
    ffn = FFN(c.hidden_size, c.ffn_dim, act=c.activation_function, bias=c.enable_bias)

    def branch(mixer: Spec) -> Spec:
        side: dict[str, Any] = {"pre": norm} if c.do_layer_norm_before else {"post": norm}
        return residual(mixer, **side, dropout=c.dropout)

    # Two rows stand in front of position 0.
    position = Learned(c.max_position_embeddings + 2, c.hidden_size, offset=2, count="mask")
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, position, inner=inner, padding=c.pad_token_id),
        layers=repeat(c.num_hidden_layers, Layer(attn=branch(attn), ffn=branch(ffn))),
        norm=norm if c.do_layer_norm_before and not c._remove_final_layer_norm else None,
        project=(c.hidden_size, inner) if inner != c.hidden_size else None,
        layer_drop=c.layerdrop,
    )


def names(c: Config) -> NameMap:
    side = "pre_norm" if c.do_layer_norm_before else "post_norm"
    return NameMap(
        {
            "embed.tokens": "decoder.embed_tokens",
            "embed.project": "decoder.project_in",
            "embed.position": "decoder.embed_positions",
            f"layers.{{i}}.attn.{side}": "decoder.layers.{i}.self_attn_layer_norm",
            "layers.{i}.attn.q": "decoder.layers.{i}.self_attn.q_proj",
            "layers.{i}.attn.k": "decoder.layers.{i}.self_attn.k_proj",
            "layers.{i}.attn.v": "decoder.layers.{i}.self_attn.v_proj",
            "layers.{i}.attn.o": "decoder.layers.{i}.self_attn.out_proj",
            f"layers.{{i}}.ffn.{side}": "decoder.layers.{i}.final_layer_norm",
            "layers.{i}.ffn.up": "decoder.layers.{i}.fc1",
            "layers.{i}.ffn.down": "decoder.layers.{i}.fc2",
            "norm": "decoder.final_layer_norm",
            "project": "decoder.project_out",
        },
        prefix="model",
        ignore=(r"(model\.)?decoder\.version",),
    )


HEADS = {
    "OPTModel": Backbone(output=BaseModelOutputWithPast),
    "OPTForCausalLM": CausalLM(names={"out": "lm_head"}),
    "OPTForSequenceClassification": Classify(
        on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
    ),
    "OPTForQuestionAnswering": Span(names={"out": "qa_outputs"}),
}

family(
    "opt", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="OPT",
    width=lambda c: c.word_embed_proj_dim,
)  # fmt: skip
