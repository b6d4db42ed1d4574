"""Resize, crop, pad, rescale and normalise numpy pictures; resizing is Pillow's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..text.batch import framework_of
from . import tensor
from .inputs import is_picture
from .layout import FIRST, LAST, channels_of, infer_layout, size_of, with_layout

NEAREST, LANCZOS, BILINEAR, BICUBIC = 0, 1, 2, 3


class PaddingMode(str, Enum):
    """pad_mode"""

    CONSTANT = "constant"
    REFLECT = "reflect"
    REPLICATE = "replicate"
    SYMMETRIC = "symmetric"


def is_tensor(image: Any) -> bool:
    """Whether a picture is a torch tensor (C, H, W), which stays one."""
    return framework_of(image) == "pt"


def stacked(images: list) -> Any:
    """Pictures of one size as one array of the kind that they are."""
    if is_tensor(images[0]):
        return require("torch", "torch", "stacking tensors").stack(images)
    return np.array(images)


def empty_like(image: Any, shape: tuple[int, ...]) -> Any:
    """An array of another shape, of the kind and dtype of a picture, without values."""
    return image.new_empty(shape) if is_tensor(image) else np.empty(shape, dtype=image.dtype)


def joined(arrays: list) -> Any:
    """Arrays one after the other along the first axis."""
    if is_tensor(arrays[0]):
        return require("torch", "torch", "joining tensors").cat(arrays)
    return np.concatenate(arrays)


def longer(array: Any, more: int) -> Any:
    """An array with `more` zeros at the end of its first axis."""
    if is_tensor(array):
        return require("torch", "torch", "padding tensors").cat(
            [array, array.new_zeros(more, *array.shape[1:])]
        )
    return np.pad(array, ((0, more), *[(0, 0)] * (array.ndim - 1)))


def pillow() -> Any:
    """The module PIL.Image, or a typed error that says how to get it."""
    return require("PIL.Image", "vision", "working with pictures")


def needs_255(image: np.ndarray) -> bool:
    """Whether pixels are fractions, to be multiplied by 255 for bytes; ArgumentError if neither holds."""
    if image.dtype == np.uint8:
        return False
    low, high = image.min(), image.max()
    whole = np.allclose(image, image.astype(int))
    if low >= 0 and high <= (255 if whole else 1):
        return not whole
    raise ArgumentError(
        f"pixels must lie in [0, 255] as whole numbers or in [0, 1] as fractions to be resized, but lie in "
        f"[{low}, {high}]: resize before rescaling, or pass do_resize=False"
    )


def to_picture(image: Any, layout: str | None = None, scale: bool | None = None) -> Any:
    """The PIL picture of an array; one channel becomes grey."""
    if is_picture(image):
        return image
    image = with_layout(image, LAST, layout)
    image = image[..., 0] if image.shape[-1] == 1 else image
    if needs_255(image) if scale is None else scale:
        image = rescale(image, 255)
    return pillow().fromarray(np.ascontiguousarray(image.astype(np.uint8)))


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    layout: str | None = None,
    resample: int | None = None,
    reducing_gap: float | None = None,
) -> np.ndarray:
    """A picture resized to (height, width) by Pillow, in bytes; fractions come back as fractions."""
    if min(size) < 1:
        own = size_of(image, layout)
        raise ArgumentError(
            f"a picture cannot be resized to {size[0]} x {size[1]}, but its own {own[0]} x {own[1]} and "
            "the settings give that: choose a larger size (or a smaller multiple)"
        )
    if is_tensor(image):
        return tensor.resize(image, size, resample)
    layout = infer_layout(image) if layout is None else layout
    fractions = needs_255(image)
    picture = to_picture(image, layout, fractions)
    resample = BILINEAR if resample is None else resample
    resized = np.array(
        picture.resize((int(size[1]), int(size[0])), resample=resample, reducing_gap=reducing_gap)
    )
    resized = resized[..., None] if resized.ndim == 2 else resized
    resized = with_layout(resized, layout, LAST)
    return rescale(resized, 1 / 255) if fractions else resized


def rescale(image: np.ndarray, factor: float) -> np.ndarray:
    """The pixels times a factor, computed in float64, as float32."""
    if is_tensor(image):
        return tensor.rescale(image, factor)
    return (image.astype(np.float64) * factor).astype(np.float32)


def normalize(image: np.ndarray, mean: Any, std: Any, layout: str | None = None) -> np.ndarray:
    """(pixels - mean) / std by channel, in the pixels' own float type (float32 for whole numbers)."""
    if is_tensor(image):
        return tensor.normalize(image, mean, std)
    layout = infer_layout(image) if layout is None else layout
    image = image if np.issubdtype(image.dtype, np.floating) else image.astype(np.float32)
    channels = channels_of(image, layout)
    by_channel = [_per_channel(v, channels, image.dtype, name) for v, name in ((mean, "mean"), (std, "std"))]
    if layout == FIRST:
        by_channel = [v[:, None, None] for v in by_channel]
    return (image - by_channel[0]) / by_channel[1]


