"""Which families there are, and how a public name or a model_type finds its file. Imports nothing heavy."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from phyla.errors import ConfigError, nearest
from phyla.lazy import quick_import

if TYPE_CHECKING:
    from phyla.config import PretrainedConfig
    from phyla.family import Family
    from phyla.model import PreTrainedModel


@dataclass(frozen=True)
class Row:
    """One family in the table: model_type, module, configuration class, {public class: task}, modality.

    also: {further task: public class that serves it too}, a class of this family or of one of its parts.
    others: further public names of the module: bases of the classes, configurations of parts, blocks.
    """

    model_type: str
    module: str
    config: str
    classes: dict[str, str]
    modality: str
    also: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def serving(self, task: str) -> list[str]:
        """Public names of the classes for a task."""
        names = [name for name, served in self.classes.items() if served == task]
        return names or [name for further, name in self.also.items() if further == task]

    def tasks(self) -> list[str]:
        """Every task that a class serves."""
        return sorted({*self.classes.values(), *self.also})


_registered: dict[str, Row] = {}
_registered_classes: dict[str, Any] = {}


def table() -> dict[str, Row]:
    """All rows by model_type: the built-in ones and those registered from outside."""
    from phyla.families._index import FAMILIES

    return {**FAMILIES, **_registered}


def families(modality: str | None = None, search: str = "") -> list[Row]:
    """Rows by modality (`text`, `vision`, `audio`, `multimodal`, ...) and words in names or tasks."""
    words = search.lower().split()
    rows = sorted(table().values(), key=lambda row: row.model_type)
    if modality is not None:
        rows = [row for row in rows if row.modality == modality]
    return [
        r
        for r in rows
        if all(
            w in " ".join((r.model_type, r.config, *r.classes, *r.classes.values())).lower() for w in words
        )
    ]


def row(model_type: str) -> Row:
    """The row of a model_type; ConfigError with the nearest names if there is none."""
    rows = table()
    if model_type not in rows:
        raise ConfigError(
            f"no family {model_type!r}.{nearest(str(model_type), rows)} phyla knows {len(rows)} families; "
            "`phyla models` lists them. Code in a checkpoint is never run; "
            "register a class of your own in Python"
        )
    return rows[model_type]


def public_names() -> Iterator[tuple[str, str]]:
    """Public name and the module that has it, for configurations, models and the like of all families."""
    for entry in table().values():
        for name in (entry.config, *entry.classes, *entry.others):
            yield name, entry.module


def load_family(model_type: str) -> "Family":
    """Import a family's file."""
    return quick_import(row(model_type).module).FAMILY


def config_class(model_type: str) -> "type[PretrainedConfig]":
    """The configuration class of a model_type."""
    entry = row(model_type)
    if entry.config in _registered_classes:
        return _registered_classes[entry.config]
    return getattr(quick_import(entry.module), entry.config)


def model_class(
    model_type: str, task: str, architectures: list[str] | None = None
) -> "type[PreTrainedModel]":
    """The class of a family for a task; where several serve it, the one that the checkpoint names."""
    entry = row(model_type)
    names = entry.serving(task)
    if not names:
        raise ConfigError(f"family {model_type!r} has no class for {task!r}; it has {entry.tasks()}")
    name = next((n for n in architectures or [] if n in names), names[0])
    if name in entry.classes:
        return public_class(name, entry.module)
    return public_class(name, next(r.module for r in table().values() if name in r.classes))


def public_class(name: str, module: str) -> Any:
    """A class by its public name."""
    return _registered_classes.get(name) or getattr(quick_import(module), name)


def register(
    model_type: str,
    config: "type[PretrainedConfig]",
    model: type,
    task: str = "base-model",
    modality: str = "text",
) -> None:
    """Add a configuration and model class from outside; the same model_type may be given several tasks."""
    from phyla.families._index import FAMILIES

    if model_type in FAMILIES:
        raise ConfigError(f"the built-in family {model_type!r} cannot be replaced; choose another model_type")
    if not model_type or not isinstance(model_type, str):
        raise ConfigError(f"a model_type must be a non-empty string, but is {model_type!r}")
    old = _registered.get(model_type)
    classes = {**(old.classes if old else {}), model.__name__: task}
    config.model_type = model_type
    _registered[model_type] = Row(model_type, config.__module__, config.__name__, classes, modality)
    _registered_classes[config.__name__] = config
    _registered_classes[model.__name__] = model


def describe(source: Any, repeat: bool = False) -> str:
    """The tree of a model, configuration, model_type or checkpoint; see phyla.describe."""
    return quick_import("phyla.describe").describe(source, repeat)
