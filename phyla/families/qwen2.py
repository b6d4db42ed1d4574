"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671). Public checkpoints: Qwen/Qwen2.5-0.5B, ...

Differs from Llama in: biases on q, k, v; a sliding window from layer `max_window_layers` on, where it is
switched on.
"""

from phyla.blocks import Causal, Decoder, GatedFFN, Layer, RMSNorm, residual
from phyla.config import PretrainedConfig
from phyla.families import llama
from phyla.family import family
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    attention_dropout: float = 0.0

    def finish(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads


def build(c: PretrainedConfig, **options) -> Decoder:
    """Qwen2's stack; relatives pass what differs in its attention."""
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    ffn = residual(GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act), pre=norm)

    def layer(window: int | None) -> Layer:
        attn = llama.attention(c, mask=Causal(window), bias=True, out_bias=False, **options)
        return Layer(attn=residual(attn, pre=norm), ffn=ffn)

    whole, local = layer(None), layer(c.sliding_window)
    windows = c.use_sliding_window and c.sliding_window is not None
    layers = [local if windows and i >= c.max_window_layers else whole for i in range(c.num_hidden_layers)]
    return llama.build(c, layers=layers)


HEADS = llama.decoder_heads("Qwen2", qa_prefix="transformer")

family(
    "qwen2", config=Config, build=build, names=llama.NAMES, heads=HEADS, skeleton=TextModel, public="Qwen2"
)
