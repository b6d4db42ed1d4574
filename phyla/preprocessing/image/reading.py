"""Steps that end in something else than a picture: sequences of patches, colour numbers, aligned depth."""

from __future__ import annotations

import math

import numpy as np

from phyla.errors import ArgumentError, require

from .layout import FIRST, LAST, size_of, with_layout
from .resizing import by_patch_count
from .sizes import pair
from .transform import longer, normalize, resize
from .work import Work


def quantize_colours(w: Work) -> None:
    """The number of the nearest colour of `clusters` for every pixel, row by row."""
    if not w.o.do_color_quantize:
        return
    if w.o.clusters is None:
        raise ArgumentError("clusters must be given if do_color_quantize=True, but is None")
    clusters = np.array(w.o.clusters)
    pixels = np.array([with_layout(image, LAST, w.layout) for image in w.images])
    flat = pixels.reshape(-1, 3).astype(np.float64)
    far = (flat**2).sum(1)[:, None] - 2 * (flat @ clusters.T) + (clusters.T**2).sum(0)[None]
    w.images = list(far.argmin(1).reshape(len(pixels), -1))
    w.o.data_format = None


def patch_sequences(w: Work) -> None:
    """Pictures as sequences of at most `max_num_patches` flattened patches (NaFlex), with mask and grid."""
    o = w.o
    sequences, masks, shapes = [], [], []
    for image in w.images:
        if o.do_resize:
            size = by_patch_count(size_of(image, w.layout), o.patch_size, o.max_num_patches)
            image = resize(image, size, w.layout, o.resample)
        one = Work([image], w.layout, o).run(("rescale", "normalize")).images[0]
        one = with_layout(one, LAST, w.layout)
        rows, columns = one.shape[0] // o.patch_size, one.shape[1] // o.patch_size
        patches = one.reshape(rows, o.patch_size, columns, o.patch_size, -1)
        patches = patches.swapaxes(1, 2).reshape(rows * columns, -1)
        missing = o.max_num_patches - len(patches)
        mask = np.ones(o.max_num_patches, dtype=np.int32)
        if missing > 0:
            patches = longer(patches, missing)
            mask[-missing:] = 0
        sequences.append(patches)
        masks.append(mask)
        shapes.append((rows, columns))
    w.images, o.data_format = sequences, None
    w.out.update(pixel_attention_mask=masks, spatial_shapes=shapes)


def standardize(w: Work) -> None:
    """Each picture less its own mean, over its own deviation (bounded below)."""
    if w.o.do_normalize:

        def change(image: np.ndarray) -> np.ndarray:
            image = image.astype(np.float32) if image.dtype == np.uint8 else image
            deviation = max(np.std(image), 1.0 / math.sqrt(np.prod(image.shape)))
            return normalize(image, np.mean(image), deviation, w.layout)

        w.each(change)


def flattened_patches(w: Work) -> None:
    """(max_patches, 2 + patch): row number, column number and pixels, of the picture scaled to fill them."""
    torch = require("torch", "torch", "cutting pictures into patches")
    most, (height, width) = w.o.max_patches, pair(w.o.patch_size, "patch_size")
    found = []
    for image in w.images:
        pixels = torch.from_numpy(np.ascontiguousarray(with_layout(image, FIRST, w.layout)))
        own_height, own_width = pixels.shape[1:]
        scale = math.sqrt(most * (height / own_height) * (width / own_width))
        rows = max(min(math.floor(scale * own_height / height), most), 1)
        columns = max(min(math.floor(scale * own_width / width), most), 1)
        pixels = torch.nn.functional.interpolate(
            pixels[None],
            size=(max(rows * height, 1), max(columns * width, 1)),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0]
        patches = pixels.reshape(-1, rows, height, columns, width).permute(1, 3, 2, 4, 0)
        patches = patches.reshape(rows * columns, -1)
        row = torch.arange(1, rows + 1).repeat_interleave(columns)
        column = torch.arange(1, columns + 1).repeat(rows)
        numbered = torch.cat([torch.stack([row, column], 1).to(torch.float32), patches], -1)
        numbered = torch.nn.functional.pad(numbered, [0, 0, 0, most - rows * columns])
        found.append(numbered.float().numpy())
    w.images, w.o.data_format = found, None
    w.out["attention_mask"] = [(rows.sum(-1) != 0).astype(np.float32) for rows in found]


STEPS = (quantize_colours, patch_sequences, standardize, flattened_patches)
