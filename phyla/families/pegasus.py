"""PEGASUS (Zhang et al. 2019, arXiv:1912.08777).

Public checkpoints: google/pegasus-xsum, google/pegasus-large, ...
Differs from BART in: norms before the sublayers and after the last layer, none on the embedding; a stored
table of sine waves for positions.
"""

from typing import Any

from phyla.blocks import EncoderDecoder, Spec
from phyla.blocks.sinusoid import Sinusoid
from phyla.config import PretrainedConfig
from phyla.families import bart
from phyla.family import family
from phyla.skeletons import EncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50265
    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    decoder_start_token_id: int | None = 0
    forced_eos_token_id: int | list | None = 1

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    finish = bart.count_layers


def slots(c: PretrainedConfig, stored: bool = True) -> dict[str, Any]:
    """What differs from BART; `stored`: files hold the waves."""
    table = Sinusoid(c.max_position_embeddings, c.d_model, stored=stored)
    return {"position": table, "norm": None, "place": "pre"}


def build(c: PretrainedConfig) -> EncoderDecoder:
    return bart.build(c, **slots(c))


def build_decoder(c: PretrainedConfig) -> Spec:
    return bart.build_decoder(c, **slots(c))


NAMES = bart.both_names("pre")
HEADS = bart.language_heads("Pegasus", build_decoder, bart.decoder_names("pre"))

family(
    "pegasus", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=EncoderDecoderModel,
    public="Pegasus", width=lambda c: c.d_model,
)  # fmt: skip
