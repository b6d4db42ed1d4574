"""BlenderBot (Roller et al. 2020, arXiv:2004.13637).

Public checkpoints: facebook/blenderbot-3B, facebook/blenderbot-400M-distill, ...
Differs from BART in: norms before the sublayers and after the last layer, none on the embedding; no unused
rows in front of the positions.
"""

from typing import Any

from phyla.blocks import EncoderDecoder, Learned, Spec
from phyla.config import PretrainedConfig
from phyla.families import bart
from phyla.family import family
from phyla.skeletons import EncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 8008
    max_position_embeddings: int = 128
    encoder_layers: int = 2
    encoder_ffn_dim: int = 10240
    encoder_attention_heads: int = 32
    decoder_layers: int = 24
    decoder_ffn_dim: int = 10240
    decoder_attention_heads: int = 32
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 2560
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    decoder_start_token_id: int | None = 1
    encoder_no_repeat_ngram_size: int = 3
    forced_eos_token_id: int | list | None = 2

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    finish = bart.count_layers


def slots(c: PretrainedConfig) -> dict[str, Any]:
    """What differs from BART."""
    table = Learned(c.max_position_embeddings, c.d_model)
    return {"position": table, "norm": None, "place": "pre"}


def build(c: PretrainedConfig) -> EncoderDecoder:
    return bart.build(c, **slots(c))


def build_decoder(c: PretrainedConfig) -> Spec:
    return bart.build_decoder(c, **slots(c))


NAMES = bart.both_names("pre")
HEADS = bart.language_heads("Blenderbot", build_decoder, bart.decoder_names("pre"))

family(
    "blenderbot", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=EncoderDecoderModel,
    public="Blenderbot", width=lambda c: c.d_model,
)  # fmt: skip
