"""mBART and mBART-50 (Liu et al. 2020, arXiv:2001.08210), BARThez, BARTpho.

Public checkpoints: facebook/mbart-large-cc25, facebook/mbart-large-50-many-to-many-mmt, ...
Differs from BART in: norms before the sublayers and after the last layer; decoder inputs that follow from
labels begin with the row's last token, its language code.
"""

from functools import partial

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
    classifier_dropout: float = 0.0
    scale_embedding: bool = False
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    forced_eos_token_id: int | list | None = 2

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    finish = bart.count_layers


build = partial(bart.build, place="pre")
build_decoder = partial(bart.build_decoder, place="pre")

NAMES = bart.both_names("pre")
HEADS = bart.language_heads("MBart", build_decoder, bart.decoder_names("pre")) | bart.classifier_heads(
    "MBart"
)

family(
    "mbart", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=EncoderDecoderModel,
    public="MBart", width=lambda c: c.d_model, shifts_inputs=True, wraps_start=True,
)  # fmt: skip
