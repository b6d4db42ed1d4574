"""Ways to make PIL pictures RGB; arrays stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .inputs import is_picture
from .transform import pillow


def convert(image: Any) -> Any:
    """Pillow's own conversion; transparency is dropped."""
    return image.convert("RGB")


def on_white(image: Any) -> Any:
    """Transparent pixels composited over white."""
    image = image.convert("RGBA")
    white = pillow().new("RGBA", image.size, (255, 255, 255))
    return pillow().alpha_composite(white, image).convert("RGB")


def pasted_on_white(image: Any) -> Any:
    """The picture pasted over white through its own transparency."""
    image = image.convert("RGBA")
    white = pillow().new("RGBA", image.size, "WHITE")
    white.paste(image, (0, 0), image)
    return white.convert("RGB")


def blended_with_white(image: Any) -> Any:
    """Pixels blended with white in float64, where any is transparent."""
    pixels = np.array(image.convert("RGBA"))
    if not (pixels[..., 3] < 255).any():
        return image.convert("RGB")
    alpha = pixels[..., 3:] / 255.0
    return pillow().fromarray(((1 - alpha) * 255 + alpha * pixels[..., :3]).astype("uint8"))


WAYS: dict[str, Callable[[Any], Any]] = {
    "convert": convert, "on_white": on_white, "pasted": pasted_on_white, "blended": blended_with_white,
}  # fmt: skip


def to_rgb(image: Any, way: str) -> Any:
    """A PIL picture in RGB; anything else unchanged."""
    if not is_picture(image) or image.mode == "RGB":
        return image
    return WAYS[way](image)
