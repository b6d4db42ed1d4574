"""Boxes of objects: overlap, the best one-to-one assignment, and the loss of detection by sets (DETR).

Boxes are (centre x, centre y, width, height) or corners (x0, y0, x1, y1), as shares of the image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.errors import ArgumentError


def corners(boxes: Tensor) -> Tensor:
    """(..., 4): corners of boxes given by centre and size."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, M): overlap of corner boxes a (N, 4) and b (M, 4), less the empty share of their common frame.

    Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 1.
    """
    a, b = a.float(), b.float()
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (a, b)]
    shared = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0).prod(2)
    frame = (torch.max(a[:, None, 2:], b[:, 2:]) - torch.min(a[:, None, :2], b[:, :2])).clamp(min=0).prod(2)
    union = areas[0][:, None] + areas[1] - shared
    return shared / union - (frame - union) / frame


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (K) of the one-to-one assignment of least total cost (N, M), K = min(N, M).

    Shortest augmenting paths (Jonker & Volgenant 1987); ArgumentError for costs that are no numbers.
    """
    table = cost.detach().double().cpu().numpy()
    if not np.isfinite(table).all():
        raise ArgumentError(
            "costs of a matching must be finite numbers; the predictions hold NaN or infinity"
        )
    turned = table.shape[0] > table.shape[1]
    table = table.T if turned else table
    rows, columns = table.shape
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns + 1)
    owner, back = np.zeros(columns + 1, dtype=int), np.zeros(columns + 1, dtype=int)
    for row in range(1, rows + 1):
        owner[0], at = row, 0
        least, seen = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=bool)
        while True:
            seen[at] = True
            reduced = table[owner[at] - 1] - of_row[owner[at]] - of_column[1:]
            better = ~seen[1:] & (reduced < least[1:])
            least[1:][better], back[1:][better] = reduced[better], at
            following = int(np.where(seen[1:], np.inf, least[1:]).argmin()) + 1
            step = least[following]
            of_row[owner[seen]] += step
            of_column[seen] -= step
            least[~seen] -= step
            at = following
            if not owner[at]:
                break
        while at:
            owner[at], at = owner[back[at]], back[at]
    taken = np.flatnonzero(owner[1:])
    found = (owner[1:][taken] - 1, taken)
    first, second = found[::-1] if turned else found
    order = np.argsort(first)
    return torch.as_tensor(first[order]), torch.as_tensor(second[order])


Targets = Sequence[Mapping[str, Tensor]]


def check_targets(labels: Any, count: int) -> Targets:
    """Labels of detection; ArgumentError unless each image has an object with class_labels and boxes."""
    fits = isinstance(labels, list | tuple) and len(labels) == count
    if not fits or not all("class_labels" in t and "boxes" in t for t in labels):
        raise ArgumentError(
            f"labels must be a list of {count} objects with class_labels (N) and boxes (N, 4), one an image"
        )
    return labels


class Softmax:
    """Scores of labels and of no object exclude one another (DETR)."""

    def cost(self, logits: Tensor, ids: Tensor, row: int) -> Tensor:
        """What each query (Q) of image `row` costs for each target (N), given logits (Q, labels + 1)."""
        return -logits.softmax(-1)[:, ids]

    def loss(self, logits: Tensor, classes: Tensor, count: float, config: Any) -> Tensor:
        """The loss for the wanted classes (B, Q), the last being no object."""
        weight = torch.ones(logits.shape[-1], device=logits.device, dtype=logits.dtype)
        weight[-1] = config.eos_coefficient
        return F.cross_entropy(logits.transpose(1, 2), classes, weight)

    def nothing(self, logits: Tensor) -> int:
        """The class of no object."""
        return logits.shape[-1] - 1


