"""What all adapter configurations share: fields as a mapping, the public dictionary form, unions, strings."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from phyla.errors import AdapterError, nearest


@dataclass
class AdapterConfig(Mapping):
    """Base of the configurations: a dataclass that also reads as a mapping (`config["r"]`)."""

    architecture: ClassVar[str | None] = None
    methods: ClassVar[dict[str, Any]] = {}

    def __getitem__(self, key: str) -> Any:
        if key == "architecture":
            return self.architecture
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(f.name for f in fields(self))

    def __len__(self) -> int:
        return len(fields(self))

    def __hash__(self) -> int:
        return id(self)

    def replace(self, **changes: Any) -> "AdapterConfig":
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as adapter_config.json holds them."""
        found = {k: v for k, v in asdict(self).items() if k not in self.unsaved()}
        return found if self.architecture is None else {"architecture": self.architecture, **found}

    def unsaved(self) -> tuple[str, ...]:
        """Fields that the public files leave out."""
        return ()

    def parts(self) -> list["AdapterConfig"]:
        """The single configurations that this one stands for."""
        return [self]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AdapterConfig":
        """A configuration of this class; AdapterError for a field that it does not have."""
        known = {f.name: f for f in fields(cls) if f.init}
        given = {k: v for k, v in data.items() if k not in ("architecture", "name")}
        unknown = [k for k in given if k not in known]
        if unknown:
            raise AdapterError(f"{cls.__name__} has no field {unknown[0]!r}.{nearest(unknown[0], known)}")
        return cls(**given)

    @classmethod
    def load(cls, config: Any, **changes: Any) -> "AdapterConfig":
        """The configuration that a string, a mapping or a configuration means, with some fields changed."""
        made = config_of(config)
        return made.replace(**changes) if changes else made


@dataclass(init=False)
class ConfigUnion(AdapterConfig):
    """Several methods under one adapter name, as `a|b` writes them."""

    architecture: ClassVar[str | None] = "union"
    configs: list[AdapterConfig] = field(default_factory=list)

    def __init__(self, *configs: Any) -> None:
        given = configs[0] if len(configs) == 1 and isinstance(configs[0], list) else configs
        self.configs = [config_of(c) for c in given]
        check_union(self.configs)

    __hash__ = AdapterConfig.__hash__

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": "union", "configs": [c.to_dict() for c in self.configs]}

    def parts(self) -> list[AdapterConfig]:
        return [part for config in self.configs for part in config.parts()]

    def replace(self, **changes: Any) -> "AdapterConfig":
        if not changes:
            return deepcopy(self)
        raise AdapterError("a union has no fields of its own: change the configurations that it joins")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ConfigUnion":
        return ConfigUnion(*data["configs"])


def check_union(configs: list[AdapterConfig]) -> None:
    """AdapterError where two members would sit at the same place in a way that cannot be told apart."""
    parts = [part for config in configs for part in config.parts()]
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            if one.architecture != other.architecture:
                continue
            if one.architecture is None and not any(
                one[k] and other[k] for k in ("mh_adapter", "output_adapter", "cross_adapter")
            ):
                continue
            raise AdapterError(
                f"a union must not hold two methods for the same place, but joins {type(one).__name__} and "
                f"{type(other).__name__}; add them as two adapters and activate Stack(first, second)"
            )


# name -> configuration; filled from the methods' own files by phyla.adapters.
ADAPTER_CONFIG_MAP: dict[str, AdapterConfig] = {}
# architecture key of adapter_config.json -> class
ARCHITECTURES: dict[str | None, type[AdapterConfig]] = {"union": ConfigUnion}
CLASSES: dict[str, type[AdapterConfig]] = {"ConfigUnion": ConfigUnion}
DEFAULT = "seq_bn"

_ONE = re.compile(r"\s*([\w+.-]+)\s*(?:\[(.*)\])?\s*", re.DOTALL)


def known(*names: str):
    """Class decorator: the configuration's public strings."""

    def register(cls: type[AdapterConfig]) -> type[AdapterConfig]:
        CLASSES[cls.__name__] = cls
        for name in names:
            ADAPTER_CONFIG_MAP[name] = cls()
        return cls

    return register


def config_of(config: Any) -> AdapterConfig:
    """The configuration that a string (`lora[r=8]|seq_bn`), a mapping or a configuration means."""
    if config is None:
        config = DEFAULT
    if isinstance(config, AdapterConfig):
        return config
    if isinstance(config, str):
        return parse(config)
    if isinstance(config, Mapping):
        data = dict(config)
        architecture = "peft" if "peft_type" in data else data.get("architecture")
        if architecture not in ARCHITECTURES:
            _register_peft()
        if architecture not in ARCHITECTURES:
            raise AdapterError(
                f"architecture {architecture!r} is none of {sorted(str(a) for a in ARCHITECTURES)}"
            )
        return ARCHITECTURES[architecture].from_dict(data)
    raise AdapterError(f"an adapter configuration must be a string, mapping or config, but is {config!r}")


def _register_peft() -> None:
    """PEFT's configurations are imported when one is first asked for."""
    import phyla.adapters.peft  # noqa: F401


def parse(text: str) -> AdapterConfig:
    """A configuration string: names joined by `|`, each with `[field=value,...]`."""
    members = _cut(text, "|")
    if len(members) > 1:
        return ConfigUnion(*(parse(member) for member in members))
    match = _ONE.fullmatch(text)
    if match is not None and match[1] not in ADAPTER_CONFIG_MAP:
        _register_peft()
    if match is None or match[1] not in ADAPTER_CONFIG_MAP:
        name = match[1] if match else text
        raise AdapterError(f"{name!r} is no adapter configuration.{nearest(name, ADAPTER_CONFIG_MAP)}")
    base = ADAPTER_CONFIG_MAP[match[1]]
    changes = {}
    for item in _cut(match[2] or "", ","):
        if not item.strip():
            continue
        key, sign, value = item.partition("=")
        key = key.strip()
        if not sign or key not in {f.name for f in fields(base)}:
            raise AdapterError(
                f"{match[1]!r} has no field {key!r}.{nearest(key, [f.name for f in fields(base)])}"
            )
        changes[key] = _value(value.strip())
    return base.replace(**changes)


def _cut(text: str, mark: str) -> list[str]:
    """The text cut at the mark, where it stands outside of brackets and quotes."""
    pieces, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in ")}]":
            depth -= 1
        if char == mark and depth == 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += char
    if depth or quote:
        raise AdapterError(f"brackets and quotes must be closed, but are not in {text!r}")
    return pieces


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if text[:1] == text[-1:] and text[:1] in ("'", '"'):
        return text[1:-1]
    if text.startswith("[") and text.endswith("]"):
        return [_value(item.strip()) for item in _cut(text[1:-1], ",") if item.strip()]
    if text.startswith("{") and text.endswith("}"):
        pairs = (item.partition(":") for item in _cut(text[1:-1], ",") if item.strip())
        return {str(_value(k.strip())): _value(v.strip()) for k, _, v in pairs}
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
