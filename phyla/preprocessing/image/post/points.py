"""Keypoints, matches of keypoints and poses in pixels of the pictures."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..sizes import pair
from ..warp import blur, center_and_scale
from .base import PostProcessing
from .boxes import check_count


def _tensor(sizes, device, shape: tuple[int, ...]):
    """Sizes as a tensor whose axes after the first are `shape`."""
    torch = require("torch", "torch", "post-processing")
    sizes = torch.tensor(sizes, device=device) if isinstance(sizes, (list, tuple)) else sizes
    if tuple(sizes.shape[1:]) != shape:
        raise ArgumentError(
            f"target_sizes must be (batch, {', '.join(map(str, shape))}), but is {tuple(sizes.shape)}"
        )
    return sizes


class Keypoints(PostProcessing):
    """Detectors of keypoints."""

    def post_process_keypoint_detection(self, outputs, target_sizes) -> list[dict[str, Any]]:
        """{"keypoints" (x, y) int32, "scores", "descriptors"} a picture; target_sizes: (height, width)."""
        torch = require("torch", "torch", "post-processing")
        check_count(target_sizes, len(outputs.mask))
        sizes = _tensor(target_sizes, outputs.mask.device, (2,)).flip(1)
        points = (outputs.keypoints * sizes[:, None]).to(torch.int32)
        out = []
        for mask, point, score, description in zip(outputs.mask, points, outputs.scores, outputs.descriptors):
            keep = torch.nonzero(mask).squeeze(1)
            out.append({"keypoints": point[keep], "scores": score[keep], "descriptors": description[keep]})
        return out


class Matches(PostProcessing):
    """Matchers of keypoints of two pictures."""

    def post_process_keypoint_matching(
        self, outputs, target_sizes, threshold: float = 0.0
    ) -> list[dict[str, Any]]:
        """{"keypoints0", "keypoints1", "matching_scores"} a pair; target_sizes: two (height, width)."""
        torch = require("torch", "torch", "post-processing")
        check_count(target_sizes, len(outputs.mask))
        sizes = _tensor(target_sizes, outputs.mask.device, (2, 2))
        points = (outputs.keypoints * sizes.flip(-1).reshape(-1, 2, 1, 2)).to(torch.int32)
        out = []
        pairs = zip(outputs.mask, points, outputs.matches[:, 0], outputs.matching_scores[:, 0])
        for mask, point, match, score in pairs:
            real, other = mask[0] > 0, mask[1] > 0
            match, score = match[real], score[real]
            good = (score > threshold) & (match > -1)
            out.append(
                {
                    "keypoints0": point[0][real][good],
                    "keypoints1": point[1][other][match[good]],
                    "matching_scores": score[good],
                }
            )
        return out


def peaks(heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(batch, points, 2) places (x, y) of the maxima (-1: none positive), and (batch, points, 1) values."""
    batch, count, _, width = heatmaps.shape
    flat = heatmaps.reshape(batch, count, -1)
    index, scores = flat.argmax(2), flat.max(2)[..., None]
    places = np.stack([index % width, index // width], -1).astype(np.float32)
    return np.where(scores > 0.0, places, -1).astype(np.float32), scores


def refined(places: np.ndarray, heatmaps: np.ndarray, kernel: int) -> np.ndarray:
    """Places after one Newton step on the blurred heatmap's logarithm (DARK, arXiv:1910.06278, eq. 8)."""
    batch, count, height, width = heatmaps.shape
    radius = (kernel - 1) // 2
    smooth = blur(blur(heatmaps, 0.8, 2, False, radius), 0.8, 3, False, radius)
    wide = np.pad(np.log(smooth.clip(0.001, 50)), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge").flatten()
    step = width + 2
    at = places[..., 0] + 1 + (places[..., 1] + 1) * step
    at = at + step * (height + 2) * np.arange(batch * count).reshape(-1, count)
    at = at.astype(int).reshape(-1)

    def near(dx: int, dy: int) -> np.ndarray:
        return wide[at + dx + dy * step]

    here = near(0, 0)
    slope = 0.5 * np.stack([near(1, 0) - near(-1, 0), near(0, 1) - near(0, -1)], -1)
    dxx, dyy = near(1, 0) - 2 * here + near(-1, 0), near(0, 1) - 2 * here + near(0, -1)
    dxy = 0.5 * (
        near(1, 1) - near(1, 0) - near(0, 1) + here + here - near(-1, 0) - near(0, -1) + near(-1, -1)
    )
    hessian = np.stack([dxx, dxy, dxy, dyy], -1).reshape(-1, 2, 2)
    inverse = np.linalg.inv(hessian + np.finfo(np.float32).eps * np.eye(2))
    return places - (inverse @ slope[..., None])[..., 0].reshape(places.shape)


class Poses(PostProcessing):
    """Estimators of the pose of what is in a box, as heatmaps of keypoints."""

    def keypoints_from_heatmaps(self, heatmaps, center, scale, kernel: int = 11):
        """(boxes, points, 2) places in pixels of the picture and (boxes, points, 1) scores."""
        places, scores = peaks(heatmaps)
        places = refined(places, heatmaps, kernel).astype(np.float32)
        height, width = heatmaps.shape[2:]
        extent = np.asarray(scale) * 200.0
        steps = extent / np.array([width - 1.0, height - 1.0])
        return places * steps[:, None] + (np.asarray(center) - extent * 0.5)[:, None], scores

    def post_process_pose_estimation(
        self, outputs, boxes, kernel_size: int = 11, threshold: float | None = None, target_sizes=None
    ) -> list[list[dict[str, Any]]]:
        """{"keypoints", "scores", "labels", "bbox"} for every box (x, y, width, height) of every picture.

        target_sizes: (width, height) a box where boxes are in fractions.
        """
        torch = require("torch", "torch", "post-processing")
        count, points = outputs.heatmaps.shape[:2]
        check_count(target_sizes, count)
        flat = [np.asarray(box, dtype=np.float64) for box in itertools.chain(*boxes)]
        if target_sizes is not None:
            flat = [box * np.array([*size, *size]) for box, size in zip(flat, target_sizes)]
        framed = [center_and_scale(box, pair(self.size)) for box in flat]
        centers = np.array([center for center, _ in framed], dtype=np.float32)
        scales = np.array([scale for _, scale in framed], dtype=np.float32)
        places, values = self.keypoints_from_heatmaps(
            outputs.heatmaps.cpu().numpy(), centers, scales, kernel_size
        )
        # The box is read from centre and scale as if they were corner and size, as in the public tool.
        frames = torch.tensor(np.concatenate([centers, centers + scales - 1], 1))
        poses, scores = torch.tensor(places.astype(np.float32)), torch.tensor(values)
        labels, done = torch.arange(points), iter(range(count))
        return [
            [self._pose(poses, scores, frames, labels, next(done), threshold) for _ in group]
            for group in boxes
        ]

    @staticmethod
    def _pose(poses, scores, frames, labels, i: int, threshold: float | None) -> dict[str, Any]:
        score, pose = scores[i].squeeze(), poses[i]
        if threshold is not None:
            keep = score > threshold
            pose, score, labels = pose[keep], score[keep], labels[keep]
        return {"keypoints": pose, "scores": score, "labels": labels, "bbox": frames[i]}
