"""Resize, crop, pad, rescale and normalise torch pictures (C, H, W), as torchvision does."""

from __future__ import annotations

from typing import Any

from phyla.errors import ArgumentError, require

_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def _torch() -> Any:
    return require("torch", "torch", "the fast image processors")


def mode_of(resample: Any) -> str:
    """Torch's name of a resampling filter (Pillow's number, or a torchvision InterpolationMode)."""
    if isinstance(getattr(resample, "value", None), str):
        resample = resample.value
    mode = resample if isinstance(resample, str) else _MODES.get(2 if resample is None else int(resample), "")
    if mode not in _MODES.values():
        raise ArgumentError(
            f"resample must be nearest (0), bilinear (2) or bicubic (3) for tensors, but is {resample!r}: "
            "the class without Fast has Pillow's other filters"
        )
    return mode


def resize(image, size: tuple[int, int], resample: Any = None, antialias: bool = True):
    """A (C, H, W) tensor resized to (height, width) in its own dtype."""
    torch = _torch()
    size, mode, dtype = (int(size[0]), int(size[1])), mode_of(resample), image.dtype
    if tuple(image.shape[-2:]) == size:
        return image
    options: dict[str, Any] = {"mode": mode}
    if mode != "nearest":
        options.update(align_corners=False, antialias=antialias)
    # Bytes are resized as bytes where torch has a kernel for it (bilinear: AVX2), as torchvision chooses.
    wide = "AVX" in torch.backends.cpu.get_cpu_capability() or mode != "bilinear"
    native = dtype == torch.uint8 and image.device.type == "cpu" and wide
    if dtype in (torch.float32, torch.float64) or native or (mode == "nearest" and dtype == torch.uint8):
        return torch.nn.functional.interpolate(image[None], size=size, **options)[0]
    out = torch.nn.functional.interpolate(image[None].to(torch.float32), size=size, **options)[0]
    if mode == "bicubic" and dtype == torch.uint8:
        out = out.clamp(0, 255)
    whole = dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return (out.round() if whole else out).to(dtype)


def center_crop(image, size: tuple[float, float]):
    """The middle (height, width) of a tensor, with zeros around where it is smaller."""
    height, width = int(size[0]), int(size[1])
    tall, wide = max(height - image.shape[-2], 0), max(width - image.shape[-1], 0)
    if tall or wide:
        image = _torch().nn.functional.pad(image, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
    # Halves are rounded to the even number, unlike in the classes without Fast.
    top, left = round((image.shape[-2] - height) / 2.0), round((image.shape[-1] - width) / 2.0)
    return image[..., top : top + height, left : left + width]


def pad(image, rows: tuple[int, int], columns: tuple[int, int], value: Any = 0):
    """A tensor with rows and columns (before, after) of one value."""
    if min(*rows, *columns) < 0:
        raise ArgumentError(
            f"padding cannot be negative, but is {rows} rows and {columns} columns: resize first"
        )
    return _torch().nn.functional.pad(image, (*columns, *rows), value=value)


def rescale(image, factor: float):
    """The pixels times a factor, in float32."""
    return image * factor


def normalize(image, mean: Any, std: Any, factor: float | None = None):
    """(pixels - mean) / std by channel in float32; with `factor`, of the pixels times it (fused)."""
    torch = _torch()
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=image.device) for v in (mean, std))
    if factor is not None:
        mean, std = mean * (1.0 / factor), std * (1.0 / factor)
    mean, std = (v if v.ndim == 0 else v.view(-1, 1, 1) for v in (mean, std))
    return image.to(torch.float32).sub(mean).div_(std)
