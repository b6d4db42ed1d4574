"""MusicGen (Copet et al. 2023, arXiv:2306.05284): text to music.

Public checkpoints: facebook/musicgen-small ... musicgen-large, musicgen-stereo-small, musicgen-melody's like.
A text encoder (T5), a codec (EnCodec) and the decoder musicgen_decoder, each a whole model.
"""

from typing import Any

from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family, part
from phyla.heads import Head
from phyla.heads.codebooks import TextToSound
from phyla.outputs import Seq2SeqLMOutput
from phyla.skeletons.codebooks import MusicModel, Trio, text_task


class Config(PretrainedConfig):
    """Keys of the public config.json: three nested configurations."""

    text_encoder: dict | None = None
    audio_encoder: dict | None = None
    decoder: dict | None = None
    is_encoder_decoder: bool = True

    PARTS = {"text_encoder": "t5", "audio_encoder": "encodec", "decoder": "musicgen_decoder"}

    @property
    def sampling_rate(self) -> int:
        """Samples of the sound a second."""
        audio: Any = self.audio_encoder
        return audio.sampling_rate

    @classmethod
    def from_sub_models_config(
        cls,
        text_encoder_config: PretrainedConfig,
        audio_encoder_config: PretrainedConfig,
        decoder_config: PretrainedConfig,
        **keys: object,
    ) -> "Config":
        """A configuration of these three."""
        parts = (text_encoder_config, audio_encoder_config, decoder_config)
        return cls(**dict(zip(cls.PARTS, (p.to_dict() for p in parts), strict=True)), **keys)


def build(c: PretrainedConfig) -> Trio:
    return Trio(c.text_encoder, c.audio_encoder, c.decoder)


def names(c: PretrainedConfig) -> NameMap:
    tasks = {"text_encoder": text_task(c.text_encoder), "audio_encoder": "base-model", "decoder": "causal-lm"}
    parts = {name: (f"{name}.", part(getattr(c, name)).model_names(task)) for name, task in tasks.items()}
    return NameMap({"project": "enc_to_dec_proj"}, parts=parts)


HEADS: dict[str, Head] = {"MusicgenForConditionalGeneration": TextToSound(output=Seq2SeqLMOutput)}

family(
    "musicgen", config=Config, build=build, names=names, heads=HEADS, skeleton=MusicModel, public="Musicgen",
    width=lambda c: c.decoder.hidden_size,
)  # fmt: skip
