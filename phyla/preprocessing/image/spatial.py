"""Image processors by area: sizes are multiples of a patch, and their area is bounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from .base import TableProcessor
from .inputs import as_flat_list, as_videos, fetched, fetched_videos, is_picture, to_array
from .layout import FIRST, LAST, infer_layout, with_layout
from .resizing import by_area
from .transform import is_tensor, joined, normalize, pad_to, pillow, rescale, resize, stacked


class PatchGrid(TableProcessor):
    """Pictures and videos as one list of flattened patches, with the grid (time, height, width) of each."""

    positional = ("videos",)

    def _settle(self, values: dict[str, Any], more: dict[str, Any]) -> None:
        size = values["size"]
        if "shortest_edge" not in size or "longest_edge" not in size:
            raise ArgumentError(
                f"size must have the keys shortest_edge and longest_edge, but has {sorted(size)}"
            )
        for name, key in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if values[name] is not None:
                size[key] = values[name]
            values[name] = size[key]

    def preprocess(self, images=None, *args: Any, **options: Any) -> BatchFeature:
        """Preprocess pictures or videos into patches; min_pixels and max_pixels bound the area."""
        size = options.get("size")
        if size is not None:
            for name, key in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
                if key not in size:
                    raise ArgumentError(
                        f"size must have the keys shortest_edge and longest_edge, but has {sorted(size)}"
                    )
                if options.get(name) is None:
                    options[name] = size[key]
        return super().preprocess(images, *args, **options)

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        data: dict[str, Any] = {}
        if images is not None:
            found = [self._patches([image], o) for image in as_flat_list(fetched(images))]
            data = _joined("pixel_values", "image_grid_thw", found)
        if o.videos is not None:
            # Videos replace pictures of the same call, as in the public preprocessing.
            data = _joined(
                "pixel_values_videos",
                "video_grid_thw",
                [self._patches(video, o) for video in as_videos(fetched_videos(o.videos))],
            )
        if not data:
            raise ArgumentError("give images or videos")
        return data

    def _patches(self, frames: list, o: SimpleNamespace) -> tuple[np.ndarray, tuple[int, int, int]]:
        """(patches, channels * time * patch * patch) and (time, height, width) of a picture or a video."""
        work = self._work(frames, o)
        size = work.sizes()[0]
        if o.do_resize:
            size = by_area(size, o.patch_size * o.merge_size, o.min_pixels, o.max_pixels)
            work.each(lambda image: resize(image, size, work.layout, o.resample))
        work.run(("rescale", "normalize"))
        pixels = stacked([with_layout(image, FIRST, work.layout) for image in work.images])
        step, patch, merge = o.temporal_patch_size, o.patch_size, o.merge_size
        if len(pixels) % step:
            pixels = stacked([*pixels, *[pixels[-1]] * (step - 1)])
        grid = (len(pixels) // step, size[0] // patch, size[1] // patch)
        channels = pixels.shape[1]
        pixels = pixels.reshape(
            grid[0], step, channels, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
        )
        axes = (0, 3, 6, 4, 7, 2, 1, 5, 8)
        pixels = pixels.permute(axes) if is_tensor(pixels) else pixels.transpose(axes)
        return pixels.reshape(grid[0] * grid[1] * grid[2], channels * step * patch * patch), grid


def _joined(pixels: str, grid: str, found: list) -> dict[str, Any]:
    return {
        pixels: joined([patches for patches, _ in found]),
        grid: np.array([one for _, one in found]),
    }


class ByArea(TableProcessor):
    """Pictures resized to a bounded area, padded to one size; and pictures back from pixel values."""

    def _settle(self, values: dict[str, Any], more: dict[str, Any]) -> None:
        more.pop("do_pad", None)
        values["size"] = {"min_pixels": values["min_pixels"], "max_pixels": values["max_pixels"]}

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        found = []
        for image in as_flat_list(fetched(images)):
            work = self._work([image], o)
            if o.do_resize:
                size = by_area(work.sizes()[0], o.spatial_factor, o.min_pixels, o.max_pixels)
                work.images = [resize(work.images[0], size, work.layout, o.resample)]
            found += work.run(("rescale", "normalize")).arrange()
        # Read from the last two axes in either channel order, as the models of this kind expect.
        sizes = [image.shape[-2:] for image in found]
        if o.do_pad:
            whole = (max(h for h, _ in sizes), max(w for _, w in sizes))
            layout = o.data_format or FIRST
            found = np.array([pad_to(image, whole, layout) for image in found])  # type: ignore[assignment]
        return {"pixel_values": found, "image_sizes": sizes}

    def unnormalize(self, image, image_mean, image_std, input_data_format=None) -> np.ndarray:
        """pixels * std + mean, by channel."""
        mean = image_mean if isinstance(image_mean, (list, tuple)) else [image_mean] * 3
        std = image_std if isinstance(image_std, (list, tuple)) else [image_std] * 3
        if len(mean) != 3 or len(std) != 3:
            raise ArgumentError(
                f"image_mean and image_std must have 3 values, but have {len(mean)} and {len(std)}"
            )
        back = tuple(-m / s for m, s in zip(mean, std))
        return normalize(image, back, tuple(1 / s for s in std), input_data_format)

    def postprocess(
        self,
        images,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean=None,
        image_std=None,
        return_tensors: str = "PIL.Image.Image",
        input_data_format=None,
    ):
        """Pixel values back to pictures (PIL, or arrays of bytes with return_tensors "np" or "pt")."""
        from .inputs import as_list

        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        do_normalize = self.do_normalize if do_normalize is None else do_normalize
        factor = 1.0 / self.rescale_factor if rescale_factor is None else rescale_factor
        mean = self.image_mean if image_mean is None else image_mean
        std = self.image_std if image_std is None else image_std
        found = as_list(images)
        if is_picture(found[0]):
            return found if len(found) > 1 else found[0]
        layout = input_data_format or infer_layout(found[0])
        pictures = return_tensors == "PIL.Image.Image" and do_normalize and do_rescale
        values: list[Any] = []
        for image in found:
            pixels = to_array(image)
            if do_normalize:
                pixels = self.unnormalize(pixels, mean, std, layout)
            if do_rescale:
                pixels = rescale(pixels, factor).clip(0, 255).astype(np.uint8)
            if pictures:
                values.append(pillow().fromarray(np.ascontiguousarray(with_layout(pixels, LAST, layout))))
            else:
                values.extend(pixels)
        kind = None if return_tensors == "PIL.Image.Image" else return_tensors
        return BatchFeature({"pixel_values": values}, kind)
