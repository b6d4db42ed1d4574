"""The methods that every model has: adding, activating, training and merging adapters."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from phyla.adapters.composition import Fuse, blocks_of, copies, names_of, parse_composition
from phyla.adapters.config import config_of
from phyla.adapters.registry import Adapters, Entry, module_key, repeated, rows_in
from phyla.errors import AdapterError
from phyla.model import PreTrainedModel


def adapters_of(model: PreTrainedModel) -> Adapters:
    """The model's adapters; made at the first request."""
    found = model.__dict__.get("_modules", {}).get("adapters")
    if found is None:
        found = Adapters(model)
        model.add_module("adapters", found.train(model.training))
    return found


def init(model: nn.Module, adapters_config: Any = None, interface: Any = None) -> None:
    """Nothing for models of phyla, which take adapters as they are; other models get them by an interface."""
    if isinstance(model, PreTrainedModel):
        return
    if interface is None:
        raise AdapterError(
            f"{type(model).__name__} is no model of phyla: say where its parts are with "
            "interface=AdapterModelInterface(...)"
        )
    from phyla.adapters.interface import equip

    equip(model, interface)


def add_adapter(
    self: PreTrainedModel,
    adapter_name: str,
    config: Any = None,
    overwrite_ok: bool = False,
    set_active: bool = False,
) -> None:
    """Add a fresh adapter; config: a string such as `lora[r=8]|seq_bn`, a mapping or a config (seq_bn)."""
    adapters = adapters_of(self)
    adapters.add(adapters.make(adapter_name, config, _like(self)), overwrite_ok)
    if set_active:
        adapters.activate(adapter_name)


def _like(model: PreTrainedModel) -> torch.Tensor:
    return next(p for p in model.parameters() if p.is_floating_point())


def delete_adapter(self: PreTrainedModel, adapter_name: str) -> None:
    """Take an adapter away."""
    adapters_of(self).delete(adapter_name)


def get_adapter(self: PreTrainedModel, name: str) -> dict[int, dict[str, nn.Module]]:
    """The parts of an adapter by layer number and place."""
    found: dict[int, dict[str, nn.Module]] = {}
    for place, part in adapters_of(self).get(name).items():
        found.setdefault(place.layer, {})[f"{place.path}.{place.slot}"] = part
    return found


def set_active_adapters(
    self: PreTrainedModel, adapter_setup: Any, skip_layers: list[int] | None = None
) -> None:
    """Activate a name, a list (a Stack) or a composition; None deactivates. skip_layers: AdapterDrop."""
    adapters_of(self).activate(adapter_setup, skip_layers)


def get_active_adapters(self: PreTrainedModel) -> Any:
    """The active setup or None."""
    adapters = self.__dict__["_modules"].get("adapters")
    return None if adapters is None else adapters.setup


def supports_adapter(self: PreTrainedModel, type_or_config: Any) -> bool:
    """Whether a configuration finds places in this model."""
    try:
        adapters_of(self).make("probe", type_or_config, _like(self))
    except AdapterError:
        return False
    return True


def has_adapters(self: PreTrainedModel) -> bool:
    """Whether any adapter was added."""
    adapters = self.__dict__["_modules"].get("adapters")
    return adapters is not None and len(adapters.entries) > 0


def freeze_model(self: PreTrainedModel, freeze: bool = True) -> None:
    """Stop (or allow) training of everything but adapters and heads."""
    for parameter in base_parameters(self):
        parameter.requires_grad_(not freeze)


def base_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """What is neither adapter nor head: the backbone's, or those of a whole model from outside."""
    if isinstance(model, PreTrainedModel):
        yield from model.backbone.parameters()
        return
    yield from (p for name, p in model.named_parameters() if not name.startswith("adapters."))


def train_adapter(self: PreTrainedModel, adapter_setup: Any, train_embeddings: bool = False) -> None:
    """Freeze the base model, train the adapters of the setup (and the head), and activate it."""
    adapters, setup = adapters_of(self), parse_composition(adapter_setup)
    adapters.activate(setup)
    self.train()
    freeze_model(self)
    if train_embeddings:
        self.get_input_embeddings().requires_grad_(True)
    wanted = set(names_of(setup))
    for entry in adapters.entries.values():
        _train(entry, entry.name in wanted)  # type: ignore[arg-type]
    for layers in adapters.fusions.values():
        layers.requires_grad_(False)


def train_adapter_fusion(self: PreTrainedModel, adapter_setup: Any, unfreeze_adapters: bool = False) -> None:
    """Freeze the base model and the adapters, train the fusions of the setup, and activate it."""
    train_adapter(self, adapter_setup)
    adapters = adapters_of(self)
    names = {b.name for b in blocks_of(adapters.setup) if isinstance(b, Fuse)}
    if not names:
        raise AdapterError("train_adapter_fusion needs a setup with Fuse")
    for entry in adapters.entries.values():
        _train(entry, unfreeze_adapters and entry.name in set(names_of(adapters.setup)))  # type: ignore[arg-type]
    for key, layers in adapters.fusions.items():
        layers.requires_grad_(key[1:].replace("\u2024", ".") in names)


