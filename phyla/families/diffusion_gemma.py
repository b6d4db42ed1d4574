"""DiffusionGemma (Google 2026): text written a block at a time, each from noise in a few steps, with images.

Public checkpoints: google/diffusiongemma-26B-A4B-it, ...
Differs from Gemma 4 in: the layers that read finished text into a cache also refine a block behind it (the
canvas), whose tokens all see each other and that cache; only a factor behind each layer is another there. A
step is shown the scores of the step before, as the mean of the token vectors that they stand for.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, Context, GatedFFN, Linear, RMSNorm, Spec, make
from phyla.blocks.fusion import check_count, place
from phyla.blocks.stack import StackOutput
from phyla.checkpoints.names import NameMap, To
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.families import diffusion_gemma_text as layers
from phyla.family import family, part
from phyla.heads import Backbone, Head
from phyla.heads.canvas import BlockDiffusion, Denoising
from phyla.outputs import (
    BaseModelOutput, BaseModelOutputWithPast, DiffusionGemmaBlockDiffusionOutputWithPast,
    DiffusionGemmaModelOutputWithPast,
)  # fmt: skip
from phyla.skeletons.canvas import CanvasModel, CanvasReader, CanvasRefiner

READS, REFINES = "text", "canvas"


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. tie_word_embeddings ties the layers of both roles too."""

    text_config: Any = None
    vision_config: Any = None
    boi_token_id: int | None = 255999
    eoi_token_id: int | None = 258882
    image_token_id: int | None = 258880
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    canvas_length: int = 256

    PARTS = {"text_config": "diffusion_gemma_text", "vision_config": "gemma4_vision"}


class Recall(Block):
    """The canvas's token vectors x (B, C, D) with what the step before said of them (Chen et al. 2022,
    arXiv:2208.04202), normed; without it, as if that were zeros."""

    def __init__(self, width: int, inner: int, act: str, eps: float) -> None:
        super().__init__()
        self.pre, self.ffn, self.eps = (
            make(RMSNorm(width, eps=eps, cast="late")),
            make(GatedFFN(width, inner, act)),
            eps,
        )

    def forward(self, x: Tensor, said: Tensor | None) -> Tensor:
        # The feed-forward has no biases: of zeros it makes zeros.
        y = x if said is None else x + self.ffn.mix(self.pre(said), Context.of(x))
        return layers.unit(y, self.eps)


class ImageMap(Block):
    """Vectors (N, T, D') of images, over their root mean square, mapped to the width of the text."""

    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.map, self.eps = Linear(width, out, bias=False), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.map(layers.unit(x, self.eps))


