"""COCO annotations as training targets, and how they follow their picture through resizing and padding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from .layout import FIRST
from .transform import NEAREST, pillow, resize

DETECTION, PANOPTIC = "coco_detection", "coco_panoptic"
_KEYS = {DETECTION: ("image_id", "annotations"), PANOPTIC: ("image_id", "file_name", "segments_info")}
Target = dict[str, Any]
Size = tuple[int, int]


def check_annotations(kind: str, annotations: list, allowed: tuple[str, ...]) -> None:
    """Raise ArgumentError where the annotations are not COCO's of that kind."""
    if kind not in allowed:
        raise ArgumentError(f"format must be one of {list(allowed)}, but is {kind!r}")
    keys = _KEYS[kind]
    for one in annotations:
        items = one.get(keys[-1]) if isinstance(one, dict) else None
        right = isinstance(one, dict) and all(key in one for key in keys) and isinstance(items, (list, tuple))
        if not right or (items and not isinstance(items[0], dict)):
            found = sorted(one) if isinstance(one, dict) else type(one).__name__
            raise ArgumentError(
                f"an annotation of format {kind!r} must be a dictionary with {', '.join(keys)}, "
                f"the last a list of dictionaries, but is {found}"
            )


def from_detection(size: Size, annotation: dict, masks: bool) -> Target:
    """The target of a COCO detection annotation: corners in the picture, no crowds and no empty boxes."""
    height, width = size
    objects = [item for item in annotation["annotations"] if not item.get("iscrowd", 0)]
    boxes = np.asarray([item["bbox"] for item in objects], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2] = boxes[:, 0::2].clip(min=0, max=width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(min=0, max=height)
    keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    target = {
        "image_id": np.asarray([annotation["image_id"]], dtype=np.int64),
        "class_labels": np.asarray([item["category_id"] for item in objects], dtype=np.int64)[keep],
        "boxes": boxes[keep],
        "area": np.asarray([item["area"] for item in objects], dtype=np.float32)[keep],
        "iscrowd": np.asarray([item.get("iscrowd", 0) for item in objects], dtype=np.int64)[keep],
        "orig_size": np.asarray([int(height), int(width)], dtype=np.int64),
    }
    if objects and "keypoints" in objects[0]:
        points = np.asarray([item["keypoints"] for item in objects], dtype=np.float32)[keep]
        target["keypoints"] = points.reshape((-1, 3)) if len(points) else points
    if masks:
        target["masks"] = polygon_masks([item["segmentation"] for item in objects], height, width)[keep]
    return target


def polygon_masks(segmentations: list, height: int, width: int) -> np.ndarray:
    """(objects, height, width) masks of COCO polygons or run lengths."""
    if not segmentations:
        return np.zeros((0, height, width), dtype=np.uint8)
    coco = require("pycocotools.mask", "coco", "reading masks from COCO polygons")
    masks = []
    for polygons in segmentations:
        mask = np.asarray(coco.decode(coco.frPyObjects(polygons, height, width)), dtype=np.uint8)
        masks.append(mask.reshape(height, width, -1).any(axis=2))
    return np.stack(masks)


def from_panoptic(size: Size, annotation: dict, folder: str | os.PathLike | None, masks: bool) -> Target:
    """The target of a COCO panoptic annotation, whose masks are a PNG in `folder`."""
    if folder is None:
        raise ArgumentError("masks_path must name the folder of the panoptic PNG files")
    target: Target = {
        "image_id": np.asarray([annotation["image_id"]], dtype=np.int64),
        "size": np.asarray(size, dtype=np.int64),
        "orig_size": np.asarray(size, dtype=np.int64),
    }
    with pillow().open(Path(folder) / annotation["file_name"]) as picture:
        colours = np.asarray(picture, dtype=np.uint32)
    ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    segments = annotation["segments_info"]
    found = (ids == np.array([s["id"] for s in segments])[:, None, None]).astype(np.uint8)
    if masks:
        target["masks"] = found
    target["boxes"] = boxes_of(found)
    for name, key, dtype in (
        ("class_labels", "category_id", np.int64),
        ("iscrowd", "iscrowd", np.int64),
        ("area", "area", np.float32),
    ):
        target[name] = np.asarray([s[key] for s in segments], dtype=dtype)
    return target


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """(N, 4) corners (first and last column and row) of (N, height, width) masks."""
    if masks.size == 0:
        return np.zeros((0, 4))
    found = []
    for axis in (1, 2):  # rows give x, columns give y
        any_ = masks.any(axis)
        index = np.arange(any_.shape[1], dtype=np.float32)
        found.append(
            (np.where(any_, index, np.float32(1e8)).min(1), np.where(any_, index, np.float32(0)).max(1))
        )
    (left, right), (top, bottom) = found
    return np.stack([left, top, right, bottom], 1)


def resized(target: Target, old: Size, new: Size, fast: bool = False) -> Target:
    """The target after its picture went from `old` to `new` (height, width); `fast`: masks as torch does."""
    tall, wide = float(new[0]) / float(old[0]), float(new[1]) / float(old[1])
    out = {**target, "size": new}
    if "boxes" in target:
        out["boxes"] = target["boxes"] * np.asarray([wide, tall, wide, tall], dtype=np.float32)
    if "area" in target:
        out["area"] = target["area"] * (tall * wide)
    if "masks" in target:
        if fast:
            masks = [_nearest(mask, new) for mask in target["masks"]]
        else:
            masks = [resize(mask[None], new, FIRST, NEAREST)[0] for mask in target["masks"]]
        out["masks"] = np.array(masks).reshape(-1, *new).astype(np.float32) > 0.5
    return out


def _nearest(mask: np.ndarray, size: Size) -> np.ndarray:
    """A (height, width) mask by the nearest pixel's corner, as torch counts."""
    rows, columns = (np.arange(new) * own // new for own, new in zip(mask.shape, size))
    return mask[rows[:, None], columns]


def to_fractions(target: Target, size: Size) -> Target:
    """The target with boxes as (centre x, centre y, width, height) in fractions of the picture."""
    if "boxes" not in target:
        return target
    left, top, right, bottom = target["boxes"].T
    boxes = np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], -1)
    boxes /= np.asarray([size[1], size[0], size[1], size[0]], dtype=np.float32)
    return {**target, "boxes": boxes}


def padded(target: Target, old: Size, new: Size, fractions: bool) -> Target:
    """The target after its picture was padded below and to the right; boxes in fractions shrink."""
    out = {**target, "size": new}
    if "masks" in target:
        out["masks"] = np.pad(target["masks"], ((0, 0), (0, new[0] - old[0]), (0, new[1] - old[1])))
    if "boxes" in target and fractions:
        tall, wide = old[0] / new[0], old[1] / new[1]
        boxes = target["boxes"]
        out["boxes"] = (boxes * np.asarray([wide, tall, wide, tall])).astype(boxes.dtype)
    return out
