"""mT5 (Xue et al. 2020, arXiv:2010.11934): T5 1.1 for 101 languages.

Public checkpoints: google/mt5-small, google/mt5-base, ...
Differs from T5 in: its defaults alone (gated GELU, an output matrix of its own).
"""

from phyla.config import PretrainedConfig
from phyla.families import t5
from phyla.family import family
from phyla.skeletons import EncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 250112
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 8
    num_decoder_layers: int | None = None
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "gated-gelu"
    is_encoder_decoder: bool = True
    use_cache: bool = True
    tokenizer_class: str | None = "T5Tokenizer"
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    decoder_start_token_id: int | None = 0
    classifier_dropout: float = 0.0

    ALIASES = t5.Config.ALIASES

    finish = t5.fill_layers


HEADS = t5.t5_heads("MT5")

family(
    "mt5", config=Config, build=t5.build, names=t5.names, heads=HEADS, skeleton=EncoderDecoderModel,
    public="MT5", width=lambda c: c.d_model, shifts_inputs=True,
)  # fmt: skip
