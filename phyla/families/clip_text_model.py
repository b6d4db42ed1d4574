"""The text tower of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4).

Public checkpoints: the text encoders of openai/clip-vit-base-patch32 and of diffusion models.
Differs from the plain decoder in: learned positions, a final norm, one vector a row taken at the end token.
"""

from phyla.blocks import (
    FFN, Attention, Causal, Embed, Encoder, Heads, Layer, LayerNorm, Learned, Pool, Spec, repeat, residual,
)  # fmt: skip
from phyla.blocks.mask import Mask
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, Head, TextProjection
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407


def layers(c: PretrainedConfig, mask: Mask) -> tuple[Spec, ...]:
    """The layers that both towers have."""
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    attn = Attention(c.hidden_size, Heads(c.num_attention_heads), mask=mask, dropout=c.attention_dropout)
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    return repeat(c.num_hidden_layers, Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm)))


def layer_names(tower: str) -> dict[str, str]:
    """Public names of those layers."""
    ahead = f"{tower}.encoder.layers.{{i}}"
    return {
        "layers.{i}.attn.pre_norm": f"{ahead}.layer_norm1",
        "layers.{i}.attn.q": f"{ahead}.self_attn.q_proj",
        "layers.{i}.attn.k": f"{ahead}.self_attn.k_proj",
        "layers.{i}.attn.v": f"{ahead}.self_attn.v_proj",
        "layers.{i}.attn.o": f"{ahead}.self_attn.out_proj",
        "layers.{i}.ffn.pre_norm": f"{ahead}.layer_norm2",
        "layers.{i}.ffn.up": f"{ahead}.mlp.fc1",
        "layers.{i}.ffn.down": f"{ahead}.mlp.fc2",
    }


def build(c: Config) -> Encoder:
    return Encoder(
        embed=Embed(c.vocab_size, c.hidden_size, position=Learned(c.max_position_embeddings, c.hidden_size)),
        layers=layers(c, Causal()),
        norm=LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
        pool=Pool(c.hidden_size, pick="end", act=None, end_id=c.eos_token_id),
        record="raw",
    )


TOWER = NameMap(
    {
        "embed.tokens": "text_model.embeddings.token_embedding",
        "embed.position": "text_model.embeddings.position_embedding",
        **layer_names("text_model"),
        "norm": "text_model.final_layer_norm",
    },
    ignore=(r"text_model\.embeddings\.position_ids",),
)
# Files of the whole CLIP hold the other tower too.
NAMES = TOWER.but(
    ignore=(*TOWER.ignore, r"(vision_model|visual_projection|text_projection)\..*", "logit_scale")
)

HEADS: dict[str, Head] = {
    "CLIPTextModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "CLIPTextModelWithProjection": TextProjection(names={"out": "text_projection"}),
}

family(
    "clip_text_model",
    config=Config,
    build=build,
    names=NAMES,
    heads=HEADS,
    skeleton=TextModel,
    public="CLIPText",
    bases=("CLIPPreTrainedModel",),
)
