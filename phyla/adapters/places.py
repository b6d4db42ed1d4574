"""Where adapters may stand in a model: its layers, their branches and projections, read off the sites."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from phyla.blocks.linear import Linear
from phyla.blocks.residual import Mixer
from phyla.model import PreTrainedModel

# What stands for the projections that configurations name, in mixers that call theirs otherwise: (parts that
# tell the mixer, its role, name in configurations -> part). What weighs is q and k, what is carried v.
STAND_INS: tuple[tuple[frozenset[str], str, dict[str, str]], ...] = (
    (frozenset({"in_x", "in_gate"}), "attn", {"q": "in_gate", "k": "in_gate", "v": "in_x", "o": "out"}),
    (frozenset({"r", "k", "v", "out"}), "attn", {"q": "r", "k": "k", "v": "v", "o": "out"}),
    (frozenset({"r", "k", "v"}), "ffn", {"gate": "r", "up": "k", "down": "v"}),
    (frozenset({"offsets", "weights"}), "attn", {"q": "offsets", "k": "weights", "v": "v", "o": "o"}),
    (frozenset({"qk", "v"}), "attn", {"q": "qk", "k": "qk", "v": "v", "o": "o"}),
    (frozenset({"k", "v"}), "attn", {}),
)
# The same for layers whose mixers of positions have no linear maps: Fourier transforms, convolutions.
FEED_FORWARD = {"q": "up", "k": "up", "v": "down", "o": "down"}


@dataclass(frozen=True)
class Place:
    """One place: the module whose slot `slot` is to be filled, its path, what it is and in which layer.

    kind: linear, branch, stream (a layer's output), embed, keys-values, scores (the input of the output
    matrix). role: attn, cross, ffn. part: the projection (q, k, v, o, gate, up, down). stands: the names in
    configurations that mean it besides its own (see STAND_INS).
    """

    path: str
    module: Any
    kind: str
    role: str = ""
    part: str = ""
    layer: int = -1
    tower: str = ""
    slot: str = "site"
    stands: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What tells places apart."""
        return self.path, self.slot

    def means(self, names: Collection[str]) -> bool:
        """Whether one of these names of projections means this one."""
        return self.part in names or any(name in names for name in self.stands)

    def put(self, site: Any) -> None:
        """Fill the place, or empty it with None."""
        self.module._modules[self.slot] = site

    def held(self) -> Any:
        """What is there."""
        return self.module._modules[self.slot]


