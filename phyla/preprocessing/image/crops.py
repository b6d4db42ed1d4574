"""Steps that make several pictures of one: tiles of a grid, pans over long pictures, overlapping quarters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from phyla.errors import ArgumentError

from .layout import size_of, window
from .sizes import best_resolution, fitted, pair
from .transform import BICUBIC, normalize, pad, pad_to, resize
from .work import Work


def tiled(image: np.ndarray, layout: str, height: int, width: int) -> list[np.ndarray]:
    """The tiles of a picture, row by row; the last of a row or column may be smaller."""
    rows, columns = size_of(image, layout)
    return [
        window(image, layout, top, left, height, width)
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]


def pan_and_scan(w: Work) -> None:
    """After each long picture its crops along the long side; their number is given too."""
    o = w.o
    if w.tensors and o.do_pan_and_scan:
        o.do_resize = True  # the fast class resizes crops in any case
    images: list[np.ndarray] = []
    counts: list[int] = []
    for image in w.images:
        crops = _pans(image, w) if o.do_pan_and_scan else []
        images += [image, *crops]
        counts.append(len(crops))
    w.images, w.out["num_crops"] = images, counts


def _pans(image: np.ndarray, w: Work) -> list[np.ndarray]:
    o, (height, width) = w.o, size_of(image, w.layout)
    long, short = max(height, width), min(height, width)
    if long / short < o.pan_and_scan_min_ratio_to_activate:
        return []
    count = min(math.floor(long / o.pan_and_scan_min_crop_size), math.floor(long / short + 0.5))
    count = min(o.pan_and_scan_max_num_crops, max(2, count))
    edge = math.ceil(long / count)
    if min(edge, short) < o.pan_and_scan_min_crop_size:
        return []
    if width >= height:
        return [window(image, w.layout, 0, edge * i, height, edge) for i in range(count)]
    return [window(image, w.layout, edge * i, 0, edge, width) for i in range(count)]


def grids(least: int, most: int) -> list[tuple[int, int]]:
    """(columns, rows) of all grids of least..most tiles, by their number of tiles."""
    found = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if least <= c * r <= most]
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def grid_like(own: tuple[int, int], tile: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """The (columns, rows) of nearest aspect; of equals the larger, where the picture fills half of it."""
    aspect, area = own[1] / own[0], own[0] * own[1]
    best, nearest = (1, 1), math.inf
    for grid in grids(least, most):
        off = abs(aspect - grid[0] / grid[1])
        if off < nearest or (off == nearest and area > 0.5 * tile[0] * tile[1] * grid[0] * grid[1]):
            best, nearest = grid, off
    return best


def split_to_patches(w: Work) -> None:
    """Tiles of the nearest grid and a thumbnail, for each picture; their count is given too."""
    o = w.o
    if not o.crop_to_patches or o.max_patches <= 1:
        ones = [1] * len(w.images)
        w.out["num_patches"] = ones if w.tensors else np.array(ones)
        return
    tile = pair(o.size)
    images: list[np.ndarray] = []
    counts = []
    for image in w.images:
        columns, rows = grid_like(size_of(image, w.layout), tile, o.min_patches, o.max_patches)
        resample = o.resample if w.tensors else BICUBIC
        whole = resize(image, (tile[0] * rows, tile[1] * columns), w.layout, resample)
        tiles = tiled(whole, w.layout, *tile)
        if len(tiles) != 1:
            tiles.append(resize(image, tile, w.layout, resample))
        images += tiles
        counts.append(len(tiles))
    w.images, w.out["num_patches"] = images, counts if w.tensors else np.array(counts)


def best_tiles(image: np.ndarray, w: Work, possible: Sequence, edge: int) -> list[np.ndarray]:
    """Tiles of the picture fitted into the middle of the best of the possible resolutions."""
    target = best_resolution(size_of(image, w.layout), possible)
    inner = fitted(size_of(image, w.layout), target)
    whole = resize(image, inner, w.layout, w.o.resample)
    top, left = (target[0] - inner[0]) // 2, (target[1] - inner[1]) // 2
    return tiled(pad(whole, (top, top), (left, left), w.layout), w.layout, edge, edge)


def overview_and_tiles(w: Work) -> None:
    """For each picture itself squeezed into the square, then the tiles of its best resolution."""
    o = w.o
    w.out["image_sizes"] = w.sizes()
    square = o.size.get("shortest_edge")
    size = (square, square) if square is not None else pair(o.size)
    edge = size[0]
    if o.tile == "crop_size" and o.crop_size is not None:
        size = size if w.tensors else (min(size), min(size))
        edge = pair(o.crop_size, "crop_size")[0]
    if not isinstance(o.image_grid_pinpoints, (list, tuple)):
        raise ArgumentError(
            f"image_grid_pinpoints must be a list of (height, width), not {o.image_grid_pinpoints!r}"
        )
    groups = [
        [resize(image, size, w.layout, o.resample), *best_tiles(image, w, o.image_grid_pinpoints, edge)]
        for image in w.images
    ]
    w.out["_groups"] = [len(group) for group in groups]
    w.images = [image for group in groups for image in group]


def quarters(w: Work) -> None:
    """The four quarters of each picture and the picture itself."""
    if not w.o.do_image_splitting:
        return
    images = []
    for image in w.images:
        height, width = size_of(image, w.layout)
        middle, center = height // 2, width // 2
        images += [
            window(image, w.layout, 0, 0, middle, center),
            window(image, w.layout, 0, center, middle, width - center),
            window(image, w.layout, middle, 0, height - middle, center),
            window(image, w.layout, middle, center, height - middle, width - center),
            image,
        ]
    w.images = images


def fit_and_mask(w: Work) -> None:
    """Each picture (or its tiles) with the long edge at `max_image_size`, and the mask of real pixels."""
    o = w.o
    if o.max_image_size not in (490, 980):
        raise ArgumentError(f"max_image_size must be 490 or 980, but is {o.max_image_size!r}")
    edge = o.max_image_size
    groups = [
        best_tiles(image, w, o.split_resolutions, edge) if o.split_image else [image] for image in w.images
    ]
    masks, images = [], []
    for image in (image for group in groups for image in group):
        height, width = size_of(image, w.layout)
        scale = edge / max(height, width)
        if width >= height:
            size = (max(int(height * scale), o.min_image_size), edge)
        else:
            size = (edge, max(int(width * scale), o.min_image_size))
        mask = np.zeros((edge, edge), dtype=bool)
        mask[: size[0], : size[1]] = True
        masks.append(mask)
        images.append(pad_to(resize(image, size, w.layout, o.resample), (edge, edge), w.layout))
    w.images = images
    w.out.update(pixel_mask=np.stack(masks), num_crops=max(len(group) for group in groups))


def normalize_unit(w: Work) -> None:
    """Bytes over 255, then by mean and deviation, in float64; left alone where switched off."""
    if w.o.do_normalize:
        w.each(lambda image: normalize(image / 255.0, w.o.image_mean, w.o.image_std, w.layout))
    else:
        w.o.data_format = None


STEPS = (pan_and_scan, split_to_patches, overview_and_tiles, quarters, fit_and_mask, normalize_unit)
