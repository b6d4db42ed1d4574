"""Any text encoder with any text decoder (Rothe et al. 2019, arXiv:1907.12461).

Public checkpoints: patrickvonplaten/bert2bert-cnn_dailymail-fp16, google/bert2bert_L-24_wmt_de_en, ...
Each side is a whole model of its own family; the decoder is one with cross-attention.
"""

from phyla.config import PretrainedConfig
from phyla.family import family, part
from phyla.heads.joint import JointSeq2Seq
from phyla.outputs import Seq2SeqLMOutput
from phyla.skeletons.pair import TextPairModel, pair_names, pair_spec


class Config(PretrainedConfig):
    """Keys of the public config.json: two nested configurations."""

    encoder: dict | None = None
    decoder: dict | None = None
    is_encoder_decoder: bool = True

    PARTS = {"encoder": "bert", "decoder": "bert"}

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


HEADS = {"EncoderDecoderModel": JointSeq2Seq(output=Seq2SeqLMOutput)}

family(
    "encoder-decoder", config=Config, build=pair_spec, names=pair_names, heads=HEADS, skeleton=TextPairModel,
    public="EncoderDecoder", width=lambda c: part(c.decoder).width,
)  # fmt: skip
