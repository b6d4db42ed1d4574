"""Heads and losses of models that give each query a label and a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, Linear, make
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.boxes import assign, dice
from phyla.outputs import Mask2FormerForUniversalSegmentationOutput, ModelOutput

Pairs = list[tuple[Tensor, Tensor]]


@dataclass
class MaskCall(Call):
    """Labels (N) and masks (N, Y, X) of each image; whether the predictions of all layers are asked for."""

    mask_labels: Any = None
    class_labels: Any = None
    auxiliary: bool = False


def sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Values (N, P) of maps (N, Y, X) at points (N or 1, P, 2), shares of columns and rows, bilinearly."""
    points = (2 * points - 1)[:, :, None].expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps[:, None], points, align_corners=False)[:, 0, :, 0]


def match_masks(
    logits: Tensor, masks: Tensor, ids: Sequence[Tensor], wanted: Sequence[Tensor], c: Any
) -> Pairs:
    """For each image the queries and targets that belong together, by points that all of them share.

    logits (B, Q, labels + 1), masks (B, Q, Y, X).
    """
    found = []
    for scores, own, labels, theirs in zip(logits.detach(), masks.detach(), ids, wanted, strict=True):
        points = torch.rand(1, c.train_num_points, 2, device=own.device)
        if not len(labels):
            found.append((torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)))
            continue
        x, y = sampled(own, points), sampled(theirs.to(own), points)
        count = x.shape[1]
        cross = (F.softplus(-x) / count) @ y.T + (F.softplus(x) / count) @ (1 - y).T
        p = x.sigmoid()
        overlap = 1 - (2 * p @ y.T + 1) / (p.sum(1)[:, None] + y.sum(1) + 1)
        cost = (
            c.mask_weight * cross - scores.softmax(-1)[:, labels.to(scores.device)] + c.dice_weight * overlap
        )
        found.append(assign(cost.clamp(-1e10, 1e10).nan_to_num(0)))
    return found


def doubtful_points(masks: Tensor, c: Any) -> Tensor:
    """Points (N, P, 2) at which masks (N, Y, X) are near 0, and some anywhere (arXiv:1912.08193, 3.1)."""
    n, device = len(masks), masks.device
    many, near = (
        int(c.train_num_points * c.oversample_ratio),
        int(c.importance_sample_ratio * c.train_num_points),
    )
    points = torch.rand(n, many, 2, device=device)
    chosen = (-sampled(masks, points).abs()).topk(near, 1).indices
    points = points.gather(1, chosen[..., None].expand(-1, -1, 2))
    rest = c.train_num_points - near
    return torch.cat((points, torch.rand(n, rest, 2, device=device)), 1) if rest else points


class ClassWeights(Block):
    """What each class counts in the loss, the last being no object; files hold it and may lack it."""

    computed = True

    def __init__(self, labels: int, nothing: float) -> None:
        super().__init__()
        self.nothing = nothing
        self.register_buffer("weight", torch.empty(labels + 1))

    def reset(self, std: float) -> bool:
        self.weight.fill_(1.0)
        self.weight[-1] = self.nothing
        return True


def mask_set_losses(
    logits: Tensor, masks: Tensor, ids: Sequence[Tensor], wanted: Sequence[Tensor], c: Any, weight: Tensor
) -> dict[str, Tensor]:
    """loss_mask, loss_dice and loss_cross_entropy, weighted, of the predictions of one layer."""
    pairs = match_masks(logits, masks, ids, wanted, c)
    count = max(sum(len(labels) for labels in ids), 1)
    own = torch.cat([m[i] for m, (i, _) in zip(masks, pairs, strict=True)])
    sizes = [t.shape[-2:] for t in wanted]
    y, x = max(s[0] for s in sizes), max(s[1] for s in sizes)
    theirs = torch.cat(
        [
            F.pad(t.to(own)[j], (0, x - s[1], 0, y - s[0]))
            for t, (_, j), s in zip(wanted, pairs, sizes, strict=True)
        ]
    )
    with torch.no_grad():
        points = doubtful_points(own, c)
        goal = sampled(theirs, points) if len(own) else theirs.new_zeros((0, c.train_num_points))
    at = sampled(own, points) if len(own) else goal
    last = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:2], last, device=logits.device)
    for row, (labels, (i, j)) in enumerate(zip(ids, pairs, strict=True)):
        classes[row, i.to(classes.device)] = labels.to(classes)[j]
    error = F.binary_cross_entropy_with_logits(at, goal, reduction="none").mean(1).sum() / count
    return {
        "loss_mask": c.mask_weight * error,
        "loss_dice": c.dice_weight * dice(at, goal).sum() / count,
        "loss_cross_entropy": c.class_weight
        * F.cross_entropy(logits.transpose(1, 2), classes, weight.to(logits)),
    }


class _MaskScores(HeadModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.labels = Linear(width, config.num_labels + 1)
        self.classes = make(ClassWeights(config.num_labels, config.no_object_weight))

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        assert isinstance(call, MaskCall)
        c, masks = call.config, out.masks_queries_logits
        logits = [self.labels(x) for x in out.kept]
        layers = list(zip(logits, masks, strict=True))
        fields: dict[str, Any] = {"class_queries_logits": logits[-1], "masks_queries_logits": masks[-1]}
        if call.auxiliary:
            fields["auxiliary_logits"] = [
                {"masks_queries_logits": m, "class_queries_logits": s} for s, m in layers[:-1]
            ]
        if (call.mask_labels is None) != (call.class_labels is None):
            raise ArgumentError("mask_labels and class_labels belong together, but only one of them is given")
        if call.mask_labels is not None:
            ids, wanted = list(call.class_labels), list(call.mask_labels)
            if len(ids) != len(logits[-1]) or len(wanted) != len(ids):
                raise ArgumentError(
                    f"mask_labels and class_labels must be lists of one tensor an image ({len(logits[-1])}), "
                    f"but have {len(wanted)} and {len(ids)}"
                )
            chosen = [layers[-1], *(layers[:-1] if c.use_auxiliary_loss else [])]
            weight = self.classes.weight
            parts = [mask_set_losses(s, m, ids, wanted, c, weight) for s, m in chosen]
            fields["loss"] = torch.stack([v for layer in parts for v in layer.values()]).sum()
        return fields


@dataclass(frozen=True)
class MaskScores(Head):
    """A label and a mask for each query, which serves all kinds of segmentation."""

    task: ClassVar[str] = "universal-segmentation"
    output: type[ModelOutput] = Mask2FormerForUniversalSegmentationOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _MaskScores(config, width)
