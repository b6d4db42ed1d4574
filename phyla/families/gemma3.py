"""Gemma 3 with images (Gemma Team 2025, arXiv:2503.19786).

Public checkpoints: google/gemma-3-4b-it, google/gemma-3-27b-it, ...
Differs from LLaVA in: the tower's patches are averaged to `mm_tokens_per_image` vectors, normed, and mapped
by one matrix; the tokens of an image (token type 1) see each other.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, Context, Linear, RMSNorm, Spec, make
from phyla.blocks.fusion import ImageText
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Transpose
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import llava
from phyla.family import family, part
from phyla.heads import Head
from phyla.heads.fusion import ImageTextLM
from phyla.outputs import Gemma3CausalLMOutputWithPast
from phyla.skeletons import ImageTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    text_config: Any = None
    vision_config: Any = None
    mm_tokens_per_image: int = 256
    boi_token_index: int = 255999
    eoi_token_index: int = 256000
    image_token_index: int = 262144
    initializer_range: float = 0.02

    PARTS = {"text_config": "gemma3_text", "vision_config": "siglip_vision_model"}


class Project(Block):
    """Patches (N, P, D') to vectors (N, T, D): means of squares of `edge` patches, normed and mapped."""

    def __init__(self, width: int, out: int, side: int, edge: int, eps: float) -> None:
        super().__init__()
        self.side, self.edge = side, edge
        self.norm = make(RMSNorm(width, eps=eps, offset=1.0, cast="late"))
        self.linear = Linear(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        square = x.transpose(1, 2).unflatten(-1, (self.side, self.side))  # (N, D', side, side)
        y = F.avg_pool2d(square, self.edge).flatten(2).transpose(1, 2)  # (N, T, D')
        return self.linear(self.norm(y))


class Seeing(ImageText):
    """An `ImageText` in which the tokens of one image see each other."""

    def arrange(self, ctx: Context, segments: Tensor | None, learning: bool) -> None:
        """Number the images of each row: runs of tokens with a type other than 0."""
        if segments is None or ctx.length == 1:
            return
        image = segments.to(ctx.positions.device) != 0
        first = image & ~F.pad(image, (1, 0))[:, :-1]
        ctx.blocks = first.long().cumsum(1) * image


def build(c: PretrainedConfig) -> Spec:
    vision, side = part(c.vision_config), c.vision_config.image_size // c.vision_config.patch_size
    wanted = int(c.mm_tokens_per_image**0.5)
    if not 0 < wanted <= side:
        raise ConfigError(
            f"mm_tokens_per_image must be from 1 to the {side * side} patches of an image, but is "
            f"{c.mm_tokens_per_image} (in a gemma3 config)"
        )
    return Seeing(
        vision=vision.spec,
        projector=Project(
            vision.width, part(c.text_config).width, side, side // wanted, c.vision_config.layer_norm_eps
        ),
        text=part(c.text_config).spec,
        token=c.image_token_index,
    )


PROJECTOR: dict[str, str | To] = {
    "projector.norm": "multi_modal_projector.mm_soft_emb_norm",
    "projector.linear.weight": To("multi_modal_projector.mm_input_projection_weight", Transpose()),
}


def names(c: PretrainedConfig) -> NameMap:
    return llava.names(c, PROJECTOR)


HEADS: dict[str, Head] = {
    "Gemma3ForConditionalGeneration": ImageTextLM(
        text=llava.text_head,
        names=llava.head_names,
        drops_padding=True,
        output=Gemma3CausalLMOutputWithPast,
    )
}

family(
    "gemma3", config=Config, build=build, names=names, heads=HEADS, skeleton=ImageTextModel,
    public="Gemma3", width=lambda c: part(c.text_config).width,
)  # fmt: skip
