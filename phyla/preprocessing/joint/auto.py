"""AutoProcessor: the joint processor that a checkpoint asks for, or the one part that it has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from phyla.checkpoints.configs import RESOLVE
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, ConfigError, MissingFileError, PhylaError, nearest

from ..feature import FEATURE_FILE, PROCESSOR_FILE
from .auto_table import PROCESSOR_NAMES
from .finding import public_class

_registered: dict[str, type] = {}
_FILES = (PROCESSOR_FILE, FEATURE_FILE, "tokenizer_config.json", "config.json")
_SINGLE = ("AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor")


def processor_named(name: str | None) -> Any:
    """The joint processor class of a public name, or None."""
    for cls in _registered.values():
        if cls.__name__ == name:
            return cls
    single = (
        name is None
        or name.startswith("Auto")
        or "Image" in name
        or "Video" in name.removesuffix("Processor")
    )
    if name in PROCESSOR_NAMES.values() or (
        not single and str(name).endswith(("Processor", "ProcessorWithLM"))
    ):
        return public_class(name)
    return None


class AutoProcessor:
    """Finds the class in processor_config.json, else in the configs of preprocessor, tokenizer or model.

    A checkpoint without a joint processor gives its tokenizer, image processor or feature extractor.
    """

    def __init__(self):
        raise ArgumentError("AutoProcessor is not made directly: use AutoProcessor.from_pretrained(source)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, config: Any = None, **options: Any
    ):
        """The processor of a folder or hub id; options go to it and its parts.

        Raises ConfigError or MissingFileError where the files name no processor.
        """
        where = {key: options.pop(key) for key in RESOLVE if key in options}
        source = resolve(pretrained_model_name_or_path, **where, weights=False)
        folder = source if source.is_dir() else source.parent
        found = cls._found(folder, config)
        if found is not None:
            return found.from_pretrained(str(folder), **options)
        told: list[str] = []
        for name in _SINGLE:
            try:
                return public_class(name).from_pretrained(str(folder), **options)
            except (PhylaError, OSError) as error:
                told.append(f"{name}: {error}")
        if not any(os.path.lexists(folder / name) for name in _FILES):
            raise MissingFileError(f"{folder} has none of {', '.join(_FILES)}: it names no processor")
        raise ConfigError(f"{folder} names no processor, nor a part that can stand alone: " + "; ".join(told))

    @staticmethod
    def _found(folder: Path, config: Any) -> Any:
        model = {} if config is None else config if isinstance(config, dict) else config.to_dict()
        for name in _FILES:
            own = read_json(folder / name) if os.path.lexists(folder / name) else {}
            if name == "config.json" and config is not None:
                own = model
            named = own.get("processor_class")
            if not isinstance(named, str):
                continue
            found = processor_named(named)
            if found is None:
                hint = nearest(named, sorted(set(PROCESSOR_NAMES.values())))
                raise ConfigError(f"{folder / name}: processor_class {named!r} is not known.{hint}")
            return found
        if not model and os.path.lexists(folder / "config.json"):
            model = read_json(folder / "config.json")
        kind = model.get("model_type")
        return _registered.get(str(kind)) or processor_named(PROCESSOR_NAMES.get(str(kind)))

    @staticmethod
    def register(config_class: Any, processor_class: type, exist_ok: bool = False) -> None:
        """Announce the processor of a configuration class (or model type) from outside."""
        kind = config_class if isinstance(config_class, str) else config_class.model_type
        if (kind in _registered or kind in PROCESSOR_NAMES) and not exist_ok:
            raise ArgumentError(
                f"model type {kind!r} has a processor already: pass exist_ok=True to replace it"
            )
        _registered[kind] = processor_class
