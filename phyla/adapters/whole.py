"""Adapters inside of checkpoints: what `save_pretrained` writes of them and `from_pretrained` gives back.

config.json has the public key `adapters` (configurations and fusions by name), and the weights hold their
tensors under public names, as the library `adapters` has both. What it has no words for stands below the key
`phyla`, which it passes over, with tensors under `phyla/KIND/NAME/`.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from phyla.adapters.api import _like, adapters_of
from phyla.adapters.composition import from_json, to_json
from phyla.adapters.config import config_of
from phyla.adapters.dialect import Dialect
from phyla.adapters.embeddings import DEFAULT, set_active_embeddings
from phyla.adapters.fused import APART
from phyla.adapters.fusion import ADAPTERFUSION_CONFIG_MAP
from phyla.adapters.head_setup import names_in
from phyla.adapters.hub import (
    dialect_of,
    entry_of,
    fusion_tensors,
    modern,
    read_fusion,
    swapped,
    tensors_of_entry,
)
from phyla.adapters.registry import Adapters, Entry, check_name, module_key
from phyla.errors import PhylaError
from phyla.model import PreTrainedModel

KEY = "adapters"
OWN = "phyla"  # what the public library passes over, below the key and in names of tensors
_SHAPE = ("adapters", "config_map", "fusions", "fusion_config_map", "fusion_name_map")


class Written(NamedTuple):
    """What goes into config.json under the key, and the tensors by name."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def written(model: PreTrainedModel) -> Written | None:
    """The adapters, fusions and tables of a model as checkpoints hold them; None where there are none."""
    if model.is_own():
        return _written_parts(model)
    adapters, heads = model._modules.get("adapters"), model._modules.get("flexible")
    if not isinstance(adapters, Adapters) and heads is None:
        return None
    made = Written({name: {} for name in _SHAPE}, {})
    more: dict[str, Any] = {}
    if isinstance(adapters, Adapters):
        dialect = dialect_of(model)
        for name in adapters.names():
            _write_entry(model, dialect, adapters, name, made, more)
        for name in adapters.fusion_configs:
            _write_fusion(model, dialect, adapters, name, made)
        _write_state(model, adapters, made, more)
    active: Any = None if heads is None else heads.active
    if active is not None:
        more["active_head"] = active if isinstance(active, str | list) else to_json(active)
    if more:
        made.facts[OWN] = more
    empty = not any(made.facts[name] for name in made.facts)
    return None if empty and heads is None else made


def _written_parts(model: PreTrainedModel) -> Written | None:
    """Those of the models inside a class of one's own, by their paths."""
    made = Written({name: {} for name in _SHAPE}, {})
    parts = {}
    for path, inner in model.parts().items():
        found = written(inner)
        if found is not None:
            parts[path] = found.facts
            made.tensors.update({f"{OWN}/parts/{path}/{k}": v for k, v in found.tensors.items()})
    made.facts[OWN] = {"parts": parts}
    return made if parts else None


def _write_entry(
    model: PreTrainedModel, dialect: Dialect, adapters: Adapters, name: str, made: Written,
    more: dict[str, Any],
) -> None:  # fmt: skip
    entry = adapters.get(name)
    if name in adapters.merged:
        warnings.warn(
            f"the adapter {name!r} is merged: the folder holds the merged weights, and not the adapter "
            "itself; save_adapter writes it, and after reset_adapter() save_pretrained writes both",
            stacklevel=6,
        )
        return
    if entry.config.architecture == "peft":
        from phyla.adapters.peft.files import changed_by_files, write_peft

        if changed_by_files(entry):
            _write_kept(entry, made, more)
            return
        facts, tensors = write_peft(model, name)
        facts["inference_mode"] = entry.config["inference_mode"]
        more.setdefault("peft", {})[name] = facts
        made.tensors.update({f"{OWN}/peft/{name}/{k}": v for k, v in tensors.items()})
        return
    found = tensors_of_entry(entry, dialect, pools=False)
    if any(f".loras.{name}.{APART}" in key for key in found):  # public files have no words for it
        _write_kept(entry, made, more)
        return
    config = swapped(entry.config, dialect.model_type).to_dict()
    key = _digest(config)
    made.facts["adapters"][name] = key
    made.facts["config_map"][key] = config
    made.tensors.update(found)


def _write_kept(entry: Entry, made: Written, more: dict[str, Any]) -> None:
    """An adapter under phyla's own names, with what its parts hold beside parameters."""
    more.setdefault("kept", {})[entry.name] = entry.config.to_dict()
    state = {**entry.state_dict(), **dict(entry.named_buffers())}
    made.tensors.update({f"{OWN}/kept/{entry.name}/{k}": v.detach().clone() for k, v in state.items()})


