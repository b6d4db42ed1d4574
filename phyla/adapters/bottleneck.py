"""Bottleneck adapters: down, activation, up, beside or behind a branch of a layer.

Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2020 (arXiv:2005.00052), He et al. 2022
(arXiv:2110.04366), Mahabadi et al. 2021 (arXiv:2106.04647), Steitz & Roth 2024 (arXiv:2406.06820).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.composition import Fuse, Rows, Stack, last_of
from phyla.adapters.config import ADAPTER_CONFIG_MAP, ARCHITECTURES, AdapterConfig, known
from phyla.adapters.dialect import branch_flag, spot_of
from phyla.adapters.interpret import Facts, Flow, Method, run
from phyla.adapters.phm import Bank, PHMLinear, rule_of, weights_of
from phyla.adapters.places import Place, Survey
from phyla.blocks.act import activation
from phyla.blocks.residual import drop_path
from phyla.errors import AdapterError


@dataclass
class BnConfig(AdapterConfig):
    """A bottleneck at the branches that the first fields name; the others say what stands around it."""

    architecture: ClassVar[str | None] = None
    mh_adapter: bool = False
    output_adapter: bool = False
    reduction_factor: Any = None
    non_linearity: str = ""
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    init_weights: str = "bert"
    init_weights_seed: int | None = None
    is_parallel: bool = False
    scaling: Any = 1.0
    use_gating: bool = False
    residual_before_ln: Any = True
    adapter_residual_before_ln: bool = False
    inv_adapter: str | None = None
    inv_adapter_reduction_factor: float | None = None
    cross_adapter: bool = False
    leave_out: list[int] = field(default_factory=list)
    dropout: float = 0.0
    phm_layer: bool = False
    phm_dim: int = 4
    factorized_phm_W: bool = True
    shared_W_phm: bool = False
    shared_phm_rule: bool = True
    factorized_phm_rule: bool = False
    phm_c_init: str = "normal"
    phm_init_range: float = 0.0001
    learn_phm: bool = True
    hypercomplex_nonlinearity: str = "glorot-uniform"
    phm_rank: int = 1
    phm_bias: bool = True
    stochastic_depth: float = 0.0
    __hash__ = AdapterConfig.__hash__

    def __post_init__(self) -> None:
        if self.reduction_factor is None or not self.non_linearity:
            raise AdapterError(f"{type(self).__name__} needs reduction_factor and non_linearity")

    def inner(self, width: int, layer: int) -> int:
        """The bottleneck's width in one layer."""
        factor = self.reduction_factor
        if not isinstance(factor, int | float):
            factor = factor.get(str(layer), factor.get(layer, factor.get("default")))
            if factor is None:
                raise AdapterError(f"reduction_factor names neither layer {layer} nor a default")
        return max(1, int(width // factor))


@known("seq_bn", "pfeiffer")
@dataclass
class SeqBnConfig(BnConfig):
    """Behind the feed-forward branch (Pfeiffer et al. 2020)."""

    original_ln_before: bool = True
    output_adapter: bool = True
    non_linearity: str = "relu"
    reduction_factor: Any = 16
    __hash__ = AdapterConfig.__hash__


@known("seq_bn_inv", "pfeiffer+inv")
@dataclass
class SeqBnInvConfig(SeqBnConfig):
    """With an invertible adapter at the embedding."""

    inv_adapter: str | None = "nice"
    inv_adapter_reduction_factor: float | None = 2
    __hash__ = AdapterConfig.__hash__


@known("double_seq_bn", "houlsby")
@dataclass
class DoubleSeqBnConfig(BnConfig):
    """Behind both branches (Houlsby et al. 2019)."""

    mh_adapter: bool = True
    output_adapter: bool = True
    non_linearity: str = "swish"
    reduction_factor: Any = 16
    __hash__ = AdapterConfig.__hash__


@known("double_seq_bn_inv", "houlsby+inv")
@dataclass
class DoubleSeqBnInvConfig(DoubleSeqBnConfig):
    """With an invertible adapter at the embedding."""

    inv_adapter: str | None = "nice"
    inv_adapter_reduction_factor: float | None = 2
    __hash__ = AdapterConfig.__hash__


@known("par_bn", "parallel")
@dataclass
class ParBnConfig(BnConfig):
    """Beside the feed-forward branch (He et al. 2022)."""

    output_adapter: bool = True
    non_linearity: str = "relu"
    reduction_factor: Any = 2
    init_weights: str = "mam_adapter"
    is_parallel: bool = True
    scaling: Any = 4.0
    __hash__ = AdapterConfig.__hash__


ADAPTER_CONFIG_MAP["scaled_par_bn"] = ADAPTER_CONFIG_MAP["scaled_parallel"] = ParBnConfig(scaling="learned")


@known("adapter_plus")
@dataclass
class AdapterPlusConfig(BnConfig):
    """Behind the feed-forward branch after its norm, with a gain for each channel (Steitz & Roth 2024)."""

    original_ln_before: bool = True
    original_ln_after: bool = False
    residual_before_ln: Any = False
    stochastic_depth: float = 0.1
    init_weights: str = "houlsby"
    scaling: Any = "channel"
    output_adapter: bool = True
    reduction_factor: Any = 96
    non_linearity: str = "gelu"
    __hash__ = AdapterConfig.__hash__


@known("compacter++")
@dataclass
class CompacterPlusPlusConfig(SeqBnConfig):
    """seq_bn of hypercomplex layers (Mahabadi et al. 2021)."""

    phm_layer: bool = True
    reduction_factor: Any = 32
    non_linearity: str = "gelu"
    __hash__ = AdapterConfig.__hash__


@known("compacter")
@dataclass
class CompacterConfig(DoubleSeqBnConfig):
    """double_seq_bn of hypercomplex layers (Mahabadi et al. 2021)."""

    phm_layer: bool = True
    reduction_factor: Any = 32
    non_linearity: str = "gelu"
    __hash__ = AdapterConfig.__hash__


ARCHITECTURES[None] = BnConfig


class Act(nn.Module):
    """An activation by its public name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        name = name.lower()
        self.function = activation("leaky_relu" if name == "leakyrelu" else name)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Bottleneck(nn.Module):
    """The part at one branch: (..., D) -> (..., D)."""

    def __init__(self, config: BnConfig, width: int, layer: int, bank: Bank | None) -> None:
        super().__init__()
        self.config = config
        inner = config.inner(width, layer)
        if config.phm_layer:
            down: Any = PHMLinear(config, width, inner, bank, "down")
            up: Any = PHMLinear(config, inner, width, bank, "up")
        else:
            down, up = nn.Linear(width, inner), nn.Linear(inner, width)
        before = [nn.LayerNorm(width)] if config.ln_before else []
        self.adapter_down = nn.Sequential(*before, down, Act(config.non_linearity))
        self.adapter_up = up
        self.adapter_norm_after = nn.LayerNorm(width) if config.ln_after else None
        self.gate = nn.Linear(width, 1) if config.use_gating else None
        self.factor: float | None = None
        if config.scaling == "learned":
            self.scaling = nn.Parameter(torch.ones(1))
        elif config.scaling == "channel":
            self.scaling = nn.Parameter(torch.ones(width))
        else:
            self.factor = float(config.scaling)
        self._init(down, up)

    def _init(self, down: Any, up: Any) -> None:
        kind = self.config.init_weights
        for linear in (down, up):
            if not isinstance(linear, nn.Linear):
                continue
            if kind == "bert":
                nn.init.normal_(linear.weight, 0.0, 0.02)
            elif kind == "houlsby":
                nn.init.trunc_normal_(linear.weight, 0.0, 0.01, -0.02, 0.02)
            elif kind == "mam_adapter" and linear is down:
                nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            elif kind == "mam_adapter":
                nn.init.zeros_(linear.weight)
            else:
                raise AdapterError(f"init_weights must be bert, houlsby or mam_adapter, but is {kind!r}")
            nn.init.zeros_(linear.bias)
        if self.gate is not None:
            nn.init.normal_(self.gate.weight, 0.0, 0.02)
            nn.init.zeros_(self.gate.bias)

    def before(self, h: Tensor, x: Tensor, norm: Any, alone: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(the bottleneck's input, its residual, a fusion's query) for the branch's output h and stream x.

        alone: the stream is not added to h.
        """
        config = self.config
        if config.is_parallel:
            return x, h, x
        residual = h
        if config.original_ln_before:
            total = h if alone else h + x
            if config.residual_before_ln == "post_add":
                residual = total
            inside = total if norm is None else norm(total)
        else:
            inside = h
        if not config.residual_before_ln:
            residual = inside
        return inside, residual, inside

    def pure(self, x: Tensor) -> Tensor:
        """The bottleneck without its residual, in the dtype of x whatever its own is."""
        own = self.adapter_up.weight if isinstance(self.adapter_up, nn.Linear) else self.adapter_up.like(x)
        given, x = x.dtype, x.to(own.dtype)
        up = self.adapter_up(self.adapter_down(x))
        if self.training and self.config.dropout:
            up = F.dropout(up, self.config.dropout)
        up = up * (self.scaling if self.factor is None else self.factor)
        if self.gate is not None:
            gate = torch.sigmoid(self.gate(x))
            up = up * (gate.mean(1, keepdim=True) if gate.dim() > 2 else gate)
        if self.training and self.config.stochastic_depth:
            up = drop_path(up, self.config.stochastic_depth)
        return up.to(given)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(output, the output without residual, which a fusion weighs)."""
        up = y = self.pure(x)
        first = self.config.adapter_residual_before_ln
        if first and not self.config.is_parallel:
            y = y + residual
        if self.adapter_norm_after is not None:
            y = self.adapter_norm_after(y.to(self.adapter_norm_after.weight.dtype)).to(up.dtype)
        return (y if first and not self.config.is_parallel else y + residual), up

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by public name; public files hold the norm before the bottleneck twice."""
        found = dict(self.state_dict())
        if self.config.ln_before:
            for leaf in ("weight", "bias"):
                found[f"adapter_norm_before.{leaf}"] = found[f"adapter_down.0.{leaf}"]
        return found

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by public name."""
        self.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("adapter_norm_before.")})


def attach(config: BnConfig, places: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """The parts of one adapter with their places."""
    found = [
        (layer, place)
        for layer in places.layers
        if layer.index not in config.leave_out
        for flag, place in layer.branches()
        if config[branch_flag(layer.model_type, flag)]
    ]
    if places.allowed is None:
        # One that takes the norm upon itself stands where it can, whatever public files of the family have.
        found = [
            (
                layer,
                replace(place, slot=spot_of(layer, place.role).slot) if config.original_ln_after else place,
            )
            for layer, place in found
        ]
    bank = None
    if config.phm_layer and found and (config.shared_phm_rule or config.shared_W_phm):
        tensors = rule_of(config) if config.shared_phm_rule else {}
        if config.shared_W_phm:
            layer, _ = found[0]
            inner = config.inner(layer.width, layer.index)
            tensors |= weights_of(config, layer.width, inner, "W_down")
            tensors |= weights_of(config, inner, layer.width, "W_up")
        bank = Bank(tensors, config.learn_phm)
        entry.share("", bank)
    for layer, place in found:
        yield place, Bottleneck(config, layer.width, layer.index, bank)


class BranchSite(nn.Module, Method):
    """The site of a branch while adapters of this file are active: (y, x, branch) -> y.

    closes: the site's value is the branch's whole result, with the residual and the norm behind it.
    """

    def __init__(
        self, setup: Any, parts: dict[str, list[Bottleneck]], facts: Facts, fusions: dict[str, Any],
        norm: Any,
        reads: str = "stream",
    ) -> None:  # fmt: skip
        super().__init__()
        self.setup, self.parts, self.facts, self.fusions = setup, parts, facts, fusions
        self.norm, self.reads = [norm], reads
        self.finished: tuple[bool, ...] = ()  # of the outermost block's children, where they differ
        ends = _open(setup, parts)
        if len(ends) > 1 or (isinstance(setup, Rows) and False in ends):
            if isinstance(setup, str | Stack | Fuse):
                raise AdapterError("adapters side by side must agree in original_ln_after, but do not")
            kinds = [_open(child, parts) for child in setup.children]
            if any(len(kind) > 1 for kind in kinds):
                raise AdapterError("adapters side by side must agree in original_ln_after, but do not")
            self.finished, ends = tuple(kind == {False} for kind in kinds), {False}
        self.open = ends != {False}
        self.closes = not self.open and norm is not None

    def forward(self, y: Tensor, x: Tensor, branch: Any) -> Tensor:
        if self.reads == "exchanged":
            (h,) = run(self.setup, (x,), (y,), self, self.facts)
            assert h is not None
            return (h if self.open or self.closes else h - y) + (0 if self.closes else y - x)
        if self.reads == "normed":
            x = branch.normed(x)
        (h,) = run(self.setup, (y,), (x,), self, self.facts)
        assert h is not None
        return h if self.open or self.closes else h - x

    def finish(self, block: Any, child: Any, flow: Flow, fixed: Flow) -> Flow:
        if not self.finished or block is not self.setup:
            return flow
        if self.finished[next(i for i, c in enumerate(block.children) if c is child)]:
            return flow
        h, x = flow[0], fixed[0]
        assert h is not None and x is not None
        return (h + x if self.norm[0] is None else self.norm[0](h + x),)

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        h, x = flow[0], fixed[0]
        assert h is not None and x is not None
        for part in self.parts.get(name, ()):
            inside, residual, _ = part.before(h, x, self.norm[0], self.reads == "nothing")
            h, _ = part(inside, residual)
        return (h,)

    def fuse(self, block: Fuse, flow: Flow, fixed: Flow, facts: Facts) -> Flow:
        children = [c for c in block.children if last_of(c) in self.parts]
        if not children:
            return flow
        h, x = flow[0], fixed[0]
        assert h is not None and x is not None
        fusion = self.fusions.get(block.name)
        if fusion is None:
            raise AdapterError(
                f"there is no fusion of {block.name!r} here: add it with add_adapter_fusion, before its use"
            )
        last = self.parts[last_of(children[-1])][-1]
        _, residual, query = last.before(h, x, self.norm[0], self.reads == "nothing")
        if fusion.config.query_before_ln:
            query = h
        ups = []
        for child in children:
            start: Any = h
            names = [child] if isinstance(child, str) else list(child)
            for name in names[:-1]:
                (start,) = run(name, (start,), fixed, self, facts)
            part = self.parts[last_of(child)][-1]
            into, rest, _ = part.before(start, x, self.norm[0], self.reads == "nothing")
            ups.append(part(into, rest)[1])
        return (fusion(query, torch.stack(ups, 2), residual),)


def _open(setup: Any, parts: dict[str, list[Bottleneck]]) -> set[bool]:
    """Whether what leaves a setup still wants the residual sum and the norm (several: both kinds occur)."""
    return {part.config.original_ln_after for part in _ends(setup, parts)}


def _ends(setup: Any, parts: dict[str, list[Bottleneck]]) -> Iterator[Bottleneck]:
    """The parts whose output leaves the site."""
    if setup is None:
        return
    if isinstance(setup, str):
        yield from parts.get(setup, [])[-1:]
    elif isinstance(setup, Stack | Fuse):
        for child in reversed(setup.children):
            found = list(_ends(child, parts))
            if found:
                yield from found
                return
    else:
        for child in setup.children:
            yield from _ends(child, parts)