@dataclass
class HookCall:
    """What a forward hook calls: a site, with what it wants of the call; an object, so that copies work."""

    site: Any
    kind: str

    def __call__(self, module: Any, args: tuple, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        value = self.site(args[0], value, module) if self.kind == "linear" else self.site(value)
        return (value, *output[1:]) if isinstance(output, tuple) else value


@dataclass(frozen=True)
class HookedPlace(Place):
    """A place behind a module that has no sites of its own: a forward hook stands for one."""

    def put(self, site: Any) -> None:
        held = self.module.__dict__.setdefault("_hooked_sites", {})
        old = held.pop(self.slot, None)
        if old is not None:
            old[1].remove()
        if site is not None:
            held[self.slot] = (site, self.module.register_forward_hook(self.call_of(site)))

    def call_of(self, site: Any) -> Any:
        """The hook that runs a site."""
        return HookCall(site, self.kind)

    def held(self) -> Any:
        found = self.module.__dict__.get("_hooked_sites", {}).get(self.slot)
        return None if found is None else found[0]


class LinearSlice:
    """Some rows of a linear map, as if they were one of its own: one part of a joint q, k, v projection."""

    def __init__(self, linear: nn.Linear, start: int, end: int) -> None:
        self.linear, self.start, self.end = linear, start, end
        self.in_features, self.out_features = linear.in_features, end - start

    @property
    def weight(self) -> Tensor:
        return self.linear.weight[self.start : self.end]

    @property
    def bias(self) -> Tensor | None:
        return None if self.linear.bias is None else self.linear.bias[self.start : self.end]


@dataclass
class LayerPlaces:
    """One layer: number over the whole model, path, tower, the model it belongs to, and its places."""

    index: int
    path: str
    tower: str
    model_type: str
    module: Any
    width: int = 0
    maps: bool = False  # whether its stream is maps of channels (rows, channels, y, x), not positions
    attn: Place | None = None
    cross: Place | None = None
    out: Place | None = None
    linears: list[Place] = field(default_factory=list)
    keys_values: list[Place] = field(default_factory=list)

    @property
    def stream(self) -> Place:
        """The layer's output."""
        kind = Place if "site" in self.module._modules else HookedPlace
        return kind(self.path, self.module, "stream", layer=self.index, tower=self.tower)

    def branches(self) -> Iterator[tuple[str, Place]]:
        """The places of bottleneck adapters by the flag that asks for them."""
        if self.attn is not None:
            yield "mh_adapter", self.attn
        if self.cross is not None:
            yield "cross_adapter", self.cross
        if self.out is not None:
            yield "output_adapter", self.out


@dataclass
class Survey:
    """All places of a model."""

    layers: list[LayerPlaces]
    embeds: list[Place]
    scores: list[Place]
    towers: list[str]
    with_cross: bool
    config: Any = None
    model: Any = field(default=None, repr=False)
    allowed: tuple[str, ...] | None = None  # methods that a model from outside takes; None: all

    def group(self, layer: LayerPlaces, role: str) -> str:
        """The public name of the prefixes of one attention: encoder_prefix, self_prefix, cross_prefix."""
        if role == "cross":
            return "cross_prefix"
        return "encoder_prefix" if self.with_cross and is_encoder(layer.tower) else "self_prefix"


def is_encoder(tower: str) -> bool:
    """Whether a tower's states go to a decoder's cross-attention, by its path."""
    return "encoder" in tower.split(".") and "decoder" not in tower.split(".")


def survey(model: PreTrainedModel) -> Survey:
    """Read the places off a model; layers of encoders are numbered before those of decoders."""
    owners: dict[str, str] = {"": model.config.model_type}
    found: list[tuple[str, Any]] = []
    embeds: list[Place] = []
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and path:
            owners[path] = module.config.model_type
        if getattr(module, "site_kind", None) != "stream" or "site" not in module._modules:
            continue
        if path.startswith("adapters"):
            continue
        if hasattr(module, "order"):
            found.append((path, module))
        elif path.rpartition(".")[2] == "embed":
            embeds.append(Place(path, module, "embed", tower=path.rpartition(".")[0]))
    found = found or list(_unordered(model))
    found.sort(key=lambda item: "decoder" in item[0].split("."))
    embeds.sort(key=lambda place: "decoder" in place.path.split("."))
    layers = [_layer(i, path, module, owners) for i, (path, module) in enumerate(found)]
    towers = list(dict.fromkeys(layer.tower for layer in layers))
    return Survey(
        layers, embeds, list(_scores(model)), towers, any(layer.cross is not None for layer in layers),
        model.config, model,
    )  # fmt: skip


def _unordered(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of models whose layers name no branches: those with mixers, else the innermost with maps."""
    members = [
        (f"{path}.{i}" if path else str(i), member)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] in ("layers", "stages")
        for i, member in enumerate(module)
        if any(getattr(child, "site_kind", None) == "linear" for child in member.modules())
    ]
    mixing = [path for path, member in members if any(isinstance(c, Mixer) for c in member.children())]
    for path, member in members:
        inside = any(path.startswith(other + ".") for other in mixing)
        around = any(other.startswith(path + ".") for other, _ in members)
        if path in mixing or not (inside or around):
            yield path, member


def _layer(index: int, path: str, module: Any, owners: dict[str, str]) -> LayerPlaces:
    tower = path[: path.rindex(".layers")] if ".layers" in path else path.rpartition(".")[0]
    owner = max((p for p in owners if not p or path.startswith(p + ".")), key=len)
    made = LayerPlaces(index, path, tower, owners[owner], module)
    for name in getattr(module, "order", None) or [n for n, _ in module.named_children()]:
        branch, at = getattr(module, name), f"{path}.{name}"
        if not isinstance(branch, Mixer):
            if not hasattr(module, "order"):
                made.linears += _linears(branch, at, "ffn", index, tower)
            continue
        role = "ffn"
        if hasattr(branch, "kv_site"):
            role = "cross" if getattr(branch, "cross", False) else "attn"
        place = Place(at, branch, "branch", role, layer=index, tower=tower)
        if role == "attn" and made.attn is None:
            made.attn = place
        elif role == "cross" and made.cross is None:
            made.cross = place
        else:
            made.out = place
        if "kv_site" in branch._modules:
            made.keys_values.append(
                Place(at, branch, "keys-values", role, layer=index, tower=tower, slot="kv_site")
            )
        made.linears += _linears(branch, at, role, index, tower)
    made.maps = made.attn is None and made.cross is None and made.out is None
    ends = [p.module.out_features for p in made.linears if p.part in ("o", "down", "out")]
    made.width = ends[-1] if ends else _normed_width(module)
    if all(place.role == "ffn" for place in made.linears):
        made.linears = [
            replace(p, stands=(*p.stands, *(k for k, v in FEED_FORWARD.items() if p.means((v,)))))
            for p in made.linears
        ]
    return made


def _linears(branch: nn.Module, at: str, role: str, index: int, tower: str) -> list[Place]:
    """The linear maps of a branch, under the role and the names by which configurations ask for them."""
    found = {
        f"{at}.{inner}" if inner else at: child
        for inner, child in branch.named_modules()
        if getattr(child, "site_kind", None) == "linear"
    }
    parts = {path.rpartition(".")[2] for path in found}
    names: dict[str, str] = {}
    if role == "ffn":
        role, names = next(((r, n) for needs, r, n in STAND_INS if needs <= parts), (role, names))
    made = []
    for path, child in found.items():
        part = path.rpartition(".")[2]
        stands = tuple(name for name, other in names.items() if other == part != name)
        made.append(Place(path, child, "linear", role, part, index, tower, stands=stands))
    return made


def _normed_width(layer: Any) -> int:
    """The width of what a layer's first norm reads: experts are no linear maps that end in the stream."""
    weights = (getattr(m, "weight", None) for path, m in layer.named_modules() if path.endswith("norm"))
    return next((len(weight) for weight in weights if weight is not None and weight.ndim == 1), 0)


def _scores(model: PreTrainedModel) -> Iterator[Place]:
    """The matrix that turns states into scores of tokens, where the model has one."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] != "head" or not hasattr(module, "scores"):
            continue
        out = getattr(module, "out", None)
        if isinstance(out, Linear):
            yield Place(f"{path}.out", out, "scores")
