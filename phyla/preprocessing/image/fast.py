"""The fast image processors: the same pipeline on torch tensors, on any device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from ..text.batch import framework_of
from .base import BaseImageProcessor
from .inputs import check_images, is_picture, to_array
from .layout import FIRST, LAST, infer_layout
from .rgb import to_rgb
from .transform import stacked
from .work import Work


class BaseImageProcessorFast(BaseImageProcessor):
    """Root of the fast image processors, which keep pictures as torch tensors (C, H, W)."""


class OnTensors(BaseImageProcessorFast):
    """Turns a class of the table into its fast twin; stands before it among the bases."""

    def _options(self, given: dict[str, Any]) -> SimpleNamespace:
        device = given.pop("device", None)
        o = super()._options(given)  # type: ignore[misc]
        o.device = device if device is not None else getattr(self, "device", None)
        return o

    def preprocess(self, images=None, *args: Any, **options: Any) -> BatchFeature:
        """Preprocess pictures into tensors on `device`; return_tensors is "pt" or None (a list)."""
        kind = options.get("return_tensors")
        if getattr(kind, "value", kind) not in (None, "pt"):
            raise ArgumentError(
                f'return_tensors of a fast image processor must be "pt" or None, but is {kind!r}'
            )
        if options.get("data_format") not in (None, FIRST):
            raise ArgumentError(
                f'data_format must be "channels_first" here, but is {options["data_format"]!r}'
            )
        options.pop("data_format", None)
        if options.get("input_data_format") is None:
            options["input_data_format"] = getattr(self, "input_data_format", None)
        return super().preprocess(images, *args, **options)

    def _work(self, images: list, o: SimpleNamespace) -> Work:
        check_images(images)
        if not images:
            raise ArgumentError("images must hold at least one picture, but the list is empty")
        return Work([self._tensor(image, o) for image in images], FIRST, o)

    def _tensor(self, image: Any, o: SimpleNamespace):
        """One picture as a (C, H, W) tensor on the device of the call."""
        torch = require("torch", "torch", "the fast image processors")
        if o.do_convert_rgb:
            image = to_rgb(image, "convert")
        if framework_of(image) != "pt":
            pixels = to_array(image)
            pixels = pixels[..., None] if is_picture(image) and pixels.ndim == 2 else pixels
            picture, image = is_picture(image), torch.from_numpy(pixels)
            layout = LAST if picture else o.input_data_format
        else:
            layout = o.input_data_format
        layout = infer_layout(image) if layout is None else layout
        image = image.permute(2, 0, 1).contiguous() if layout == LAST else image.contiguous()
        return image if o.device is None else image.to(o.device)

    def _pack(self, data: dict[str, Any], return_tensors) -> BatchFeature:
        """Pictures are one tensor where tensors are asked for; some outputs always are."""
        torch = require("torch", "torch", "the fast image processors")
        whole = type(self).row.fixed["whole"]  # type: ignore[attr-defined]
        for name, value in data.items():
            if framework_of(value) == "np":
                data[name] = torch.from_numpy(value)
            elif isinstance(value, list) and (
                name in whole or (return_tensors and framework_of(value[0]) == "pt")
            ):
                parts = [v if framework_of(v) == "pt" else torch.as_tensor(v) for v in value]
                data[name] = stacked(parts)
        return super()._pack(data, return_tensors)  # type: ignore[misc]