class Canvas(Block):
    """Layers that read finished text and refine a canvas behind it.

    text: the stack of both roles, or of the one that the model has; other: a stack for the canvas alone,
    where weights are not shared. token: the placeholder of images. mutual: tokens of an image see each other.
    """

    def __init__(
        self, text: Spec, other: Spec | None = None, recall: Spec | None = None, vision: Spec | None = None,
        projector: Spec | None = None, token: int | None = None, mutual: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.text, self.other, self.recall = make(text), make(other), make(recall)
        self.vision, self.projector, self.token, self.mutual = make(vision), make(projector), token, mutual

    def read(
        self, ids: Tensor, ctx: Context, images: tuple[Tensor, Tensor] | None, kinds: Tensor | None,
        states: bool,
    ) -> StackOutput:  # fmt: skip
        """Put finished text (B, S) into the cache of `ctx`; images are patches and their places."""
        table, token = self.text.embed, -1 if self.token is None else self.token
        marked = ids.eq(token)
        # The placeholder may lie behind the table; its own vector counts only where no images are given.
        outside = token >= table.tokens.num_embeddings
        x = table.words(ids.masked_fill(marked, 0) if images is not None or outside else ids)
        if images is not None:
            vectors, real, _ = self.vision.look(*images, ctx.implementation)
            flat, kept = self.projector(vectors).flatten(0, 1), real.flatten()
            check_count(marked, flat if torch.compiler.is_compiling() else flat[kept], token)
            first = (~kept).long().argsort(stable=True)  # those of padding go to the end
            x = place(x, marked, flat[first])
        if self.mutual and kinds is not None and ctx.length > 1:
            seen = (kinds == 1) | (kinds == 2)
            ctx.blocks = (seen & ~F.pad(seen, (1, 0))[:, :-1]).long().cumsum(1) * seen
        return self.text(ctx, None, x, None, states)

    def refine(
        self, canvas: Tensor, memory: Any, ctx: Context, scores: Tensor | None, scored: Tensor | None,
        states: bool,
    ) -> StackOutput:  # fmt: skip
        """States of a canvas (B, C) behind what `memory` holds; scores (B, C, V) of the step before."""
        stack = self.text if self.other is None else self.other
        ctx.notes = {**ctx.notes, layers.CANVAS: memory}
        said = None
        if scores is not None:
            if scores.shape[:2] != canvas.shape:
                raise ArgumentError(
                    f"self_conditioning_logits must be scores of the canvas {tuple(canvas.shape)}, but have "
                    f"shape {tuple(scores.shape)}"
                )
            table = stack.embed.tokens.weight
            said = scores.softmax(-1, dtype=torch.float32).to(table.dtype) @ table * stack.embed.factor
            if scored is not None:
                said = said * scored.to(said)[:, None, None]
        x = self.recall(stack.embed.words(canvas), said)
        return stack.run(x, ctx, None, states)


def recall(c: Config) -> Spec:
    t = c.text_config
    return Recall(t.hidden_size, t.intermediate_size, t.hidden_activation, t.rms_norm_eps)


def seeing(c: Config) -> dict[str, Any]:
    """The parts that images need."""
    t, vision = c.text_config, part(c.vision_config)
    return {
        "vision": vision.spec, "token": c.image_token_id, "mutual": t.use_bidirectional_attention == "vision",
        "projector": ImageMap(vision.width, t.hidden_size, c.vision_config.rms_norm_eps),
    }  # fmt: skip


def build(c: Config) -> Spec:
    t = c.text_config
    if c.tie_word_embeddings and t.attention_bias:
        raise ConfigError(
            "attention_bias is for layers that are not shared (published ones share all but their biases): "
            "set tie_word_embeddings to false, or attention_bias (in a diffusion_gemma config)"
        )
    if c.tie_word_embeddings:
        return Canvas(layers.build(t, (READS, REFINES)), recall=recall(c), **seeing(c))
    return Canvas(layers.build(t, (READS,)), layers.build(t, (REFINES,)), recall(c), **seeing(c))


def reader(c: Config) -> Spec:
    """The part that reads, alone."""
    return Canvas(layers.build(c.text_config, (READS,)), **seeing(c))


def refiner(c: Config) -> Spec:
    """The part that refines, alone."""
    return Canvas(layers.build(c.text_config, (REFINES,)), recall=recall(c))


_TEXT, _SCALE = "encoder.language_model", "layers.{i}.layer_scalar"
_RECALL: dict[str, str | To] = {
    "recall.pre": "self_conditioning.pre_norm",
    **{f"recall.ffn.{p}": f"self_conditioning.{p}_proj" for p in ("gate", "up", "down")},
}


def stack(role: str) -> NameMap:
    """The names of a stack of one role."""
    return NameMap(layers.LINES | {f"layers.{{i}}.{role}_scale": _SCALE})


Lines = dict[str, str | To]
Parts = dict[str, tuple[str, NameMap]]


def images(c: Config, ahead: str = "") -> tuple[Lines, Parts]:
    """The names of the parts that images need."""
    lines: Lines = {"projector.map": f"{ahead}embed_vision.embedding_projection"}
    return lines, {"vision": (f"{ahead}vision_tower.", part(c.vision_config).bare)}


def names(c: Config) -> NameMap:
    """Layers of both roles stand under the canvas's names; the other copies that files may hold are read."""
    lines, parts = images(c, "encoder.")
    lines |= {ours: f"decoder.{theirs}" for ours, theirs in _RECALL.items()}
    if not c.tie_word_embeddings:
        parts |= {"text": (f"{_TEXT}.", stack(READS)), "other": ("decoder.", stack(REFINES))}
        return NameMap(lines, parts=parts, prefix="model")
    return NameMap(
        lines | {"text.layers.{i}.text_scale": f"{_TEXT}.{_SCALE}"},
        parts=parts | {"text": ("decoder.", stack(REFINES))},
        prefix="model",
        aliases={f"text.{o}": (f"{_TEXT}.{t}",) for o, t in layers.LINES.items() if "|" not in o},
        ignore=(r"(model\.)?encoder\.language_model\.layers\.\d+\.experts\.gate_up_proj",),
    )


def reader_names(c: Config) -> NameMap:
    lines, parts = images(c)
    return NameMap(lines, parts=parts | {"text": ("language_model.", stack(READS))})


def refiner_names(c: Config) -> NameMap:
    return NameMap(_RECALL, parts={"text": ("", stack(REFINES))})


class _Reads(Backbone):
    task = "context-encoding"


class _Refines(Backbone):
    task = "canvas-denoising"


HEADS: dict[str, Head] = {
    "DiffusionGemmaModel": Backbone(output=DiffusionGemmaModelOutputWithPast),
    "DiffusionGemmaForBlockDiffusion": BlockDiffusion(
        names={"out": "lm_head"}, softcap="final_logit_softcapping",
        output=DiffusionGemmaBlockDiffusionOutputWithPast,
        denoising=Denoising(block=lambda c: c.canvas_length, remembers=True, conditioned=True),
    ),
    "DiffusionGemmaEncoderModel": _Reads(
        output=BaseModelOutputWithPast, build=reader, table=reader_names, prefix="", skeleton=CanvasReader
    ),
    "DiffusionGemmaDecoderModel": _Refines(
        output=BaseModelOutput, build=refiner, table=refiner_names, prefix="", skeleton=CanvasRefiner
    ),
}  # fmt: skip

family(
    "diffusion_gemma", config=Config, build=build, names=names, heads=HEADS, skeleton=CanvasModel,
    public="DiffusionGemma", width=lambda c: c.text_config.hidden_size,
)  # fmt: skip
