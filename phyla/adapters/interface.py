"""Adapters for models from outside: an interface says where their parts are, hooks stand for the sites."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.adapters.places import HookCall, HookedPlace, LayerPlaces, LinearSlice, Place, Survey
from phyla.adapters.registry import Adapters
from phyla.checkpoints.atomic import atomic_write
from phyla.checkpoints.json_file import read_json
from phyla.errors import AdapterError
from phyla.model import LAZY_METHODS, LAZY_SETTINGS, Lazy, LazySetting

FILE = "adapter_interface.json"


class AdapterMethod:
    """The methods that an interface may allow."""

    bottleneck, prefix_tuning, lora = "bottleneck", "prefix_tuning", "lora"
    prompt_tuning, reft, invertible = "prompt_tuning", "reft", "invertible"

    @staticmethod
    def get_from_config(config: Any) -> list[str]:
        """The methods that a configuration needs."""
        found = []
        for part in config.parts():
            if part.get("inv_adapter"):
                found.append(AdapterMethod.invertible)
            kind = part.architecture or AdapterMethod.bottleneck
            found.append(AdapterMethod.lora if kind == "mtl_lora" else kind)
        return found


@dataclass
class AdapterModelInterface:
    """Names of a model's parts: the layers' from the base model, the others' from a layer or its attention.

    Either attn_q_proj, attn_k_proj and attn_v_proj or attn_qkv_proj. The optional fields tell bottlenecks
    where the residual streams begin (layer_pre_...) and which norms stand behind the branches (layer_ln_...).
    """

    adapter_methods: list[str]
    model_embeddings: str
    model_layers: str
    layer_self_attn: str
    layer_cross_attn: str | None
    attn_o_proj: str | None
    layer_intermediate_proj: str
    layer_output_proj: str
    attn_k_proj: str | None = None
    attn_q_proj: str | None = None
    attn_v_proj: str | None = None
    attn_qkv_proj: str | None = None
    layer_pre_self_attn: str | None = None
    layer_pre_cross_attn: str | None = None
    layer_pre_ffn: str | None = None
    layer_ln_1: str | None = None
    layer_ln_2: str | None = None
    base_model: str | None = None

    def __post_init__(self) -> None:
        single = None not in (self.attn_q_proj, self.attn_k_proj, self.attn_v_proj)
        if single == (self.attn_qkv_proj is not None):
            raise AdapterError(
                "an interface must name either attn_q_proj, attn_k_proj and attn_v_proj or attn_qkv_proj"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def save(self, folder: Any, model_type: str) -> None:
        """Write adapter_interface.json."""
        facts = {"model_type": model_type, "interface": self.to_dict(), "version": "adapters.1.3.0"}
        atomic_write(Path(folder) / FILE, (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())

    @classmethod
    def load(cls, folder: Any) -> "AdapterModelInterface":
        """Read adapter_interface.json."""
        return cls(**read_json(Path(folder) / FILE, AdapterError)["interface"])


@dataclass
class SliceCall(HookCall):
    """The hook of a part of a joint projection."""

    part: Any = None

    def __call__(self, module: Any, args: tuple, output: Any) -> Any:
        start, end = self.part.start, self.part.end
        changed = self.site(args[0], output[..., start:end], self.part)
        return torch.cat([output[..., :start], changed, output[..., end:]], -1)


@dataclass(frozen=True)
class SlicePlace(HookedPlace):
    """A place at some rows of a projection; module is the slice."""

    def put(self, site: Any) -> None:
        whole = HookedPlace(self.path, self.module.linear, self.kind, slot=self.part)
        object.__setattr__(whole, "call_of", lambda s: SliceCall(s, self.kind, self.module))
        whole.put(site)

    def held(self) -> Any:
        found = self.module.linear.__dict__.get("_hooked_sites", {}).get(self.part)
        return None if found is None else found[0]


class Stream:
    """Remembers the first argument of a module: where a branch's residual stream begins."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, module: Any, args: tuple) -> None:
        self.value = args[0]


