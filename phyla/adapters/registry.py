"""The adapters of one model: their parts, the fusions, and what is active at which site."""

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

import phyla.adapters.bottleneck as bottleneck
import phyla.adapters.invertible as invertible
import phyla.adapters.lora as lora
import phyla.adapters.prefix as prefix
import phyla.adapters.prompt as prompt
import phyla.adapters.reft as reft
from phyla.adapters.composition import (
    Fuse,
    Meaning,
    Parallel,
    Rows,
    Stack,
    blocks_of,
    check_nesting,
    copies,
    names_of,
    parse_composition,
    rows_of,
)
from phyla.adapters.config import AdapterConfig, config_of
from phyla.adapters.context import ForwardContext
from phyla.adapters.dialect import INVERTED, Spot, norm_of, spot_of
from phyla.adapters.fusion import AdapterFusionConfig, Fusion, fusion_config_of
from phyla.adapters.interpret import Facts
from phyla.adapters.merge import Kept, merged_values, put_values
from phyla.adapters.placement import settle, settle_layers
from phyla.adapters.places import Place, Survey, survey
from phyla.errors import AdapterError, nearest

READY = 32  # setups whose sites are kept
_NAME = re.compile(r"[^\x00-\x1f/\\,:*?\"<>|]{1,255}")

# architecture -> functions that make the parts of one configuration
MAKERS: dict[str | None, tuple[Any, ...]] = {
    None: (bottleneck.attach, invertible.attach),
    "lora": (lora.attach,),
    "mtl_lora": (lora.attach,),
    "prefix_tuning": (prefix.attach,),
    "reft": (reft.attach,),
    "prompt_tuning": (prompt.attach,),
}
# class of a part -> the method's name in composition.Meaning
METHODS: dict[type, str] = {
    bottleneck.Bottleneck: "bottleneck",
    invertible.Nice: "invertible",
    invertible.Glow: "invertible",
    prefix.PrefixAt: "prefix",
    lora.Low: "lora",
    reft.Reft: "reft",
    prompt.Prompt: "prompt",
}


def check_name(name: str) -> str:
    """The name, if it can be one: no separators, commas or control characters, no leading dot."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("."):
        raise AdapterError(
            f"an adapter's name must be 1 to 255 characters without / \\ , : * ? \" < > | and not begin with "
            f"a dot, but is {name!r}"
        )
    return name


def module_key(name: str) -> str:
    """The name as a key of a ModuleDict, which takes no dots and no names of its own methods."""
    return "_" + name.replace(".", "\u2024")


def dtype_of(name: Any) -> torch.dtype:
    """The dtype that a configuration's field `dtype` means: `bfloat16`, `torch.bfloat16` or the dtype."""
    found = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise AdapterError(f"dtype must name a floating-point dtype such as bfloat16, but is {name!r}")
    return found


class Entry(nn.Module):
    """One adapter: its configuration, its parts with their places, and what the parts share."""

    def __init__(self, name: str, config: AdapterConfig) -> None:
        super().__init__()
        self.name, self.config, self.reading = name, config, False
        self.parts = nn.ModuleList()
        self.shared = nn.ModuleDict()
        self.places: list[Place] = []
        self.replaced = nn.ParameterList()  # what stands in for parameters of the base while active
        self.targets: list[tuple[nn.Module, str]] = []
        self.meta: dict[str, Any] = {}
        self.overlays = nn.ModuleList()  # what stands before parameters of the base while active
        self.around = nn.ModuleList()  # what changes the arguments of calls while active
        self.shifts: list[Any] = []  # further changes of the base that are put and lifted

    def size(self) -> int:
        """How many things there are that change the model."""
        return len(self.parts) + len(self.replaced) + len(self.overlays) + len(self.around)

    def alone(self) -> bool:
        """Whether it changes what rows and other adapters share."""
        return bool(len(self.replaced) or len(self.overlays) or len(self.around) or self.shifts)

    def share(self, key: str, module: nn.Module) -> None:
        """Own a module that several parts use; prefix groups have a key, other methods one module each."""
        self.shared[module_key(key or type(module).__name__)] = module

    def shared_by_key(self) -> Iterator[tuple[str, nn.Module]]:
        """What is shared, with the keys that it was given."""
        for key, module in self.shared.items():
            yield key[1:].replace("\u2024", "."), module

    def items(self) -> Iterator[tuple[Place, nn.Module]]:
        """Places and parts."""
        yield from zip(self.places, self.parts, strict=True)


