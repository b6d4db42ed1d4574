"""Heads that put texts and images (or sounds) into one space."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, DualOutput, Linear, make
from phyla.heads.base import Call, Head, HeadModule
from phyla.outputs import CLIPOutput, CLIPTextModelOutput, CLIPVisionModelOutput, ModelOutput


class Scalar(Block):
    """One learned number that starts at `init`."""

    def __init__(self, init: float) -> None:
        super().__init__()
        self.init = init
        self.value = nn.Parameter(torch.empty(()))

    def reset(self, std: float) -> bool:
        nn.init.constant_(self.value, self.init)
        return True


def softmax_loss(scores: Tensor) -> Tensor:
    """Each text picks its image and each image its text (Radford et al. 2021, figure 3). scores (B, B)."""
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def sigmoid_loss(scores: Tensor) -> Tensor:
    """Every pair is a question of its own (Zhai et al. 2023, arXiv:2303.15343). scores (B, B)."""
    signs = 2 * torch.eye(len(scores), device=scores.device, dtype=scores.dtype) - 1
    return -F.logsigmoid(signs * scores).sum(-1).mean()


LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


class _Contrast(HeadModule):
    """Scaled cosines of all pairs of a text and a thing of the other modality."""

    def __init__(self, head: "Contrast", config: Any) -> None:
        super().__init__()
        self.head = head
        for name, project in (("text", head.text), (head.modality, head.other)):
            self.add_module(name, None if project is None else make(project(config)))
        self.scale = make(Scalar(head.scale(config)))
        self.bias = None if head.bias is None else make(Scalar(head.bias(config)))

    def vector(self, name: str, out: Any) -> Tensor:
        """(B, E): the place of each row in the common space, from the output of the tower `name`."""
        x = out.pooler_output if self.head.on == "pool" else out.last_hidden_state[:, 0]
        project = getattr(self, name)
        return x if project is None else project(x)

    def forward(self, out: DualOutput, call: Call) -> dict[str, Any]:
        head = self.head
        text = F.normalize(self.vector("text", out.text), dim=-1)
        other = F.normalize(self.vector(head.modality, out.other), dim=-1)
        scores = text @ other.T.to(text.device) * self.scale.value.exp()  # (texts, others)
        if self.bias is not None:
            scores = scores + self.bias.value
        return {
            "loss": LOSSES[head.loss](scores) if call.return_loss else None,
            "logits_per_text": scores,
            f"logits_per_{head.modality}": scores.T,
            "text_embeds": text,
            f"{head.modality}_embeds": other,
        }


@dataclass(frozen=True)
class Contrast(Head):
    """Compares texts with images: the public dual models.

    text, other: config -> the projection of a tower's vector, or None. on: "pool" or the "first" state.
    scale: config -> start of the logarithm of the scores' factor. bias: config -> start of a number added to
    the scores, or None. modality: name of the other tower in public outputs. loss: "softmax" or "sigmoid".
    """

    task: ClassVar[str] = "base-model"
    output: type[ModelOutput] = CLIPOutput
    text: Callable[[Any], Any] | None = None
    other: Callable[[Any], Any] | None = None
    scale: Callable[[Any], float] = lambda config: config.logit_scale_init_value
    bias: Callable[[Any], float] | None = None
    on: str = "pool"
    modality: str = "image"
    loss: str = "softmax"

    def make(self, config: Any, width: int) -> HeadModule:
        return _Contrast(self, config)


class Projected(HeadModule):
    """The pooled vector of one tower in the common space."""

    def __init__(self, field: str, out: nn.Module) -> None:
        super().__init__()
        self.field, self.out = field, out

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        return {self.field: self.out(out.pooler_output)}


@dataclass(frozen=True)
class TextProjection(Head):
    """A text tower with its projection into the common space."""

    task: ClassVar[str] = "text-projection"
    output: type[ModelOutput] = CLIPTextModelOutput
    pool: bool = True
    field: ClassVar[str] = "text_embeds"

    def make(self, config: Any, width: int) -> HeadModule:
        return Projected(self.field, Linear(width, config.projection_dim, bias=False))


@dataclass(frozen=True)
class ImageProjection(TextProjection):
    """An image tower with its projection into the common space."""

    task: ClassVar[str] = "image-projection"
    output: type[ModelOutput] = CLIPVisionModelOutput
    field: ClassVar[str] = "image_embeds"
