"""Image processors whose samples hold several pictures each: tiles, padding over pictures, masks."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from .base import TableProcessor
from .crops import grids
from .inputs import as_nested_list, check_images, fetched, is_picture, to_array
from .layout import FIRST, LAST, ChannelDimension, channels_of, infer_layout, size_of, window, with_layout
from .rgb import on_white, to_rgb
from .sizes import pair
from .steps import pixel_mask
from .transform import LANCZOS, pad_to, pillow, resize, to_picture
from .work import Work

_CHANNELS = (1, 3, 4)


def padded_samples(work: Work, counts: list[int]) -> tuple[list, list]:
    """Pictures by sample, all of one size, as many in each (blank ones at the end), and their masks."""
    sizes = work.sizes()
    whole, most = (max(h for h, _ in sizes), max(w for _, w in sizes)), max(counts)
    channels = channels_of(work.images[0], work.layout)
    blank = np.zeros((channels, *whole) if work.layout == FIRST else (*whole, channels), dtype=np.uint8)
    done = iter(
        [(pad_to(image, whole, work.layout), pixel_mask(s, whole)) for image, s in zip(work.images, sizes)]
    )
    samples = [[next(done) for _ in range(n)] + [(blank, np.zeros(whole))] * (most - n) for n in counts]
    images = [[_arranged(image, work) for image, _ in sample] for sample in samples]
    return images, [[mask for _, mask in sample] for sample in samples]


def _arranged(image: np.ndarray, work: Work) -> np.ndarray:
    return image if work.o.data_format is None else with_layout(image, work.o.data_format, work.layout)


def by_sample(work: Work, counts: list[int]) -> list[list]:
    """Pictures by sample, in the order of channels that was asked for."""
    done = iter(work.arrange())
    return [[next(done) for _ in range(n)] for n in counts]


class Nested(TableProcessor):
    """Samples of pictures, padded to one size, with `pixel_attention_mask`."""

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        groups = as_nested_list(fetched(images))
        work = self._work([image for group in groups for image in group], o)
        work.run(type(self).row.steps)
        each = len(work.images) // sum(len(group) for group in groups)
        counts = [each * len(group) for group in groups]
        if not o.do_pad:
            return {"pixel_values": by_sample(work, counts)}
        padded, masks = padded_samples(work, counts)
        return {"pixel_values": np.array(padded), "pixel_attention_mask": np.array(masks)}


class SplitNested(TableProcessor):
    """Samples of pictures cut into tiles of at most `max_image_size`, each picture's thumbnail last."""

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        groups = as_nested_list(fetched(images))
        check_images(groups)
        flat = [image for group in groups for image in group]
        palettes = [image.getpalette() if is_picture(image) and image.mode == "P" else None for image in flat]
        arrays = [self._with_channels(to_array(image), o) for image in flat]
        layout = infer_layout(arrays[0], _CHANNELS) if o.input_data_format is None else o.input_data_format
        edge = o.max_image_size["longest_edge"]
        tiles: list[list[np.ndarray]] = []
        grid: list[tuple[int, int]] = []
        for image, palette in zip(arrays, palettes):
            if o.do_resize:
                image = self._resize(image, _enlarged(size_of(image, layout), o.size), layout, o.resample)
            if o.do_image_splitting:
                target = _whole_tiles(size_of(image, layout), edge)
                found, shape = self._split(self._resize(image, target, layout, o.resample), layout, edge)
            else:
                found, shape = [self._resize(image, (edge, edge), layout, o.resample)], (0, 0)
            if o.do_convert_rgb:
                found = [_rgb(tile, palette, layout) for tile in found]
            tiles.append(found)
            grid.append(shape)
        done = iter(zip(tiles, grid))
        samples = [[next(done) for _ in group] for group in groups]
        work = Work([tile for found in tiles for tile in found], ChannelDimension(layout), o)
        work.run(("rescale", "normalize"))
        counts = [sum(len(found) for found, _ in sample) for sample in samples]
        data = self._padded(work, counts, o)
        data["rows"] = [[shape[0] for _, shape in sample] for sample in samples]
        data["cols"] = [[shape[1] for _, shape in sample] for sample in samples]
        data["_grid"] = o.return_row_col_info
        return data

    def _padded(self, work: Work, counts: list[int], o: SimpleNamespace) -> dict[str, Any]:
        if not o.do_pad:
            return {"pixel_values": by_sample(work, counts)}
        images, masks = padded_samples(work, counts)
        if o.return_tensors is None:
            return {"pixel_values": images, "pixel_attention_mask": masks}
        return {"pixel_values": np.array(images), "pixel_attention_mask": np.array(masks)}

    def _pack(self, data: dict[str, Any], return_tensors) -> BatchFeature:
        shapes, wanted = {key: data.pop(key) for key in ("rows", "cols")}, data.pop("_grid")
        batch = BatchFeature(data, return_tensors)
        if wanted:
            batch.update(shapes)
        return batch

    @staticmethod
    def _with_channels(image: np.ndarray, o: SimpleNamespace) -> np.ndarray:
        if image.ndim != 2:
            return image
        return image[None] if o.input_data_format == FIRST else image[..., None]

    @staticmethod
    def _resize(image: np.ndarray, size: tuple[int, int], layout: str, resample: int) -> np.ndarray:
        """Bytes resized by Pillow; one channel may be colour numbers, so its values are never mixed."""
        last = with_layout(image, LAST, layout)
        if image.shape[-1] == 1:
            picture = to_picture(last, LAST).convert("L")
            resample = 0
        else:
            picture = to_picture(last, LAST)
        out = np.array(picture.resize((size[1], size[0]), resample=resample))
        return with_layout(out[..., None] if out.ndim == 2 else out, layout, LAST)

    def _split(self, image: np.ndarray, layout: str, edge: int) -> tuple[list[np.ndarray], tuple[int, int]]:
        """Tiles of at most edge x edge, row by row, and the thumbnail; their (rows, columns)."""
        height, width = size_of(image, layout)
        if height <= edge and width <= edge:
            return [image], (0, 0)
        rows, columns = math.ceil(height / edge), math.ceil(width / edge)
        tall, wide = math.ceil(height / rows), math.ceil(width / columns)
        tiles = [
            window(
                image, layout, tall * r, wide * c, min(tall, height - tall * r), min(wide, width - wide * c)
            )
            for r in range(rows)
            for c in range(columns)
        ]
        if (height, width) != (edge, edge):
            image = self._resize(image, (edge, edge), layout, LANCZOS)
        return [*tiles, image], (rows, columns)


