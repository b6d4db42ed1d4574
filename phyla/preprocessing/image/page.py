"""Steps for scanned pages: cut the margin, turn, shrink, centre on the canvas; words by OCR."""

from __future__ import annotations

import numpy as np

from phyla.errors import require

from .layout import LAST, size_of, with_layout
from .sizes import pair
from .transform import pad, resize, to_picture
from .work import Work

_INK = 200  # grey levels below are ink, after stretching to 0..255


def cut_margin(w: Work) -> None:
    """The box around everything darker than the page."""
    if not w.o.do_crop_margin:
        return

    def change(image: np.ndarray) -> np.ndarray:
        picture = to_picture(image, w.layout)
        levels = np.array(picture.convert("L")).astype(np.uint8)
        low, high = levels.min(), levels.max()
        if low == high:
            return image
        ink = (levels - low) / (high - low) * 255 < _INK
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        cut = np.array(picture.crop(box)).astype(np.uint8)
        return with_layout(cut[..., None] if cut.ndim == 2 else cut, w.layout, LAST)

    w.each(change)


def align_long_axis(w: Work) -> None:
    """Turned by 90 degrees where the long sides of picture and canvas differ."""
    if not w.o.do_align_long_axis:
        return
    height, width = pair(w.o.size)

    def change(image: np.ndarray) -> np.ndarray:
        rows, columns = size_of(image, w.layout)
        if (width < height and columns > rows) or (width > height and columns < rows):
            return with_layout(np.rot90(with_layout(image, LAST, w.layout), 3), w.layout, LAST)
        return image

    w.each(change)


def thumbnail(w: Work) -> None:
    """Shrunk into the canvas (Pillow's reducing gap of 2), never enlarged."""
    if not w.o.do_thumbnail:
        return
    height, width = pair(w.o.size)

    def change(image: np.ndarray) -> np.ndarray:
        rows, columns = size_of(image, w.layout)
        new_rows, new_columns = min(rows, height), min(columns, width)
        if (new_rows, new_columns) == (rows, columns):
            return image
        if rows > columns:
            new_columns = int(columns * new_rows / rows)
        elif columns > rows:
            new_rows = int(rows * new_columns / columns)
        return resize(image, (new_rows, new_columns), w.layout, w.o.thumbnail_resample, reducing_gap=2.0)

    w.each(change)


def pad_centered(w: Work) -> None:
    """Zeros around up to the canvas; with `random_padding` at a random place."""
    if not w.o.do_pad:
        return
    height, width = pair(w.o.size)

    def change(image: np.ndarray) -> np.ndarray:
        rows, columns = size_of(image, w.layout)
        down, across = height - rows, width - columns
        if getattr(w.o, "random_padding", None):
            top, left = np.random.randint(0, down + 1), np.random.randint(0, across + 1)
        else:
            top, left = down // 2, across // 2
        return pad(image, (top, down - top), (left, across - left), w.layout)

    w.each(change)


def read_words(w: Work) -> None:
    """Words and their boxes in thousandths of the page, by Tesseract."""
    if not w.o.apply_ocr:
        return
    tesseract = require("pytesseract", "ocr", "apply_ocr=True")
    w.out["words"], w.out["boxes"] = [], []
    for image in w.images:
        page = to_picture(image, w.layout)
        found = tesseract.image_to_data(
            page, lang=w.o.ocr_lang, output_type="dict", config=w.o.tesseract_config or ""
        )
        width, height = page.size
        kept = [i for i, word in enumerate(found["text"]) if word.strip()]
        w.out["words"].append([found["text"][i] for i in kept])
        corners = [
            (
                found["left"][i],
                found["top"][i],
                found["left"][i] + found["width"][i],
                found["top"][i] + found["height"][i],
            )
            for i in kept
        ]
        w.out["boxes"].append(
            [
                [
                    int(1000 * (x / width)),
                    int(1000 * (y / height)),
                    int(1000 * (r / width)),
                    int(1000 * (b / height)),
                ]
                for x, y, r, b in corners
            ]
        )


STEPS = (cut_margin, align_long_axis, thumbnail, pad_centered, read_words)
