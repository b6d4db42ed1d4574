"""One call at the end of a family file makes its public classes."""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.heads.base import Head
from phyla.model import PreTrainedModel
from phyla.registry import load_family, model_class


@dataclass(frozen=True)
class HeadsAhead:
    """Heads that guess further tokens: a description of each (blocks/ahead.py), and their public names."""

    depths: Sequence[Any]
    names: NameMap


@dataclass(frozen=True)
class Family:
    """All that phyla knows of one public model_type.

    build: config -> backbone description. names: the name map, or config -> name map where layouts depend on
    it. heads: public class name -> head. skeleton: the call signature. width: config -> elements of a state.
    shifts_inputs: decoder inputs default to the shifted encoder inputs (BART). wraps_start: they begin with
    the last token of their row, not with a start token (mBART). segments_required:
    token_type_ids given to a model without segments are an error rather than ignored. ahead: config -> the
    heads that guess further tokens, which files hold beside the model; they are read when they are needed.
    """

    model_type: str
    config: type[PretrainedConfig]
    build: Callable[[Any], Any]
    names: NameMap | Callable[[Any], NameMap]
    heads: Mapping[str, Head]
    skeleton: type[PreTrainedModel]
    width: Callable[[Any], int]
    shifts_inputs: bool = False
    segments_required: bool = True
    wraps_start: bool = False
    inside: str = ""
    ahead: Callable[[Any], HeadsAhead] | None = None

    def table(self, config: PretrainedConfig, head: Head) -> NameMap:
        """The name map of the backbone of one class."""
        names = head.table if head.table is not None else self.names
        names = names(config) if callable(names) else names
        return head.place(names if head.prefix is None else names.but(prefix=head.prefix), config)


@dataclass(frozen=True)
class Part:
    """Another family inside a model: its description, names, width, and where its files put a task's head."""

    family: Family
    config: PretrainedConfig

    @property
    def spec(self) -> Any:
        """The backbone's description."""
        return self.family.build(self.config)

    def spec_for(self, task: str) -> Any:
        """The description of the backbone of the family's class for `task`, without a pool."""
        head = self.head(task)
        spec = (head.build or self.family.build)(self.config)
        return head.wrap(spec.but(pool=None) if "pool" in spec.args else spec, self.config)

    @property
    def features(self) -> Any:
        """The description of a `Features` block: pixels to feature maps, as the family's backbone class."""
        return self.spec_for("backbone")

    @property
    def feature_names(self) -> NameMap:
        """Names of `features` as files of the family's backbone class have them."""
        return self.names("backbone").but(prefix=self.head("backbone").prefix or "")

    def features_under(self, prefix: str) -> NameMap:
        """`feature_names` behind a prefix, of a model whose whole backbone is this part."""
        own = self.feature_names
        return own.but(prefix=f"{prefix}.{own.prefix}" if own.prefix else prefix)

    @property
    def channels(self) -> list[int]:
        """Channels of the feature maps of `features`."""
        head: Any = self.head("backbone")
        return head.chosen_channels(self.config)

    @property
    def width(self) -> int:
        """Elements of a state."""
        return self.family.width(self.config)

    @property
    def bare(self) -> NameMap:
        """Names as the bare backbone's files have them, without a prefix."""
        return self.names().but(prefix="")

    def names(self, task: str = "base-model") -> NameMap:
        """Names of the backbone as files of the class for `task` have them."""
        return self.family.table(self.config, self.head(task))

    def head(self, task: str) -> Head:
        """The description of the family's class for `task`; ConfigError without one."""
        for head in self.family.heads.values():
            if head.task == task:
                return head
        raise ConfigError(
            f"family {self.family.model_type!r} has no class for {task!r}, which this model needs as a part"
        )

    def model(self, task: str) -> PreTrainedModel:
        """The family's class for `task`, whole, on the meta device."""
        cls = model_class(self.family.model_type, task, self.config.architectures)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        # A class that sets keys sets them for itself: the configuration around it stays as it was.
        made._assemble(copy.deepcopy(self.config) if cls.head_spec.changes else self.config)
        return made

    def model_names(self, task: str) -> NameMap:
        """Names of `model(task)` as its own files have them."""
        head = model_class(self.family.model_type, task, self.config.architectures).head_spec
        table = self.family.table(self.config, head)
        if task == "base-model" and head.prefix is None:
            table = table.but(prefix="")
        names: Any = head.names(self.config) if callable(head.names) else head.names
        scores = names if isinstance(names, NameMap) else NameMap(names)
        return NameMap({}, parts={"backbone": ("", table), "head": ("", scores)})


def part(config: PretrainedConfig) -> Part:
    """The family of a nested configuration, as a part of another model."""
    return Part(load_family(config.model_type), config)


def hidden_size(config: PretrainedConfig) -> int:
    """The usual key of the width."""
    return config.hidden_size


def family(
    model_type: str,
    *,
    config: type[PretrainedConfig],
    build: Callable[[Any], Any],
    names: NameMap | Callable[[Any], NameMap],
    heads: Mapping[str, Head],
    skeleton: type[PreTrainedModel],
    public: str,
    width: Callable[[Any], int] = hidden_size,
    shifts_inputs: bool = False,
    segments_required: bool = True,
    wraps_start: bool = False,
    inside: str = "",
    bases: Sequence[str] = (),
    ahead: Callable[[Any], HeadsAhead] | None = None,
) -> Family:
    """Make the public classes of a family and put them into its module.

    public: the stem of the public names (`Llama`: LlamaConfig, ...); heads lists the model classes in full.
    bases: public names of the class that they all derive from, where it is not the stem's
    (`LlamaPreTrainedModel`); families that name the same one share it.
    """
    module = sys.modules[config.__module__]
    config.model_type = model_type
    _rename(config, f"{public}Config", module)
    made = Family(
        model_type, config, build, names, heads, skeleton, width, shifts_inputs, segments_required,
        wraps_start, inside, ahead,
    )  # fmt: skip
    ancestor = _base(made, public, bases, module)
    for name, head in heads.items():
        base = head.skeleton or skeleton
        body = {
            "family": made,
            "head_spec": head,
            "config_class": config,
            "__doc__": f"{head.task} of {model_type}.",
        }
        cls = type(name, (base, ancestor), body)
        _rename(cls, name, module)
    module.FAMILY = made  # type: ignore[attr-defined]
    return made


_BASES: dict[str, type[PreTrainedModel]] = {}


def _base(made: Family, public: str, names: Sequence[str], module: Any) -> type[PreTrainedModel]:
    """The class that all of a family derive from: what `isinstance` asks for, and models of one's own."""
    own = f"{public}PreTrainedModel"
    first, *others = names or (own,)
    if first not in _BASES:
        doc = f"What the models of {made.model_type} have in common; derive models of your own from it."
        _BASES[first] = type(first, (PreTrainedModel,), {"__doc__": doc, "__module__": module.__name__})
    cls: Any = _BASES[first]
    if first == own:
        cls.family, cls.config_class, cls.__module__ = made, made.config, module.__name__
    for name in (first, *others):
        setattr(module, name, cls)
    return cls


def _rename(cls: type, name: str, module: Any) -> None:
    cls.__name__ = cls.__qualname__ = name
    cls.__module__ = module.__name__
    setattr(module, name, cls)
