"""Pictures from paths, URLs and base64 text."""

from __future__ import annotations

import base64
import binascii
import io
import os
import urllib.parse
import urllib.request
from typing import Any

from phyla.errors import ArgumentError, require

MAX_BYTES = 256 << 20
AGENT = {"User-Agent": "phyla"}


def load_image(image: Any, timeout: float | None = None) -> Any:
    """The RGB picture of a path, an http(s) URL, base64 text, a data URL or a PIL picture, turned upright.

    Raises ArgumentError for anything else, and for files that hold no picture.
    """
    pillow = require("PIL.Image", "vision", "loading pictures")
    turned = require("PIL.ImageOps", "vision", "loading pictures").exif_transpose
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if isinstance(image, str):
        try:
            image = pillow.open(_source(image, timeout))
        except (OSError, ValueError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(
                f"a picture must be a path, an http(s) URL or base64 text of a picture file, "
                f"but {_shown(image)} cannot be read: {error}"
            ) from error
    elif not (hasattr(image, "getbands") and hasattr(image, "tobytes")):
        raise ArgumentError(
            f"a picture must be a path, URL, base64 text or PIL picture, but is {type(image).__name__}"
        )
    return turned(image).convert("RGB")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _source(text: str, timeout: float | None) -> str | io.BytesIO:
    if urllib.parse.urlsplit(text[:2048]).scheme in ("http", "https"):
        request = urllib.request.Request(text, headers=AGENT)
        with urllib.request.urlopen(request, timeout=timeout or 60) as answer:
            data = answer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ArgumentError(f"a picture may have at most {MAX_BYTES} bytes, but {_shown(text)} has more")
        return io.BytesIO(data)
    if len(text) < 4096 and os.path.isfile(text):
        return text
    encoded = text.split(",", 1)[1] if text.startswith("data:image/") and "," in text else text
    try:
        return io.BytesIO(base64.b64decode(encoded, validate=False))
    except (binascii.Error, ValueError) as error:
        raise ArgumentError(
            f"{_shown(text)} is no file here, no http(s) URL and no base64 text of a picture"
        ) from error


def load_images(images: Any, timeout: float | None = None) -> Any:
    """The pictures of one source, a list of sources, or a list of lists."""
    if isinstance(images, (list, tuple)):
        return [load_images(image, timeout) for image in images]
    return load_image(images, timeout)
