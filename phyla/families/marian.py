"""Marian translation models (Junczys-Dowmunt et al. 2018, arXiv:1804.00344).

Public checkpoints: Helsinki-NLP/opus-mt-en-de, Helsinki-NLP/opus-mt-tc-big-en-fr and relatives.
Differs from BART in: no norm on the embedding, sine waves for positions (which files of the translating class
leave out), and, where config says so, a vocabulary of its own for the decoder.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from phyla.blocks import Decoder, Encoder, EncoderDecoder, Spec
from phyla.blocks.sinusoid import Sinusoid
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import bart
from phyla.family import family
from phyla.skeletons import EncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 58101
    decoder_vocab_size: int | None = None
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
    pad_token_id: int | None = 58100
    eos_token_id: int | list | None = 0
    decoder_start_token_id: int | None = 58100
    forced_eos_token_id: int | list | None = 0
    share_encoder_decoder_embeddings: bool = True

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    def finish(self) -> None:
        bart.count_layers(self)
        self.decoder_vocab_size = self.decoder_vocab_size or self.vocab_size


def slots(c: PretrainedConfig, stored: bool) -> dict[str, Any]:
    """What differs from BART; `stored`: files hold the waves."""
    return {"position": Sinusoid(c.max_position_embeddings, c.d_model, stored=stored), "norm": None}


def build(c: PretrainedConfig, stored: bool = True) -> EncoderDecoder:
    decoder = bart.stack(c, Decoder, True, vocabulary=words(c), **slots(c, stored))
    encoder = bart.stack(c, Encoder, False, **slots(c, stored))
    return EncoderDecoder(encoder, decoder, shared=c.share_encoder_decoder_embeddings)


def build_decoder(c: PretrainedConfig) -> Spec:
    return bart.stack(c, Decoder, True, vocabulary=c.decoder_vocab_size, **slots(c, True))


def words(c: PretrainedConfig) -> int:
    """Size of the decoder's vocabulary."""
    return c.vocab_size if c.share_encoder_decoder_embeddings else c.decoder_vocab_size


def names(c: PretrainedConfig) -> NameMap:
    # Old files of the translating class hold the waves that it computes.
    table = bart.NAMES.but(ignore=(r"(model\.)?(en|de)coder\.embed_positions\.weight",))
    if c.share_encoder_decoder_embeddings:
        return table
    own = {f"{side}.embed.tokens": f"{side}.embed_tokens" for side in ("encoder", "decoder")}
    return table.but(lines={**table.lines, **own}, aliases={})


HEADS = bart.language_heads("Marian", build_decoder, bart.decoder_names())
HEADS["MarianMTModel"] = replace(  # type: ignore[call-arg]
    HEADS.pop("MarianForConditionalGeneration"), build=partial(build, stored=False), vocabulary=words
)
HEADS["MarianForCausalLM"] = replace(  # type: ignore[call-arg]
    HEADS["MarianForCausalLM"], vocabulary=lambda c: c.decoder_vocab_size
)

family(
    "marian", config=Config, build=build, names=names, heads=HEADS, skeleton=EncoderDecoderModel,
    public="Marian", width=lambda c: c.d_model,
)  # fmt: skip
