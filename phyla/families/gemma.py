"""Gemma (Gemma Team 2024, arXiv:2403.08295). Public checkpoints: google/gemma-2b, google/gemma-7b, ...

Differs from Llama in: norms stored as weight - 1, embeddings scaled by sqrt(D) and tied to the head, heads
of a width of their own, a gated tanh-GELU feed-forward.
"""

from phyla.blocks import Decoder, Embed, GatedFFN, Layer, RMSNorm, repeat, residual
from phyla.config import PretrainedConfig
from phyla.families import llama
from phyla.family import family
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. hidden_activation is in files, but read by nobody."""

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    head_dim: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_activation: str | None = None
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
    rope_scaling: dict | None = None


def build(c: Config) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps, offset=1.0, cast="late")
    attn = llama.attention(c)
    ffn = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    return Decoder(
        embed=Embed(
            c.vocab_size, c.hidden_size, scale=c.hidden_size**0.5, scale_rounded=True, padding=c.pad_token_id
        ),
        layers=repeat(c.num_hidden_layers, Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))),
        norm=norm,
    )


HEADS = {k: v for k, v in llama.decoder_heads("Gemma").items() if "Question" not in k}

family(
    "gemma", config=Config, build=build, names=llama.NAMES, heads=HEADS, skeleton=TextModel, public="Gemma"
)
