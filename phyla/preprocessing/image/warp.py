"""Resampling that is not Pillow's: blur and zoom, affine maps, torch's interpolation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from .layout import FIRST, LAST, size_of, with_layout
from .resizing import RULES
from .sizes import pair
from .transform import BICUBIC, BILINEAR, is_tensor, pad
from .work import Work

_TORCH_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming", 1: "lanczos"}


def interpolate(
    image: np.ndarray, size: tuple[int, int], layout: str, mode: str, aligned: bool | None
) -> np.ndarray:
    """A picture resized by torch, without antialiasing."""
    torch = require("torch", "torch", "resizing this kind of picture")
    if is_tensor(image):
        options = {} if aligned is None else {"align_corners": aligned}
        return torch.nn.functional.interpolate(image[None], size=size, mode=mode, **options)[0]
    first = np.ascontiguousarray(with_layout(image, FIRST, layout))
    options = {} if aligned is None else {"align_corners": aligned}
    out = torch.nn.functional.interpolate(torch.from_numpy(first)[None], size=size, mode=mode, **options)[0]
    return with_layout(out.numpy(), layout, FIRST)


def resize_by_torch(w: Work) -> None:
    """To height and width by torch's interpolation of the resampling's name, corners not aligned."""
    if w.o.do_resize:
        mode = _TORCH_MODES.get(int(w.o.resample), "")
        if mode not in ("nearest", "bilinear", "bicubic"):
            raise ArgumentError(
                f"resample must be nearest (0), bilinear (2) or bicubic (3), but is {w.o.resample!r}"
            )
        size = pair(w.o.size)
        w.each(lambda image: interpolate(image, size, w.layout, mode, None))


def resize_aligned(w: Work) -> None:
    """By torch's interpolation with aligned corners, to the size that the row's rule gives."""
    if w.o.do_resize:
        if int(w.o.resample) not in (BILINEAR, BICUBIC):
            raise ArgumentError(f"resample must be bilinear (2) or bicubic (3), but is {w.o.resample!r}")
        mode = _TORCH_MODES[int(w.o.resample)]

        def change(image: np.ndarray) -> np.ndarray:
            size = RULES[w.o.resize](size_of(image, w.layout), w.o)
            return interpolate(image, size, w.layout, mode, True)

        w.each(change)


def pad_gray_square(w: Work) -> None:
    """Grey (0.5) below and to the right up to a square."""
    if w.o.do_pad:

        def change(image: np.ndarray) -> np.ndarray:
            height, width = size_of(image, w.layout)
            edge = max(height, width)
            return pad(image, (0, edge - height), (0, edge - width), w.layout, value=0.5)

        w.each(change)


def blur_and_zoom(w: Work) -> None:
    """A Gaussian blur by the shrinking factor, then linear zoom (as scikit-image does), in the old range."""
    if not w.o.do_resize:
        return
    target = pair(w.o.size)

    def change(image: np.ndarray) -> np.ndarray:
        image = with_layout(image, LAST, w.layout)
        out = image
        for axis in (0, 1):
            sigma = max(0.0, (image.shape[axis] / target[axis] - 1) / 2)
            out = blur(out, sigma, axis, mirror=True)
        ends = [_ends(_centers(image.shape[axis], target[axis]), image.shape[axis], axis) for axis in (0, 1)]
        exact = _bilinear(out.astype(np.float64), ends)
        exact = np.clip(_as_dtype(exact, image.dtype), image.min(), image.max())
        return with_layout(exact, w.layout, LAST)

    w.each(change)


def blur(values: np.ndarray, sigma: float, axis: int, mirror: bool, radius: int | None = None) -> np.ndarray:
    """A Gaussian filter along an axis (cut at four sigmas or at `radius`), kept in the values' own dtype.

    `mirror` reflects about the centre of the border value, else about its outer edge.
    """
    if sigma <= 1e-15 and radius is None:
        return values
    radius = int(4.0 * sigma + 0.5) if radius is None else radius
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 / (sigma * sigma) * x**2)
    weights = weights / weights.sum()
    widths = [(0, 0)] * values.ndim
    widths[axis] = (radius, radius)
    length = values.shape[axis]
    wide = np.pad(values.astype(np.float64), widths, mode="reflect" if mirror else "symmetric")
    moved = np.moveaxis(wide, axis, 0)
    # In the order of SciPy's sum (the centre, then pairs from afar): whole numbers are cut the same way.
    out = moved[radius : radius + length] * weights[radius]
    for k in range(radius):
        far = 2 * radius - k
        out += (moved[k : k + length] + moved[far : far + length]) * weights[k]
    return np.moveaxis(out, 0, axis).astype(values.dtype)


def _centers(own: int, length: int) -> np.ndarray:
    """Where the pixel centres of a length lie in the old one, mirrored beyond the first and the last."""
    if own == 1:
        return np.zeros(length)
    at = np.abs((np.arange(length) + 0.5) * (own / length) - 0.5) % (2 * own - 2)
    return np.where(at > own - 1, 2 * own - 2 - at, at)


def _ends(at: np.ndarray, own: int, axis: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two pixels along an axis between which places lie, each with its weight."""
    low = np.floor(at).astype(int)
    share = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return [(low.clip(0, own - 1), 1 - share), ((low + 1).clip(0, own - 1), share)]


