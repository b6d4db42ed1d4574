"""Any image encoder with any text decoder (TrOCR, arXiv:2109.10282; Donut, arXiv:2111.15664).

Public checkpoints: microsoft/trocr-base-handwritten, nlpconnect/vit-gpt2-image-captioning, ...
Each side is a whole model of its own family; the decoder is one with cross-attention.
"""

from phyla.config import PretrainedConfig
from phyla.family import family, part
from phyla.heads.joint import JointImageToText
from phyla.outputs import Seq2SeqLMOutput
from phyla.skeletons.pair import VisionPairModel, pair_names, pair_spec


class Config(PretrainedConfig):
    """Keys of the public config.json: two nested configurations."""

    encoder: dict | None = None
    decoder: dict | None = None
    is_encoder_decoder: bool = True

    PARTS = {"encoder": "vit", "decoder": "gpt2"}

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


HEADS = {"VisionEncoderDecoderModel": JointImageToText(output=Seq2SeqLMOutput)}

family(
    "vision-encoder-decoder", config=Config, build=pair_spec, names=pair_names, heads=HEADS,
    skeleton=VisionPairModel, public="VisionEncoderDecoder", width=lambda c: part(c.decoder).width,
)  # fmt: skip
