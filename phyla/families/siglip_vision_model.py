"""The vision tower of SigLIP (Zhai et al. 2023, arXiv:2303.15343, section 3).

Public checkpoints: the image encoders of google/siglip-base-patch16-224, of PaliGemma and LLaVA-OneVision.
Differs from CLIP's tower in: no class vector, no norm on the embeddings, a norm on all states, and one vector
an image that a learned probe collects by attention (Lee et al. 2019, arXiv:1810.00825, section 3.2).
"""

import torch
from torch import Tensor, nn

from phyla.blocks import FFN, Block, Context, Encoder, Full, LayerNorm, Linear, PatchEmbed, make, residual
from phyla.blocks.attention import attend
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.families.clip_text_model import layer_names, layers
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0


class ProbePool(Block):
    """(B, D) from the stream (B, S, D): a learned query attends to all of it; a feed-forward branch
    follows.
    """

    def __init__(self, width: int, heads: int, inner: int, act: str, eps: float) -> None:
        super().__init__()
        self.num_heads = heads
        self.probe = nn.Parameter(torch.empty(width))
        self.q, self.k, self.v = Linear(width, width), Linear(width, width), Linear(width, width)
        self.o = Linear(width, width)
        self.ffn = make(residual(FFN(width, inner, act), pre=LayerNorm(width, eps)))

    def forward(self, x: Tensor, ids: Tensor | None, ctx: Context) -> Tensor:
        query = self.q(self.probe.expand(len(x), 1, -1))
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, self.k(x), self.v(x))
        )
        y = attend(q, k, v, None, None, False, q.shape[-1] ** -0.5, 0.0)  # (B, H, 1, E)
        return self.ffn(self.o(y.transpose(1, 2).flatten(2)), ctx)[:, 0]


def build(c: PretrainedConfig) -> Encoder:
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    image, patch = (c.image_size, c.image_size), (c.patch_size, c.patch_size)
    pool = ProbePool(
        c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps
    )
    return Encoder(
        embed=PatchEmbed(image, patch, c.num_channels, c.hidden_size, class_token=False),
        layers=layers(c, Full()),
        norm=norm,
        pool=pool if getattr(c, "vision_use_head", True) else None,
        record="raw",
    )


LINES: dict[str, str | To] = {
    "embed.projection": "vision_model.embeddings.patch_embedding",
    "embed.position": "vision_model.embeddings.position_embedding.weight",
    **layer_names("vision_model"),
    "norm": "vision_model.post_layernorm",
    "pool.probe": To("vision_model.head.probe", Reshape((1, 1, -1))),
    "pool.q|k|v": split("vision_model.head.attention.in_proj", joint="_"),
    "pool.o": "vision_model.head.attention.out_proj",
    "pool.ffn.pre_norm": "vision_model.head.layernorm",
    "pool.ffn.up": "vision_model.head.mlp.fc1",
    "pool.ffn.down": "vision_model.head.mlp.fc2",
}
# Files of later versions leave out the name of the tower.
_LATER = {
    f"{ours}.{leaf}": (f"{name.removeprefix('vision_model.')}.{leaf}",)
    for ours, name in LINES.items()
    for leaf in ("weight", "bias")
    if isinstance(name, str)
}
_LATER |= {f"pool.q.{leaf}": (f"head.attention.in_proj_{leaf}",) for leaf in ("weight", "bias")}
_LATER |= {"pool.probe": ("head.probe",), "embed.position": ("embeddings.position_embedding.weight",)}
TOWER = NameMap(
    LINES,
    aliases=_LATER,
    ignore=(r"vision_model\.embeddings\.position_ids",),
)
# Files of the whole SigLIP hold the other tower too.
NAMES = TOWER.but(ignore=(*TOWER.ignore, r"text_model\..*", "logit_scale", "logit_bias"))

HEADS: dict[str, Head] = {"SiglipVisionModel": Backbone(output=BaseModelOutputWithPooling, pool=True)}

family(
    "siglip_vision_model", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=VisionModel,
    public="SiglipVision", bases=("SiglipPreTrainedModel",),
)  # fmt: skip
