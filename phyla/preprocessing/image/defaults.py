"""Groups of settings that most image processors share, with the colours their models were trained on."""

from __future__ import annotations

from typing import Any

Colours = tuple[list[float], list[float]]
HALF: Colours = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
IMAGENET: Colours = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPENAI: Colours = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
ONE: Colours = ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
ZERO: Colours = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


def resized(size: Any, resample: int, do_resize: bool = True) -> dict[str, Any]:
    """Settings of the resize step."""
    return {"do_resize": do_resize, "size": size, "resample": resample}


def cropped(edge: int, do_center_crop: bool = True) -> dict[str, Any]:
    """Settings of the crop step, a square."""
    return {"do_center_crop": do_center_crop, "crop_size": {"height": edge, "width": edge}}


def scaled(colours: Colours, factor: float = 1 / 255, do_normalize: bool = True) -> dict[str, Any]:
    """Settings of the rescale and normalise steps."""
    mean, std = colours
    return {
        "do_rescale": True,
        "rescale_factor": factor,
        "do_normalize": do_normalize,
        "image_mean": mean,
        "image_std": std,
    }
