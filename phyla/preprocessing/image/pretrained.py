"""The image processor of models from timm: its settings are those of the weights, in config.json."""

from __future__ import annotations

import logging
import math
import os
from types import SimpleNamespace
from typing import Any

from phyla.checkpoints.configs import RESOLVE
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, ConfigError, MissingFileError, require

from ..feature import BatchFeature
from ..text.batch import framework_of
from . import sizes, tensor
from .base import BaseImageProcessor
from .defaults import IMAGENET
from .inputs import as_flat_list, check_images, fetched, to_array
from .layout import FIRST, LAST, infer_layout, size_of, with_layout
from .transform import resize, stacked, to_picture

log = logging.getLogger(__name__)

_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


class TimmWrapperImageProcessor(BaseImageProcessor):
    """Resizes to the size over `crop_pct`, crops the middle, rescales and normalises, as the weights say."""

    def __init__(self, pretrained_cfg: dict[str, Any], architecture: str | None = None, **settings: Any):
        if not isinstance(pretrained_cfg, dict):
            raise ConfigError(
                f"pretrained_cfg must be a dictionary of the weights' settings, not {pretrained_cfg!r}"
            )
        super().__init__(architecture=architecture)
        mode = pretrained_cfg.get("crop_mode") or "center"
        if mode not in ("center", "squash"):
            raise ConfigError(f"crop_mode must be 'center' or 'squash', but is {mode!r} (pretrained_cfg)")
        self.data_config = {
            "input_size": tuple(pretrained_cfg.get("input_size") or (3, 224, 224)),
            "interpolation": pretrained_cfg.get("interpolation") or "bicubic",
            "mean": tuple(pretrained_cfg.get("mean") or IMAGENET[0]),
            "std": tuple(pretrained_cfg.get("std") or IMAGENET[1]),
            "crop_pct": pretrained_cfg.get("crop_pct") or 0.875,
            "crop_mode": mode,
        }

    @classmethod
    def read_settings(cls, source, **where: Any) -> dict[str, Any]:
        """The settings in the config.json of a folder or hub id."""
        if isinstance(source, dict):
            return dict(source)
        path = resolve(source, **where, weights=False)
        path = path / "config.json" if path.is_dir() else path
        if not os.path.lexists(path):
            raise MissingFileError(
                f"there is no {path}: {cls.__name__} reads the settings of the weights there"
            )
        config = read_json(path)
        return {key: config[key] for key in ("pretrained_cfg", "architecture") if key in config}

    @classmethod
    def get_image_processor_dict(cls, source, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings that a source holds, and the options that do not say where to look."""
        where = {key: options.pop(key) for key in RESOLVE if key in options}
        return cls.read_settings(source, **where), options

    def save_pretrained(self, save_directory: str | os.PathLike) -> list[str]:
        """Write nothing: the model's own config.json holds these settings."""
        log.warning("%s is saved with its model, in config.json: nothing is written", type(self).__name__)
        return []

    def preprocess(self, images=None, return_tensors="pt", **options: Any) -> BatchFeature:
        """Preprocess pictures (PIL, arrays of bytes, paths) into "pixel_values" (batch, 3, height, width)."""
        if getattr(return_tensors, "value", return_tensors) != "pt" or options:
            raise ArgumentError(
                f'return_tensors must be "pt", and no other options, but got {return_tensors!r}, {options}'
            )
        found = as_flat_list(fetched(images))
        check_images(found)
        return BatchFeature({"pixel_values": stacked([self._one(image) for image in found])}, "pt")

    def _one(self, image: Any):
        torch = require("torch", "torch", "preprocessing for timm's models")
        o = SimpleNamespace(**self.data_config)
        target = o.input_size[-2:]
        scaled = tuple(math.floor(edge / o.crop_pct) for edge in target)
        pixels = to_array(image)
        layout = LAST if framework_of(image) is None else infer_layout(pixels)
        pixels = to_array(
            to_picture(pixels if pixels.ndim == 3 else pixels[..., None], layout).convert("RGB")
        )
        own = size_of(pixels, LAST)
        size = (
            scaled
            if o.crop_mode == "squash" or scaled[0] != scaled[1]
            else sizes.shortest_edge(own, scaled[0])
        )
        pixels = with_layout(resize(pixels, size, LAST, _FILTERS[o.interpolation]), FIRST, LAST)
        cropped = tensor.center_crop(torch.from_numpy(pixels.copy()), target)
        return tensor.normalize(cropped.to(torch.float32).div(255), o.mean, o.std)
