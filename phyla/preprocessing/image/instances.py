"""Pictures with maps of instances: image processors of models that classify masks."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from .base import TableProcessor
from .inputs import as_list, check_images, fetched, to_array
from .layout import FIRST, ChannelDimension, infer_layout, size_of
from .steps import pixel_mask
from .transform import NEAREST, pad_to
from .work import Work


def binary_masks(
    labels: np.ndarray, semantic: dict | None, ignore: int | None, reduce: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W) float32 masks and (N,) int64 classes of a map of class or instance numbers."""
    if reduce:
        if ignore is None:
            raise ArgumentError("ignore_index must be given if do_reduce_labels=True, but is None")
        labels = np.where(labels == 0, ignore, labels - 1)
    numbers = np.unique(labels)
    numbers = numbers if ignore is None else numbers[numbers != ignore]
    masks = np.stack([labels == n for n in numbers]) if len(numbers) else np.zeros((0, *labels.shape))
    classes = numbers
    if semantic is not None:
        shift = 1 if reduce else 0
        classes = np.array([semantic[int(n) + shift] - shift for n in numbers])
    return masks.astype(np.float32), classes.astype(np.int64)


class Instances(TableProcessor):
    """Pictures padded to one size and, in training, maps, which become `mask_labels` and `class_labels`."""

    positional: ClassVar[tuple[str, ...]] = ("segmentation_maps", "instance_id_to_semantic_id")

    def _settle(self, values: dict[str, Any], more: dict[str, Any]) -> None:
        longest = more.pop("max_size", None)
        if longest is not None and isinstance(values["size"], dict) and "shortest_edge" in values["size"]:
            values["size"]["longest_edge"] = longest

    def __call__(self, images=None, segmentation_maps=None, **options: Any) -> BatchFeature:
        """Preprocess pictures and, where given, their maps."""
        return self.preprocess(images, segmentation_maps=segmentation_maps, **options)

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        work = self._work(as_list(fetched(images)), o).run(type(self).row.steps)
        work.arrange()
        maps = None
        if o.segmentation_maps is not None:
            given = as_list(o.segmentation_maps, ndim=2)
            check_images(given, "segmentation_maps")
            maps = [self._map(to_array(one), o) for one in given]
        return self._encode(work, maps)

    def _map(self, labels: np.ndarray, o: SimpleNamespace) -> np.ndarray:
        """A map resized like its picture, by the nearest value."""
        flat = labels.ndim == 2
        labels = labels[None] if flat else labels
        layout = FIRST if flat else infer_layout(labels, (1,))
        found = (
            Work([labels], layout, SimpleNamespace(**{**vars(o), "resample": NEAREST}))
            .run(("resize",))
            .images[0]
        )
        return found[0] if flat else found

    def encode_inputs(
        self,
        pixel_values_list,
        segmentation_maps=None,
        instance_id_to_semantic_id=None,
        ignore_index: int | None = None,
        do_reduce_labels: bool | None = None,
        return_tensors=None,
        input_data_format=None,
        **more: Any,
    ) -> BatchFeature:
        """Pad finished pictures to one size and turn their maps into masks and classes."""
        arrays = [to_array(image) for image in pixel_values_list]
        layout = infer_layout(arrays[0]) if input_data_format is None else ChannelDimension(input_data_format)
        given = {
            "instance_id_to_semantic_id": instance_id_to_semantic_id,
            "ignore_index": ignore_index,
            "do_reduce_labels": do_reduce_labels,
            **more,
        }
        maps = None if segmentation_maps is None else [to_array(one) for one in segmentation_maps]
        return self._pack(self._encode(Work(arrays, layout, self._options(given)), maps), return_tensors)

    def _encode(self, work: Work, maps: list | None) -> dict[str, Any]:
        sizes = work.sizes()
        whole = (max(h for h, _ in sizes), max(w for _, w in sizes))
        work.each(lambda image: pad_to(image, whole, work.layout))
        data: dict[str, Any] = {
            "pixel_values": work.images,
            "pixel_mask": [pixel_mask(s, whole) for s in sizes],
        }
        if maps is not None:
            if len(maps) != len(work.images):
                raise ArgumentError(
                    f"segmentation_maps must hold one a picture ({len(work.images)}), but holds {len(maps)}"
                )
            data.update(self._labels(maps, whole, work.o))
        return data

    def _pairs(self, maps: list, o: SimpleNamespace) -> list[tuple[np.ndarray, np.ndarray]]:
        """Masks and classes of every map."""
        ids = o.instance_id_to_semantic_id
        return [
            binary_masks(
                one, ids[i] if isinstance(ids, list) else ids, o.ignore_index, bool(o.do_reduce_labels)
            )
            for i, one in enumerate(maps)
        ]

    def _labels(self, maps: list, whole: tuple[int, int], o: SimpleNamespace) -> dict[str, Any]:
        torch = require("torch", "torch", "masks for training")
        pairs = self._pairs(maps, o)
        return {
            "mask_labels": [torch.from_numpy(_widened(masks, whole, o.ignore_index)) for masks, _ in pairs],
            "class_labels": [torch.from_numpy(classes) for _, classes in pairs],
        }

    def _pack(self, data: dict[str, Any], return_tensors) -> BatchFeature:
        arrays = {key: data.pop(key) for key in ("pixel_values", "pixel_mask")}
        batch = BatchFeature(arrays, return_tensors)
        batch.update(data)
        return batch


