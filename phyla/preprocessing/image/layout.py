"""Where the channels of an array stand, and how large its picture is."""

from __future__ import annotations

import logging
from enum import Enum
from typing import TYPE_CHECKING

from phyla.errors import ArgumentError, nearest

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


class ChannelDimension(str, Enum):
    """data_format"""

    FIRST = "channels_first"
    LAST = "channels_last"

    @classmethod
    def _missing_(cls, value):
        names = [member.value for member in cls]
        raise ArgumentError(
            f"a channel order must be one of {names}, but is {value!r}.{nearest(value, names)}"
        )


FIRST, LAST = ChannelDimension.FIRST, ChannelDimension.LAST


def infer_layout(image: np.ndarray, channels: tuple[int, ...] = (1, 3)) -> ChannelDimension:
    """The channel order of (C, H, W) or (H, W, C), also with an axis before; first where both would do.

    Raises ArgumentError where neither axis has 1 or 3 (or other given) channels.
    """
    if image.ndim not in (3, 4):
        raise ArgumentError(
            f"an image array must have 3 axes (C, H, W) or (H, W, C), but has the shape {image.shape}: "
            "add an axis for the channel, or convert the picture to RGB"
        )
    first, last = image.shape[image.ndim - 3] in channels, image.shape[-1] in channels
    if first and last:
        log.warning("the channel axis of shape %s is ambiguous: the first is taken", image.shape)
    if not first and not last:
        raise ArgumentError(
            f"one axis of an image must hold {' or '.join(map(str, channels))} channels, but its shape is "
            f"{image.shape}: convert it to RGB, or say input_data_format"
        )
    return FIRST if first else LAST


def size_of(image: np.ndarray, layout: str | None = None) -> tuple[int, int]:
    """(height, width) of an image array."""
    layout = ChannelDimension(layout) if layout is not None else infer_layout(image)
    return (image.shape[-2], image.shape[-1]) if layout == FIRST else (image.shape[-3], image.shape[-2])


def channels_of(image: np.ndarray, layout: str) -> int:
    """The number of channels of an image array."""
    return image.shape[image.ndim - 3] if layout == FIRST else image.shape[-1]


def with_layout(image: np.ndarray, target: str, layout: str | None = None) -> np.ndarray:
    """A view of a (C, H, W) or (H, W, C) array with the channels where `target` says."""
    target = ChannelDimension(target)
    layout = ChannelDimension(layout) if layout is not None else infer_layout(image)
    if layout == target:
        return image
    axes = (2, 0, 1) if target == FIRST else (1, 2, 0)
    return image.permute(axes) if hasattr(image, "permute") else image.transpose(axes)


def window(image: np.ndarray, layout: str, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A view of a rectangle of an image."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    return image[..., rows, columns] if layout == FIRST else image[rows, columns]
