"""Heads that answer for every place of an image: semantic segmentation and its necks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.conv import BatchNorm, Conv2d, ConvNorm
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.outputs import ModelOutput, SemanticSegmenterOutput


def resized(x: Tensor, size: Sequence[int], corners: bool = False) -> Tensor:
    """Maps (B, C, Y, X) at another size, bilinearly."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=corners)


def conv_relu(width: int, out: int, kernel: int) -> Spec:
    """A convolution with batch norm and a ReLU."""
    return ConvNorm(width, out, kernel, norm=BatchNorm(out), act="relu")


class FourScales(Block):
    """Four maps (B, C, Y, X) of one size at 4, 2, 1 and 1/2 times it."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(width, width, 2, 2)
        self.norm = make(BatchNorm(width, eps))
        self.second = nn.ConvTranspose2d(width, width, 2, 2)
        self.twice = nn.ConvTranspose2d(width, width, 2, 2)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        large, middle, same, small = maps
        large = self.second(F.gelu(self.norm(self.first(large))))
        return large, self.twice(middle), same, F.max_pool2d(small, 2, 2)


class UperNet(Block):
    """Scores of labels from maps of falling size (Xiao et al. 2018, arXiv:1807.10221, section 3.1).

    The last map is pooled to squares of `scales` places; each map is added to the next larger one.
    """

    def __init__(self, widths: Sequence[int], width: int, labels: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.pools = make([conv_relu(widths[-1], width, 1) for _ in scales])
        self.bottleneck = make(conv_relu(widths[-1] + len(scales) * width, width, 3))
        self.laterals = make([conv_relu(w, width, 1) for w in widths[:-1]])
        self.smooth = make([conv_relu(width, width, 3) for _ in widths[:-1]])
        self.join = make(conv_relu(len(widths) * width, width, 3))
        self.out = Conv2d(width, labels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        last = maps[-1]
        pooled = [
            conv(F.adaptive_avg_pool2d(last, s)) for s, conv in zip(self.scales, self.pools, strict=True)
        ]
        top = self.bottleneck(torch.cat((last, *(resized(p, last.shape[2:]) for p in pooled)), 1))
        levels = [conv(x) for conv, x in zip(self.laterals, maps[:-1], strict=True)] + [top]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resized(levels[i], levels[i - 1].shape[2:])
        outs = [conv(x) for conv, x in zip(self.smooth, levels[:-1], strict=True)] + [levels[-1]]
        size = outs[0].shape[2:]
        return self.out(self.join(torch.cat((outs[0], *(resized(x, size) for x in outs[1:])), 1)))


class ConvScores(Block):
    """Scores of labels from one map, through `count` convolutions; `beside`: the map itself joins them."""

    def __init__(self, width: int, inner: int, labels: int, count: int = 1, beside: bool = False) -> None:
        super().__init__()
        self.convs = make([conv_relu(inner if i else width, inner, 3) for i in range(count)])
        self.join = make(conv_relu(width + inner, inner, 3)) if beside else None
        self.out = Conv2d(inner, labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(y)
        if self.join is not None:
            y = self.join(torch.cat((x, y), 1))
        return self.out(y)


def place_loss(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Cross-entropy of scores (B, labels, Y, X), resized to labels (B, Y', X')."""
    return F.cross_entropy(resized(logits, labels.shape[-2:]), labels, ignore_index=ignored)


class _Places(HeadModule):
    def __init__(self, head: "Segment", config: Any, width: int) -> None:
        super().__init__()
        self.neck, self.main = make(head.neck(config)), make(head.main(config))
        self.auxiliary = None if head.auxiliary is None else make(head.auxiliary(config))
        self.level, self.binary = head.level, head.binary

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        maps = self.neck(out)
        logits = self.main(maps)
        auxiliary = None if self.auxiliary is None else self.auxiliary(maps[self.level])
        if call.labels is None:
            return {"loss": None, "logits": logits}
        config = call.config
        if config.num_labels == 1 and self.binary:
            scores, ignored = resized(logits, call.labels.shape[-2:])[:, 0], config.semantic_loss_ignore_index
            counted = ((call.labels >= 0) & (call.labels != ignored)).float()
            error = F.binary_cross_entropy_with_logits(scores, call.labels.float(), reduction="none")
            return {"loss": (error * counted).mean(), "logits": logits}
        if config.num_labels == 1:
            raise ArgumentError("labels of places need at least two classes, but num_labels is 1")
        loss = place_loss(logits, call.labels, config.semantic_loss_ignore_index)
        if auxiliary is not None:
            extra = place_loss(auxiliary, call.labels, config.semantic_loss_ignore_index)
            loss = loss + config.auxiliary_loss_weight * extra
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class Segment(Head):
    """Labels (B, labels, Y, X) of every place.

    neck: config -> block from the body's output to maps. main: config -> block from maps to scores.
    auxiliary: config -> block from map number `level` to further scores, which count in the loss alone.
    binary: with one label, its presence is learned; else that is an error.
    """

    task: ClassVar[str] = "semantic-segmentation"
    needs_states: ClassVar[bool] = True
    output: type[ModelOutput] = SemanticSegmenterOutput
    neck: Callable[[Any], Any] = lambda config: None
    main: Callable[[Any], Any] = lambda config: None
    auxiliary: Callable[[Any], Any] | None = None
    level: int = 2
    binary: bool = False

    def make(self, config: Any, width: int) -> HeadModule:
        return _Places(self, config, width)
