"""Logits and boxes of detectors to scores, labels and corners in pixels."""

from __future__ import annotations

import warnings
from typing import Any

from phyla.errors import ArgumentError, require

from .base import PostProcessing

Detections = list[dict[str, Any]]


def check_count(target_sizes, count: int, what: str = "target_sizes") -> None:
    """Raise ArgumentError unless there is one size a picture."""
    if target_sizes is not None and len(target_sizes) != count:
        raise ArgumentError(
            f"{what} must hold one (height, width) a picture ({count}), but holds {len(target_sizes)}"
        )


def corners(boxes):
    """(..., 4) boxes (centre x, centre y, width, height) as (left, top, right, bottom)."""
    x, y, width, height = boxes.unbind(-1)
    torch = require("torch", "torch", "post-processing")
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], dim=-1)


def scaled(boxes, target_sizes, square: bool = False):
    """(batch, N, 4) fractions in pixels of (height, width); `square`: of the longer edge both ways."""
    torch = require("torch", "torch", "post-processing")
    if target_sizes is None:
        return boxes
    check_count(target_sizes, len(boxes))
    if isinstance(target_sizes, (list, tuple)):
        target_sizes = torch.tensor([[float(v) for v in size] for size in target_sizes])
    if target_sizes.ndim != 2 or target_sizes.shape[1] != 2:
        raise ArgumentError(f"target_sizes must be (batch, 2), but is {tuple(target_sizes.shape)}")
    height, width = target_sizes.to(boxes.device).unbind(1)
    if square:
        height = width = torch.maximum(height, width)
    return boxes * torch.stack([width, height, width, height], dim=1)[:, None, :]


def _kept(scores, labels, boxes, threshold: float) -> Detections:
    """One dictionary a picture with what scores above the threshold."""
    out = []
    for score, label, box in zip(scores, labels, boxes):
        keep = score > threshold
        out.append({"scores": score[keep], "labels": label[keep], "boxes": box[keep]})
    return out


def _all(scores, labels, boxes) -> Detections:
    return [{"scores": s, "labels": l, "boxes": b} for s, l, b in zip(scores, labels, boxes)]


def _old(name: str, new: str) -> None:
    warnings.warn(f"{name} is the former name of {new}: use {new}", FutureWarning, stacklevel=3)


class TopBoxes(PostProcessing):
    """Detectors with a class for nothing: softmax, the best class of each query."""

    def post_process_object_detection(self, outputs, threshold: float = 0.5, target_sizes=None) -> Detections:
        """{"scores", "labels", "boxes"} a picture; boxes (left, top, right, bottom) in pixels of target_sizes
        (height, width), else in fractions."""
        check_count(target_sizes, len(outputs.logits))
        scores, labels = outputs.logits.softmax(-1)[..., :-1].max(-1)
        return _kept(scores, labels, scaled(corners(outputs.pred_boxes), target_sizes), threshold)


class OldBoxes(PostProcessing):
    """The former name of object detection, which keeps every query."""

    def post_process(self, outputs, target_sizes) -> Detections:
        """`post_process_object_detection` without a threshold."""
        _old("post_process", "post_process_object_detection")
        check_count(target_sizes, len(outputs.logits))
        scores, labels = outputs.logits.softmax(-1)[..., :-1].max(-1)
        return _all(scores, labels, scaled(corners(outputs.pred_boxes), target_sizes))