@dataclass
class BranchCall(HookCall):
    """The hook of a branch: its site wants the stream as well."""

    stream: Any = None

    def __call__(self, module: Any, args: tuple, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        x = torch.zeros_like(value) if self.stream is None else self.stream.value
        value = self.site(value, x, module)
        return (value, *output[1:]) if isinstance(output, tuple) else value


@dataclass(frozen=True)
class BranchPlace(HookedPlace):
    """The place of a bottleneck; the norm behind the branch is that of the last layer, as in public files."""

    stream_of: Any = None
    norm: Any = None

    def call_of(self, site: Any) -> Any:
        return BranchCall(site, self.kind, self.stream_of)


def equip(model: nn.Module, interface: AdapterModelInterface) -> None:
    """Give a model from outside the methods of adapters; its own calls stay as they are."""
    if "adapters" in model._modules:
        raise AdapterError(f"{type(model).__name__} has adapters already")
    where = _survey(model, interface)
    model.add_module("adapters", Adapters(model, where).train(model.training))
    object.__setattr__(model, "adapter_interface", interface)
    model.__class__ = _class_of(type(model))


_CLASSES: dict[type, type] = {}


def _class_of(kind: type) -> type:
    """The model's class with the methods of adapters; they take the place of others of the same names."""
    if kind not in _CLASSES:
        wanted = {n: Lazy(*w, "method") for n, w in LAZY_METHODS.items() if w[0].startswith("phyla.adapters")}
        wanted |= {n: LazySetting(*w) for n, w in LAZY_SETTINGS.items() if w[0].startswith("phyla.adapters")}
        _CLASSES[kind] = type(kind.__name__, (kind,), {**wanted, "__call__": _call, "__reduce_ex__": _reduce})
        _CLASSES[kind].__module__ = kind.__module__
    return _CLASSES[kind]


def _reduce(self: nn.Module, protocol: Any) -> tuple:
    """Copies are made of the class that the model came with, and equipped again."""
    kind = next(k for k, made in _CLASSES.items() if made is type(self))
    return _again, (kind,), self.__dict__


def _again(kind: type) -> nn.Module:
    return object.__new__(_class_of(kind))


def _call(self: nn.Module, *args: Any, **named: Any) -> Any:
    return self._modules["adapters"].run(self, super(type(self), self).__call__, args, named)  # type: ignore


def _at(module: Any, path: str | None) -> Any:
    """The module at a path below another one; None where there is none."""
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
    return module if path else None


def _survey(model: nn.Module, interface: AdapterModelInterface) -> Survey:
    prefix = interface.base_model or getattr(model, "base_model_prefix", "") or ""
    base = _at(model, prefix) if prefix else model
    base = model if base is None else base
    names = {id(module): name for name, module in model.named_modules()}
    layers, found = list(_at(base, interface.model_layers) or ()), []
    if not layers:
        raise AdapterError(
            f"model_layers ({interface.model_layers!r}) must name a list of layers, but does not"
        )
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None) or type(model).__name__
    for index, layer in enumerate(layers):
        found.append(_layer(index, layer, layers[-1], interface, names, kind))
    embed = _at(base, interface.model_embeddings)
    if embed is None:
        raise AdapterError(f"model_embeddings ({interface.model_embeddings!r}) names no module")
    place = HookedPlace(names[id(embed)], embed, "embed")
    return Survey(
        found, [place], [], [""], False, config or SimpleNamespace(model_type=kind), model,
        tuple(interface.adapter_methods),
    )  # fmt: skip


def _layer(
    index: int, layer: Any, last: Any, interface: AdapterModelInterface, names: dict[int, str], kind: str
) -> LayerPlaces:
    path = names[id(layer)]
    made = LayerPlaces(index, path, "", kind, layer)
    attn, cross = _at(layer, interface.layer_self_attn), _at(layer, interface.layer_cross_attn)
    for role, module in (("attn", attn), ("cross", cross)):
        if module is not None:
            made.linears += _projections(module, role, index, interface, names)
    for part, where in (("up", interface.layer_intermediate_proj), ("down", interface.layer_output_proj)):
        linear = _linear(_at(layer, where), where)
        made.linears.append(HookedPlace(names[id(linear)], linear, "linear", "ffn", part, index))
        made.width = linear.out_features
    out = _at(attn, interface.attn_o_proj) if attn is not None else None
    norm_1, norm_2 = _at(last, interface.layer_ln_1), _at(last, interface.layer_ln_2)
    if out is not None:
        stream = _stream(_at(layer, interface.layer_pre_self_attn))
        made.attn = BranchPlace(
            names[id(out)], out, "branch", "attn", "", index, "", "branch", stream_of=stream, norm=norm_1
        )
    if cross is not None:
        stream = _stream(_at(layer, interface.layer_pre_cross_attn))
        made.cross = BranchPlace(
            names[id(cross)], cross, "branch", "cross", "", index, "", "branch", stream_of=stream
        )
    down = _at(layer, interface.layer_output_proj)
    stream = _stream(_at(layer, interface.layer_pre_ffn))
    made.out = BranchPlace(
        names[id(down)], down, "branch", "ffn", "", index, "", "branch", stream_of=stream, norm=norm_2
    )
    return made


def _stream(module: Any) -> Stream | None:
    if module is None:
        return None
    stream = Stream()
    module.register_forward_pre_hook(stream)
    return stream


def _linear(module: Any, name: Any) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise AdapterError(f"{name!r} must name a torch.nn.Linear, but is {type(module).__name__}")
    return module


def _projections(
    attn: Any, role: str, index: int, interface: AdapterModelInterface, names: dict[int, str]
) -> Iterator[Place]:
    if interface.attn_qkv_proj is not None:
        whole = _linear(_at(attn, interface.attn_qkv_proj), interface.attn_qkv_proj)
        size = whole.out_features // 3
        for i, part in enumerate("qkv"):
            piece = LinearSlice(whole, i * size, (i + 1) * size)
            yield SlicePlace(f"{names[id(whole)]}.{part}", piece, "linear", role, part, index)
    else:
        for part, name in zip(
            "qkv", (interface.attn_q_proj, interface.attn_k_proj, interface.attn_v_proj), strict=True
        ):
            linear = _linear(_at(attn, name), name)
            yield HookedPlace(names[id(linear)], linear, "linear", role, part, index)
    if interface.attn_o_proj is not None:
        out = _at(attn, interface.attn_o_proj)
        if isinstance(out, nn.Linear):
            yield HookedPlace(names[id(out)], out, "linear", role, "o", index)


class OuterDialect:
    """Public keys of the adapters of a model from outside: its own names."""

    prefix = ahead = ""
    owners: tuple[str, ...] = ()

    def __init__(self, model: Any, where: Survey) -> None:
        self.where, self.model_type = where, where.layers[0].model_type
        self.below = {layer.index: layer.path for layer in where.layers}
        self.linear: Callable[[Place], str] = lambda place: place.path

    def fused(self, place: Place) -> None:
        """Nothing: every part has a name of its own."""

    def branch(self, place: Place) -> str:
        """What holds a branch's bottlenecks."""
        name = {"attn": "attention_adapters", "cross": "cross_attention_adapters"}.get(
            place.role, "output_adapters"
        )
        return f"{self.below[place.layer]}.{name}"

    def tower(self, place: Place) -> str:
        """Nothing stands before what belongs to the whole model."""
        return ""
