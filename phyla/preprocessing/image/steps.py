"""The steps of the pipeline that many image processors share, and the table of all steps by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from phyla.errors import ArgumentError

from . import tensor, transform
from .layout import FIRST, channels_of, size_of, window
from .sizes import pair, shortest_edge
from .transform import center_crop, empty_like, flip_channels, pad, pad_to
from .work import Work


def resize(w: Work) -> None:
    """To the size that the row's rule gives."""
    if w.o.do_resize:
        w.each(w.resize)


def resize_and_crop(w: Work) -> None:
    """Below 384: the shorter edge over `crop_pct`, then its middle; from 384 on: squeezed into the square."""
    if not w.o.do_resize:
        return
    edge = w.o.size.get("shortest_edge")
    if edge is None:
        raise ArgumentError(f"size must have the key shortest_edge here, but has {sorted(w.o.size)}")

    def change(image: np.ndarray) -> np.ndarray:
        if edge >= 384:
            return transform.resize(image, (edge, edge), w.layout, w.o.resample)
        target = shortest_edge(size_of(image, w.layout), int(edge / w.o.crop_pct))
        resized = transform.resize(image, target, w.layout, w.o.resample)
        return center_crop(resized, (edge, edge), w.layout)

    w.each(change)


def crop(w: Work) -> None:
    """The middle of the picture."""
    if w.o.do_center_crop:
        size = pair(w.o.crop_size, "crop_size")
        w.each(lambda image: center_crop(image, size, w.layout))


def crop_square(w: Work) -> None:
    """A middle square with the edge of `crop_size`, or of `size`; only where the call itself asks for it."""
    if w.o.called.get("do_center_crop"):
        size = w.o.crop_size or w.o.size
        if "shortest_edge" not in size:
            raise ArgumentError(f"crop_size must have the key shortest_edge here, but has {sorted(size)}")
        edge = size["shortest_edge"]
        w.each(lambda image: center_crop(image, (edge, edge), w.layout))


def crop_share(w: Work) -> None:
    """The middle square that is size / crop_size of the shorter edge."""
    if w.o.do_center_crop:
        (height, width), (over_height, over_width) = pair(w.o.size), pair(w.o.crop_size, "crop_size")

        def change(image: np.ndarray) -> np.ndarray:
            edge = min(size_of(image, w.layout))
            return center_crop(image, (height / over_height * edge, width / over_width * edge), w.layout)

        w.each(change)


def rescale(w: Work) -> None:
    """Pixels times `rescale_factor`, less one where the options say offset."""
    o = w.o
    offset = getattr(o, "rescale_offset", None) or getattr(o, "offset", None)
    if getattr(o, "offset", None) and not o.do_rescale:
        raise ArgumentError("offset=True needs do_rescale=True")
    if o.do_rescale and not (w.tensors and o.do_normalize):
        w.each(lambda image: transform.rescale(image, o.rescale_factor) - (1 if offset else 0))


def normalize(w: Work) -> None:
    """Less the mean, over the standard deviation, by channel."""
    o = w.o
    if not o.do_normalize:
        return
    if w.tensors:
        # Tensors are rescaled in the same pass.
        factor = o.rescale_factor if o.do_rescale else None
        w.each(lambda image: tensor.normalize(image, o.image_mean, o.image_std, factor))
    else:
        w.each(lambda image: transform.normalize(image, o.image_mean, o.image_std, w.layout))


def divide_by_std(w: Work) -> None:
    """Once more over the standard deviation, for models whose top was trained so."""
    if w.o.include_top:
        w.each(lambda image: transform.normalize(image, 0, w.o.image_std, w.layout))


def to_signed(w: Work) -> None:
    """Bytes to [-1, 1]."""
    if w.o.do_normalize:
        w.each(lambda image: transform.rescale(image, 1 / 127.5) - 1)


def flip(w: Work) -> None:
    """RGB to BGR."""
    if getattr(w.o, "do_flip_channel_order", True):
        w.each(lambda image: flip_channels(image, w.layout))


def gray(w: Work) -> None:
    """Luminance in all three channels; pictures that are grey already stay."""
    if not w.o.do_grayscale:
        return

    def change(image: np.ndarray) -> np.ndarray:
        axis = 0 if w.layout == FIRST else -1
        if image.shape[axis] == 1:
            return image
        red, green, blue = np.moveaxis(image, axis, 0)[:3]
        if np.all(red == green) and np.all(green == blue):
            return image
        return np.stack([red * 0.2989 + green * 0.587 + blue * 0.114] * 3, axis=axis)

    w.each(change)