def _best_pairs(logits, boxes, count: int):
    """Scores, labels and boxes of the `count` best pairs of query and class, by sigmoid."""
    torch = require("torch", "torch", "post-processing")
    classes = logits.shape[2]
    scores, index = torch.topk(logits.sigmoid().flatten(1), min(count, logits[0].numel()), dim=1)
    boxes = torch.gather(corners(boxes), 1, (index // classes)[..., None].expand(-1, -1, 4))
    return scores, index % classes, boxes


class FocalBoxes(PostProcessing):
    """Detectors trained with a focal loss: the best pairs of query and class."""

    def post_process_object_detection(
        self, outputs, threshold: float = 0.5, target_sizes=None, top_k: int = 100
    ) -> Detections:
        """{"scores", "labels", "boxes"} a picture, of its top_k pairs; boxes in pixels of target_sizes."""
        check_count(target_sizes, len(outputs.logits))
        scores, labels, boxes = _best_pairs(outputs.logits, outputs.pred_boxes, top_k)
        return _kept(scores, labels, scaled(boxes, target_sizes), threshold)

    def post_process(self, outputs, target_sizes) -> Detections:
        """`post_process_object_detection` without a threshold."""
        _old("post_process", "post_process_object_detection")
        check_count(target_sizes, len(outputs.logits))
        count = type(self).row.fixed["old_top_k"]
        scores, labels, boxes = _best_pairs(outputs.logits, outputs.pred_boxes, count)
        return _all(scores, labels, scaled(boxes, target_sizes))


class QueryBoxes(PostProcessing):
    """Detectors with as many detections as queries, by sigmoid over pairs or by softmax."""

    def post_process_object_detection(
        self, outputs, threshold: float = 0.5, target_sizes=None, use_focal_loss: bool = True
    ) -> Detections:
        """{"scores", "labels", "boxes"} a picture; boxes in pixels of target_sizes."""
        check_count(target_sizes, len(outputs.logits))
        if use_focal_loss:
            scores, labels, boxes = _best_pairs(outputs.logits, outputs.pred_boxes, outputs.logits.shape[1])
        else:
            # Over the batch, not the classes: what the public tool computes, on which thresholds were chosen.
            scores, labels = outputs.logits.softmax(0)[:, :, :-1].max(-1)
            boxes = corners(outputs.pred_boxes)
        return _kept(scores, labels, scaled(boxes, target_sizes), threshold)


def intersection_over_union(boxes, others):
    """(N, M) overlaps of corners (N, 4) and (M, 4)."""
    torch = require("torch", "torch", "post-processing")
    boxes, others = (b if b.dtype in (torch.float32, torch.float64) else b.float() for b in (boxes, others))
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others)]
    low, high = torch.max(boxes[:, None, :2], others[:, :2]), torch.min(boxes[:, None, 2:], others[:, 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    return inner / (areas[0][:, None] + areas[1] - inner)


def suppressed(boxes, scores, groups, threshold: float):
    """Indices, best first, of boxes that no better box of their group overlaps by more than the threshold."""
    torch = require("torch", "torch", "post-processing")
    order = scores.argsort(descending=True, stable=True)
    overlap = intersection_over_union(boxes[order], boxes[order])
    overlap = (overlap > threshold) & (groups[order][:, None] == groups[order])
    gone = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if not gone[i]:
            gone[i + 1 :] |= overlap[i, i + 1 :]
    return order[~gone]


class SuppressedBoxes(PostProcessing):
    """Detectors without one-to-one queries: all pairs by sigmoid, then non-maximum suppression by class."""

    def post_process_object_detection(
        self, outputs, threshold: float = 0.5, target_sizes=None, nms_threshold: float = 0.7
    ) -> Detections:
        """{"scores", "labels", "boxes"} a picture, 100 at most; boxes in pixels of target_sizes."""
        check_count(target_sizes, len(outputs.logits))
        scores, labels, boxes = _best_pairs(outputs.logits, outputs.pred_boxes, 10000)
        out = []
        for score, label, box in zip(scores, labels, scaled(boxes, target_sizes)):
            keep = suppressed(box, score, label, nms_threshold)[:100]
            out += _kept([score[keep]], [label[keep]], [box[keep]], threshold)
        return out


class OpenBoxes(PostProcessing):
    """Detectors of things described by text or by a picture: sigmoid of each query's best description."""

    def post_process_object_detection(self, outputs, threshold: float = 0.1, target_sizes=None) -> Detections:
        """{"scores", "labels", "boxes"} a picture; labels number the descriptions; boxes in pixels."""
        check_count(target_sizes, len(outputs.logits))
        best = outputs.logits.max(-1)
        square = type(self).row.fixed.get("square_boxes", False)
        boxes = scaled(corners(outputs.pred_boxes), target_sizes, square)
        return _kept(best.values.sigmoid(), best.indices, boxes, threshold)

    def post_process_image_guided_detection(
        self, outputs, threshold: float = 0.0, nms_threshold: float = 0.3, target_sizes=None
    ) -> Detections:
        """{"scores", "labels": None, "boxes"} a picture of what looks like the query picture."""
        torch = require("torch", "torch", "post-processing")
        check_count(target_sizes, len(outputs.logits))
        scores, boxes = outputs.logits.max(-1).values.sigmoid(), corners(outputs.target_pred_boxes)
        if nms_threshold < 1.0:
            for score, box in zip(scores, boxes):
                for i in torch.argsort(-score):
                    if score[i]:
                        overlap = intersection_over_union(box[i][None], box)[0]
                        overlap[i] = -1.0
                        score[overlap > nms_threshold] = 0.0
        square = type(self).row.fixed.get("square_boxes", False)
        out: Detections = []
        for score, box in zip(scores, scaled(boxes, target_sizes, square)):
            if not score.any():
                continue
            score = torch.where(score < threshold, 0.0, score)
            # Opacity for drawing: 0 at a tenth of the best score, 1 at the best.
            best = score.max() + 1e-6
            alpha = ((score - best * 0.1) / (best * 0.9)).clip(0.0, 1.0)
            out.append({"scores": alpha[alpha > 0], "labels": None, "boxes": box[alpha > 0]})
        return out


class OldOpenBoxes(PostProcessing):
    """The former name of object detection by text, which keeps every query."""

    def post_process(self, outputs, target_sizes) -> Detections:
        """`post_process_object_detection` without a threshold."""
        _old("post_process", "post_process_object_detection")
        check_count(target_sizes, len(outputs.logits))
        best = outputs.logits.max(-1)
        return _all(best.values.sigmoid(), best.indices, scaled(corners(outputs.pred_boxes), target_sizes))


class PhraseBoxes(PostProcessing):
    """Detectors of phrases: sigmoid of each query's best token."""

    post_process_object_detection = OpenBoxes.post_process_object_detection