def _per_channel(value: Any, channels: int, dtype: Any, name: str) -> np.ndarray:
    if isinstance(value, (Sequence, np.ndarray)):
        if len(value) != channels:
            raise ArgumentError(
                f"{name} must have one value for each of {channels} channels, but has {len(value)}"
            )
        return np.array(value, dtype=dtype)
    return np.full(channels, value, dtype=dtype)


def center_crop(image: np.ndarray, size: tuple[float, float], layout: str | None = None) -> np.ndarray:
    """The middle (height, width) of a picture, with zeros around where it is smaller."""
    if is_tensor(image):
        return tensor.center_crop(image, size)
    layout = infer_layout(image) if layout is None else layout
    image = with_layout(image, FIRST, layout)
    for axis, wanted in ((-2, int(size[0])), (-1, int(size[1]))):
        own = image.shape[axis]
        start = (own - wanted) // 2
        if start < 0:
            # The border is what centring in the larger frame, then cropping its middle, leaves on each side.
            before = math.ceil((wanted - own) / 2)
            widths = [(0, 0)] * image.ndim
            widths[axis] = (before, wanted - own - before)
            image = np.pad(image, widths)
        else:
            image = (
                image[..., start : start + wanted, :] if axis == -2 else image[..., start : start + wanted]
            )
    return with_layout(image, layout, FIRST)


def pad(
    image: np.ndarray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    layout: str | None = None,
    mode: str = "constant",
    value: Any = 0,
) -> np.ndarray:
    """A picture with rows and columns (before, after) added; mode as PaddingMode says."""
    if is_tensor(image):
        return tensor.pad(image, rows, columns, value)
    layout = infer_layout(image) if layout is None else layout
    if min(*rows, *columns) < 0:
        raise ArgumentError(
            f"padding cannot be negative, but is {rows} rows and {columns} columns: resize first"
        )
    widths = ((0, 0), rows, columns) if layout == FIRST else (rows, columns, (0, 0))
    kind = {"replicate": "edge"}.get(PaddingMode(mode).value, PaddingMode(mode).value)
    if kind != "constant":
        return np.pad(image, widths, mode=kind)  # type: ignore[call-overload]
    if isinstance(value, (tuple, list)):
        value = _border_values(value, layout)
    return np.pad(image, widths, mode="constant", constant_values=value)


def _border_values(value: Any, layout: str) -> tuple:
    """Values of a border given as (all,), (before, after) or ((top, bottom), (left, right))."""
    value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if len(value) == 1:
        value = ((value[0], value[0]), (value[0], value[0]))
    elif len(value) == 2 and not isinstance(value[0], tuple):
        value = (value, value)
    return ((0, 0), *value) if layout == FIRST else (*value, (0, 0))


def pad_to(image: np.ndarray, size: tuple[int, int], layout: str, value: Any = 0) -> np.ndarray:
    """A picture with rows below and columns to the right up to (height, width)."""
    height, width = size_of(image, layout)
    return pad(image, (0, size[0] - height), (0, size[1] - width), layout, value=value)


def flip_channels(image: np.ndarray, layout: str) -> np.ndarray:
    """RGB to BGR, or back."""
    return image[..., ::-1] if layout == LAST else image[::-1]
