"""BlenderBot's small model (Roller et al. 2020, arXiv:2004.13637).

Public checkpoints: facebook/blenderbot_small-90M.
Differs from BART in: no unused rows in front of the positions; the decoder norms its
token vectors before it adds positions.
"""

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Context, Decoder, Embed, Encoder, EncoderDecoder, LayerNorm, Learned, Spec
from phyla.config import PretrainedConfig
from phyla.families import bart
from phyla.family import family
from phyla.skeletons import EncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50265
    max_position_embeddings: int = 512
    encoder_layers: int = 8
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 16
    decoder_layers: int = 8
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 16
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    decoder_start_token_id: int | None = 1
    forced_eos_token_id: int | list | None = 2

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    finish = bart.count_layers


class NormedTokens(Embed):
    """Token vectors, normed, and then positions: the decoder's embedding."""

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, segment_ids: Tensor | None, ctx: Context
    ) -> Tensor:
        x = self.tokens(ids) if vectors is None else vectors
        if self.scale is not None and vectors is None:
            x = x * self.scale
        x = self.norm(x) + self.position(self.position.index(ctx, ids))
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        return x if self.site is None else self.site(x, ctx)


def stack(c: PretrainedConfig, kind: type, decoder: bool) -> Spec:
    table = Learned(c.max_position_embeddings, c.d_model)
    made = bart.stack(c, kind, decoder, position=table, norm=LayerNorm(c.d_model))
    return made.but(embed=Spec(NormedTokens, made.embed.args)) if decoder else made


def build(c: PretrainedConfig) -> EncoderDecoder:
    return EncoderDecoder(stack(c, Encoder, False), stack(c, Decoder, True))


def build_decoder(c: PretrainedConfig) -> Spec:
    return stack(c, Decoder, True)


HEADS = bart.language_heads("BlenderbotSmall", build_decoder, bart.decoder_names())

family(
    "blenderbot-small", config=Config, build=build, names=bart.NAMES, heads=HEADS,
    skeleton=EncoderDecoderModel, public="BlenderbotSmall", width=lambda c: c.d_model,
)  # fmt: skip
