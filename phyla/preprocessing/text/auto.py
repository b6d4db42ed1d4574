"""AutoTokenizer: the tokenizer that a checkpoint asks for."""

import importlib
import logging
from pathlib import Path
from typing import Any

from phyla.errors import ArgumentError, TokenizerFileError, nearest

from .auto_table import TOKENIZER_NAMES
from .files import CONFIG_FILE, TOKENIZER_FILE, locate, read_config
from .jsonfile import read_json

log = logging.getLogger(__name__)
_GENERIC = "PreTrainedTokenizerFast"
_ALIASES = {"TokenizersBackend": _GENERIC}  # the name that Transformers 5 writes
_registered: dict[str, tuple[type | None, type | None]] = {}


def class_named(name: str | None) -> Any:
    """The tokenizer class of a public name that is registered or that phyla has, else None."""
    from .._names import NAMES

    if name is None:
        return None
    for pair in _registered.values():
        for cls in pair:
            if cls is not None and cls.__name__ == name:
                return cls
    name = _ALIASES.get(name, name)
    module = NAMES.get(name)
    if module is None or "Tokenizer" not in name or name == "AutoTokenizer":
        return None
    return getattr(importlib.import_module(module), name)


def _is_public(name: str) -> bool:
    return any(
        name.removesuffix("Fast") == (n or "").removesuffix("Fast")
        for pair in TOKENIZER_NAMES.values()
        for n in pair
    )


class AutoTokenizer:
    """Finds the class in tokenizer_config.json, else by the model_type of config.json; makes nothing
    itself.
    """

    def __init__(self):
        raise ArgumentError("AutoTokenizer is not made directly: use AutoTokenizer.from_pretrained(source)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *inputs,
        use_fast: bool = True,
        tokenizer_type: str | None = None,
        config=None,
        trust_remote_code: bool = False,
        cache_dir=None,
        force_download: bool = False,
        local_files_only: bool = False,
        token=None,
        revision: str | None = None,
        subfolder: str = "",
        **settings,
    ):
        """The tokenizer of a folder, tokenizer.json, GGUF file, hub id or installed weight package.

        `use_fast` prefers the Rust class. Further settings override those of the files. Raises
        TokenizerFileError naming file and field, or MissingFileError.
        """
        found = locate(
            pretrained_model_name_or_path,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
            subfolder=subfolder,
            force_download=force_download,
        )
        name = str(pretrained_model_name_or_path)
        gguf = settings.pop("gguf_file", None)
        if gguf is not None and found.is_dir():
            found = found / gguf
        if found.is_file() and found.suffix == ".gguf":
            from .gguf import load_gguf

            return load_gguf(found, name, settings, None)
        chosen = cls._choose(found, tokenizer_type, config, use_fast)
        return chosen._from_path(found, name, inputs, settings)

    @classmethod
    def _choose(cls, found: Path, tokenizer_type, config, use_fast: bool) -> Any:
        folder = found if found.is_dir() else found.parent
        if tokenizer_type is not None:
            if tokenizer_type not in TOKENIZER_NAMES:
                hint = nearest(tokenizer_type, TOKENIZER_NAMES)
                raise ArgumentError(
                    f"tokenizer_type must be a model type with a tokenizer, but is {tokenizer_type!r}.{hint}"
                )
            return cls._of_type(tokenizer_type, folder, use_fast)
        name, origin = read_config(folder).get("tokenizer_class"), folder / CONFIG_FILE
        model = {} if config is None else config if isinstance(config, dict) else config.to_dict()
        if config is None and (folder / "config.json").is_file():
            model = read_json(folder / "config.json")
        if name is None and model.get("tokenizer_class") is not None:
            name, origin = model["tokenizer_class"], folder / "config.json"
        if name is not None:
            return cls._of_name(name, origin, folder, use_fast)
        kind = model.get("model_type")
        if kind in ("encoder-decoder", "speech-encoder-decoder", "vision-encoder-decoder"):
            part = "encoder" if kind == "encoder-decoder" else "decoder"
            kind = (model.get(part) or {}).get("model_type")
        if kind is not None and (kind in TOKENIZER_NAMES or kind in _registered):
            return cls._of_type(kind, folder, use_fast)
        if (found if found.is_file() else folder / TOKENIZER_FILE).is_file():
            return class_named(_GENERIC)
        hint = f" (its config.json says model_type {kind!r})" if kind else ""
        raise TokenizerFileError(
            f"{folder} does not say which tokenizer it has{hint}: it needs {CONFIG_FILE} with"
            f" `tokenizer_class`, config.json with a known `model_type`, or {TOKENIZER_FILE}"
        )

    @classmethod
    def _of_name(cls, name, origin: Path, folder: Path, use_fast: bool) -> Any:
        if not isinstance(name, str):
            raise TokenizerFileError(f"{origin}: tokenizer_class must be a string, but is {name!r}")
        found = class_named(f"{name}Fast") if use_fast and not name.endswith("Fast") else None
        found = found or class_named(name)
        if found is not None:
            return found
        if _is_public(name) and (folder / TOKENIZER_FILE).is_file():
            log.warning("%s is not here yet; %s is used with the tokenizer.json beside it", name, _GENERIC)
            return class_named(_GENERIC)
        from .._names import NAMES

        if _is_public(name):
            raise TokenizerFileError(
                f"{origin}: tokenizer_class {name!r} is one that phyla does not have yet;"
                f" it could be used through {TOKENIZER_FILE}, but {folder} has none"
            )
        names = [n for n in NAMES if "Tokenizer" in n]
        raise TokenizerFileError(
            f"{origin}: tokenizer_class {name!r} is not a known tokenizer.{nearest(name, names)}"
        )

    @classmethod
    def _of_type(cls, kind: str, folder: Path, use_fast: bool) -> Any:
        if kind in _registered:
            python, rust = _registered[kind]
            return rust if rust is not None and (use_fast or python is None) else python
        slow, fast = TOKENIZER_NAMES[kind]
        name = fast if fast is not None and (use_fast or slow is None) else slow
        found = class_named(name) or class_named(slow) or class_named(fast)
        if found is not None:
            return found
        if name is not None and (folder / TOKENIZER_FILE).is_file():
            return class_named(_GENERIC)
        raise TokenizerFileError(
            f"{folder}: models of type {kind!r} use {name}, which phyla does not have yet"
        )

    @staticmethod
    def register(
        config_class,
        slow_tokenizer_class: type | None = None,
        fast_tokenizer_class: type | None = None,
        exist_ok: bool = False,
    ) -> None:
        """Announce the tokenizer classes of a configuration class (or model type) from outside."""
        if slow_tokenizer_class is None and fast_tokenizer_class is None:
            raise ArgumentError("give slow_tokenizer_class or fast_tokenizer_class (or both)")
        for name, cls, fast in (("slow", slow_tokenizer_class, False), ("fast", fast_tokenizer_class, True)):
            if cls is not None and getattr(cls, "is_fast", fast) is not fast:
                raise ArgumentError(
                    f"{name}_tokenizer_class must be a {name} tokenizer, but is {cls.__name__}"
                )
        kind = config_class if isinstance(config_class, str) else config_class.model_type
        if kind in _registered or kind in TOKENIZER_NAMES:
            if not exist_ok:
                raise ArgumentError(
                    f"model type {kind!r} has a tokenizer already: pass exist_ok=True to replace it"
                )
        old = _registered.get(kind, (None, None))
        _registered[kind] = (slow_tokenizer_class or old[0], fast_tokenizer_class or old[1])
