"""The adapters of one model: their parts, the fusions, and what is active at which site."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
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
    blocks_of,
    check_nesting,
    copies,
    names_of,
    parse_composition,
)
from phyla.adapters.config import AdapterConfig, config_of
from phyla.adapters.fusion import AdapterFusionConfig, Fusion, fusion_config_of
from phyla.adapters.interpret import Facts
from phyla.adapters.places import Place, Survey, survey
from phyla.errors import AdapterError, nearest

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


class Entry(nn.Module):
    """One adapter: its configuration, its parts with their places, and what the parts share."""

    def __init__(self, name: str, config: AdapterConfig) -> None:
        super().__init__()
        self.name, self.config = name, config
        self.parts = nn.ModuleList()
        self.shared = nn.ModuleDict()
        self.places: list[Place] = []
        self.replaced = nn.ParameterList()  # what stands in for parameters of the base while active
        self.targets: list[tuple[nn.Module, str]] = []
        self.meta: dict[str, Any] = {}

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

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.entries = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        self.fusion_configs: dict[str, AdapterFusionConfig] = {}
        self.where: Survey = survey(model)
        self.setup: Any = None
        self.skip_layers: list[int] = []
        self.facts = Facts()
        self.filled: list[Place] = []
        self.put_aside: list[tuple[nn.Module, str, nn.Parameter]] = []
        self.merged: dict[str, dict[str, tuple[nn.Module, Tensor, Tensor | None]]] = {}

    def names(self) -> list[str]:
        """The adapters' names, in the order of their adding."""
        return [entry.name for entry in self.entries.values()]  # type: ignore[misc]

    def get(self, name: str) -> Entry:
        """The adapter of this name; AdapterError with the nearest names if there is none."""
        key = module_key(name) if isinstance(name, str) else ""
        if key not in self.entries:
            raise AdapterError(f"the model has no adapter {name!r}.{nearest(str(name), self.names())}")
        return self.entries[key]  # type: ignore[return-value]

    def make(self, name: str, config: Any, like: Tensor) -> Entry:
        """A new adapter, not yet part of the model; `like` gives device and dtype."""
        made = Entry(check_name(name), config_of(config))
        for part_config in made.config.parts():
            if getattr(part_config, "dtype", None) is not None:
                raise AdapterError("the field dtype is not implemented: adapters have the model's dtype")
            seed = part_config.get("init_weights_seed")
            with torch.random.fork_rng(devices=[], enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                self._fill(made, part_config)
        if not made.places:
            raise AdapterError(
                f"{type(made.config).__name__} finds no place in this model with the fields that it has"
            )
        made.to(device=like.device, dtype=like.dtype if like.is_floating_point() else None)
        return made.train(self.training)

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

    def delete(self, name: str) -> None:
        """Let an adapter go; it is inactive afterwards."""
        self.get(name)
        if name in self.merged:
            self.unmerge(name)
        if name in set(names_of(self.setup)):
            self.activate(None)
        del self.entries[module_key(name)]

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
        layers.to(device=like.device, dtype=like.dtype).train(self.training)
        self.fusions[module_key(key)] = layers
        self.fusion_configs[key] = made_config
        return key

    def fusion_at(self, name: str, path: str) -> Fusion | None:
        """The layer of a fusion at one branch."""
        layers: Any = dict(self.fusions.items()).get(module_key(name))
        return None if layers is None else dict(layers.items()).get(module_key(path))

    def activate(self, setup: Any, skip_layers: list[int] | None = None) -> None:
        """Fill the sites with a setup (None empties them); AdapterError where it has no meaning."""
        setup = parse_composition(setup)
        skip = list(skip_layers or [])
        check_nesting(setup)
        parts = self._by_place(setup, skip)
        made = [(place, self._site(setup, place, found)) for place, found in parts.values()]
        for place in self.filled:
            setattr(place.module, place.slot, None)
        self.filled = []
        for place, site in made:
            if getattr(place.module, place.slot) is not None:
                raise AdapterError(f"the site {place.path} holds something that is no adapter")
            setattr(place.module, place.slot, site)
            self.filled.append(place)
        self._replace(list(dict.fromkeys(names_of(setup))))
        self.setup, self.skip_layers = setup, skip

    def _replace(self, names: list[str]) -> None:
        """Put what adapters bring in the place of parameters of the base, and back what stood there."""
        for module, leaf, parameter in self.put_aside:
            module._parameters[leaf] = parameter
        self.put_aside = []
        for name in names:
            entry = self.get(name)
            for (module, leaf), value in zip(entry.targets, entry.replaced, strict=True):
                self.put_aside.append((module, leaf, module._parameters[leaf]))  # type: ignore[arg-type]
                module._parameters[leaf] = value

    def _by_place(self, setup: Any, skip: list[int]) -> dict:
        parts: dict[tuple[str, str], tuple[Place, dict[str, list[nn.Module]]]] = {}
        methods: set[str] = set()
        for name in dict.fromkeys(names_of(setup)):
            if name in self.merged:
                raise AdapterError(f"{name!r} is merged into the weights: reset_adapter() takes it out again")
            for place, part in self.get(name).items():
                methods.add(METHODS[type(part)])
                if place.layer in skip and place.layer >= 0:
                    continue
                _, found = parts.setdefault(place.key, (place, {}))
                found.setdefault(name, []).append(part)
        bringing = [n for n in dict.fromkeys(names_of(setup)) if len(self.get(n).replaced)]
        if bringing and len(set(names_of(setup))) > 1:
            raise AdapterError(f"{bringing[0]!r} replaces parameters of the base and works only alone")
        for block in blocks_of(setup):
            for method in sorted(methods):
                if type(block) not in Meaning.table[method]:
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
            return bottleneck.BranchSite(
                setup, parts, self.facts, fusions, getattr(place.module, "post_norm", None)
            )
        if kind == "lora":
            return lora.LinearSite(setup, parts, self.facts)
        if kind == "prefix":
            return prefix.KeyValueSite(setup, parts, self.facts)
        if kind == "reft":
            return reft.StreamSite(setup, parts, self.facts)
        if kind == "prompt":
            return prompt.PromptSite(setup, parts, self.facts)
        if place.kind == "embed":
            return invertible.EmbedSite(setup, parts, self.facts)
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
        if any(not isinstance(part, lora.Low) for _, part in entry.items()):
            raise AdapterError("only adapters of projections (LoRA, IA3 and their relatives) can be merged")
        parts: list[tuple[Any, Any]] = list(entry.items())
        values = [(place, part.merged(place.module.weight, place.module.bias)) for place, part in parts]
        if name in set(names_of(self.setup)):
            self.activate(None)
        kept = {}
        for place, (weight, bias) in values:
            linear = place.module
            kept[place.path] = (
                linear, linear.weight.detach().clone(), None if bias is None else linear.bias.detach().clone()
            )  # fmt: skip
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        self.merged[name] = kept

    @torch.no_grad()
    def unmerge(self, name: str | None = None) -> None:
        """Put back the weights from before `merge`, bit for bit; the last merged first."""
        names = list(self.merged)[::-1] if name is None else [name]
        for item in names:
            if item != list(self.merged)[-1]:
                raise AdapterError(
                    f"{list(self.merged)[-1]!r} was merged after {item!r} and must be reset first"
                )
            for linear, weight, bias in self.merged.pop(item).values():
                linear.weight.copy_(weight)  # type: ignore[operator]
                if bias is not None:
                    linear.bias.copy_(bias)  # type: ignore[operator]

    def call(self, forward: Any, model: Any, args: tuple, named: dict[str, Any]) -> Any:
        """Run a model with what the active setup needs: task numbers, copies of the rows."""
        tasks = named.pop("task_ids", None)
        count = copies(self.setup)
        if count > 1:
            args = tuple(_repeated(a, count) for a in args)
            named = {k: _repeated(v, count) for k, v in named.items()}
        if tasks is None:
            return forward(*args, **named)
        before = self.facts.task_ids
        self.facts.task_ids = torch.as_tensor(tasks)
        try:
            return forward(*args, **named)
        finally:
            self.facts.task_ids = before


def _repeated(value: Any, count: int) -> Any:
    return torch.cat([value] * count) if isinstance(value, Tensor) and value.dim() > 0 else value


def _at_end(setup: Any, block: Any) -> bool:
    return type(setup).__name__ == "Stack" and setup.children[-1] is block
