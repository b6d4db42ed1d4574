"""TrOCR's decoder (Li et al. 2021, arXiv:2109.10282), to be put behind an image encoder.

Public checkpoints: the decoders of microsoft/trocr-base-handwritten, microsoft/trocr-small-printed, ...
Differs from BART's decoder in: sine waves where config says so, an optional norm of the embedding, states of
another width to attend to, and the name of its output matrix.
"""

from phyla.blocks import Decoder, LayerNorm, Spec
from phyla.blocks.sinusoid import OpenSinusoid
from phyla.config import PretrainedConfig
from phyla.families import bart
from phyla.family import family
from phyla.heads import CausalLM
from phyla.outputs import CausalLMOutputWithCrossAttentions
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50265
    d_model: int = 1024
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    activation_function: str = "gelu"
    max_position_embeddings: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    decoder_start_token_id: int | None = 2
    init_std: float = 0.02
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    scale_embedding: bool = False
    use_learned_position_embeddings: bool = True
    layernorm_embedding: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2

    ALIASES = {
        "hidden_size": "d_model", "num_attention_heads": "decoder_attention_heads",
        "num_hidden_layers": "decoder_layers",
    }  # fmt: skip


def build(c: PretrainedConfig) -> Spec:
    waves = None if c.use_learned_position_embeddings else OpenSinusoid(c.d_model, c.pad_token_id)
    norm = LayerNorm(c.d_model) if c.layernorm_embedding else None
    made = bart.stack(c, Decoder, True, position=waves, norm=norm)
    if c.cross_attention_hidden_size is None:
        return made
    return made.but(layers=tuple(seeing(layer, c.cross_attention_hidden_size) for layer in made.layers))


def seeing(layer: Spec, width: int) -> Spec:
    """The layer with cross-attention to states of another width."""
    cross = layer.branches["cross"].but(kv_width=width)
    return layer.but(branches={**layer.branches, "cross": cross})


NAMES = bart.decoder_names().but(
    ignore=(r"(model\.)?encoder\..*", r"(model\.)?decoder\.embed_positions\._float_tensor")
)
HEADS = {
    "TrOCRForCausalLM": CausalLM(
        names={"out": "output_projection"}, output=CausalLMOutputWithCrossAttentions, shifted=False,
        changes={"is_decoder": True, "is_encoder_decoder": False},
    )
}  # fmt: skip

family(
    "trocr", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="TrOCR",
    width=lambda c: c.d_model,
)  # fmt: skip
