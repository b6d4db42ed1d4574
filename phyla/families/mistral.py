"""Mistral (Jiang et al. 2023, arXiv:2310.06825). Public checkpoints: mistralai/Mistral-7B-v0.1 and relatives.

Differs from Llama in: attention to the last `sliding_window` positions only, and other defaults.
"""

from phyla.blocks import Causal, Decoder
from phyla.config import PretrainedConfig
from phyla.families import llama
from phyla.family import family
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    sliding_window: int | None = 4096
    attention_dropout: float = 0.0
    rope_scaling: dict | None = None

    finish = llama.fill_heads


def build(c: Config) -> Decoder:
    return llama.build(c, attn=llama.attention(c, mask=Causal(c.sliding_window), bias=False))


HEADS = llama.decoder_heads("Mistral", qa_prefix="model")

family(
    "mistral",
    config=Config,
    build=build,
    names=llama.NAMES,
    heads=HEADS,
    skeleton=TextModel,
    public="Mistral",
)
