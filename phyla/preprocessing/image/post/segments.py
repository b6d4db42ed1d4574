"""Logits and masks to semantic maps, instances and panoptic segments in pictures' sizes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from .base import PostProcessing
from .boxes import check_count

log = logging.getLogger(__name__)
Results = list[dict[str, Any]]


def resized(maps, size, mode: str = "bilinear"):
    """(channels, height, width) maps resized by torch."""
    torch = require("torch", "torch", "post-processing")
    options = {} if mode == "nearest" else {"align_corners": False}
    return torch.nn.functional.interpolate(
        maps[None], size=tuple(int(s) for s in size), mode=mode, **options
    )[0]


def class_maps(scores, target_sizes) -> list:
    """The best class of every pixel, a (height, width) map a picture."""
    check_count(target_sizes, len(scores))
    if target_sizes is None:
        return list(scores.argmax(dim=1))
    return [resized(one, size).argmax(dim=0) for one, size in zip(scores, target_sizes)]


def run_lengths(segmentation) -> list[list[int]]:
    """For each number of a map, the pairs (start from 1, length) of its runs, row by row."""
    out = []
    flat = segmentation.cpu().numpy().reshape(-1)
    for number in np.unique(flat):
        edges = np.concatenate([[0], (flat == number).astype(np.int64), [0]])
        runs = np.where(edges[1:] != edges[:-1])[0] + 1
        runs[1::2] -= runs[::2]
        out.append(list(runs))
    return out


def _blank(size):
    torch = require("torch", "torch", "post-processing")
    return torch.zeros(tuple(int(s) for s in size)) - 1


def segments_of(probabilities, scores, labels, mask_threshold, overlap, fuse, size):
    """A map of segment numbers from 1 (0: nothing) and {"id", "label_id", "was_fused", "score"} for each.

    A query's pixels are those where its score times probability is best; it counts where they cover more than
    `overlap` of its own mask. Classes to fuse are one segment each.
    """
    torch = require("torch", "torch", "post-processing")
    if size is not None:
        probabilities = resized(probabilities, size)
    probabilities = probabilities * scores.view(-1, 1, 1)
    winner = probabilities.argmax(0)
    found = torch.zeros(probabilities.shape[1:], dtype=torch.int32, device=probabilities.device)
    segments: Results = []
    fused: dict[int, int] = {}
    current = 0
    for k in range(len(labels)):
        label, own = int(labels[k]), winner == k
        area, whole = own.sum(), (probabilities[k] >= mask_threshold).sum()
        if not (area > 0 and whole > 0 and (area / whole).item() > overlap):
            continue
        # A fused class takes its number back, and the numbers go on from there, as in the public tool.
        current = fused[label] if label in fused else current + 1
        found[own] = current
        should_fuse = label in fuse
        segments.append(
            {"id": current, "label_id": label, "was_fused": should_fuse, "score": round(scores[k].item(), 6)}
        )
        if should_fuse:
            fused[label] = current
    return found, segments


def _confident(masks, logits, threshold: float):
    """Masks, scores and labels of queries that are something with a score above the threshold."""
    scores, labels = logits.softmax(-1).max(-1)
    keep = labels.ne(logits.shape[-1] - 1) & (scores > threshold)
    return masks[keep], scores[keep], labels[keep]


def segmented(masks, classes, threshold, mask_threshold, overlap, fuse, target_sizes) -> Results:
    """{"segmentation", "segments_info"} a picture from mask logits and class logits."""
    out = []
    for i, (mask, logits) in enumerate(zip(masks.sigmoid(), classes)):
        size = None if target_sizes is None else target_sizes[i]
        mask, scores, labels = _confident(mask, logits, threshold)
        if len(mask) == 0:
            out.append({"segmentation": _blank(size or mask.shape[1:]), "segments_info": []})
            continue
        found, segments = segments_of(mask, scores, labels, mask_threshold, overlap, fuse, size)
        out.append({"segmentation": found, "segments_info": segments})
    return out


def _mixed(masks, classes):
    """Scores by class of every pixel: mask probabilities weighted by the queries' classes."""
    torch = require("torch", "torch", "post-processing")
    return torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())


