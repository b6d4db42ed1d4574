"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118). Public checkpoints: google/gemma-2-2b and relatives.

Differs from Llama in: norms before and after each branch, stored as weight - 1; every second layer sees a
sliding window; scores and logits are capped softly; embeddings are scaled by sqrt(D) and tied to the head.
"""

from phyla.blocks import Causal, Decoder, Embed, GatedFFN, Layer, RMSNorm, repeat, residual
from phyla.config import PretrainedConfig
from phyla.families import llama
from phyla.family import family
from phyla.heads import CausalLM
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    bos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    rope_theta: float = 10000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    cache_implementation: str | None = "hybrid"
    rope_scaling: dict | None = None


def build(c: Config) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps, offset=1.0, cast="late")
    ffn = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_activation)

    def layer(window: int | None) -> Layer:
        attn = llama.attention(
            c, mask=Causal(window), scale=c.query_pre_attn_scalar**-0.5, softcap=c.attn_logit_softcapping
        )
        return Layer(attn=residual(attn, pre=norm, out=norm), ffn=residual(ffn, pre=norm, out=norm))

    return Decoder(
        embed=Embed(
            c.vocab_size, c.hidden_size, scale=c.hidden_size**0.5, scale_rounded=True, padding=c.pad_token_id
        ),
        layers=repeat(c.num_hidden_layers, [layer(c.sliding_window), layer(None)]),
        norm=norm,
    )


NAMES = llama.NAMES.but(
    lines=dict(llama.NAMES.lines)
    | {
        "layers.{i}.attn.out_norm": "layers.{i}.post_attention_layernorm",
        "layers.{i}.ffn.pre_norm": "layers.{i}.pre_feedforward_layernorm",
        "layers.{i}.ffn.out_norm": "layers.{i}.post_feedforward_layernorm",
    }
)

HEADS = {k: v for k, v in llama.decoder_heads("Gemma2").items() if "Question" not in k} | {
    "Gemma2ForCausalLM": CausalLM(names={"out": "lm_head"}, softcap="final_logit_softcapping"),
}

family("gemma2", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Gemma2")