def _enlarged(own: tuple[int, int], size: dict[str, int]) -> tuple[int, int]:
    """The longer edge to `longest_edge` (at most 4096), the other even; or height and width."""
    if "longest_edge" not in size:
        return pair(size)
    height, width = own
    aspect, longest = width / height, size["longest_edge"]
    if width >= height:
        height, width = int(longest / aspect), longest
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > 4096:
        height, width = int(4096 / aspect), 4096
    elif height > width and height > 4096:
        height, width = 4096, int(4096 * aspect)
    return max(height, 1), max(width, 1)


def _whole_tiles(own: tuple[int, int], edge: int) -> tuple[int, int]:
    """Both edges up to multiples of the tile, the longer first."""
    height, width = own
    aspect = width / height

    def up(value: float) -> int:
        return math.ceil(value / edge) * edge

    if width >= height:
        width = up(width)
        return up(int(width / aspect)), width
    height = up(height)
    return height, up(int(height * aspect))


def _rgb(image: np.ndarray, palette: list | None, layout: str) -> np.ndarray:
    """An array as RGB over white; one channel is colour numbers where there is a palette."""
    picture = to_picture(image, layout)
    if palette is not None:
        picture = pillow().frombytes("P", picture.size, picture.tobytes())
        picture.putpalette(palette)
    return with_layout(np.array(on_white(picture)), layout, LAST)


