"""Image processors that give several kinds of pictures: prompts, codebook pictures, masked patches."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from .base import TableProcessor
from .inputs import as_frames, as_list, check_images, fetched, fetched_videos, to_array
from .kinds import Videos
from .layout import FIRST, with_layout
from .sizes import pair
from .transform import NEAREST
from .work import Work

_LAPLACE_EPS = 0.1


def palette(count: int) -> list[tuple[int, int, int]]:
    """Black and `count` colours, evenly spaced in each channel from white down."""
    base = int(count ** (1 / 3)) + 1
    step = 256 // base
    places = ((n // base**2, n % base**2 // base, n % base) for n in range(count))
    return [(0, 0, 0), *((255 - r * step, 255 - g * step, 255 - b * step) for r, g, b in places)]


class Prompted(TableProcessor):
    """Pictures to segment, and an example: a prompt picture with its mask, whose classes become colours."""

    positional = ("prompt_images", "prompt_masks")

    def get_palette(self, num_labels: int) -> list[tuple[int, int, int]]:
        """The colours of the classes 0 (black) to num_labels."""
        return palette(num_labels)

    def mask_to_rgb(self, image, palette=None, data_format=None):
        """A (H, W) mask of classes in colours, or in grey where there is no palette."""
        if palette is None:
            colours = np.repeat(image[None], 3, axis=0)
        else:
            table = np.zeros((max(int(image.max()), len(palette) - 1) + 1, 3), dtype=np.uint8)
            table[: len(palette)] = palette
            if int(image.max()) >= len(palette):
                raise ArgumentError(
                    f"masks may have classes up to {len(palette) - 1}, but have {int(image.max())}"
                )
            colours = np.moveaxis(table[image.astype(int)], -1, 0)
        return with_layout(colours, data_format or FIRST, FIRST)

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        if images is None and o.prompt_images is None and o.prompt_masks is None:
            raise ArgumentError("give images, prompt_images or prompt_masks")
        data: dict[str, Any] = {}
        for name, given in (("pixel_values", images), ("prompt_pixel_values", o.prompt_images)):
            if given is not None:
                work = self._work(as_list(fetched(given)), o)
                data[name] = work.run(type(self).row.steps).arrange()
        if o.prompt_masks is not None:
            data["prompt_masks"] = self._masks(o)
        return data

    def _masks(self, o: SimpleNamespace) -> list:
        o = SimpleNamespace(**{**vars(o), "resample": NEAREST})
        masks = as_list(o.prompt_masks, ndim=2 if o.do_convert_rgb else 3)
        check_images(masks, "prompt_masks")
        arrays = [to_array(mask) for mask in masks]
        if o.do_convert_rgb:
            colours = self.get_palette(o.num_labels) if o.num_labels is not None else None
            work = Work([self.mask_to_rgb(mask, colours) for mask in arrays], FIRST, o)
        else:
            work = self._work(arrays, o)
        return work.run(type(self).row.steps).arrange()


class WithCodebook(TableProcessor):
    """Pictures for the encoder, smaller ones for the codebook, and random masks of patches."""

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        pictures = as_list(fetched(images))
        data: dict[str, Any] = {"pixel_values": self._work(pictures, o).run(type(self).row.steps).arrange()}
        if o.return_codebook_pixels:
            mapped = {k.removeprefix("codebook_"): v for k, v in vars(o).items() if k.startswith("codebook_")}
            small = self._work(pictures, SimpleNamespace(**{**vars(o), **mapped})).run(type(self).row.steps)
            if o.codebook_do_map_pixels:
                small.each(lambda image: (1 - 2 * _LAPLACE_EPS) * image + _LAPLACE_EPS)
            data["codebook_pixel_values"] = small.arrange()
        if o.return_image_mask:
            data["bool_masked_pos"] = [self._mask(o) for _ in pictures]
        return data

    @staticmethod
    def _mask(o: SimpleNamespace) -> np.ndarray:
        """Random rectangles of patches until enough are covered (BEiT, arXiv:2106.08254, algorithm 1)."""
        side = o.input_size_patches
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        total, least = o.total_mask_patches, o.mask_group_min_patches
        most = total if o.mask_group_max_patches is None else o.mask_group_max_patches
        widest = o.mask_group_max_aspect_ratio or 1 / o.mask_group_min_aspect_ratio
        aspects = (math.log(o.mask_group_min_aspect_ratio), math.log(widest))
        mask, count = np.zeros((height, width), dtype=int), 0
        while count < total:
            limit = min(total - count, most)
            for _ in range(10):
                area, aspect = random.uniform(least, limit), math.exp(random.uniform(*aspects))
                tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if wide >= width or tall >= height:
                    continue
                top, left = random.randint(0, height - tall), random.randint(0, width - wide)
                block = mask[top : top + tall, left : left + wide]
                new = tall * wide - int(block.sum())
                if 0 < new <= limit:
                    block[...] = 1
                    count += new
                    break
            else:
                break
        return mask


class MaskedVideos(Videos):
    """Videos with a mask that says which of their patches are real; shorter ones count as padded."""

    positional = ()

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        videos = as_frames(fetched_videos(images))
        longest = max(len(video) for video in videos)
        if longest > o.num_frames:
            raise ArgumentError(
                f"videos may have num_frames={o.num_frames} frames at most, but one has {longest}"
            )
        edge = o.size["shortest_edge"] if "shortest_edge" in o.size else min(pair(o.size))
        each = (edge // o.patch_size[0]) ** 2
        mask = np.array([[1] * (len(v) * each) + [0] * ((longest - len(v)) * each) for v in videos])
        suffix = "_mixed" if o.is_mixed else ""
        return {f"pixel_values{suffix}": self._videos(videos, o), f"pixel_mask{suffix}": mask}