def _widened(masks: np.ndarray, whole: tuple[int, int], ignore: int | None) -> np.ndarray:
    """(N, H, W) masks padded below and to the right with the number to ignore."""
    if not len(masks):
        return np.zeros((0, *whole), dtype=np.float32)
    height, width = size_of(masks, FIRST)
    more = ((0, 0), (0, whole[0] - height), (0, whole[1] - width))
    return np.pad(masks, more, constant_values=0 if ignore is None else ignore)


class TaskInstances(Instances):
    """Instances for a model that is told its task, with the classes of the data set named in a file."""

    positional = ("task_inputs", "segmentation_maps", "instance_id_to_semantic_id")

    def _settle(self, values: dict[str, Any], more: dict[str, Any]) -> None:
        super()._settle(values, more)
        file = values["class_info_file"]
        if file is None:
            raise ArgumentError("class_info_file must name the JSON file of the classes, but is None")
        if "metadata" not in more:
            more["metadata"] = class_metadata(values["repo_path"], file)

    def __call__(  # type: ignore[override]
        self, images=None, task_inputs=None, segmentation_maps=None, **options: Any
    ) -> BatchFeature:
        """Preprocess pictures, the task of each and, where given, their maps."""
        return self.preprocess(
            images, task_inputs=task_inputs, segmentation_maps=segmentation_maps, **options
        )

    def encode_inputs(self, pixel_values_list, task_inputs=None, segmentation_maps=None, **options: Any):  # type: ignore[override]
        """Pad finished pictures to one size and turn tasks and maps into texts, masks and classes."""
        return super().encode_inputs(pixel_values_list, segmentation_maps, task_inputs=task_inputs, **options)

    def _encode(self, work: Work, maps: list | None) -> dict[str, Any]:
        if work.o.task_inputs is None:
            work.o.task_inputs = ["panoptic"]
        data = super()._encode(work, maps)
        data["task_inputs"] = [f"the task is {task}" for task in work.o.task_inputs]
        return data

    def _labels(self, maps: list, whole: tuple[int, int], o: SimpleNamespace) -> dict[str, Any]:
        torch = require("torch", "torch", "masks for training")
        out: dict[str, list] = {"mask_labels": [], "class_labels": [], "text_inputs": []}
        # The counts run on through the batch, as in the public preprocessing of this model.
        counts = dict.fromkeys(self.metadata["class_names"], 0)
        for i, (masks, classes) in enumerate(self._pairs(maps, o)):
            kept, numbers, texts = self._task(o.task_inputs[i], masks, classes, counts)
            out["mask_labels"].append(torch.from_numpy(_widened(kept, whole, o.ignore_index)))
            out["class_labels"].append(torch.from_numpy(numbers).long())
            out["text_inputs"].append(texts)
        return out

    def _task(self, task: str, masks: np.ndarray, classes: np.ndarray, counts: dict[str, int]):
        """Masks, classes and texts of one picture for its task."""
        articles = {"semantic": "a", "instance": "an", "panoptic": "an"}
        if task not in articles:
            raise ArgumentError(f"task_inputs must be of {sorted(articles)}, but has {task!r}")
        kept: dict[Any, np.ndarray] = {}
        for index, (mask, number) in enumerate(zip(masks, classes)):
            if task == "instance" and number not in self.metadata["thing_ids"]:
                continue
            key = int(number) if task == "semantic" else (index, int(number))
            if key in kept:
                kept[key] = np.clip(kept[key] + mask, 0, 1)
                continue
            kept[key] = mask
            counts[self.metadata[str(number)]] += 1
        numbers = [key if task == "semantic" else key[1] for key in kept]
        names = [name for name in self.metadata["class_names"] for _ in range(counts[name])]
        texts = [f"a photo with a {name}" for name in names][: self.num_text]
        texts += [f"{articles[task]} {task} photo"] * (self.num_text - len(texts))
        stacked = np.array(list(kept.values())) if kept else np.zeros((0, *masks.shape[1:]), dtype=np.float32)
        return stacked, np.array(numbers, dtype=np.int64), texts


def class_metadata(repository: str | None, file: str) -> dict[str, Any]:
    """Names of the classes by number, and which of them are things, from a JSON file here or on the hub."""
    path = os.path.join(repository or "", file)
    if not os.path.isfile(path):
        if repository is None:
            raise ArgumentError(
                f"class_info_file must be a file here where repo_path is None, but {file!r} is not"
            )
        hub = require("huggingface_hub", "hub", f"reading {file} of {repository}")
        try:
            path = hub.hf_hub_download(repository, file, repo_type="dataset")
        except hub.errors.RepositoryNotFoundError:
            path = str(resolve(repository, file=file, weights=False))
    info = read_json(path)
    return {
        **{key: one["name"] for key, one in info.items()},
        "thing_ids": [int(key) for key, one in info.items() if one["isthing"]],
        "class_names": [one["name"] for one in info.values()],
    }