def _bilinear(values: np.ndarray, ends: list) -> np.ndarray:
    """(H, W, C) values mixed from four corners, in the order of SciPy's sum: halves round the same way."""
    out: Any = 0.0
    for rows, tall in ends[0]:
        for columns, wide in ends[1]:
            out = out + values[rows][:, columns] * tall * wide
    return out


def _as_dtype(values: np.ndarray, dtype) -> np.ndarray:
    """Values in another dtype; whole numbers are rounded, halves up."""
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    return np.floor(values + 0.5).clip(0, np.iinfo(dtype).max).astype(dtype)


def center_and_scale(
    box, size: tuple[int, int], factor: float = 200.0, padding: float = 1.25
) -> tuple[np.ndarray, np.ndarray]:
    """Centre of a box (x, y, width, height) and its size over `factor`, widened to the aspect of `size`."""
    x, y, width, height = box[:4]
    aspect = size[1] / size[0]
    center = np.array([x + width * 0.5, y + height * 0.5], dtype=np.float32)
    if width > aspect * height:
        height = width * 1.0 / aspect
    elif width < aspect * height:
        width = height * aspect
    scale = np.array([width / factor, height / factor], dtype=np.float32)
    return center, scale * padding


def crop_boxes(w: Work) -> None:
    """One picture for every box, cut out by an unbiased affine map (UDP, arXiv:1911.07524)."""
    if not w.o.do_affine_transform:
        return
    if w.o.boxes is None or len(w.o.boxes) != len(w.images):
        count = None if w.o.boxes is None else len(w.o.boxes)
        raise ArgumentError(
            f"boxes must hold one list of boxes a picture ({len(w.images)}), but holds {count}"
        )
    size = pair(w.o.size)
    found = []
    for image, boxes in zip(w.images, w.o.boxes):
        pixels = with_layout(image, LAST, w.layout)
        for box in boxes:
            center, scale = center_and_scale(box, size, w.o.normalize_factor)
            found.append(with_layout(_cut(pixels, center, scale * 200.0, size), w.layout, LAST))
    w.images = found


def _cut(pixels: np.ndarray, center: np.ndarray, extent: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A rectangle (extent: width, height) around a centre, sampled to (height, width), zero outside."""
    forward = np.zeros((2, 3), dtype=np.float32)
    for i in range(2):
        ratio = np.float64(size[1 - i] - 1.0) / extent[i]
        forward[i, i] = ratio
        forward[i, 2] = ratio * (-0.5 * (center[i] * 2.0) + 0.5 * extent[i])
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    places = (
        inverse[1, 1] * np.arange(size[0]) + inverse[1, 2],
        inverse[0, 0] * np.arange(size[1]) + inverse[0, 2],
    )
    inside = np.ones(size, dtype=bool)
    for axis, at in enumerate(places):
        inside &= ((at >= 0) & (at <= pixels.shape[axis] - 1)).reshape((-1, 1) if axis == 0 else (1, -1))
    ends = [_ends(at, pixels.shape[axis], axis) for axis, at in enumerate(places)]
    out = _bilinear(pixels.astype(np.float64), ends)
    return _as_dtype(np.where(inside[..., None], out, 0.0), pixels.dtype)


def mirrored_border(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that `pad_mirrored` puts on each side."""
    return int(math.sqrt(size[0] / 2) * 3), int(math.sqrt(size[1] / 2) * 3)


STEPS = (resize_by_torch, resize_aligned, pad_gray_square, blur_and_zoom, crop_boxes)