def _write_fusion(
    model: PreTrainedModel, dialect: Dialect, adapters: Adapters, name: str, made: Written
) -> None:
    config = adapters.fusion_configs[name].to_dict()
    named = [n for n, c in ADAPTERFUSION_CONFIG_MAP.items() if c.to_dict() == config]
    key = named[0] if named else _digest(config)  # the public library reads back only what has a name
    made.facts["fusions"][name] = key
    if not named:
        made.facts["fusion_config_map"][key] = config
    made.facts["fusion_name_map"][name] = list(adapters.fused[name])
    made.tensors.update(fusion_tensors(model, dialect, name))


def _write_state(model: PreTrainedModel, adapters: Adapters, made: Written, more: dict[str, Any]) -> None:
    """What is active, what is shared, and further token tables."""
    if adapters.setup is not None:
        more["active"], more["skip_layers"] = to_json(adapters.setup), list(adapters.skip_layers)
    if adapters.shared:
        more["shared"] = {key: list(names) for key, names in adapters.shared.items()}
    tables = model.loaded_embeddings if adapters.tables else {}
    others = {name: table.detach() for name, table in tables.items() if name != DEFAULT}
    if others:
        more["embeddings"] = {"active": adapters.table, "others": list(others)}
        made.tensors.update({f"{OWN}/embeddings/{name}/weight": t for name, t in others.items()})


def _digest(config: dict[str, Any]) -> str:
    """A key for a configuration, equal for equal ones."""
    return hashlib.sha1(json.dumps(config, sort_keys=True).encode(), usedforsecurity=False).hexdigest()[:16]


@contextmanager
def lifted(model: PreTrainedModel) -> Iterator[None]:
    """The base's own parameters and token table in their places, where adapters have put others there."""
    adapters = model._modules.get("adapters")
    if not isinstance(adapters, Adapters):
        yield
        return
    with adapters.turn:
        table = adapters.table
        if table != DEFAULT:
            set_active_embeddings(model, DEFAULT)
        try:
            with adapters.emptied() if adapters.standing or adapters.put_aside else nullcontext():
                yield
        finally:
            if table != DEFAULT:
                set_active_embeddings(model, table)


def restore(model: PreTrainedModel, weights: Any, names: list[str]) -> set[str]:
    """Give a loaded model the adapters of its checkpoint; which of the left tensors `names` they took.

    What does not fit is left out with a warning.
    """
    facts = model.config.__dict__.pop(KEY, None)
    older = model.config.__dict__.pop("adapter_fusion_models", None) or ()
    older_config = model.config.__dict__.pop("adapter_fusion", None)
    if not isinstance(facts, Mapping):
        return set()
    own = _table(facts, OWN)
    reading = _Reading(model, weights, names, facts)
    if model.is_own():
        for path, inner in _table(own, "parts").items():
            reading.part(path, inner)
        return reading.taken
    for name in _table(facts, "adapters"):
        reading.attempt(reading.public, name)
    for name, config in _table(own, "peft").items():
        reading.attempt(reading.peft, name, config)
    for name, config in _table(own, "kept").items():
        reading.attempt(reading.kept, name, config)
    fusions = dict(_table(facts, "fusions"))
    fusions |= {m if isinstance(m, str) else ",".join(m): older_config for m in older}
    for name, key in fusions.items():
        reading.attempt(reading.fusion, name, key)
    reading.state(own)
    return reading.taken


