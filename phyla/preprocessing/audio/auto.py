"""AutoFeatureExtractor: the class for sound (or an old one for pictures) that a checkpoint asks for."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from phyla.checkpoints.configs import RESOLVE
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, ConfigError, MissingFileError, nearest

from ..feature import FEATURE_FILE, FeatureExtractionMixin
from .auto_table import EXTRACTOR_NAMES

_registered: dict[str, type] = {}
_KEYS = ("feature_extractor_type", "image_processor_type")


def extractor_named(name: str | None) -> Any:
    """The feature extractor or image processor class of a public name, or None."""
    from .._names import NAMES

    for cls in _registered.values():
        if cls.__name__ == name:
            return cls
    name = name or ""
    if name.startswith("Auto") or not name.endswith(("FeatureExtractor", "ImageProcessor", "ProcessorFast")):
        return None
    module = NAMES.get(name)
    return None if module is None else getattr(importlib.import_module(module), name)


class AutoFeatureExtractor:
    """Finds the class in preprocessor_config.json, else by the model_type of config.json."""

    def __init__(self):
        raise ArgumentError("AutoFeatureExtractor is not made directly: use from_pretrained(source)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, config: Any = None, **options: Any
    ):
        """The feature extractor of a folder, JSON file or hub id.

        Options that say where to look do that, all others replace settings. Raises ConfigError or
        MissingFileError.
        """
        where = {key: options.pop(key) for key in RESOLVE if key in options}
        source = resolve(pretrained_model_name_or_path, **where, weights=False)
        try:
            settings = FeatureExtractionMixin.read_settings(source)
        except MissingFileError:
            settings = {}
        found = next(filter(None, (extractor_named(settings.get(key)) for key in _KEYS)), None)
        kind = cls._model_type(source, config)
        if found is None and kind is not None:
            found = _registered.get(kind) or extractor_named(EXTRACTOR_NAMES.get(kind))
        if found is None:
            raise cls._unknown(source, settings, kind)
        for key in ("force_download", "trust_remote_code", "_from_auto", "_from_pipeline"):
            options.pop(key, None)
        return found.from_dict(settings or found.read_settings(source), **options)

    @staticmethod
    def _model_type(source: Path, config: Any) -> str | None:
        if config is not None:
            return (config if isinstance(config, dict) else config.to_dict()).get("model_type")
        folder = source if source.is_dir() else source.parent
        there = os.path.lexists(folder / "config.json")
        return read_json(folder / "config.json").get("model_type") if there else None

    @staticmethod
    def _unknown(source: Path, settings: dict[str, Any], kind: str | None) -> Exception:
        if not settings and kind is None:
            return MissingFileError(
                f"{source} has neither {FEATURE_FILE} nor config.json: it names no feature extractor"
            )
        named = next((settings[key] for key in _KEYS if settings.get(key)), None)
        known = sorted(set(EXTRACTOR_NAMES.values()))
        if named is not None:
            return ConfigError(f"{source}: {named!r} is no known feature extractor.{nearest(named, known)}")
        return ConfigError(
            f"{source} does not say which feature extractor it has: {FEATURE_FILE} needs"
            f" `feature_extractor_type`, or config.json a model_type that has one, but it is {kind!r}."
            f"{nearest(str(kind), EXTRACTOR_NAMES)}"
        )

    @staticmethod
    def register(config_class: Any, feature_extractor_class: type, exist_ok: bool = False) -> None:
        """Announce the feature extractor of a configuration class (or model type) from outside."""
        kind = config_class if isinstance(config_class, str) else config_class.model_type
        if (kind in _registered or kind in EXTRACTOR_NAMES) and not exist_ok:
            raise ArgumentError(
                f"model type {kind!r} has a feature extractor already: pass exist_ok=True to replace it"
            )
        _registered[kind] = feature_extractor_class
