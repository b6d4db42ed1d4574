"""The text tower of SigLIP (Zhai et al. 2023, arXiv:2303.15343).

Public checkpoints: the text encoders of google/siglip-base-patch16-224 and relatives.
Differs from CLIP's tower in: tokens see both sides, and the vector of a text is that of its last slot (texts
are padded to one length), projected.
"""

from phyla.blocks import Embed, Encoder, Full, LayerNorm, Learned, Pool
from phyla.config import PretrainedConfig
from phyla.families import clip_text_model
from phyla.families.clip_text_model import layers
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int | list | None = 49407
    projection_size: int | None = None

    def finish(self) -> None:
        if self.projection_size is None:
            self.projection_size = self.hidden_size


def build(c: PretrainedConfig) -> Encoder:
    return Encoder(
        embed=Embed(c.vocab_size, c.hidden_size, position=Learned(c.max_position_embeddings, c.hidden_size)),
        layers=layers(c, Full()),
        norm=LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
        pool=Pool(c.hidden_size, pick="last", act="linear", out=c.projection_size),
        record="raw",
    )


TOWER = clip_text_model.TOWER.but(
    lines=dict(clip_text_model.TOWER.lines) | {"pool.dense": "text_model.head"},
)
# Files of the whole SigLIP hold the other tower too.
NAMES = TOWER.but(ignore=(*TOWER.ignore, r"vision_model\..*", "logit_scale", "logit_bias"))

HEADS: dict[str, Head] = {"SiglipTextModel": Backbone(output=BaseModelOutputWithPooling, pool=True)}

family(
    "siglip_text_model", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="SiglipText", bases=("SiglipPreTrainedModel",),
)  # fmt: skip
