"""Masks of a promptable segmenter: to the pictures' sizes, and what segmenting a whole picture needs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..inputs import to_array
from ..layout import infer_layout, size_of, window
from ..sizes import pair
from .base import PostProcessing
from .boxes import suppressed


def _pt_only(return_tensors: str) -> None:
    if return_tensors != "pt":
        raise ArgumentError(f'return_tensors must be "pt" here, but is {return_tensors!r}')


def point_grid(count: int) -> np.ndarray:
    """(count * count, 2) points (x, y) in the middle of equal cells of the unit square."""
    side = np.linspace(1 / (2 * count), 1 - 1 / (2 * count), count)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def layered_crops(own: tuple[int, int], layers: int, overlap: float) -> list[tuple[list[int], int]]:
    """(left, top, right, bottom) of the picture and of its 4, 16, ... overlapping crops, with their layer."""
    height, width = own
    found = [([0, 0, width, height], 0)]
    for layer in range(1, layers + 1):
        side = 2**layer
        shared = int(overlap * min(own) * (2 / side))
        wide, tall = (math.ceil((shared * (side - 1) + edge) / side) for edge in (width, height))
        for i, j in itertools.product(range(side), range(side)):
            left, top = int((wide - shared) * i), int((tall - shared) * j)
            found.append(([left, top, min(left + wide, width), min(top + tall, height)], layer))
    return found


def boxes_of(masks):
    """(..., 4) corners of (..., height, width) masks, zeros for empty ones."""
    torch = require("torch", "torch", "post-processing")
    edges = []
    for axis in (-2, -1):  # over rows for x, over columns for y
        any_ = masks.any(axis)
        index = torch.arange(any_.shape[-1], device=masks.device)
        edges.append(
            (torch.where(any_, index, any_.shape[-1]).amin(-1), torch.where(any_, index, 0).amax(-1))
        )
    (left, right), (top, bottom) = edges
    found = torch.stack([left, top, right, bottom], -1)
    return found * masks.flatten(-2).any(-1)[..., None]


def run_lengths(masks) -> list[dict[str, Any]]:
    """COCO run lengths of (N, height, width) masks: down the columns, starting with the count of zeros."""
    out = []
    for mask in masks.cpu().numpy():
        height, width = mask.shape
        flat = mask.T.reshape(-1)
        edges = np.flatnonzero(flat[1:] ^ flat[:-1]) + 1
        counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        out.append({"size": [height, width], "counts": [0, *counts] if flat.size and flat[0] else counts})
    return out


def mask_of(runs: dict[str, Any]) -> np.ndarray:
    """The (height, width) mask of COCO run lengths."""
    height, width = runs["size"]
    values = np.arange(len(runs["counts"])) % 2 == 1
    return np.repeat(values, runs["counts"]).reshape(width, height).T


class PromptedMasks(PostProcessing):
    """A promptable segmenter's masks."""

    def post_process_masks(
        self,
        masks,
        original_sizes,
        reshaped_input_sizes,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        pad_size: dict | None = None,
        return_tensors: str = "pt",
    ) -> list:
        """Mask logits (N, masks, h, w) of each picture in its own size; boolean unless binarize=False."""
        torch = require("torch", "torch", "post-processing")
        _pt_only(return_tensors)
        canvas = pair(pad_size or self.pad_size, "pad_size")
        out = []
        for mask, original, inner in zip(masks, _lists(original_sizes), _lists(reshaped_input_sizes)):
            if isinstance(mask, np.ndarray):
                mask = torch.from_numpy(mask)
            elif not isinstance(mask, torch.Tensor):
                raise ArgumentError(f"masks must be tensors or arrays, but one is {type(mask).__name__}")
            resize = torch.nn.functional.interpolate
            mask = resize(mask, canvas, mode="bilinear", align_corners=False)[..., : inner[0], : inner[1]]
            mask = resize(mask, tuple(original), mode="bilinear", align_corners=False)
            out.append(mask > mask_threshold if binarize else mask)
        return out

    def generate_crop_boxes(
        self,
        image,
        target_size: int,
        crop_n_layers: int = 0,
        overlap_ratio: float = 512 / 1500,
        points_per_crop: int = 32,
        crop_n_points_downscale_factor: int = 1,
        device=None,
        input_data_format=None,
        return_tensors: str = "pt",
    ):
        """Boxes of crops, (1, points, crops, 2) prompts in resized pixels, the crops, and labels of 1."""
        torch = require("torch", "torch", "post-processing")
        _pt_only(return_tensors)
        if isinstance(image, (list, tuple)):
            raise ArgumentError("image must be one picture, not a list")
        pixels = to_array(image)
        layout = infer_layout(pixels) if input_data_format is None else input_data_format
        height, width = own = size_of(pixels, layout)
        grids = [
            point_grid(int(points_per_crop / crop_n_points_downscale_factor**i))
            for i in range(crop_n_layers + 1)
        ]
        scale = target_size * 1.0 / max(own)
        ratio = np.array([int(width * scale + 0.5) / width, int(height * scale + 0.5) / height])
        boxes, prompts, crops = [], [], []
        for (left, top, right, bottom), layer in layered_crops(own, crop_n_layers, overlap_ratio):
            boxes.append([left, top, right, bottom])
            crops.append(window(pixels, layout, top, left, bottom - top, right - left))
            prompts.append(grids[layer] * np.array([right - left, bottom - top]) * ratio)
        if len({len(one) for one in prompts}) > 1:
            raise ArgumentError(
                "crop_n_points_downscale_factor must be 1 where crop_n_layers > 0: "
                "all crops need as many points"
            )
        points = np.transpose(np.array([prompts]), (0, 2, 1, 3))
        labels = np.ones(points.shape[:3], dtype=np.int64)
        to = {"device": device or "cpu"}
        found = torch.tensor(np.array(boxes, dtype=np.float32), **to)
        return found, torch.tensor(points, **to), crops, torch.tensor(labels, **to)

    def filter_masks(
        self,
        masks,
        iou_scores,
        original_size,
        cropped_box_image,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        mask_threshold: float = 0,
        stability_score_offset: float = 1,
        return_tensors: str = "pt",
    ):
        """Run lengths, scores and boxes of masks that are good, stable and not cut by their crop."""
        torch = require("torch", "torch", "post-processing")
        _pt_only(return_tensors)
        height, width = (int(v) for v in original_size)
        masks, scores = masks.flatten(0, 1), iou_scores.flatten(0, 1).to(masks.device)
        if len(masks) != len(scores):
            raise ArgumentError(f"there must be one score a mask ({len(masks)}), but there are {len(scores)}")
        keep = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
        if pred_iou_thresh > 0.0:
            keep &= scores > pred_iou_thresh
        if stability_score_thresh > 0.0:
            inner = (masks > mask_threshold + stability_score_offset).flatten(1).sum(1)
            outer = (masks > mask_threshold - stability_score_offset).flatten(1).sum(1)
            keep &= inner / outer > stability_score_thresh
        masks, scores = masks[keep] > mask_threshold, scores[keep]
        boxes = boxes_of(masks)
        crop = [int(v) for v in cropped_box_image]
        keep = ~_cut(boxes, crop, [0, 0, width, height])
        masks, scores, boxes = masks[keep], scores[keep], boxes[keep]
        left, top, right, bottom = crop
        masks = torch.nn.functional.pad(masks, (left, width - right, top, height - bottom), value=0)
        return run_lengths(masks), scores, boxes

    def post_process_for_mask_generation(
        self, all_masks, all_scores, all_boxes, crops_nms_thresh: float, return_tensors: str = "pt"
    ):
        """Masks (as arrays and run lengths), scores and boxes that are left after non-maximum suppression."""
        torch = require("torch", "torch", "post-processing")
        _pt_only(return_tensors)
        group = torch.zeros(len(all_boxes), device=all_boxes.device)
        keep = suppressed(all_boxes.float(), all_scores, group, crops_nms_thresh)
        runs = [all_masks[i] for i in keep]
        return [mask_of(one) for one in runs], all_scores[keep], runs, all_boxes[keep]


def _lists(sizes) -> list:
    return sizes.tolist() if hasattr(sizes, "tolist") else list(sizes)


def _cut(boxes, crop: list[int], whole: list[int], near: float = 20.0):
    """Which boxes end near an edge of their crop that is no edge of the picture."""
    torch = require("torch", "torch", "post-processing")
    offset = torch.tensor([crop[0], crop[1], crop[0], crop[1]], device=boxes.device)
    placed = (boxes + offset).float()
    at_crop = (placed - torch.tensor(crop, dtype=torch.float, device=boxes.device)).abs() <= near
    at_whole = (placed - torch.tensor(whole, dtype=torch.float, device=boxes.device)).abs() <= near
    return (at_crop & ~at_whole).any(1)
