"""Kinds of processors for detection by text and for prompts of points and boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from ..text.batch import BatchEncoding
from .base import ProcessorMixin
from .options import Options
from .pairs import as_numpy


def _corners(boxes: Any) -> Any:
    """(centre x, centre y, width, height) to (left, top, right, bottom)."""
    torch = require("torch", "torch", "post-processing")
    x, y, width, height = boxes.unbind(-1)
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], dim=-1)


class Queries(ProcessorMixin):
    """Pictures with texts or pictures of what to look for; batches are filled up with blank texts."""

    def process(
        self, options: Options, text: Any = None, images: Any = None, query_images: Any = None, **more: Any
    ) -> BatchFeature:
        data: dict[str, Any] = {}
        if text is not None:
            if isinstance(text, (list, tuple)) and text and isinstance(text[0], (list, tuple)):
                most = max(map(len, text))
                text = [one for sample in text for one in [*sample, *[" "] * (most - len(sample))]]
            encoding = self.tokenizer([text] if isinstance(text, str) else list(text), **options.text)
            data = {name: encoding[name] for name in ("input_ids", "attention_mask")}
        if query_images is not None:
            found = self.image_processor(query_images, **options.images)["pixel_values"]
            data = {"query_pixel_values": found}
        if images is not None:
            data["pixel_values"] = self.image_processor(images, **options.images)["pixel_values"]
        return BatchFeature(data, options.return_tensors)

    def post_process(self, *values: Any, **options: Any) -> Any:
        """As the image processor does it."""
        return self.image_processor.post_process(*values, **options)

    def post_process_object_detection(self, *values: Any, **options: Any) -> Any:
        """As the image processor does it."""
        return self.image_processor.post_process_object_detection(*values, **options)

    def post_process_image_guided_detection(
        self, outputs: Any, threshold: float = 0.0, nms_threshold: float = 0.3, target_sizes: Any = None
    ) -> Any:
        """As the image processor does it."""
        return self.image_processor.post_process_image_guided_detection(
            outputs=outputs, threshold=threshold, nms_threshold=nms_threshold, target_sizes=target_sizes
        )

    def post_process_grounded_object_detection(
        self, outputs: Any, threshold: float = 0.1, target_sizes: Any = None, text_labels: Any = None
    ) -> list[dict[str, Any]]:
        """`scores`, `labels`, `boxes` of each picture, and `text_labels`: the texts that were found."""
        found = self.image_processor.post_process_object_detection(
            outputs=outputs, threshold=threshold, target_sizes=target_sizes
        )
        if text_labels is not None and len(text_labels) != len(found):
            raise ArgumentError(
                f"text_labels must be lists for {len(found)} images, but has {len(text_labels)}"
            )
        for number, one in enumerate(found):
            texts = None if text_labels is None else text_labels[number]
            one["text_labels"] = None if texts is None else [texts[int(i)] for i in one["labels"]]
        return found


class Phrases(ProcessorMixin):
    """Pictures with a text of phrases to look for; a list of candidates becomes one text."""

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> Any:
        batch: Any = BatchEncoding({})
        if text is not None:
            batch = self.tokenizer(self._merged(text), **options.text)
        if images is not None:
            batch.update(self.image_processor(images, **options.images))
        return batch

    @staticmethod
    def _merged(text: Any) -> Any:
        def candidates(value: Any) -> bool:
            return isinstance(value, (list, tuple)) and all(
                isinstance(one, str) and "." not in one for one in value
            )

        def one_text(labels: Any) -> str:
            return ". ".join(label.strip().lower() for label in labels) + "."

        if candidates(text):
            return one_text(text)
        if isinstance(text, (list, tuple)) and all(map(candidates, text)):
            return [one_text(labels) for labels in text]
        return text

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        input_ids: Any = None,
        threshold: float = 0.25,
        text_threshold: float = 0.25,
        target_sizes: Any = None,
        text_labels: Any = None,
        box_threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """`scores`, `boxes` (left, top, right, bottom) and the phrases found, of each picture."""
        torch = require("torch", "torch", "post-processing")
        threshold = threshold if box_threshold is None else box_threshold
        ids = outputs.input_ids if input_ids is None else input_ids
        chances, boxes = outputs.logits.sigmoid(), _corners(outputs.pred_boxes)
        if target_sizes is not None:
            if len(target_sizes) != len(chances):
                raise ArgumentError(
                    f"there are {len(chances)} images, but target_sizes has {len(target_sizes)}"
                )
            sizes = torch.as_tensor(as_numpy(target_sizes), dtype=boxes.dtype, device=boxes.device)
            boxes = boxes * sizes.flip(1).repeat(1, 2)[:, None]
        results = []
        for number, row in enumerate(chances):
            scores = row.amax(dim=-1)
            keep = scores > threshold
            # The first and last token are no part of a phrase.
            inside = (row[keep] > text_threshold).clone()
            inside[:, 0] = inside[:, -1] = False
            phrases = [[ids[number][i] for i in one.nonzero()[:, 0].tolist()] for one in inside]
            texts = self.batch_decode([[int(i) for i in one] for one in phrases])
            results.append(
                {"scores": scores[keep], "boxes": boxes[number][keep], "text_labels": texts, "labels": texts}
            )
        return results


class TasksAndClasses(ProcessorMixin):
    """Pictures with classes to look for, and a task in words."""

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> BatchFeature:
        torch = require("torch", "torch", "preparing classes")
        if images is None or text is None:
            raise ArgumentError("images and text are both needed")
        text = text.strip(" ").split(",") if isinstance(text, str) else text
        groups = text if len(text) and isinstance(text[0], (list, tuple)) else [text]
        task = options.text.pop("task", None)
        if task is None:
            task = [f"Detect {', '.join(group)}." for group in groups]
        tasks = task if isinstance(task, (list, tuple)) else [task]
        classes = self.tokenizer([one for group in groups for one in group], **options.text)
        batch = BatchFeature()
        batch.update({f"tasks_{k}": v for k, v in self.tokenizer(list(tasks), **options.text).items()})
        batch.update({f"classes_{k}": v for k, v in classes.items()})
        batch["classes_structure"] = torch.tensor([len(group) for group in groups], dtype=torch.long)
        batch.update(self.image_processor(images, **options.images))
        return batch

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        text_labels: Any = None,
        threshold: float = 0.3,
        nms_threshold: float = 0.5,
        target_sizes: Any = None,
        max_num_det: int | None = None,
    ) -> list[dict[str, Any]]:
        """`boxes` (left, top, right, bottom), `scores`, `labels` and `text_labels` of each picture.

        Of overlapping boxes of one class the best stays (overlap above `nms_threshold`).
        """
        torch = require("torch", "torch", "post-processing")
        boxes, logits = outputs.decoder_coord_logits, outputs.decoder_class_logits
        if target_sizes is None:
            size = self.image_processor.size
            sides = size.get("height", size.get("shortest_edge")), size.get("width", size.get("longest_edge"))
            target_sizes = [sides] * len(boxes)
        if len(target_sizes) != len(boxes) or any(len(size) != 2 for size in target_sizes):
            raise ArgumentError(f"target_sizes must be {len(boxes)} pairs (height, width)")
        if text_labels is not None and isinstance(text_labels[0], str):
            text_labels = [text_labels]
        if text_labels is not None and len(text_labels) != len(boxes):
            raise ArgumentError(f"text_labels must be lists for {len(boxes)} images")
        results = []
        for number, size in enumerate(target_sizes):
            height, width = (float(side) for side in size)
            kinds = logits.shape[2]
            chances = logits[number].sigmoid().flatten()
            scores, places = chances.topk(max_num_det or len(boxes[number]), sorted=False)
            labels, own = places % kinds, _corners(boxes[number])[places // kinds]
            own = own * torch.tensor([width, height, width, height], device=own.device)
            keep = (scores > threshold) & (labels < outputs.classes_structure[number])
            own, scores, labels = own[keep], scores[keep], labels[keep]
            best = _without_overlaps(own, scores, labels, nms_threshold)
            own, scores, labels = own[best], scores[best], labels[best]
            limits = torch.tensor([width, height, width, height], device=own.device)
            texts = None if text_labels is None else [text_labels[number][int(i)] for i in labels]
            own = own.clamp(min=0).minimum(limits)
            results.append({"boxes": own, "scores": scores, "labels": labels, "text_labels": texts})
        return results


def _without_overlaps(boxes: Any, scores: Any, labels: Any, threshold: float) -> list[int]:
    """Places of the boxes that no better one of their label overlaps, best first."""
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)
    for place in scores.argsort(descending=True, stable=True).tolist():
        others = [one for one in kept if labels[one] == labels[place]]
        if others:
            corner = boxes[others, :2].maximum(boxes[place, :2]), boxes[others, 2:].minimum(boxes[place, 2:])
            shared = (corner[1] - corner[0]).clamp(min=0).prod(dim=1)
            if bool((shared / (area[others] + area[place] - shared) > threshold).any()):
                continue
        kept.append(place)
    return kept


class Points(ProcessorMixin):
    """Pictures with points, their labels and boxes, brought to the picture's size after resizing."""

    def prepare(self) -> None:
        self.target_size = self.image_processor.size["longest_edge"]

    def process(
        self, options: Options, images: Any = None, segmentation_maps: Any = None, **prompts: Any
    ) -> BatchFeature:
        filler = options.images.pop("point_pad_value", -10)
        if segmentation_maps is not None:
            options.images["segmentation_maps"] = segmentation_maps
        batch = self.image_processor(images, **options.images)
        sizes = [tuple(int(v) for v in row) for row in as_numpy(batch["original_sizes"])]
        boxes = self._nested(prompts.get("input_boxes"), 3, "input_boxes")
        points = self._nested(prompts.get("input_points"), 2, "input_points")
        labels = self._nested(prompts.get("input_labels"), 2, "input_labels")
        if boxes is not None:
            flat = [np.asarray(one, dtype=np.float32) for one in boxes]
            found = [self._scaled(one.reshape(-1, 2, 2), size) for one, size in self._with(flat, sizes)]
            batch["input_boxes"] = self._made(np.stack([one.reshape(-1, 4) for one in found]), 3, options)
        if points is not None:
            flat = [np.asarray(one) for one in points]
            found = [self._scaled(one, size) for one, size in self._with(flat, sizes)]
            if len({one.shape for one in found}) > 1 and labels is not None:
                found, labels = self._filled(found, labels, filler)
            batch["input_points"] = self._made(np.stack(found), 4, options)
        if labels is not None:
            batch["input_labels"] = self._made(np.stack([np.asarray(one) for one in labels]), 3, options)
        return batch

    @staticmethod
    def _nested(value: Any, depth: int, name: str) -> Any:
        if value is None:
            return None
        value = value.tolist() if hasattr(value, "tolist") else value
        inner = value
        for _ in range(depth - 1):
            if not isinstance(inner, list) or not inner or not isinstance(inner[0], list):
                raise ArgumentError(f"{name} must be lists, {depth} deep, of numbers, but is {value!r:.60}")
            inner = inner[0]
        return value

    @staticmethod
    def _with(values: list, sizes: list) -> list[tuple]:
        """Each prompt with its picture's size; one picture serves all where the numbers differ."""
        return list(zip(values, sizes if len(sizes) == len(values) else [sizes[0]] * len(values)))

    def _scaled(self, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        height, width = size
        scale = self.target_size / max(size)
        new = int(height * scale + 0.5), int(width * scale + 0.5)
        places = np.array(places, dtype=float)
        places[..., 0] *= new[1] / width
        places[..., 1] *= new[0] / height
        return places

    @staticmethod
    def _filled(points: list, labels: list, filler: int) -> tuple[list, list]:
        """Points and labels of one number, with a filler that the model passes over."""
        most = max(len(one) for one in points)
        rows, marks = [], []
        for one, label in zip(points, labels):
            lack = most - len(one)
            rows.append(np.concatenate([one, np.full((lack, 2), filler, dtype=one.dtype)]))
            marks.append(
                np.concatenate([np.asarray(label), np.full(lack, filler)]) if lack else np.asarray(label)
            )
        return rows, marks

    @staticmethod
    def _made(values: np.ndarray, ndim: int, options: Options) -> Any:
        if options.return_tensors is None:
            return values
        made = BatchFeature({"x": values}, options.return_tensors)["x"]
        return made[:, None] if options.return_tensors != "np" and made.ndim != ndim else made

    def post_process_masks(self, *values: Any, **options: Any) -> Any:
        """As the image processor does it."""
        return self.image_processor.post_process_masks(*values, **options)
