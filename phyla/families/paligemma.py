"""PaliGemma and PaliGemma 2 (Beyer et al. 2024, arXiv:2407.07726; Steiner et al. 2024, arXiv:2412.03555).

Public checkpoints: google/paligemma-3b-pt-224, google/paligemma2-3b-pt-448, ...
Differs from LLaVA in: one linear map behind the tower's final states, whose vectors undo the scale of the
embeddings; the prompt sees both sides, and where a text is learned (token type 1) only that text is causal.
"""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks import Block, Context, Linear, Spec
from phyla.blocks.fusion import ImageText
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import llava
from phyla.family import family, part
from phyla.heads import Head
from phyla.heads.fusion import ImageTextLM
from phyla.outputs import PaliGemmaCausalLMOutputWithPast
from phyla.skeletons import ImageTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vision_config: Any = None
    text_config: Any = None
    image_token_index: int = 256000
    projection_dim: int = 2048
    hidden_size: int = 2048
    _vocab_size: int = 257152

    PARTS = {"vision_config": "siglip_vision_model", "text_config": "gemma"}
    PART_DEFAULTS = {
        "vision_config": {
            "intermediate_size": 4096, "hidden_size": 1152, "patch_size": 14, "image_size": 224,
            "num_hidden_layers": 27, "num_attention_heads": 16, "vocab_size": 257152, "vision_use_head":
            False,
        },
        "text_config": {
            "hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 16384, "num_attention_heads":
            8,
            "num_key_value_heads": 1, "vocab_size": 257152,
        },
    }  # fmt: skip

    def finish(self) -> None:
        vision = self.vision_config
        self.text_config.num_image_tokens = (vision.image_size // vision.patch_size) ** 2
        vision.projection_dim = self.projection_dim


class Project(Block):
    """One linear map (N, P, D') -> (N, P, D), divided by what the text model will multiply with."""

    def __init__(self, width: int, out: int, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor
        self.linear = Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) / self.divisor


class Prefix(ImageText):
    """An `ImageText` whose prompt sees both sides."""

    paged = False  # positions count from one, and what a prompt sees depends on where it ends

    def arrange(self, ctx: Context, segments: Tensor | None, learning: bool) -> None:
        """A prompt sees itself; a text to learn sees what stands before it, padding nobody."""
        given, length = ctx.attention_mask, ctx.length
        if given is not None and given.dim() == 4:
            return
        ctx.positions = ctx.positions + 1 if ctx.counted else ctx.positions
        query = torch.arange(ctx.start, ctx.start + length, device=ctx.positions.device)[:, None]
        key = torch.arange(ctx.start + length, device=ctx.positions.device)
        seen = (key <= query)[None, None]  # (1, 1, S, K)
        if learning and segments is not None:
            seen = seen | (segments.to(seen.device) == 0)[:, None, None]
        elif not ctx.start:
            seen = torch.ones_like(seen)
        ctx.attention_mask = seen if given is None else seen & given[:, None, None]


def build(c: PretrainedConfig) -> Spec:
    text = part(c.text_config)
    return Prefix(
        vision=part(c.vision_config).spec,
        projector=Project(part(c.vision_config).width, c.projection_dim, text.width**0.5),
        text=text.spec,
        token=c.image_token_index,
    )


def names(c: PretrainedConfig) -> NameMap:
    return llava.names(c, {"projector.linear": "multi_modal_projector.linear"})


HEADS: dict[str, Head] = {
    "PaliGemmaForConditionalGeneration": ImageTextLM(
        text=llava.text_head,
        names=llava.head_names,
        drops_padding=True,
        output=PaliGemmaCausalLMOutputWithPast,
    )
}

family(
    "paligemma", config=Config, build=build, names=names, heads=HEADS, skeleton=ImageTextModel,
    public="PaliGemma", width=lambda c: part(c.text_config).width,
)  # fmt: skip