def get_fusion_regularization_loss(self: PreTrainedModel) -> torch.Tensor | None:
    """What the value matrices of the active fusions add to a training loss, or None."""
    total = None
    module: Any
    for module in adapters_of(self).fusions.modules():
        value = module.penalty() if hasattr(module, "penalty") else None
        if value is not None:
            total = value if total is None else total + value
    return total


def _train(entry: Entry, wanted: bool) -> None:
    fixed = ("phm_rule", "lora_A", "lora_B")
    for name, parameter in entry.named_parameters():
        shared = name.startswith("shared.") and name.rpartition(".")[2] in fixed
        config = next(iter(entry.config.parts()))
        learns = not shared or (name.endswith("phm_rule") and config.get("learn_phm", True))
        parameter.requires_grad_(wanted and learns)


def add_adapter_fusion(
    self: PreTrainedModel, adapter_names: Any, config: Any = None, name: str | None = None,
    overwrite_ok: bool = False, set_active: bool = False,
) -> None:  # fmt: skip
    """Add a fusion (static, dynamic or a config) of adapters, given as a list, a Fuse or `a,b`."""
    adapters = adapters_of(self)
    if isinstance(adapter_names, Fuse):
        name = name or adapter_names.given
        adapter_names = [c if isinstance(c, str) else c.last() for c in adapter_names.children]
    elif isinstance(adapter_names, str):
        adapter_names = adapter_names.split(",")
    key = name or ",".join(adapter_names)
    if overwrite_ok and key in adapters.fusion_configs:
        delete_adapter_fusion(self, key)
    adapters.fuse(list(adapter_names), config, _like(self), name)
    if set_active:
        adapters.activate(Fuse(*adapter_names, name=name))


def delete_adapter_fusion(self: PreTrainedModel, adapter_names: Any) -> None:
    """Take a fusion away."""
    adapters = adapters_of(self)
    name = adapter_names if isinstance(adapter_names, str) else (
        adapter_names.name if isinstance(adapter_names, Fuse) else ",".join(adapter_names)
    )  # fmt: skip
    if name not in adapters.fusion_configs:
        raise AdapterError(f"the model has no fusion {name!r}; it has {list(adapters.fusion_configs)}")
    if any(isinstance(b, Fuse) and b.name == name for b in blocks_of(adapters.setup)):
        adapters.activate(None)
    adapters.unfuse(name)


def merge_adapter(self: PreTrainedModel, name: str) -> None:
    """Put a LoRA, IA3, DoRA, VeRA or MTL-LoRA adapter into the weights; it is inactive afterwards."""
    adapters_of(self).merge(name)


def reset_adapter(self: PreTrainedModel) -> None:
    """Take merged adapters out of the weights: the base comes back bit for bit."""
    adapters_of(self).unmerge()


def eject_prefix_tuning(self: PreTrainedModel, name: str) -> None:
    """Replace the network that makes the prefixes by the prefixes themselves."""
    entry, found = adapters_of(self).get(name), False
    for _, module in entry.shared_by_key():
        if hasattr(module, "eject"):
            module.eject()  # type: ignore[operator]
            found = True
    if not found:
        raise AdapterError(f"{name!r} has no prefixes to eject")
    for config in entry.config.parts():
        if config.architecture == "prefix_tuning":
            config.flat = True  # type: ignore[attr-defined]


