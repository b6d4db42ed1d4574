"""From a source to its configuration object."""

import os
from pathlib import Path
from typing import Any

from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError, MissingFileError
from phyla.registry import config_class, row


def read_config(path: Path) -> dict[str, Any]:
    """The config.json object of a resolved folder or file; a GGUF file's is made from its header."""
    if path.is_dir() and os.path.lexists(path / "config.json"):
        return read_json(path / "config.json")
    ggufs = sorted(path.glob("*.gguf")) if path.is_dir() else [path] if path.suffix == ".gguf" else []
    if len(ggufs) == 1:
        from phyla.checkpoints.weights import open_weight_file

        with open_weight_file(ggufs[0]) as weights:
            return dict(weights.config or {})
    if path.is_file() and os.path.lexists(path.parent / "config.json"):
        return read_json(path.parent / "config.json")
    raise MissingFileError(f"{path} has no config.json (nor a single .gguf file that would hold one)")


def make_config(
    data: dict[str, Any], where: Any, cls: type[PretrainedConfig] | None = None, **changes: Any
) -> PretrainedConfig:
    """The configuration object for config.json's content; `cls` checks that the file is of that family."""
    model_type = data.get("model_type")
    if cls is not None and cls.model_type and model_type not in (None, cls.model_type):
        inner = _part_for(data, cls)
        if inner is None:
            raise ConfigError(
                f"{cls.__name__} describes model_type {cls.model_type!r}, but {where} is {model_type!r}; "
                "use AutoConfig, or the classes of that family"
            )
        data, model_type = inner, cls.model_type
    if model_type is None and cls is not None and cls is not PretrainedConfig:
        if not cls.model_type:
            return cls.from_dict(data, **changes)
        model_type = cls.model_type
    if not isinstance(model_type, str):
        raise ConfigError(
            f"config.json must name its model_type, but has {model_type!r} ({where}); add one of those that "
            "`phyla models` lists"
        )
    try:
        row(model_type)
        kind = config_class(model_type)
        if cls is None or issubclass(kind, cls) or issubclass(cls, kind):
            return kind.from_dict(data, **changes)
        # A part without a model_type of its own (SAM's prompt encoder), asked for by its class.
        parts = [p.to_dict() for p in kind.from_dict(data).__dict__.values() if isinstance(p, cls)]
        return cls.from_dict(parts[0] if parts else data, **changes)
    except ConfigError as error:
        raise type(error)(f"{error} (config of {where})") from None


def _part_for(data: dict[str, Any], cls: type[PretrainedConfig]) -> dict[str, Any] | None:
    """The part of a config.json that describes a model of cls: as the whole family reads it, else by name."""
    try:
        whole = config_class(str(data["model_type"])).from_dict(data)
        parts = [p.to_dict() for p in whole.__dict__.values() if isinstance(p, cls)]
    except ConfigError:
        parts = [v for v in data.values() if isinstance(v, dict) and v.get("model_type") == cls.model_type]
    return parts[0] if parts else None


def load_config(
    source: str | os.PathLike, cls: type[PretrainedConfig] | None = None, **options: Any
) -> PretrainedConfig:
    """Read the configuration of a folder, GGUF file, hub id or weight package.

    Options that say where to look (revision, cache_dir, local_files_only, token, subfolder) do that; all
    others replace keys. With return_unused_kwargs=True the result is (config, keys that it does not know).
    """
    where = {k: options.pop(k) for k in RESOLVE if k in options}
    unused = options.pop("return_unused_kwargs", False)
    data = read_config(resolve(source, **where, weights=False))
    if not unused:
        return make_config(data, source, cls, **options)
    config = make_config(data, source, cls)
    known = {
        k: v for k, v in options.items() if k in config.__dict__ or k in config.ALIASES or k == "num_labels"
    }
    config.update(known)
    return config, {k: v for k, v in options.items() if k not in known}  # type: ignore[return-value]


RESOLVE = ("revision", "cache_dir", "local_files_only", "token", "subfolder")
