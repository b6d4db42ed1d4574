"""Invertible adapters at the embedding (Pfeiffer et al. 2020, arXiv:2005.00052)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from phyla.adapters.bottleneck import Act, BnConfig
from phyla.adapters.dialect import INVERTED
from phyla.adapters.interpret import Facts, Flow, Method, run
from phyla.adapters.places import HookedPlace, Place, Survey
from phyla.blocks.context import Context
from phyla.blocks.matmul import linear as product
from phyla.errors import AdapterError

CLAMP = 5.0


class Nice(nn.Module):
    """Additive coupling of two halves (Dinh et al. 2015, arXiv:1410.8516)."""

    def __init__(self, config: BnConfig, width: int) -> None:
        super().__init__()
        self.one, self.two = width // 2, width - width // 2
        self.F = _net(config, self.two, self.one)
        self.G = _net(config, self.one, self.two)

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        a, b = x.split([self.one, self.two], -1)
        if inverse:
            b = b - self.G(a)
            a = a - self.F(b)
        else:
            a = a + self.F(b)
            b = b + self.G(a)
        return torch.cat([a, b], -1)

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by public name."""
        return self.state_dict()

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by public name."""
        self.load_state_dict(tensors)


class Glow(Nice):
    """Affine coupling of two halves (Kingma & Dhariwal 2018, arXiv:1807.03039)."""

    def __init__(self, config: BnConfig, width: int) -> None:
        nn.Module.__init__(self)
        self.one, self.two = width // 2, width - width // 2
        self.s1 = _net(config, self.one, 2 * self.two)
        self.s2 = _net(config, self.two, 2 * self.one)

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        a, b = x.split([self.one, self.two], -1)
        if inverse:
            s, t = self.s1(a).split(self.two, -1)
            b = (b - t) * torch.exp(-_soft(s))
            s, t = self.s2(b).split(self.one, -1)
            a = (a - t) * torch.exp(-_soft(s))
        else:
            s, t = self.s2(b).split(self.one, -1)
            a = a * torch.exp(_soft(s)) + t
            s, t = self.s1(a).split(self.two, -1)
            b = b * torch.exp(_soft(s)) + t
        return torch.cat([a, b], -1)


def _soft(s: Tensor) -> Tensor:
    return CLAMP * 0.636 * torch.atan(s / CLAMP)


def _net(config: BnConfig, inputs: int, outputs: int) -> nn.Sequential:
    inner = max(1, int(inputs // (config.inv_adapter_reduction_factor or 2)))
    made = nn.Sequential(nn.Linear(inputs, inner), Act(config.non_linearity), nn.Linear(inner, outputs))
    linear: Any
    for linear in (made[0], made[2]):
        nn.init.normal_(linear.weight, 0.0, 0.02)
        nn.init.zeros_(linear.bias)
    return made


KINDS = {"nice": Nice, "glow": Glow}


def attach(config: BnConfig, places: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """The part of one adapter with its places: behind the embedding."""
    if config.inv_adapter is None:
        return
    if config.inv_adapter not in KINDS:
        raise AdapterError(f"inv_adapter must be one of {sorted(KINDS)}, but is {config.inv_adapter!r}")
    tokens = [p for p in places.embeds if hasattr(p.module, "tokens") or isinstance(p, HookedPlace)]
    tokens = tokens or [p for p in places.embeds if states_of(p, places)]
    if places.with_cross:
        tokens = [p for p in places.embeds if "decoder" not in p.path.split(".")]
    if places.with_cross and not tokens:  # encoders of sound have it behind their final norm
        tower = next(t for t in places.towers if "decoder" not in t.split("."))
        norm = getattr(places.model.get_submodule(tower), "norm", None)
        tokens = [] if norm is None else [HookedPlace(f"{tower}.norm", norm, "embed", tower=tower)]
    if not tokens:
        raise AdapterError("an invertible adapter needs an embedding of positions, but this model has none")
    for embed in tokens[:1]:
        lift = getattr(embed.module, "lift", None)
        if lift is not None:
            place = Place(f"{embed.path}.lift", lift, "lift", tower=embed.tower)
            width = lift.in_features
        else:
            place, width = embed, width_of(embed, places)
        part = KINDS[config.inv_adapter](config, width)
        yield place, part
        # Undoing it before the output matrix, as the paper has it, is what public files of few families had:
        # the library that wrote the others applies it at the embedding alone in models with their own head.
        if places.layers[0].model_type in INVERTED:
            yield from ((scores, part) for scores in places.scores)


def width_of(embed: Place, places: Survey) -> int:
    """Elements of a vector that an embedding gives; AdapterError where no layer reads them."""
    found = states_of(embed, places)
    if not found:
        raise AdapterError(f"the vectors of {embed.path} must go to layers, but no layer reads them")
    return found


def states_of(embed: Place, places: Survey) -> int:
    """The width of the states that the layers of an embedding's tower have; 0 where they have none."""
    return next((x.width for x in places.layers if x.tower == embed.tower and not x.maps), 0)


class EmbedSite(nn.Module, Method):
    """The site of an embedding: (x, ctx) -> x. scale: a factor in x that comes behind the adapter."""

    def __init__(
        self, setup: Any, parts: dict[str, list[Nice]], facts: Facts, scale: float | None = None
    ) -> None:
        super().__init__()
        self.setup, self.parts, self.facts, self.inverse = setup, parts, facts, False
        self.scale = scale

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        (y,) = run(
            self.setup, (x if self.scale is None else x / self.scale,), (), self, self.facts, self.inverse
        )
        assert y is not None
        return y if self.scale is None else y * self.scale

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        x: Any = flow[0]
        for part in self.parts.get(name, ()):
            own = next(part.parameters())  # it may stand at the embedding of another device
            x = part(x.to(own.device, own.dtype), self.inverse).to(x.device, x.dtype)
        return (x,)

    def fuse(self, block: Any, flow: Flow, fixed: Flow, facts: Facts) -> Flow:
        # Fused adapters act at the embedding through the first of them alone, as the public ones do.
        return run(block.children[0], flow, fixed, self, facts, self.inverse)


class InputSite(EmbedSite):
    """The site of a projection whose input changes: (x, y, linear) -> y."""

    def __init__(self, setup: Any, parts: dict[str, list[Nice]], facts: Facts, inverse: bool) -> None:
        super().__init__(setup, parts, facts)
        self.inverse = inverse

    def forward(self, x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:  # type: ignore[override]
        h: Any
        (h,) = run(self.setup, (x,), (), self, self.facts, self.inverse)
        return product(h, linear.weight, linear.bias)
