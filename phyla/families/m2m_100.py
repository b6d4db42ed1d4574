"""M2M-100 (Fan et al. 2020, arXiv:2010.11125) and NLLB-200 (arXiv:2207.04672).

Public checkpoints: facebook/m2m100_418M, facebook/nllb-200-distilled-600M, ...
Differs from BART in: norms before the sublayers and after the last layer, none on the embedding; sine waves
at positions counted over tokens other than padding; no constant on the logits.
"""

from typing import Any

from phyla.blocks import EncoderDecoder
from phyla.blocks.sinusoid import OpenSinusoid
from phyla.config import PretrainedConfig
from phyla.families import bart
from phyla.family import family
from phyla.heads import Backbone, Head, Seq2SeqLM
from phyla.outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from phyla.skeletons import EncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 128112
    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    encoder_layerdrop: float = 0.05
    decoder_layerdrop: float = 0.05
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    decoder_start_token_id: int | None = 2

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    finish = bart.count_layers


def build(c: PretrainedConfig) -> EncoderDecoder:
    slots: dict[str, Any] = {"position": OpenSinusoid(c.d_model, c.pad_token_id), "norm": None}
    return bart.build(c, place="pre", **slots)


NAMES = bart.both_names("pre")
HEADS: dict[str, Head] = {
    "M2M100Model": Backbone(output=Seq2SeqModelOutput),
    "M2M100ForConditionalGeneration": Seq2SeqLM(names={"out": "lm_head"}, output=Seq2SeqLMOutput),
}

family(
    "m2m_100", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=EncoderDecoderModel,
    public="M2M100", width=lambda c: c.d_model,
)  # fmt: skip
