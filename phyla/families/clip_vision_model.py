"""The vision tower of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4).

Public checkpoints: the image encoders of openai/clip-vit-base-patch32, of LLaVA and of diffusion models.
Differs from ViT in: a norm on the embeddings (`pre_layrnorm`, so spelled in public files), and the last norm
on the class vector alone.
"""

from phyla.blocks import Encoder, Full, LayerNorm, PatchEmbed, Pool
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families.clip_text_model import layer_names, layers
from phyla.family import family
from phyla.heads import Backbone, Head, ImageProjection
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0


def build(c: Config) -> Encoder:
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    image, patch = (c.image_size, c.image_size), (c.patch_size, c.patch_size)
    return Encoder(
        embed=PatchEmbed(image, patch, c.num_channels, c.hidden_size, norm=norm, bias=False),
        layers=layers(c, Full()),
        pool=Pool(c.hidden_size, norm=norm, act=None),
    )


TOWER = NameMap(
    {
        "embed.class_token": "vision_model.embeddings.class_embedding",
        "embed.projection": "vision_model.embeddings.patch_embedding",
        "embed.position": "vision_model.embeddings.position_embedding.weight",
        "embed.norm": "vision_model.pre_layrnorm",
        **layer_names("vision_model"),
        "pool.norm": "vision_model.post_layernorm",
    },
    ignore=(r"vision_model\.embeddings\.position_ids",),
)
# Files of the whole CLIP hold the other tower too.
NAMES = TOWER.but(
    ignore=(*TOWER.ignore, r"(text_model|text_projection|visual_projection)\..*", "logit_scale")
)

HEADS: dict[str, Head] = {
    "CLIPVisionModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "CLIPVisionModelWithProjection": ImageProjection(names={"out": "visual_projection"}),
}

family(
    "clip_vision_model",
    config=Config,
    build=build,
    names=NAMES,
    heads=HEADS,
    skeleton=VisionModel,
    public="CLIPVision",
    bases=("CLIPPreTrainedModel",),
)
