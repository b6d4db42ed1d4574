"""Any speech encoder with any text decoder (Wang et al. 2021, arXiv:2104.06678).

Public checkpoints: facebook/s2t-wav2vec2-large-en-de, facebook/wav2vec2-xls-r-1b-en-to-15, ...
Each side is a whole model of its own family; the decoder is one with cross-attention.
"""

from phyla.config import PretrainedConfig
from phyla.family import family, part
from phyla.heads.joint import JointSpeechToText
from phyla.outputs import Seq2SeqLMOutput
from phyla.skeletons.pair import SpeechPairModel, pair_names, pair_spec


class Config(PretrainedConfig):
    """Keys of the public config.json: two nested configurations."""

    encoder: dict | None = None
    decoder: dict | None = None
    is_encoder_decoder: bool = True

    PARTS = {"encoder": "wav2vec2", "decoder": "bert"}

    @property
    def vocab_size(self) -> int:
        """Tokens that the decoder scores."""
        return self.__dict__["decoder"].vocab_size

    @classmethod
    def from_encoder_decoder_configs(
        cls, encoder_config: PretrainedConfig, decoder_config: PretrainedConfig, **keys: object
    ) -> "Config":
        """A configuration of these two; the decoder's is told to decode and to attend to the encoder."""
        decoder_config.is_decoder = decoder_config.add_cross_attention = True
        return cls(encoder=encoder_config.to_dict(), decoder=decoder_config.to_dict(), **keys)


HEADS = {"SpeechEncoderDecoderModel": JointSpeechToText(output=Seq2SeqLMOutput)}

family(
    "speech-encoder-decoder", config=Config, build=pair_spec, names=pair_names, heads=HEADS,
    skeleton=SpeechPairModel, public="SpeechEncoderDecoder", width=lambda c: part(c.decoder).width,
)  # fmt: skip
