"""AutoImageProcessor and AutoVideoProcessor: the class that a checkpoint asks for."""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

from phyla.checkpoints.configs import RESOLVE
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, ConfigError, MissingFileError, nearest

from ..feature import FEATURE_FILE, PROCESSOR_FILE
from .auto_table import IMAGE_NAMES, VIDEO_NAMES

_registered: dict[str, tuple[type | None, type | None]] = {}
_KEYS = ("video_processor_type", "image_processor_type", "feature_extractor_type")


def class_named(name: str) -> Any:
    """The image or video processor class of a public name, or None."""
    from .._names import NAMES

    for pair in _registered.values():
        for cls in pair:
            if cls is not None and cls.__name__ == name:
                return cls
    module = NAMES.get(name, "")
    if not module.startswith(__name__.rsplit(".", 1)[0]) or name.startswith("Auto"):
        return None
    return getattr(importlib.import_module(module), name)


class AutoImageProcessor:
    """Finds the class in preprocessor_config.json, else by the model_type of config.json."""

    NAMES: ClassVar[dict[str, str]] = IMAGE_NAMES
    FILES: ClassVar[tuple[str, ...]] = (FEATURE_FILE,)
    WHAT: ClassVar[str] = "image processor"

    def __init__(self):
        raise ArgumentError(f"{type(self).__name__} is not made directly: use from_pretrained(source)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *,
        use_fast: bool | None = None,
        config: Any = None,
        **options: Any,
    ):
        """The image processor of a folder, JSON file or hub id.

        `use_fast` chooses the class on tensors (or not) where there are both; otherwise as the file says.
        Options that say where to look do that, all others replace settings. Raises ConfigError or
        MissingFileError.
        """
        where = {key: options.pop(key) for key in RESOLVE if key in options}
        source = resolve(pretrained_model_name_or_path, **where, weights=False)
        settings = cls._settings(source)
        name, origin = cls._name(settings, source, config)
        found = cls._class(name, use_fast)
        if found is None:
            known = sorted(set(cls.NAMES.values()))
            raise ConfigError(f"{origin}: {name!r} is no known {cls.WHAT}.{nearest(name, known)}")
        if not hasattr(found, "row") and settings is None:
            settings = found.read_settings(source)
        for key in ("force_download", "trust_remote_code", "_from_auto", "_from_pipeline"):
            options.pop(key, None)
        return found.from_dict(settings or {}, **options)

    @classmethod
    def _settings(cls, source) -> dict[str, Any] | None:
        """What the files say, or None where there is none."""
        if source.is_file() and source.suffix == ".json":
            return read_json(source)
        folder = source if source.is_dir() else source.parent
        for name in cls.FILES:
            if os.path.lexists(folder / name):
                return read_json(folder / name)
        if os.path.lexists(folder / PROCESSOR_FILE):
            joint = read_json(folder / PROCESSOR_FILE)
            for part in (cls.WHAT.replace(" ", "_"), "image_processor", "feature_extractor"):
                if isinstance(joint.get(part), dict):
                    return joint[part]
        return None

    @classmethod
    def _name(cls, settings: dict[str, Any] | None, source, config: Any) -> tuple[str, str]:
        """The class name, and the file that says so."""
        for key in _KEYS:
            name = (settings or {}).get(key)
            if isinstance(name, str) and class_named(_modern(name)) is not None:
                return _modern(name), f"{source} ({key})"
        folder = source if source.is_dir() else source.parent
        model = {} if config is None else config if isinstance(config, dict) else config.to_dict()
        if config is None and os.path.lexists(folder / "config.json"):
            model = read_json(folder / "config.json")
        kind = model.get("model_type")
        if kind in _registered:
            slow, fast = _registered[kind]
            return (slow or fast).__name__, str(folder / "config.json")  # type: ignore[union-attr]
        if kind in cls.NAMES:
            return cls.NAMES[kind], str(folder / "config.json")
        for key in _KEYS:
            if isinstance((settings or {}).get(key), str):
                return _modern(settings[key]), f"{source} ({key})"  # type: ignore[index]
        if settings is None and not model:
            raise MissingFileError(
                f"{folder} has neither {cls.FILES[0]} nor config.json: it names no {cls.WHAT}"
            )
        raise ConfigError(
            f"{folder} does not say which {cls.WHAT} it has: {cls.FILES[0]} needs `image_processor_type`, or "
            f"config.json a model_type of these, but it is {kind!r}.{nearest(str(kind), cls.NAMES)}"
        )

    @classmethod
    def _class(cls, name: str, use_fast: bool | None) -> Any:
        plain = name.removesuffix("Fast")
        for slow, fast in _registered.values():
            if plain in {c.__name__.removesuffix("Fast") for c in (slow, fast) if c is not None}:
                wanted = fast if use_fast or (use_fast is None and name.endswith("Fast")) else slow
                return wanted or slow or fast
        if use_fast is None:
            use_fast = name.endswith("Fast")
        return (class_named(f"{plain}Fast") if use_fast else None) or class_named(plain)

    @staticmethod
    def register(
        config_class,
        image_processor_class: type | None = None,
        slow_image_processor_class: type | None = None,
        fast_image_processor_class: type | None = None,
        exist_ok: bool = False,
    ) -> None:
        """Announce the classes of a configuration class (or model type) from outside."""
        slow = slow_image_processor_class or image_processor_class
        if slow is None and fast_image_processor_class is None:
            raise ArgumentError("give slow_image_processor_class or fast_image_processor_class (or both)")
        kind = config_class if isinstance(config_class, str) else config_class.model_type
        if not exist_ok and (kind in _registered or kind in IMAGE_NAMES):
            raise ArgumentError(
                f"model type {kind!r} has an image processor already: pass exist_ok=True to replace it"
            )
        _registered[kind] = (slow, fast_image_processor_class)


def _modern(name: str) -> str:
    """The image processor's name for a former feature extractor's."""
    return name.replace("FeatureExtractor", "ImageProcessor")


class AutoVideoProcessor(AutoImageProcessor):
    """Finds the class that takes a checkpoint's videos: by video_processor_type, else by the model_type."""

    NAMES = VIDEO_NAMES
    FILES = ("video_preprocessor_config.json", FEATURE_FILE)
    WHAT = "video processor"

    @classmethod
    def _name(cls, settings: dict[str, Any] | None, source, config: Any) -> tuple[str, str]:
        name, origin = super()._name(settings, source, config)
        folder = source if source.is_dir() else source.parent
        model = read_json(folder / "config.json") if os.path.lexists(folder / "config.json") else {}
        # Checkpoints of before there were video processors name their image processor in the shared file.
        by_type = VIDEO_NAMES.get(str(model.get("model_type")))
        return (
            (by_type, origin)
            if by_type is not None and "video_processor_type" not in (settings or {})
            else (name, origin)
        )