def pad_square(w: Work) -> None:
    """The picture in the middle of a square of the mean colour."""
    if not w.o.do_pad:
        return
    colour = [int(x * 255) for x in w.o.own_mean]

    def change(image: np.ndarray) -> np.ndarray:
        (height, width), channels = size_of(image, w.layout), channels_of(image, w.layout)
        if height == width:
            return image
        if len(colour) != channels:
            raise ArgumentError(
                f"image_mean must have one value for each of {channels} channels, but is {w.o.own_mean}"
            )
        edge = max(height, width)
        shape = (channels, edge, edge) if w.layout == FIRST else (edge, edge, channels)
        square = empty_like(image, shape)
        for i, value in enumerate(colour):
            square[i if w.layout == FIRST else (..., i)] = value
        top, left = (edge - height) // 2, (edge - width) // 2
        window(square, w.layout, top, left, height, width)[...] = image
        return square

    w.each(change)


def pad_multiple(w: Work) -> None:
    """Zeros around the picture up to a multiple of `size_divisor`."""
    if not w.o.do_pad:
        return
    if w.o.size_divisor is None:
        raise ArgumentError("size_divisor must be given if do_pad=True, but is None")

    def both(own: int) -> tuple[int, int]:
        more = math.ceil(own / w.o.size_divisor) * w.o.size_divisor - own
        return more // 2, more - more // 2

    def change(image: np.ndarray) -> np.ndarray:
        height, width = size_of(image, w.layout)
        return pad(image, both(height), both(width), w.layout)

    w.each(change)


def pad_next_multiple(w: Work) -> None:
    """The picture mirrored below and to the right up to the next multiple of `pad_size` above its size."""
    if w.o.do_pad:
        step = w.o.pad_size

        def change(image: np.ndarray) -> np.ndarray:
            more = [(own // step + 1) * step - own for own in size_of(image, w.layout)]
            return pad(image, (0, more[0]), (0, more[1]), w.layout, "symmetric")

        w.each(change)


def pad_to_size(w: Work) -> None:
    """Rows below and columns to the right up to `pad_size`."""
    if w.o.do_pad:

        def change(image: np.ndarray) -> np.ndarray:
            height, width = size_of(image, w.layout)
            rows, columns = w.o.pad_size.get("height", height), w.o.pad_size.get("width", width)
            more = ((0, rows - height), (0, columns - width))
            return pad(image, *more, w.layout, w.o.pad_mode, w.o.constant_values)

        w.each(change)


def pad_mirrored(w: Work) -> None:
    """A mirrored border of about three times the root of half the size on every side."""
    if w.o.do_pad:

        def change(image: np.ndarray) -> np.ndarray:
            rows, columns = (int(np.sqrt(own / 2) * 3) for own in size_of(image, w.layout))
            return pad(image, (rows, rows), (columns, columns), w.layout, "reflect")

        w.each(change)


def pad_batch(w: Work) -> None:
    """Zeros below and to the right up to the largest of the batch, and the mask of real pixels."""
    if w.o.do_pad:
        largest = (max(h for h, _ in w.sizes()), max(v for _, v in w.sizes()))
        w.out["pixel_mask"] = [pixel_mask(size, largest) for size in w.sizes()]
        w.each(lambda image: pad_to(image, largest, w.layout))


def pixel_mask(size: tuple[int, int], whole: tuple[int, int], dtype=np.int64) -> np.ndarray:
    """(height, width) of the whole with ones where the picture is, at the top left."""
    mask = np.zeros(whole, dtype=dtype)
    mask[: size[0], : size[1]] = 1
    return mask


def note_own_size(w: Work) -> None:
    """The sizes of the pictures as given."""
    w.out["original_sizes"] = w.sizes()


def note_resized_size(w: Work) -> None:
    """The sizes of the pictures before padding."""
    w.out["reshaped_input_sizes"] = w.sizes()


def pad_with_sizes(w: Work) -> None:
    """Zeros below and to the right up to the largest of the batch; the sizes before are given too."""
    sizes = w.sizes()
    largest = (max(h for h, _ in sizes), max(v for _, v in sizes))
    w.out["image_sizes"] = sizes
    w.each(lambda image: pad_to(image, largest, w.layout))


def _table() -> dict[str, Callable[[Work], None]]:
    from . import crops, page, reading, warp

    own = (
        resize, resize_and_crop, crop, crop_square, crop_share, rescale, normalize, divide_by_std, to_signed,
        flip, gray, pad_square, pad_multiple, pad_next_multiple, pad_to_size, pad_mirrored, pad_batch,
        pad_with_sizes,
        note_own_size, note_resized_size,
    )  # fmt: skip
    return {f.__name__: f for f in (*own, *crops.STEPS, *page.STEPS, *reading.STEPS, *warp.STEPS)}


class _Steps(dict):
    """The steps by name; modules of rarer steps are read at the first use."""

    def __missing__(self, name: str) -> Callable[[Work], None]:
        if not self:
            self.update(_table())
        return super().__getitem__(name) if name in self else self._unknown(name)

    def _unknown(self, name: str):
        raise KeyError(f"there is no pipeline step {name!r}; there are {sorted(self)}")


STEPS: dict[str, Callable[[Work], None]] = _Steps()