class Tiled(TableProcessor):
    """Samples of pictures fitted into canvases of up to `max_image_tiles` tiles, with the canvas of each."""

    def _settle(self, values: dict[str, Any], more: dict[str, Any]) -> None:
        self._check_tiles(SimpleNamespace(**values))

    @staticmethod
    def _check_tiles(o: SimpleNamespace) -> None:
        for name in ("do_pad", "do_resize"):
            if not getattr(o, name):
                raise ArgumentError(f"{name} must be True: pictures are always fitted into tiles")
        if not o.max_image_tiles or o.max_image_tiles <= 0:
            raise ArgumentError(f"max_image_tiles must be at least 1, but is {o.max_image_tiles!r}")
        height, width = pair(o.size)
        if height != width:
            raise ArgumentError(f"size must be a square, but is {o.size}")

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        self._check_tiles(o)
        edge, most = o.size["height"], o.max_image_tiles
        groups = as_nested_list(fetched(images))
        check_images(groups)
        samples = [[self._tiles(image, o) for image in group] for group in groups]
        count = max(len(sample) for sample in samples)
        shape = samples[0][0][0].shape
        pixels = np.zeros((len(samples), count, most, shape[1], edge, edge), dtype=np.float32)
        ids = np.zeros((len(samples), count), dtype=np.int64)
        mask = np.zeros((len(samples), count, most), dtype=np.int64)
        mask[:, :, 0] = 1
        known = canvases(most)
        for i, sample in enumerate(samples):
            for j, (tiles, canvas) in enumerate(sample):
                pixels[i, j, : len(tiles)] = tiles
                ids[i, j] = known.index(canvas) + 1
                mask[i, j, : canvas[0] * canvas[1]] = 1
        tiles_each = [[len(tiles) for tiles, _ in sample] for sample in samples]
        return {
            "pixel_values": pixels,
            "aspect_ratio_ids": ids,
            "aspect_ratio_mask": mask,
            "num_tiles": tiles_each,
        }

    def _tiles(self, image: Any, o: SimpleNamespace) -> tuple[np.ndarray, tuple[int, int]]:
        """(tiles, C, edge, edge) of one picture, and its canvas in tiles (rows, columns)."""
        if o.do_convert_rgb:
            image = to_rgb(image, "on_white")
        layout = o.input_data_format
        if layout is None and is_picture(image):
            layout = LAST
        pixels = with_layout(to_array(image), FIRST, layout)
        edge, own = o.size["height"], size_of(pixels, FIRST)
        canvas = best_canvas(own, o.max_image_tiles, edge)
        whole = (canvas[0] * edge, canvas[1] * edge)
        pixels = resize(pixels, fit_to_canvas(own, whole, edge), FIRST, o.resample)
        pixels = Work([pad_to(pixels, whole, FIRST)], FIRST, o).run(("rescale", "normalize")).images[0]
        tiles = pixels.reshape(-1, canvas[0], edge, canvas[1], edge).transpose(1, 3, 0, 2, 4)
        return tiles.reshape(canvas[0] * canvas[1], -1, edge, edge), canvas

    def _pack(self, data: dict[str, Any], return_tensors) -> BatchFeature:
        counts = data.pop("num_tiles")
        batch = BatchFeature(data, return_tensors)
        batch["num_tiles"] = counts
        return batch


def canvases(most: int) -> list[tuple[int, int]]:
    """All canvases of at most so many tiles, by their first number: the order of their ids."""
    return sorted(grids(1, most))


def best_canvas(own: tuple[int, int], most: int, edge: int) -> tuple[int, int]:
    """(rows, columns) of the canvas that enlarges least, else shrinks least; of equals the smallest."""
    found = [(c, min(c[0] * edge / own[0], c[1] * edge / own[1])) for c in canvases(most)]
    larger = [scale for _, scale in found if scale >= 1]
    chosen = min(larger) if larger else max(scale for _, scale in found)
    return min((c for c, scale in found if scale == chosen), key=lambda c: c[0] * c[1])


def fit_to_canvas(own: tuple[int, int], whole: tuple[int, int], edge: int) -> tuple[int, int]:
    """(height, width) of the picture inside its canvas, at least one tile long where it is small."""
    height, width = (min(max(value, edge), limit) for value, limit in zip(own, whole))
    by_height, by_width = height / own[0], width / own[1]
    if by_width < by_height:
        return min(math.floor(own[0] * by_width) or 1, height), width
    return height, min(math.floor(own[1] * by_height) or 1, width)
