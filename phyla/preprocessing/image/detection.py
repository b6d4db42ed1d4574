"""Pictures with boxes: image processors of detectors, whose annotations follow the pictures."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from . import targets
from .base import TableProcessor
from .inputs import to_array
from .sizes import pair
from .steps import pixel_mask
from .transform import pad_to
from .work import Work, layout_for


class Detection(TableProcessor):
    """Pictures and, in training, COCO annotations, which come back as `labels`."""

    positional = ("annotations",)

    def _settle(self, values: dict[str, Any], more: dict[str, Any]) -> None:
        if "max_size" in more and isinstance(values["size"], dict):
            values["size"]["longest_edge"] = more.pop("max_size")
        if values["do_convert_annotations"] is None:
            values["do_convert_annotations"] = values["do_normalize"]
        values["format"] = getattr(values["format"], "value", values["format"])

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        work = self._work(self._take(images), o)
        marks = self._targets(work)
        before = work.sizes()
        if o.do_resize:
            work.run(("resize",))
            marks = [targets.resized(t, a, b, work.tensors) for t, a, b in zip(marks, before, work.sizes())]
        work.run(("rescale", "normalize"))
        if o.do_convert_annotations:
            marks = [targets.to_fractions(t, size) for t, size in zip(marks, work.sizes())]
        if o.do_pad:
            marks = self._pad(work, marks)
        data: dict[str, Any] = {"pixel_values": work.arrange(), **work.out}
        if o.annotations is not None:
            data["labels"] = marks
        return data

    def _pad(self, work: Work, marks: list) -> list:
        """Pad the pictures to one size, note where they are, and take the targets along."""
        o, sizes = work.o, work.sizes()
        whole = (max(h for h, _ in sizes), max(w for _, w in sizes))
        if o.pad_size is not None:
            whole = pair(o.pad_size, "pad_size")
        work.each(lambda image: pad_to(image, whole, work.layout))
        if getattr(o, "gives_mask", True):
            work.out["pixel_mask"] = [pixel_mask(size, whole) for size in sizes]
        return [
            t if work.tensors and size == whole else targets.padded(t, size, whole, o.do_convert_annotations)
            for t, size in zip(marks, sizes)
        ]

    def pad(
        self,
        images,
        annotations: list | None = None,
        return_pixel_mask: bool | None = None,
        return_tensors=None,
        data_format=None,
        input_data_format=None,
        update_bboxes: bool = True,
        pad_size: dict | None = None,
    ) -> BatchFeature:
        """Pad finished pictures to the largest of them or to `pad_size`, with their targets."""
        arrays = [to_array(image) for image in images]
        o = self._options({"pad_size": pad_size, "do_convert_annotations": update_bboxes})
        o.data_format = data_format
        if return_pixel_mask is not None:
            o.gives_mask = return_pixel_mask
        work = Work(arrays, layout_for(arrays[0], input_data_format), o)
        marks = self._pad(work, annotations or [])
        data = {"pixel_values": work.arrange(), **work.out}
        return self._pack({**data, "labels": marks} if annotations is not None else data, return_tensors)

    def _targets(self, work: Work) -> list:
        """One target a picture, or none where no annotations are given."""
        o = work.o
        if o.annotations is None:
            return []
        annotations = [o.annotations] if isinstance(o.annotations, dict) else list(o.annotations)
        if len(annotations) != len(work.images):
            raise ArgumentError(
                f"annotations must hold one a picture ({len(work.images)}), but holds {len(annotations)}"
            )
        kind = getattr(o.format, "value", o.format)
        targets.check_annotations(kind, annotations, o.formats)
        if o.masks_path is not None and not isinstance(o.masks_path, (str, os.PathLike)):
            raise ArgumentError(f"masks_path must be a path, but is {type(o.masks_path).__name__}")
        masks = o.return_segmentation_masks
        pairs = zip(work.sizes(), annotations)
        if kind == targets.DETECTION:
            return [targets.from_detection(size, one, bool(masks)) for size, one in pairs]
        masks = True if masks is None else masks
        return [targets.from_panoptic(size, one, o.masks_path, masks) for size, one in pairs]

    def _pack(self, data: dict[str, Any], return_tensors) -> BatchFeature:
        labels = data.pop("labels", None)
        if labels is not None and return_tensors is None and "whole" in type(self).row.fixed:
            # The fast classes give targets as tensors always; sizes stay pairs.
            labels = [
                {k: v if isinstance(v, tuple) else BatchFeature({k: v}, "pt")[k] for k, v in label.items()}
                for label in labels
            ]
        batch = BatchFeature(data, return_tensors)
        if labels is not None:
            batch["labels"] = [BatchFeature(label, return_tensors) for label in labels]
        return batch