def _fusing(label_ids_to_fuse) -> set:
    if label_ids_to_fuse is None:
        log.warning("label_ids_to_fuse is not given: no class is fused into one segment")
        return set()
    return set(label_ids_to_fuse)


class Semantic(PostProcessing):
    """Models that score the classes of every pixel."""

    def post_process_semantic_segmentation(self, outputs, target_sizes=None) -> list:
        """A (height, width) map of classes a picture, in target_sizes where they are given."""
        return class_maps(outputs.logits, target_sizes)


class QueryMasks(PostProcessing):
    """Detectors with a mask for every box."""

    def post_process_semantic_segmentation(self, outputs, target_sizes=None) -> list:
        """A (height, width) map of classes a picture, in target_sizes where they are given."""
        return class_maps(_mixed(outputs.pred_masks, outputs.logits), target_sizes)

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes=None,
        return_coco_annotation: bool = False,
    ) -> Results:
        """{"segmentation", "segments_info"} a picture; the map as run lengths with return_coco_annotation."""
        check_count(target_sizes, len(outputs.logits))
        limits = (threshold, mask_threshold, overlap_mask_area_threshold)
        out = segmented(outputs.pred_masks, outputs.logits, *limits, set(), target_sizes)
        if return_coco_annotation:
            for one in out:
                if one["segments_info"]:
                    one["segmentation"] = run_lengths(one["segmentation"])
        return out

    def post_process_panoptic_segmentation(
        self,
        outputs,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse=None,
        target_sizes=None,
    ) -> Results:
        """{"segmentation", "segments_info"} a picture; classes of label_ids_to_fuse are one segment each."""
        check_count(target_sizes, len(outputs.logits))
        limits = (threshold, mask_threshold, overlap_mask_area_threshold)
        fuse = _fusing(label_ids_to_fuse)
        return segmented(outputs.pred_masks, outputs.logits, *limits, fuse, target_sizes)


class InstanceMasks(PostProcessing):
    """Mask classifiers: class logits and mask logits of queries."""

    def _masks(self, outputs):
        """Mask logits, in the size that the row fixes."""
        torch = require("torch", "torch", "post-processing")
        size = type(self).row.fixed.get("mask_size")
        masks = outputs.masks_queries_logits
        if size is None:
            return masks
        return torch.nn.functional.interpolate(masks, size=size, mode="bilinear", align_corners=False)

    def post_process_segmentation(self, outputs, target_size=None):
        """(batch, classes, height, width) scores; the former way to semantic segmentation."""
        torch = require("torch", "torch", "post-processing")
        masks = outputs.masks_queries_logits
        if target_size is not None:
            masks = torch.nn.functional.interpolate(
                masks, size=target_size, mode="bilinear", align_corners=False
            )
        return _mixed(masks, outputs.class_queries_logits)

    def post_process_semantic_segmentation(self, outputs, target_sizes=None) -> list:
        """A (height, width) map of classes a picture, in target_sizes where they are given."""
        return class_maps(_mixed(self._masks(outputs), outputs.class_queries_logits), target_sizes)

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes=None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> Results:
        """{"segmentation", "segments_info"} a picture: instance numbers from 0 (-1: nothing).

        return_coco_annotation: run lengths; return_binary_maps: (instances, height, width) for the map.
        """
        torch = require("torch", "torch", "post-processing")
        if return_coco_annotation and return_binary_maps:
            raise ArgumentError("return_coco_annotation and return_binary_maps cannot both be True")
        check_count(target_sizes, len(outputs.class_queries_logits))
        out: Results = []
        for i, (logits, classes) in enumerate(zip(self._masks(outputs), outputs.class_queries_logits)):
            scores, labels, logits = best_classes(classes, logits)
            masks = (logits > 0).float()
            inside = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
            scores = scores * inside
            size = masks.shape[1:] if target_sizes is None else target_sizes[i]
            if target_sizes is not None:
                masks = resized(masks, size, "nearest")
            found = _blank(size)
            segments: Results = []
            kept: list[Any] = []
            for mask, score, label in zip(masks, scores, labels):
                if score.item() < threshold or not mask.any():
                    continue
                found[mask == 1] = len(kept)
                segments.append(
                    {
                        "id": len(kept),
                        "label_id": int(label),
                        "was_fused": False,
                        "score": round(score.item(), 6),
                    }
                )
                kept.append(mask)
            result: Any = torch.stack(kept) if return_binary_maps and kept else found
            result = run_lengths(found) if return_coco_annotation else result
            out.append({"segmentation": result, "segments_info": segments})
        return out

    def post_process_panoptic_segmentation(
        self,
        outputs,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse=None,
        target_sizes=None,
    ) -> Results:
        """{"segmentation", "segments_info"} a picture; classes of label_ids_to_fuse are one segment each."""
        check_count(target_sizes, len(outputs.class_queries_logits))
        limits = (threshold, mask_threshold, overlap_mask_area_threshold)
        fuse = _fusing(label_ids_to_fuse)
        return segmented(self._masks(outputs), outputs.class_queries_logits, *limits, fuse, target_sizes)