class _Reading:
    """The restoring of one model's adapters."""

    def __init__(
        self, model: PreTrainedModel, weights: Any, names: list[str], facts: Mapping[str, Any]
    ) -> None:
        self.model, self.weights, self.names, self.facts = model, weights, names, facts
        self.taken: set[str] = set()

    @cached_property
    def dialect(self) -> Dialect:
        """The public keys of the model's adapters."""
        return dialect_of(self.model)

    def attempt(self, read: Callable[..., None], name: str, *given: Any) -> None:
        """Read one thing, or warn that it does not fit."""
        try:
            for each in name.split(","):  # a fusion without a name has those of its adapters
                check_name(each)
            read(name, *given)
        except (PhylaError, AttributeError, LookupError, TypeError, RuntimeError, ValueError) as error:
            warnings.warn(
                f"the checkpoint {self.model.config._name_or_path} has {name!r} among its adapters, which "
                f"was left out: {error}",
                stacklevel=6,
            )

    def public(self, name: str) -> None:
        """An adapter as the public library writes it."""
        key = self.facts["adapters"][name]
        if isinstance(key, list | tuple):  # the oldest files name it behind its kind
            key = key[1] or key[0]
        config = modern(_table(self.facts, "config_map").get(key, key))
        tensors = self.read([n for n in self.names if f".{name}." in n and not n.startswith(OWN + "/")])
        entry, left = entry_of(self.model, self.dialect, config, tensors, name, name)
        adapters_of(self.model).add(entry)
        self.taken |= set(tensors) - set(left)

    def peft(self, name: str, config: dict[str, Any]) -> None:
        """One of PEFT's methods."""
        from phyla.adapters.peft import read_peft

        found = self.below("peft", name)
        adapters_of(self.model).add(read_peft(self.model, config, found, name))

    def kept(self, name: str, config: dict[str, Any]) -> None:
        """One that public files have no words for."""
        adapters, made = adapters_of(self.model), config_of(modern(config))
        started = isinstance(made.get("init_lora_weights"), str)  # its start is in the file as well
        start = made.replace(init_lora_weights=True) if started else made
        entry = adapters.make(name, start, _like(self.model), reading=True)
        entry.config, state = made, self.below("kept", name)
        wanted = {*entry.state_dict(), *(key for key, _ in entry.named_buffers())}
        for key in [k for k in state if k not in wanted and k.rpartition(".")[2].startswith("start_")]:
            path, _, leaf = key.rpartition(".")
            like = _like(self.model)
            setattr(entry.get_submodule(path), leaf, state.pop(key).to(like.device, like.dtype))
        for key, buffer in entry.named_buffers():
            if key in state and key not in entry.state_dict():
                buffer.copy_(state.pop(key))
        entry.load_state_dict(state)
        adapters.add(entry)

    def fusion(self, name: str, key: Any) -> None:
        """A fusion, whose adapters are there."""
        config = _table(self.facts, "fusion_config_map").get(key, key)
        members = _table(self.facts, "fusion_name_map").get(name) or name.split(",")
        for member in members:
            adapters_of(self.model).get(member)
        mark = f".adapter_fusion_layer.{name}."
        tensors = self.read([n for n in self.names if mark in n])
        read_fusion(self.model, self.dialect, name, name, members, config, tensors)
        self.taken |= set(tensors)

    def part(self, path: str, facts: Mapping[str, Any]) -> None:
        """What belongs to one of the models inside a class of one's own."""
        inner = self.model.parts().get(path)
        ahead = f"{OWN}/parts/{path}/"
        if inner is None:
            return
        inner.config.__dict__[KEY] = facts
        names = [n.removeprefix(ahead) for n in self.names if n.startswith(ahead)]
        self.taken |= {ahead + n for n in restore(inner, _Ahead(self.weights, ahead), names)}

    def state(self, own: Mapping[str, Any]) -> None:
        """What was shared and active, and further token tables."""
        for key, members in _table(own, "shared").items():
            self.attempt(self.share, key, members)
        tables = _table(own, "embeddings")
        for name in tables.get("others") or ():
            self.attempt(self.embeddings, name)
        if tables:
            self.attempt(self.model.set_active_embeddings, tables.get("active", DEFAULT))
        self.attempt(self.activate, "active", own)

    def share(self, key: str, members: list[str]) -> None:
        """Parameters that several adapters have in common."""
        self.model.share_parameters(members, key)

    def embeddings(self, name: str) -> None:
        """A further token table."""
        (table,), like = self.below("embeddings", name).values(), _like(self.model)
        kept = nn.Parameter(table.to(like.device, like.dtype), requires_grad=False)
        adapters_of(self.model).tables[module_key(name)] = kept

    def activate(self, name: str, own: Mapping[str, Any]) -> None:
        """What was active is active again."""
        setup = from_json(own.get("active"))
        if setup is not None:
            adapters_of(self.model).activate(setup, own.get("skip_layers"))
        heads: Any = self.model._modules.get("flexible")
        active = own.get("active_head")
        active = from_json(active) if isinstance(active, dict) else active
        if heads is not None and names_in(active) and all(n in heads.kept for n in names_in(active)):
            heads.active = active

    def below(self, kind: str, name: str) -> dict[str, Tensor]:
        """The tensors that phyla writes of one adapter, without what stands ahead."""
        ahead = f"{OWN}/{kind}/{name}/"
        found = self.read([n for n in self.names if n.startswith(ahead)])
        self.taken |= set(found)
        return {key.removeprefix(ahead): value for key, value in found.items()}

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Tensors of the checkpoint."""
        return dict(self.weights.read_many(names))


class _Ahead:
    """The tensors of a checkpoint whose names begin alike, without that beginning."""

    def __init__(self, weights: Any, ahead: str) -> None:
        self.weights, self.ahead = weights, ahead

    def read_many(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors."""
        for name, value in self.weights.read_many([self.ahead + n for n in names]):
            yield name.removeprefix(self.ahead), value


def _table(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What stands under a name, where that is a table; else an empty one."""
    found = facts.get(name)
    return found if isinstance(found, Mapping) else {}