class Adapters(nn.Module):
    """Every adapter and fusion of a model; the sites hold what is active and own no parameters."""

    def __init__(self, model: Any, where: Survey | None = None) -> None:
        super().__init__()
        self.entries = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        given = inspect.signature(model.forward).parameters.values()
        self.arguments = [p.name for p in given if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.tables = nn.ParameterDict()  # token tables that are not in use
        self.table = "default"
        self.shared: dict[str, tuple[str, ...]] = {}  # adapters that have parameters in common
        self.fusion_configs: dict[str, AdapterFusionConfig] = {}
        self.fused: dict[str, list[str]] = {}  # the adapters of each fusion
        self.where: Survey = where or survey(model)
        self.setup: Any = None
        self.skip_layers: list[int] = []
        self.facts = Facts()
        self.turn = Turn()
        self.settled = False  # whether a call that goes on chose the setup: calls inside of it keep it
        self.filled: list[Place] = []
        self.ready: dict[Any, list[tuple[Place, nn.Module]]] = {}
        self.put_aside: list[tuple[nn.Module, str, nn.Parameter]] = []
        self.standing: list[Any] = []  # what of the active adapters was put and must be lifted
        self.merged: dict[str, Kept] = {}

    def names(self) -> list[str]:
        """The adapters' names, in the order of their adding."""
        return [entry.name for entry in self.entries.values()]  # type: ignore[misc]

    def get(self, name: str) -> Entry:
        """The adapter of this name; AdapterError with the nearest names if there is none."""
        key = module_key(name) if isinstance(name, str) else ""
        if key not in self.entries:
            raise AdapterError(f"the model has no adapter {name!r}.{nearest(str(name), self.names())}")
        return self.entries[key]  # type: ignore[return-value]

    def make(self, name: str, config: Any, like: Tensor, reading: bool = False) -> Entry:
        """A new adapter, not yet part of the model; `like` gives device and dtype.

        reading: a file's values will take the place of the fresh ones.
        """
        # a copy: preparing or ejecting an adapter changes its configuration
        made = Entry(check_name(name), copy.deepcopy(config_of(config)))
        made.reading = reading
        if self.where.allowed is not None:
            self._check_allowed(made.config)
        for part_config in made.config.parts():
            seed = part_config.get("init_weights_seed")
            with torch.random.fork_rng(devices=[], enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                size = made.size()
                self._fill(made, part_config)
            if made.size() == size:
                raise AdapterError(
                    f"{type(part_config).__name__} finds no place in this model with the fields that it has"
                )
        settle(made, like)
        for part in made.parts:
            wanted = getattr(getattr(part, "config", None), "dtype", None)
            if wanted is not None:
                part.to(dtype_of(wanted))
        return made.train(self.training)

    def _check_allowed(self, config: AdapterConfig) -> None:
        """AdapterError for what the hooks of a model from outside cannot do."""
        from phyla.adapters.interface import AdapterMethod

        allowed = tuple(m for m in self.where.allowed or () if m != "prefix_tuning")
        for method in AdapterMethod.get_from_config(config):
            if method not in allowed:
                raise AdapterError(f"this model's interface allows {list(allowed)}, but not {method}")
        for part in config.parts():
            if part.get("original_ln_after") is False:
                raise AdapterError(
                    "original_ln_after=False needs a model of phyla: hooks cannot leave a norm out"
                )

    def _fill(self, entry: Entry, config: AdapterConfig) -> None:
        seen: dict[int, nn.Module] = {}
        for maker in MAKERS[config.architecture]:
            for place, part in maker(config, self.where, entry):
                part = seen.setdefault(id(part), part)
                entry.places.append(place)
                entry.parts.append(part)

    def add(self, entry: Entry, overwrite: bool = False) -> None:
        """Take a new adapter in."""
        key = module_key(entry.name)
        if key in self.entries:
            if not overwrite:
                raise AdapterError(
                    f"the model has an adapter {entry.name!r} already: delete it or pass overwrite_ok=True"
                )
            self.delete(entry.name)
        self.entries[key] = entry
        self.ready.clear()

    def delete(self, name: str) -> None:
        """Let an adapter go; it is inactive afterwards."""
        self.get(name)
        if name in self.merged:
            self.unmerge(name)
        if name in set(names_of(self.setup)):
            self.activate(None)
        del self.entries[module_key(name)]
        self.ready.clear()

    def fuse(self, names: list[str], config: Any, like: Tensor, name: str | None = None) -> str:
        """Add a fusion of adapters; its layers stand wherever one of them has a bottleneck."""
        key = name or ",".join(names)
        if module_key(key) in self.fusions:
            raise AdapterError(f"the model has a fusion of {key!r} already")
        made_config = fusion_config_of(config)
        layers = nn.ModuleDict()
        for adapter in names:
            for place, part in self.get(adapter).items():
                if isinstance(part, bottleneck.Bottleneck) and module_key(place.path) not in layers:
                    width = next(x.width for x in self.where.layers if x.index == place.layer)
                    layers[module_key(place.path)] = Fusion(made_config, width)
        if not layers:
            raise AdapterError(f"a fusion needs bottleneck adapters, but {names} have none")
        spots = {module_key(p.path): p for layer in self.where.layers for _, p in layer.branches()}
        settle_layers(((layers[spot], spots[spot]) for spot in layers), like)
        layers.train(self.training)
        self.fusions[module_key(key)] = layers
        self.fusion_configs[key], self.fused[key] = made_config, list(names)
        self.ready.clear()
        return key

    def unfuse(self, name: str) -> None:
        """Take a fusion away."""
        del self.fusions[module_key(name)], self.fusion_configs[name], self.fused[name]
        self.ready.clear()

    def fusion_at(self, name: str, path: str) -> Fusion | None:
        """The layer of a fusion at one branch."""
        layers: Any = dict(self.fusions.items()).get(module_key(name))
        return None if layers is None else dict(layers.items()).get(module_key(path))

    def activate(self, setup: Any, skip_layers: list[int] | None = None) -> None:
        """Fill the sites with a setup (None empties them); AdapterError where it has no meaning."""
        setup = parse_composition(setup)
        skip = list(skip_layers or [])
        made = self._sites(setup, skip)
        for place in self.filled:
            place.put(None)
        self.filled = []
        for place, site in made:
            if place.held() is not None:
                raise AdapterError(f"the site {place.path} holds something that is no adapter")
            place.put(site)
            self.filled.append(place)
        self._replace(list(dict.fromkeys(names_of(setup))))
        self.setup, self.skip_layers = setup, skip

    def _sites(self, setup: Any, skip: list[int]) -> list[tuple[Place, nn.Module]]:
        """What stands where with a setup; the last few are kept, so that changing to and fro costs little."""
        if setup is None:
            return []
        key = (setup, tuple(skip))
        if key not in self.ready:
            check_nesting(setup)
            parts = self._by_place(setup, skip)
            if len(self.ready) >= READY:
                del self.ready[next(iter(self.ready))]
            self.ready[key] = [(place, self._site(setup, place, found)) for place, found in parts.values()]
        return self.ready[key]

    def _replace(self, names: list[str]) -> None:
        """Put what adapters bring in the place of parameters of the base, and back what stood there."""
        for module, leaf, parameter in self.put_aside:
            module._parameters[leaf] = parameter
        self.put_aside = []
        for item in self.standing:
            item.lift()
        self.standing = []
        for name in names:
            entry = self.get(name)
            for item in (*entry.overlays, *entry.shifts):
                item.put()
                self.standing.append(item)
            for (module, leaf), value in zip(entry.targets, entry.replaced, strict=True):
                self.put_aside.append((module, leaf, module._parameters[leaf]))  # type: ignore[arg-type]
                module._parameters[leaf] = value

    def _by_place(self, setup: Any, skip: list[int]) -> dict:
        parts: dict[tuple[str, str], tuple[Place, dict[str, list[nn.Module]]]] = {}
        methods: dict[str, set[str]] = {}
        for name in dict.fromkeys(names_of(setup)):
            if name in self.merged:
                raise AdapterError(f"{name!r} is merged into the weights: reset_adapter() takes it out again")
            for place, part in self.get(name).items():
                methods.setdefault(name, set()).add(METHODS[type(part)])
                if place.layer in skip and place.layer >= 0:
                    continue
                _, found = parts.setdefault(place.key, (place, {}))
                found.setdefault(name, []).append(part)
        bringing = [n for n in dict.fromkeys(names_of(setup)) if self.get(n).alone()]
        several = len(set(names_of(setup))) > 1 or (isinstance(setup, Rows) and len(setup.children) > 1)
        if bringing and several:
            raise AdapterError(
                f"{bringing[0]!r} replaces parameters of the base, or adds virtual tokens: it works alone"
            )
        for block in blocks_of(setup):
            for method in sorted(set().union(*(methods.get(n, set()) for n in names_of(block)))):
                if type(block) is not Rows and type(block) not in Meaning.table[method]:
                    raise AdapterError(f"{type(block).__name__} has no meaning for {method} adapters")
            if isinstance(block, Fuse) and module_key(block.name) not in self.fusions:
                raise AdapterError(
                    f"there is no fusion of {block.name!r}: add it with add_adapter_fusion first"
                )
            if isinstance(block, Parallel) and setup is not block and not _at_end(setup, block):
                raise AdapterError("Parallel must be the setup itself or the last of a Stack")
        return parts

    def _site(self, setup: Any, place: Place, parts: dict[str, list[Any]]) -> nn.Module:
        kinds = {METHODS[type(p)] for found in parts.values() for p in found}
        if len(kinds) > 1:
            raise AdapterError(f"{place.path} cannot hold {' and '.join(sorted(kinds))} at once")
        kind = kinds.pop()
        if kind == "bottleneck":
            fusions = {
                b.name: self.fusion_at(b.name, place.path) for b in blocks_of(setup) if isinstance(b, Fuse)
            }
            layer = self.where.layers[place.layer]
            spot = spot_of(layer, place.role)
            if place.slot == "site" and spot.slot != "site":
                spot = Spot()
            norm = norm_of(spot, layer, place.module, self.where)
            if self.where.allowed is not None:
                norm = place.norm  # type: ignore[attr-defined]
            return bottleneck.BranchSite(setup, parts, self.facts, fusions, norm, spot.reads)
        if kind == "lora":
            _check_chain(setup, place, parts)
            return lora.LinearSite(setup, parts, self.facts)
        if kind == "prefix":
            by_slot = getattr(getattr(place.module, "position", None), "by_slot", False)
            return prefix.KeyValueSite(setup, parts, self.facts, by_slot)
        if kind == "reft":
            return reft.StreamSite(setup, parts, self.facts)
        if place.kind == "memory":
            return prompt.MemorySite(place.encoder)  # type: ignore[attr-defined]
        if kind == "prompt":
            lift = getattr(place.module, "lift", None)
            return prompt.PromptSite(setup, parts, self.facts, lift)
        if place.kind == "embed":
            hooked = self.where.layers[0].model_type in INVERTED
            scale = getattr(place.module, "scale", None) if hooked else None
            return invertible.EmbedSite(setup, parts, self.facts, scale)
        return invertible.InputSite(setup, parts, self.facts, inverse=place.kind == "scores")

    @contextmanager
    def emptied(self) -> Iterator[None]:
        """All sites empty for a while."""
        setup, skip = self.setup, self.skip_layers
        self.activate(None)
        try:
            yield
        finally:
            self.activate(setup, skip)

    @torch.no_grad()
    def merge(self, name: str) -> None:
        """Put an adapter of projections into the weights; the base is kept, so that `unmerge` is exact."""
        entry = self.get(name)
        if name in self.merged:
            raise AdapterError(f"{name!r} is merged already")
        if any(not hasattr(part, "merged") for part in entry.parts) or len(entry.around) or entry.shifts:
            raise AdapterError(
                "only adapters that change weights (LoRA, IA3 and their relatives) can be merged"
            )
        self.ready.clear()
        if name in set(names_of(self.setup)):
            self.activate(None)
        self.merged[name] = put_values(self.where.model, merged_values(entry))

    @torch.no_grad()
    def unmerge(self, name: str | None = None) -> None:
        """Put back the weights from before `merge`, bit for bit; the last merged first."""
        names = list(self.merged)[::-1] if name is None else [name]
        for item in names:
            if item != list(self.merged)[-1]:
                raise AdapterError(
                    f"{list(self.merged)[-1]!r} was merged after {item!r} and must be reset first"
                )
            for module, leaf, old in self.merged.pop(item)[::-1]:
                if isinstance(old, nn.Parameter):
                    module._parameters[leaf] = old
                else:
                    module._parameters[leaf].copy_(old)  # type: ignore[union-attr]

    def run(self, model: Any, forward: Any, args: tuple, named: dict[str, Any]) -> Any:
        """A call of the model, in its turn and with the setup that an AdapterSetup around it asks for."""
        if torch.compiler.is_compiling():
            return self.call(forward, model, args, named)
        from phyla.adapters.api import call

        return call(model, forward, args, named)

    def call(self, forward: Any, model: Any, args: tuple, named: dict[str, Any]) -> Any:
        """Run a model with what the active setup needs, and tell of it what the call asks for."""
        asked = ForwardContext.context_attributes
        if torch.compiler.is_compiling():
            if any(named.pop(f"output_{name}", None) for name in asked):
                raise AdapterError("scores of adapters cannot be recorded in compiled calls: call the model")
            return self._call(forward, model, args, named)
        with ForwardContext(model, *args, **named) as context:
            rest = {k: v for k, v in named.items() if k.removeprefix("output_") not in asked}
            if rest.pop("adapter_input_parallelized", None) and copies(self.setup) > 1:
                with self.copied():
                    return context.told(self._call(forward, model, args, rest))
            return context.told(self._call(forward, model, args, rest))

    @contextmanager
    def copied(self) -> Iterator[None]:
        """For a while, the rows of inputs are copied for Parallel already."""
        before, self.facts.copied = self.facts.copied, True
        try:
            yield
        finally:
            self.facts.copied = before

    def _call(self, forward: Any, model: Any, args: tuple, named: dict[str, Any]) -> Any:
        """Run a model with task numbers, copies of the rows, adapters for each row."""
        if "adapter_names" in named:
            names = named.pop("adapter_names")
            rows = rows_in((args, named))
            return self.with_rows(names, rows, lambda: self._call(forward, model, args, named))
        site = self.prompts()
        if site is not None:
            named = {**dict(zip(self.arguments, args, strict=False)), **named}
            args, outside = args[len(self.arguments) :], self.where.allowed is not None
            fit: Any = prompt.fit_call
            if outside:
                fit = prompt.fit_outer(self.where.embeds[0].module, "inputs_embeds" in self.arguments)
            named = fit(site, named)
            if not outside and not hasattr(model, "flexible"):  # those heads know of prompts themselves
                named = prompt.fit_labels(site, named)
        count = 1 if self.facts.copied else copies(self.setup)
        if count > 1:
            rows = rows_in((args, named))
            args, named = repeated(args, count, rows), repeated(named, count, rows)
        for item in self.calling():
            args, named = item.call(model, args, named)
        if "task_ids" not in named:
            return forward(*args, **named)
        return self.with_tasks(named.pop("task_ids"), lambda: forward(*args, **named))

    def prompts(self) -> Any:
        """The site that puts prompts in front of the tokens, or None; those of an encoder move no others."""
        if any(place.kind == "memory" for place in self.filled):
            return None
        return next((p.held() for p in self.filled if isinstance(p.held(), prompt.PromptSite)), None)

    def calling(self) -> Iterator[Any]:
        """What of the active adapters changes the arguments of calls; nothing while `generate` runs."""
        for name in () if self.facts.copied else names_of(self.setup):
            yield from self.get(name).around

    def side_by_side(self, setups: list[Any]) -> Any:
        """The setup of a row whose tokens have these setups; `facts.tokens` says which token has which."""
        return Rows(*setups)

    def with_rows(self, names: Any, rows: int, run: Any) -> Any:
        """What `run()` gives while each of the rows has the adapter named for it; None keeps the setup."""
        if names is None:
            return run()
        if rows and isinstance(names, list | tuple) and len(names) != rows:
            raise AdapterError(
                f"adapter_names must have a name (or None) for each of {rows} rows, but has {len(names)}"
            )
        setup, skip = self.setup, self.skip_layers
        self.activate(rows_of(names), skip)
        try:
            return run()
        finally:
            self.activate(setup, skip)

    def with_tasks(self, tasks: Any, run: Any) -> Any:
        """What `run()` gives while the rows have these task numbers."""
        before = self.facts.task_ids
        self.facts.task_ids = None if tasks is None else torch.as_tensor(tasks)
        try:
            return run()
        finally:
            self.facts.task_ids = before


class Turn:
    """Lets one thread after the other use a model whose setup a call may change; a copy has its own lock."""

    def __init__(self) -> None:
        self.lock = RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self.lock.release()

    def __reduce__(self) -> tuple:
        return (Turn, ())

    def __deepcopy__(self, memo: dict) -> "Turn":
        return Turn()


def _feeds(part: Any) -> bool:
    """Whether a part of a projection takes the update of the one before as its input."""
    return not getattr(part, "whole", False) and not getattr(part, "scales", True)


def _check_chain(setup: Any, place: Place, parts: dict[str, list[Any]]) -> None:
    """AdapterError where a Stack would feed one low-rank update into the next, but their widths differ."""
    linear = place.module
    if place.kind == "table" or linear.in_features == linear.out_features:
        return
    for block in blocks_of(setup):
        chained = [n for n in names_of(block) if any(_feeds(part) for part in parts.get(n, ()))]
        if isinstance(block, Stack) and len(chained) > 1:
            raise AdapterError(
                f"in a Stack the update of {chained[0]!r} is the input of {chained[1]!r}, so a projection "
                f"must be as wide as its input, but {place.path} is {linear.in_features} -> "
                f"{linear.out_features}"
            )


# Arguments that surely have a row for each row of the batch.
_MAIN = ("input_ids", "inputs_embeds", "inputs", "input_features", "input_values", "pixel_values")


def rows_in(value: Any) -> int:
    """The rows of the first tensor found in arguments; 0 where there is none."""
    if isinstance(value, Mapping):
        first = next((value[name] for name in _MAIN if isinstance(value.get(name), Tensor)), None)
        value = value if first is None else first
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() else 0
    inside = value.values() if isinstance(value, Mapping) else value if type(value) in (tuple, list) else ()
    return next((rows for rows in map(rows_in, inside) if rows), 0)


def repeated(value: Any, count: int, rows: int) -> Any:
    """`count` copies of every tensor's rows, one behind the other; a single row that serves all stays one."""
    if isinstance(value, Tensor):
        alone = value.dim() == 0 or (value.shape[0] == 1 and rows > 1)
        return value if alone else torch.cat([value] * count)
    if type(value) in (tuple, list):
        return type(value)(repeated(v, count, rows) for v in value)
    if isinstance(value, Mapping):
        made = copy.copy(value)
        for name, item in value.items():
            made[name] = repeated(item, count, rows)  # type: ignore[index]
        return made
    return value


def _at_end(setup: Any, block: Any) -> bool:
    return type(setup).__name__ == "Stack" and setup.children[-1] is block