class Focal(Softmax):
    """Each label has a score of its own, and easy ones count little (Lin et al. 2017, arXiv:1708.02002)."""

    def cost(self, logits: Tensor, ids: Tensor, row: int) -> Tensor:
        return focal_cost(logits)[:, ids]

    def loss(self, logits: Tensor, classes: Tensor, count: float, config: Any) -> Tensor:
        wanted = F.one_hot(classes, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
        return focal(logits, wanted, config.focal_alpha).sum() / count

    def nothing(self, logits: Tensor) -> int:
        return logits.shape[-1]


SOFTMAX, FOCAL = Softmax(), Focal()


def focal_cost(logits: Tensor) -> Tensor:
    """What the focal loss gains where a score's label is wanted, with the published balance of 0.25."""
    p = logits.sigmoid()
    absent, present = 0.75 * p**2 * -(1 - p + 1e-8).log(), 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    return present - absent


def focal(logits: Tensor, wanted: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The focal loss of each score (Lin et al. 2017, arXiv:1708.02002, eq. 5); alpha < 0: no balance."""
    p = logits.sigmoid()
    error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    loss = error * (1 - (p * wanted + (1 - p) * (1 - wanted))) ** gamma
    return loss if alpha < 0 else (alpha * wanted + (1 - alpha) * (1 - wanted)) * loss


def dice(logits: Tensor, wanted: Tensor) -> Tensor:
    """1 - the overlap of masks (N, P), smoothed (Milletari et al. 2016, arXiv:1606.04797)."""
    p = logits.sigmoid()
    return 1 - (2 * (p * wanted).sum(1) + 1) / (p.sum(1) + wanted.sum(1) + 1)


def match(
    logits: Tensor, boxes: Tensor, targets: Targets, config: Any, kind: Softmax = SOFTMAX
) -> list[tuple[Tensor, Tensor]]:
    """For each image the predictions and targets that belong together (arXiv:2005.12872, eq. 1)."""
    found = []
    rows = enumerate(zip(logits.detach(), boxes.detach(), targets, strict=True))
    for row, (scores, own, target) in rows:
        ids, wanted = target["class_labels"].to(scores.device), target["boxes"].to(own)
        cost = config.bbox_cost * torch.cdist(own, wanted, p=1) + config.class_cost * kind.cost(
            scores, ids, row
        )
        cost = cost - config.giou_cost * generalised_iou(corners(own), corners(wanted))
        found.append(assign(cost))
    return found


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    pairs: list[tuple[Tensor, Tensor]],
    config: Any,
    kind: Softmax = SOFTMAX,
) -> dict[str, Tensor]:
    """The public parts of the loss: loss_ce, cardinality_error, loss_bbox, loss_giou.

    logits (B, Q, labels + 1), boxes (B, Q, 4).
    """
    device, last = logits.device, logits.shape[-1] - 1
    rows = torch.cat([torch.full_like(p, i) for i, (p, _) in enumerate(pairs)]).to(device)
    queries = torch.cat([p for p, _ in pairs]).to(device)
    ids = torch.cat([t["class_labels"][j] for t, (_, j) in zip(targets, pairs, strict=True)]).to(device)
    wanted = torch.cat([t["boxes"][j] for t, (_, j) in zip(targets, pairs, strict=True)]).to(boxes)
    classes = torch.full(logits.shape[:2], kind.nothing(logits), device=device)
    classes[rows, queries] = ids.long()
    lengths = torch.tensor([float(len(t["class_labels"])) for t in targets], device=device)
    found = (logits.argmax(-1) != last).sum(1).float()
    count = max(float(lengths.sum()), 1.0)
    own = boxes[rows, queries]
    overlap = torch.diag(generalised_iou(corners(own), corners(wanted)))
    return {
        "loss_ce": kind.loss(logits, classes, count, config),
        "cardinality_error": F.l1_loss(found, lengths),
        "loss_bbox": F.l1_loss(own, wanted, reduction="sum") / count,
        "loss_giou": (1 - overlap).sum() / count,
    }


def detection_loss(
    logits: Tensor,
    boxes: Tensor,
    labels: Any,
    config: Any,
    others: Sequence[tuple[Tensor, Tensor]] = (),
    kind: Softmax = SOFTMAX,
    masks: Tensor | None = None,
    encoder: tuple[Tensor, Tensor] | None = None,
    ce: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its parts, for predictions of one layer and of `others`, whose parts end in _0, _1, ...

    masks (B, Q, Y, X): scores of the masks of the one layer; targets then have masks (N, Y', X').
    encoder: predictions before the first layer, whose parts end in _enc. ce: weight of the labels' part.
    """
    targets = check_targets(labels, len(logits))
    parts: dict[str, Tensor] = {}
    named = [("", logits, boxes), *((f"_{i}", *other) for i, other in enumerate(others))]
    named += [] if encoder is None else [("_enc", *encoder)]
    for end, scores, own in named:
        pairs = match(scores, own, targets, config, kind)
        found = set_losses(scores, own, targets, pairs, config, kind)
        if not end and masks is not None:
            found |= mask_losses(masks, targets, pairs)
        parts |= {f"{k}{end}": v for k, v in found.items()}
    return weighted(parts, config, ce), parts


def mask_losses(masks: Tensor, targets: Targets, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """loss_mask and loss_dice of masks (B, Q, Y, X), resized to the targets' masks (N, Y', X')."""
    count = max(float(sum(len(t["class_labels"]) for t in targets)), 1.0)
    sizes = [t["masks"].shape[-2:] for t in targets]
    y, x = max(s[0] for s in sizes), max(s[1] for s in sizes)
    wanted = torch.cat(
        [
            F.pad(t["masks"][j].to(masks), (0, x - s[1], 0, y - s[0]))
            for t, (_, j), s in zip(targets, pairs, sizes, strict=True)
        ]
    ).flatten(1)
    own = torch.cat([m[i] for m, (i, _) in zip(masks, pairs, strict=True)])
    own = F.interpolate(own[:, None], size=(y, x), mode="bilinear", align_corners=False)[:, 0].flatten(1)
    return {
        "loss_mask": focal(own, wanted).mean(1).sum() / count,
        "loss_dice": dice(own, wanted).sum() / count,
    }


# Parts of the loss and the config keys of their weights; other parts are for the eye.
WEIGHTS = {
    "loss_ce": None,
    "loss_bbox": "bbox_loss_coefficient",
    "loss_giou": "giou_loss_coefficient",
    "loss_mask": "mask_loss_coefficient",
    "loss_dice": "dice_loss_coefficient",
}


def weighted(parts: Mapping[str, Tensor], config: Any, ce: float = 1.0) -> Tensor:
    """The sum of the parts, each with its weight."""
    total = torch.zeros(())
    for name, value in parts.items():
        base = name.removesuffix("_enc").rstrip("0123456789").rstrip("_")
        if base in WEIGHTS:
            key = WEIGHTS[base]
            total = value * (ce if key is None else getattr(config, key)) + total.to(value)
    return total