def adapter_summary(self: PreTrainedModel, as_dict: bool = False) -> Any:
    """A table of the adapters: method, parameters, share of the model's, active, trained."""
    adapters = adapters_of(self)
    total = sum(p.numel() for p in self.parameters()) - sum(p.numel() for p in adapters.parameters())
    active = set(names_of(adapters.setup))
    rows = []
    for entry in adapters.entries.values():
        assert isinstance(entry, Entry)
        count = sum(p.numel() for p in entry.parameters())
        rows.append({
            "name": entry.name,
            "architecture": entry.config.architecture or "bottleneck",
            "#param": count,
            "%param": round(100 * count / max(total, 1), 3),
            "active": entry.name in active,
            "train": any(p.requires_grad for p in entry.parameters()),
        })  # fmt: skip
    trained = any(p.requires_grad for p in base_parameters(self))
    rows.append({"name": "Full model", "#param": total, "%param": 100.0, "train": trained})
    if as_dict:
        return rows
    heads = ["name", "architecture", "#param", "%param", "active", "train"]
    cells = [heads, *([str(row.get(h, "")) for h in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells)


def adapter_to(
    self: PreTrainedModel, name: str, device: Any = None, dtype: torch.dtype | None = None
) -> None:
    """Move an adapter to a device or dtype."""
    adapters_of(self).get(name).to(device=device, dtype=dtype)


class AdapterSetup(AbstractContextManager):
    """Another setup for the models called inside of the block: `with AdapterSetup(Stack("a", "b")): ...`."""

    current: ContextVar[Any] = ContextVar("adapter_setup", default=None)

    def __init__(self, adapter_setup: Any, head_setup: Any = None, ignore_empty: bool = False) -> None:
        self.setup, self.heads = parse_composition(adapter_setup), head_setup
        self.tokens: list[Any] = []

    def __enter__(self) -> "AdapterSetup":
        self.tokens.append(self.current.set((self.setup, self.heads)))
        return self

    def __exit__(self, *error: Any) -> None:
        self.current.reset(self.tokens.pop())


def call(self: PreTrainedModel, forward: Any, args: tuple, named: dict[str, Any]) -> Any:
    """Run a model that has adapters."""
    adapters = adapters_of(self)
    with adapters.turn, _asked(adapters):
        return adapters.call(forward, self, args, named)


@contextmanager
def _asked(adapters: Adapters) -> Iterator[None]:
    """The setup that an AdapterSetup around the call asks for, while it runs."""
    other = AdapterSetup.current.get()
    if other is None or adapters.settled or other[0] == adapters.setup:
        yield
        return
    setup, skip = adapters.setup, adapters.skip_layers
    adapters.activate(other[0])
    try:
        yield
    finally:
        adapters.activate(setup, skip)


def run_generation(self: PreTrainedModel, function: Any, args: tuple, named: dict[str, Any]) -> Any:
    """`generate` of a model that has adapters; adapter_names, task_ids and Parallel hold throughout."""
    adapters = adapters_of(self)
    names, tasks = named.pop("adapter_names", None), named.pop("task_ids", None)

    def run() -> Any:
        count = copies(adapters.setup)
        given, more = args, named
        if count > 1 and not adapters.facts.copied:
            rows = rows_in((args, named))
            given, more = repeated(args, count, rows), repeated(named, count, rows)
            for name in ("row_settings", "seed"):  # one for each row
                if isinstance(more.get(name), list | tuple):
                    more[name] = list(more[name]) * count
        for item in adapters.calling():
            given, more = item.generate(self, given, more)
        with _during(adapters), _lead(self, adapters.prompts()):
            return adapters.with_tasks(tasks, lambda: function(self, *given, **more))

    with adapters.turn, _asked(adapters):
        return adapters.with_rows(names, rows_in((args, named)), run)


@contextmanager
def _lead(model: PreTrainedModel, site: Any) -> Iterator[None]:
    """Let generation know of the positions that prompts take in front."""
    if site is None or "prompt_lead" in dir(type(model)):
        yield
        return
    model.__dict__["prompt_lead"] = site.count
    try:
        yield
    finally:
        del model.__dict__["prompt_lead"]


@contextmanager
def _during(adapters: Adapters) -> Iterator[None]:
    """The calls inside find rows that are copied and a setup that stays."""
    before = adapters.settled, adapters.facts.copied
    adapters.settled = adapters.facts.copied = True
    try:
        yield
    finally:
        adapters.settled, adapters.facts.copied = before


def adapter_fusion_to(
    self: PreTrainedModel, adapter_names: Any, device: Any = None, dtype: torch.dtype | None = None
) -> None:
    """Move the layers of a fusion (a Fuse, a list or `a,b`) to a device or dtype."""
    adapters = adapters_of(self)
    name = adapter_names if isinstance(adapter_names, str) else (
        adapter_names.name if isinstance(adapter_names, Fuse) else ",".join(adapter_names)
    )  # fmt: skip
    if name not in adapters.fusion_configs:
        raise AdapterError(f"the model has no fusion {name!r}; it has {list(adapters.fusion_configs)}")
    adapters.fusions[module_key(name)].to(device=device, dtype=dtype)


def apply_to_adapter_layers(self: PreTrainedModel, function: Any) -> None:
    """Call function(layer number, part) for every part of every adapter."""
    for entry in adapters_of(self).entries.values():
        for place, part in entry.items():  # type: ignore[operator]
            function(place.layer, part)


def iter_layers(self: PreTrainedModel) -> Iterator[tuple[int, nn.Module]]:
    """Numbers and modules of the layers that adapters count by; encoders come before decoders."""
    for layer in adapters_of(self).where.layers:
        yield layer.index, layer.module


def iterate_adapters(self: PreTrainedModel) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names and configurations."""
    for entry in adapters_of(self).entries.values():
        yield entry.name, config_of(entry.config)  # type: ignore[misc]
