"""What may be given as pictures and videos: PIL, arrays of any library, URLs and paths, nested in lists."""

from __future__ import annotations

from typing import Any

from phyla.errors import ArgumentError, require

from ..text.batch import framework_of
from .load import load_image


def is_picture(value: Any) -> bool:
    """Whether a value is a PIL picture."""
    return hasattr(value, "getbands") and hasattr(value, "tobytes")


def is_image(value: Any) -> bool:
    """Whether a value is one picture or array of pixels."""
    return is_picture(value) or (framework_of(value) is not None and hasattr(value, "shape"))


def fetched(value: Any) -> Any:
    """The same nesting with every URL or path replaced by its picture."""
    if isinstance(value, str):
        return load_image(value)
    if isinstance(value, (list, tuple)) and any(isinstance(v, (str, list, tuple)) for v in value):
        return [fetched(v) for v in value]
    return value


def fetched_videos(value: Any) -> Any:
    """The same with every path or URL of a video replaced by its frames; a list of pictures is one video."""
    from .video import load_video

    if isinstance(value, (list, tuple)):
        return [fetched_videos(v) if isinstance(v, (str, list, tuple)) else v for v in value]
    if not isinstance(value, str):
        return value
    picture = value.lower().split("?")[0].endswith((".png", ".jpg", ".jpeg", ".bmp"))
    return load_image(value) if picture else load_video(value)[0]


def refuse(value: Any, what: str) -> ArgumentError:
    """The error for something that is no picture."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        kind += " of " + ", ".join(sorted({type(v).__name__ for v in value}) or ["nothing"])
    return ArgumentError(
        f"{what} must be PIL pictures, arrays (numpy, torch, tensorflow, jax), paths, URLs, or lists of them"
        f", but got {kind}"
    )


def check_images(value: Any, what: str = "images") -> None:
    """Raise ArgumentError where a leaf of nested lists is no picture."""
    if isinstance(value, (list, tuple)):
        for one in value:
            check_images(one, what)
    elif not is_image(value):
        raise refuse(value, what)


def as_list(images: Any, ndim: int = 3) -> list:
    """A picture, a batch array or a list as a list of pictures; `ndim` axes make one picture."""
    if isinstance(images, (list, tuple)) and len(images) and is_image(images[0]):
        return list(images)
    if is_picture(images):
        return [images]
    if not is_image(images):
        raise refuse(images, "images")
    if images.ndim not in (ndim, ndim + 1):
        raise ArgumentError(
            f"an image array must have {ndim} axes ({ndim + 1} for a batch), "
            f"but has the shape {tuple(images.shape)}"
        )
    return [images] if images.ndim == ndim else list(images)


def _all_images(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(is_image(v) for v in value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_all_images(v) for v in value)


def _axes(image: Any) -> int:
    return 3 if is_picture(image) else image.ndim


def as_flat_list(images: Any) -> list:
    """Pictures, batches and lists of lists as one flat list of pictures."""
    if _is_nested(images):
        return [image for group in images for image in group]
    if _all_images(images):
        if _axes(images[0]) == 3:
            return list(images)
        if _axes(images[0]) == 4:
            return [image for group in images for image in group]
    if is_image(images) and _axes(images) in (3, 4):
        return [images] if _axes(images) == 3 else list(images)
    raise refuse(images, "images")


def as_nested_list(images: Any) -> list[list]:
    """Pictures as a list of samples, each a list of pictures; a flat list is one sample."""
    if _is_nested(images):
        return [list(group) for group in images]
    if _all_images(images):
        return [list(images)] if _axes(images[0]) == 3 else [list(group) for group in images]
    if is_image(images) and _axes(images) in (3, 4):
        return [[images]] if _axes(images) == 3 else [list(images)]
    raise refuse(images, "images")


def as_videos(videos: Any) -> list[list]:
    """Videos as lists of frames: a frame, a list of frames, (T, H, W, C) arrays, or lists of them."""
    if isinstance(videos, (list, tuple)) and len(videos):
        first = videos[0]
        if isinstance(first, (list, tuple)) and len(first) and is_image(first[0]):
            if _axes(first[0]) == 4:
                return [[frame for clip in group for frame in clip] for group in videos]
            return [list(video) for video in videos]
        if is_image(first):
            return [list(videos)] if _axes(first) == 3 else [list(video) for video in videos]
    elif is_image(videos):
        return [[videos]] if _axes(videos) == 3 else [list(videos)]
    raise refuse(videos, "videos")


def as_frames(videos: Any) -> list[list]:
    """Videos as `as_videos` takes them, and a (B, T, H, W, C) array as a batch of videos."""
    if is_image(videos) and not is_picture(videos) and videos.ndim == 5:
        return [list(video) for video in videos]
    return as_videos(videos)


def as_pairs(images: Any) -> list:
    """A pair of pictures, or a list of pairs, as a flat list of pictures."""
    if isinstance(images, (list, tuple)):
        if len(images) == 2 and all(is_image(v) and _axes(v) == 3 for v in images):
            return list(images)
        pairs = all(isinstance(p, (list, tuple)) and len(p) == 2 for p in images)
        if images and pairs and all(is_image(v) and _axes(v) == 3 for p in images for v in p):
            return [image for pair in images for image in pair]
    raise ArgumentError(
        "images must be a pair of pictures or a list of such pairs (PIL, or arrays of 3 axes), "
        f"but got {type(images).__name__}"
    )


def to_array(image: Any):
    """The numpy array of a picture: (H, W) or (H, W, C) from PIL, as it is from an array."""
    np = require("numpy", "numpy", "reading pictures")
    if is_picture(image):
        return np.array(image)
    kind = framework_of(image)
    if kind == "pt":
        return image.detach().cpu().numpy()
    return np.asarray(image.numpy() if kind == "tf" else image)
