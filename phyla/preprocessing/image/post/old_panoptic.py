"""The former post-processing of a detector with masks, kept for those who call it."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from phyla.errors import require

from ..transform import NEAREST, pillow
from .base import PostProcessing
from .boxes import check_count


def _size(size) -> tuple[int, int]:
    height, width = size.tolist() if hasattr(size, "tolist") else size
    return int(height), int(width)


def _warn(name: str) -> None:
    new = "post_process_{semantic,instance,panoptic}_segmentation"
    warnings.warn(f"{name} is a former way: use {new}", FutureWarning, stacklevel=3)


def _good(logits, masks, boxes, threshold: float):
    """Scores, labels, masks and boxes of queries that are something with a score above the threshold."""
    scores, labels = logits.softmax(-1).max(-1)
    keep = labels.ne(logits.shape[-1] - 1) & (scores > threshold)
    return scores[keep], labels[keep], masks[keep], None if boxes is None else boxes[keep]


def _resized(masks, size, mode: str = "bilinear"):
    torch = require("torch", "torch", "post-processing")
    return torch.nn.functional.interpolate(masks[:, None], size=size, mode=mode)[:, 0]


class OldPanoptic(PostProcessing):
    """`post_process_segmentation`, `post_process_instance` and `post_process_panoptic`."""

    def post_process_segmentation(
        self, outputs, target_sizes, threshold: float = 0.9, mask_threshold: float = 0.5
    ):
        """{"scores", "labels", "masks"} a picture, masks (N, height, width) of 0 and 1 in target_sizes."""
        _warn("post_process_segmentation")
        out = []
        for logits, masks, size in zip(outputs.logits, outputs.pred_masks, target_sizes):
            scores, labels, masks, _ = _good(logits, masks, None, threshold)
            masks = (_resized(masks, _size(size)).sigmoid() > mask_threshold) * 1
            out.append({"scores": scores, "labels": labels, "masks": masks})
        return out

    def post_process_instance(
        self, results, outputs, orig_target_sizes, max_target_sizes, threshold: float = 0.5
    ):
        """`results` of object detection with "masks" (N, 1, height, width) uint8 added."""
        torch = require("torch", "torch", "post-processing")
        _warn("post_process_instance")
        check_count(orig_target_sizes, len(max_target_sizes), "orig_target_sizes")
        largest = tuple(int(v) for v in max_target_sizes.max(0)[0])
        masks = outputs.pred_masks.squeeze(2)
        masks = torch.nn.functional.interpolate(masks, size=largest, mode="bilinear", align_corners=False)
        masks = (masks.sigmoid() > threshold).cpu()
        for result, mask, inner, size in zip(results, masks, max_target_sizes, orig_target_sizes):
            cut = mask[:, : int(inner[0]), : int(inner[1])].float()
            result["masks"] = _resized(cut, _size(size), "nearest")[:, None].byte()
        return results

    def post_process_panoptic(
        self, outputs, processed_sizes, target_sizes=None, is_thing_map=None, threshold: float = 0.85
    ) -> list[dict[str, Any]]:
        """{"png_string", "segments_info"} a picture: colours are segment numbers r + 256 g + 65536 b."""
        _warn("post_process_panoptic")
        target_sizes = processed_sizes if target_sizes is None else target_sizes
        check_count(target_sizes, len(processed_sizes))
        check_count(target_sizes, len(outputs.logits))
        things = {i: i <= 90 for i in range(201)} if is_thing_map is None else is_thing_map
        out = []
        parts = zip(outputs.logits, outputs.pred_masks, outputs.pred_boxes, processed_sizes, target_sizes)
        for logits, masks, boxes, processed, target in parts:
            _, labels, masks, _ = _good(logits, masks, boxes, threshold)
            out.append(_painted(labels, _resized(masks, _size(processed)), things, _size(target)))
        return out


def _numbers(masks, size: tuple[int, int], same: list[list[int]]) -> np.ndarray:
    """(height, width, 3) colours of the best mask of every pixel; groups of `same` are one segment each."""
    count, height, width = masks.shape
    best = np.zeros((height, width), dtype=np.int64)
    if count:
        best = masks.flatten(1).T.softmax(-1).argmax(-1).view(height, width).cpu().numpy()
    for group in same:
        for other in group[1:]:
            best[best == other] = group[0]
    colours = np.stack([best % 256, best // 256 % 256, best // 65536], -1).astype(np.uint8)
    picture = pillow().fromarray(colours).resize((size[1], size[0]), resample=NEAREST)
    return np.array(picture).astype(np.int64)


def _painted(labels, masks, things, size: tuple[int, int]) -> dict[str, Any]:
    torch = require("torch", "torch", "post-processing")
    groups: dict[int, list[int]] = {}
    for k, label in enumerate(labels.tolist()):
        if not things[label]:
            groups.setdefault(label, []).append(k)
    same = [group for group in groups.values() if len(group) > 1]
    while True:
        colours = _numbers(masks, size, same)
        best = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
        areas = [int((best == i).sum()) for i in range(len(labels))]
        large = torch.tensor([area > 4 for area in areas], dtype=torch.bool, device=masks.device)
        if large.all():
            break
        # Classes are merged in the first round only: numbers shift once small segments are gone.
        labels, masks, same = labels[large], masks[large], []
    info = [
        {"id": i, "isthing": things[label], "category_id": label, "area": area}
        for i, (label, area) in enumerate(zip(labels.tolist(), areas))
    ]
    with io.BytesIO() as file:
        pillow().fromarray(colours.astype(np.uint8)).save(file, format="PNG")
        return {"png_string": file.getvalue(), "segments_info": info}
