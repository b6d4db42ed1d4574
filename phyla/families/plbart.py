"""PLBART (Ahmad et al. 2021, arXiv:2103.06333): BART for programs.

Public checkpoints: uclanlp/plbart-base, uclanlp/plbart-java-cs, ...
Differs from BART in: scaled embeddings; decoder inputs that follow from labels begin with the row's last
token, its language code.
"""

from phyla.config import PretrainedConfig
from phyla.families import bart
from phyla.family import family
from phyla.skeletons import EncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50005
    max_position_embeddings: int = 1024
    encoder_layers: int = 6
    encoder_ffn_dim: int = 3072
    encoder_attention_heads: int = 12
    decoder_layers: int = 6
    decoder_ffn_dim: int = 3072
    decoder_attention_heads: int = 12
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 768
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    classifier_dropout: float = 0.0
    scale_embedding: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    forced_eos_token_id: int | list | None = 2

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    finish = bart.count_layers


HEADS = bart.language_heads("PLBart", bart.build_decoder, bart.decoder_names()) | bart.classifier_heads(
    "PLBart"
)
HEADS.pop("PLBartForQuestionAnswering")

family(
    "plbart", config=Config, build=bart.build, names=bart.NAMES, heads=HEADS, skeleton=EncoderDecoderModel,
    public="PLBart", width=lambda c: c.d_model, shifts_inputs=True, wraps_start=True,
)  # fmt: skip
