"""The table of fast image processors: each is a row of the other table, on tensors."""

from __future__ import annotations

from typing import Any

from .rows import ROWS
from .table import Row

# Every fast class saves these, set or not.
_SHARED: dict[str, Any] = {
    "do_resize": None,
    "size": None,
    "default_to_square": True,
    "resample": None,
    "do_center_crop": None,
    "crop_size": None,
    "do_rescale": None,
    "rescale_factor": 1 / 255,
    "do_normalize": None,
    "image_mean": None,
    "image_std": None,
    "do_convert_rgb": None,
    "return_tensors": None,
    "data_format": "channels_first",
    "input_data_format": None,
    "device": None,
}


_DETECTION: dict[str, Any] = {
    "whole": ("pixel_values", "pixel_mask"),
    "own": {"return_segmentation_masks": None},
}
_PATCHES: dict[str, Any] = {"whole": ("pixel_values", "pixel_attention_mask", "spatial_shapes")}


def _fast(
    name: str, square: bool = True, resize: str = "any_kind", whole: tuple[str, ...] = (), **changes: Any
) -> Row:
    """The row of a fast class; `whole`: outputs that are one tensor even where return_tensors=None."""
    row = ROWS[name]
    settings = {**_SHARED, "default_to_square": square, **row.settings, **changes.pop("own", {})}
    changes["fixed"] = {**changes.get("fixed", row.fixed), "whole": whole}
    sizes = row.sizes if row.sizes is not None else {"size": square, "crop_size": True}
    call = tuple(dict.fromkeys((*row.call, "device")))
    fields: dict[str, Any] = {
        "resize": resize,
        "sizes": sizes,
        "call": call,
        "settings": settings,
        "alias": None,
    }
    kept = ("steps", "kind", "inputs", "fixed", "post", "old")
    return Row(
        **{**{k: getattr(row, k) for k in kept}, **fields, "take": "flat", "rgb": "convert", **changes}
    )


FAST_ROWS: dict[str, Row] = {
    "BlipImageProcessorFast": _fast("BlipImageProcessor"),
    "CLIPImageProcessorFast": _fast("CLIPImageProcessor", square=False),
    "ConvNextImageProcessorFast": _fast(
        "ConvNextImageProcessor", square=False, steps=("resize_and_crop", "crop", "rescale", "normalize")
    ),
    "DeformableDetrImageProcessorFast": _fast("DeformableDetrImageProcessor", square=False, **_DETECTION),
    "DeiTImageProcessorFast": _fast("DeiTImageProcessor"),
    "DepthProImageProcessorFast": _fast("DepthProImageProcessor"),
    "DetrImageProcessorFast": _fast("DetrImageProcessor", square=False, **_DETECTION),
    "Gemma3ImageProcessorFast": _fast("Gemma3ImageProcessor"),
    "GotOcr2ImageProcessorFast": _fast("GotOcr2ImageProcessor"),
    "LlavaImageProcessorFast": _fast("LlavaImageProcessor", square=False),
    "LlavaNextImageProcessorFast": _fast("LlavaNextImageProcessor", square=False),
    "LlavaOnevisionImageProcessorFast": _fast(
        "LlavaOnevisionImageProcessor", square=False, fixed={"tile": "crop_size"}
    ),
    "PixtralImageProcessorFast": _fast(
        "PixtralImageProcessor", resize="whole_patches", whole=("pixel_values",)
    ),
    "Qwen2VLImageProcessorFast": _fast("Qwen2VLImageProcessor", optional=("crop_size",)),
    "RTDetrImageProcessorFast": _fast(
        "RTDetrImageProcessor", square=False, sizes={"size": False}, **_DETECTION
    ),
    "Siglip2ImageProcessorFast": _fast("Siglip2ImageProcessor", optional=("size",), **_PATCHES),
    "SiglipImageProcessorFast": _fast("SiglipImageProcessor", square=False),
    "ViTImageProcessorFast": _fast("ViTImageProcessor"),
}