def best_classes(classes, masks):
    """Scores, labels and masks of as many best pairs of query and class as there are queries."""
    count = classes.shape[-1] - 1
    scores, index = classes.softmax(-1)[:, :-1].flatten().topk(len(classes), sorted=False)
    return scores, index % count, masks[index // count]


class TaskMasks(PostProcessing):
    """Mask classifiers that are told their task."""

    _masks = InstanceMasks._masks
    post_process_semantic_segmentation = InstanceMasks.post_process_semantic_segmentation
    post_process_panoptic_segmentation = InstanceMasks.post_process_panoptic_segmentation

    def post_process_instance_segmentation(
        self,
        outputs,
        task_type: str = "instance",
        is_demo: bool = True,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes=None,
        return_coco_annotation: bool = False,
    ) -> Results:
        """{"segmentation", "segments_info"} a picture; is_demo keeps only scores above the threshold."""
        torch = require("torch", "torch", "post-processing")
        check_count(target_sizes, len(outputs.class_queries_logits))
        things = self.metadata["thing_ids"]
        out: Results = []
        for i, (logits, classes) in enumerate(
            zip(outputs.masks_queries_logits, outputs.class_queries_logits)
        ):
            size = None if target_sizes is None else target_sizes[i]
            scores, labels, masks = best_classes(classes, logits)
            keep = scores > threshold if is_demo else torch.ones_like(scores, dtype=torch.bool)
            if task_type == "panoptic":
                keep &= torch.isin(labels, torch.tensor(things, device=labels.device))
            scores, labels, masks = scores[keep], labels[keep], masks[keep]
            if len(masks) == 0:
                out.append({"segmentation": _blank(size or masks.shape[1:]), "segments_info": []})
                continue
            if "ade20k" in self.class_info_file and not is_demo and "instance" in task_type:
                labels = torch.tensor([things.index(int(label)) for label in labels], device=labels.device)
            limits = (mask_threshold, overlap_mask_area_threshold)
            found, segments = segments_of(masks, scores, labels, *limits, set(), size)
            result = run_lengths(found) if return_coco_annotation else found
            out.append({"segmentation": result, "segments_info": segments})
        return out


class Coloured(PostProcessing):
    """Models that paint the answer: the lower half of the output, in the colours of the classes."""

    def post_process_semantic_segmentation(
        self, outputs, target_sizes=None, num_labels: int | None = None
    ) -> list:
        """A (height, width) map a picture: the class of the nearest colour, or the mean of the channels."""
        torch = require("torch", "torch", "post-processing")
        masks = outputs.pred_masks
        check_count(target_sizes, len(masks))
        masks = masks[:, :, masks.shape[2] // 2 :, :]
        std, mean = (
            torch.tensor(v).to(masks.device).view(-1, 1, 1) for v in (self.image_std, self.image_mean)
        )
        masks = ((masks * std + mean) * 255).clip(0, 255)
        out = []
        for i, mask in enumerate(masks):
            if target_sizes is not None:
                mask = resized(mask, target_sizes[i], "nearest")
            if num_labels is None:
                out.append(mask.mean(dim=0).int())
                continue
            colours = torch.tensor(self.get_palette(num_labels), device=mask.device).float()
            out.append((mask.permute(1, 2, 0)[:, :, None] - colours).pow(2).sum(-1).argmin(-1))
        return out
