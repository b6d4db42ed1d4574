"""What flows through the pipeline: pictures with their channel order, options and further outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from .layout import FIRST, LAST, ChannelDimension, channels_of, infer_layout, size_of, with_layout
from .resizing import RULES
from .transform import is_tensor, normalize, rescale, resize


@dataclass
class Work:
    """Pictures on their way, all in one channel order; `out` collects what else the call returns."""

    images: list[np.ndarray]
    layout: ChannelDimension
    o: SimpleNamespace
    out: dict[str, Any] = field(default_factory=dict)

    def run(self, steps: tuple[str, ...]) -> Work:
        """This, after the named steps."""
        from .steps import STEPS

        left = list(steps)
        while left:
            name = left.pop(0)
            if name == "rescale" and left[:1] == ["normalize"] and self._scale_bytes():
                left.pop(0)
            else:
                STEPS[name](self)
        return self

    def _scale_bytes(self) -> bool:
        """Rescale and normalise bytes by one table a channel: exact, and one pass instead of five."""
        o, bytes_only = self.o, all(getattr(image, "dtype", None) == np.uint8 for image in self.images)
        offset = getattr(o, "rescale_offset", None) or getattr(o, "offset", None)
        if not (o.do_rescale and o.do_normalize and bytes_only) or offset:
            return False
        for channels in {channels_of(image, self.layout) for image in self.images}:
            levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], channels, axis=2)
            table = normalize(rescale(levels, o.rescale_factor), o.image_mean, o.image_std, LAST)[
                :, 0
            ].T.copy()
            self.images = [
                _looked_up(image, table, self.layout)
                if channels_of(image, self.layout) == channels
                else image
                for image in self.images
            ]
        return True

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace every picture by what `change` makes of it."""
        self.images = [change(image) for image in self.images]

    @property
    def tensors(self) -> bool:
        """Whether the pictures are torch tensors (the fast classes)."""
        return is_tensor(self.images[0])

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every picture."""
        return [size_of(image, self.layout) for image in self.images]

    def resize(self, image: np.ndarray, rule: str | None = None) -> np.ndarray:
        """A picture resized by the rule of the options."""
        own, name = size_of(image, self.layout), rule or self.o.resize
        target = RULES[name](own, self.o)
        if name == "shrunk" and target == own:
            return image
        return resize(image, target, self.layout, getattr(self.o, "resample", None))

    def arrange(self) -> list[np.ndarray]:
        """The pictures in the channel order that was asked for."""
        target = self.o.data_format
        if target is not None:
            self.each(lambda image: with_layout(image, target, self.layout))
            self.layout = ChannelDimension(target)
        return self.images


def _looked_up(image: np.ndarray, table: np.ndarray, layout: str) -> np.ndarray:
    """A picture of bytes with every value replaced by that of its channel's table (channels, 256)."""
    planes = with_layout(image, FIRST, layout)
    out = np.empty(planes.shape, dtype=table.dtype)
    for plane, values, found in zip(planes, table, out):
        np.take(values, plane, out=found, mode="clip")
    return with_layout(out, layout, FIRST)


def layout_for(image: np.ndarray, given: str | None) -> ChannelDimension:
    """The channel order that was given, else the inferred one."""
    return infer_layout(image) if given is None else ChannelDimension(given)
