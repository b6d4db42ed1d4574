"""LoRA and its relatives, which change the output of a projection: LoRA, (IA)3, DoRA, VeRA, MTL-LoRA.

Hu et al. 2022 (arXiv:2106.09685); Liu et al. 2022 (arXiv:2205.05638); Liu et al. 2024 (arXiv:2402.09353);
Kopiczko et al. 2024 (arXiv:2310.11454); Yang et al. 2024 (arXiv:2410.09437).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.config import ARCHITECTURES, AdapterConfig, known
from phyla.adapters.dialect import BIAS_BEHIND
from phyla.adapters.grouped import Grouped
from phyla.adapters.interpret import Flow, Method, run
from phyla.adapters.places import Place, Survey
from phyla.errors import AdapterError


@known("lora")
@dataclass
class LoRAConfig(AdapterConfig):
    """y + (alpha / r) B A x on chosen projections; gated, scaled or decomposed by the fields below."""

    architecture: ClassVar[str | None] = "lora"
    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: list[int] = field(default_factory=list)
    r: int = 8
    alpha: int = 8
    dropout: float = 0.0
    attn_matrices: list[str] = field(default_factory=lambda: ["q", "v"])
    composition_mode: str = "add"
    init_weights: str = "lora"
    init_weights_seed: int | None = None
    use_gating: bool = False
    use_dora: bool = False
    vera_d: float | None = None
    vera_b: float | None = None
    dtype: str | None = None
    __hash__ = AdapterConfig.__hash__

    def wants(self, place: Place) -> bool:
        """Whether a projection is one of those that the fields name."""
        if place.layer in self.leave_out:
            return False
        if place.role in ("attn", "cross"):
            return self.selfattn_lora and place.means(self.attn_matrices)
        stands_in = self.selfattn_lora and any(name in self.attn_matrices for name in place.stands)
        if stands_in or ("gate" in self.attn_matrices and place.means(("gate",))):
            return True
        return (self.intermediate_lora and place.means(("up",))) or (
            self.output_lora and place.means(("down",))
        )


@known("ia3")
@dataclass
class IA3Config(LoRAConfig):
    """y times a learned vector (Liu et al. 2022, arXiv:2205.05638)."""

    intermediate_lora: bool = True
    r: int = 1
    alpha: int = 1
    attn_matrices: list[str] = field(default_factory=lambda: ["k", "v"])
    composition_mode: str = "scale"
    init_weights: str = "ia3"
    __hash__ = AdapterConfig.__hash__


@known("vera")
@dataclass
class VeraConfig(LoRAConfig):
    """One random pair A, B for all layers; each learns two diagonals (arXiv:2310.11454)."""

    vera_d: float | None = 0.1
    vera_b: float | None = 0.0
    init_weights: str = "vera"
    __hash__ = AdapterConfig.__hash__


@known("dora")
@dataclass
class DoRAConfig(LoRAConfig):
    """LoRA on the direction of the weight, with a learned magnitude (arXiv:2402.09353)."""

    use_dora: bool = True
    __hash__ = AdapterConfig.__hash__


@known("dvora")
@dataclass
class DvoRAConfig(VeraConfig):
    """DoRA with VeRA's pair."""

    use_dora: bool = True
    __hash__ = AdapterConfig.__hash__


@known("mtl_lora")
@dataclass
class MTLLoRAConfig(LoRAConfig):
    """A shared A, several shared B weighed by a softmax, and a small matrix for each task between them."""

    architecture: ClassVar[str | None] = "mtl_lora"
    n_up_projection: int = 1
    task_specific_matrix_type: str = "singular_values"
    weights_sharpness: float = 0.05
    __hash__ = AdapterConfig.__hash__


ARCHITECTURES["lora"], ARCHITECTURES["mtl_lora"] = LoRAConfig, MTLLoRAConfig


class SharedPair(nn.Module):
    """VeRA's A (r, in) and B (out, r), one for all places; each place uses the rows and columns it needs."""

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, inputs), requires_grad=False)
        self.lora_B = nn.Parameter(torch.empty(outputs, rank), requires_grad=False)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.lora_B, a=math.sqrt(5))


class Low(nn.Module):
    """The part at one projection (in -> out), for all configurations above."""

    whole = False  # parts that see input and output themselves: see phyla/adapters/peft

    def __init__(self, config: LoRAConfig, linear: nn.Linear, pair: SharedPair | None = None) -> None:
        super().__init__()
        inputs, outputs, rank = linear.in_features, linear.out_features, config.r
        self.config = config
        self.scaling = config.alpha / rank
        self.scales = config.composition_mode == "scale"
        self.bias_behind = False  # whether scaling leaves the bias alone, as files of some families have it
        # DoRA as its paper and PEFT have it: alpha / r counts in the norm, and the bias is not scaled.
        self.scaled_norm = False
        object.__setattr__(self, "pair", pair)  # shared by all places: its owner is the adapter
        if pair is not None:
            self.vera_D = nn.Parameter(torch.full((rank,), float(config.vera_d or 0.0)))
            self.vera_B = nn.Parameter(torch.full((outputs,), float(config.vera_b or 0.0)))
        elif self.scales:
            self.lora_B = nn.Parameter(torch.ones(outputs, 1))
        else:
            ups = getattr(config, "n_up_projection", None)
            self.lora_A = nn.Parameter(torch.empty(rank, inputs))
            self.lora_B = nn.Parameter(torch.zeros(*(() if ups is None else (ups,)), outputs, rank))
            if config.init_weights == "bert":
                nn.init.normal_(self.lora_A, std=0.02)
                nn.init.normal_(self.lora_B, std=0.02)
            elif config.init_weights == "lora":
                nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
            else:
                raise AdapterError(
                    f"init_weights must be lora or bert where A and B are trained, but is "
                    f"{config.init_weights!r}"
                )
            if ups is not None:
                whole = config.task_specific_matrix_type != "singular_values"  # type: ignore[attr-defined]
                self.task_specific = Between(rank, whole)
                self.weights = nn.Parameter(torch.ones(ups))
        self.gate = nn.Linear(inputs, 1) if config.use_gating else None
        if self.gate is not None:
            nn.init.normal_(self.gate.weight, std=0.02)
            nn.init.zeros_(self.gate.bias)
        self.m = Magnitude(linear.weight) if config.use_dora else None

    def hidden(self, x: Tensor) -> Tensor:
        """What the low-rank path makes of x (..., in), before scaling: (..., out)."""
        if self.training and self.config.dropout:
            x = F.dropout(x, self.config.dropout)
        pair: Any = self.pair
        x = x.to(self.lora_A.dtype if pair is None else self.vera_D.dtype)
        if pair is not None:
            a, b = pair.lora_A[:, : x.shape[-1]].to(x), pair.lora_B[: self.vera_B.shape[0]].to(x)
            return F.linear(F.linear(x, a) * self.vera_D, b) * self.vera_B
        a, b = self.lora_A, self.lora_B
        h = F.linear(x, a)
        if b.dim() == 3:
            h = self.task_specific(h)
            shares = torch.softmax(self.weights / self.config.weights_sharpness, 0)  # type: ignore[attr-defined]
            b = (b * shares[:, None, None]).sum(0)
        return F.linear(h, b)

    def matrix(self, like: Tensor) -> Tensor:
        """The low-rank path as one matrix (out, in), before scaling."""
        eye = torch.eye(like.shape[1], dtype=torch.float32, device=like.device)
        kept, self.training = self.training, False
        try:
            return self.hidden(eye).T
        finally:
            self.training = kept

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that compute what base and part compute together."""
        if self.gate is not None:
            raise AdapterError("a gated adapter depends on its input and cannot be merged into a weight")
        if self.scales:
            factor = self.lora_B[:, 0] * self.scaling
            return weight * factor[:, None], bias if bias is None or self.bias_behind else bias * factor
        delta = self.matrix(weight)
        total = weight + delta * self.scaling
        if self.m is None:
            return total, bias
        if self.scaled_norm:
            return total * (self.m.weight / total.norm(dim=1, keepdim=True)), bias
        gain = self.m.weight / (weight + delta).norm(dim=1, keepdim=True)
        return total * gain, None if bias is None else bias * gain[:, 0]

    def change(self, x: Tensor, y: Tensor, h: Tensor, linear: nn.Linear) -> Tensor:
        """What to add to y (..., out), given the path's output h."""
        scaling: Any = self.scaling
        if self.gate is not None:
            # The gate takes the place of alpha / r, as in the library whose files these are.
            gate = torch.sigmoid(self.gate(x.to(h.dtype)))
            scaling = gate.mean(1, keepdim=True) if gate.dim() > 2 else gate
        if self.scales:
            pure = y - linear.bias if self.bias_behind and linear.bias is not None else y
            return pure * (h * scaling) - pure
        if self.m is None:
            return h * scaling
        if self.scaled_norm:
            norm = (linear.weight + self.matrix(linear.weight) * scaling).norm(dim=1)
            pure = y if linear.bias is None else y - linear.bias
            return (pure + h * scaling) * (self.m.weight[:, 0] / norm) - pure
        norm = (linear.weight + self.matrix(linear.weight)).norm(dim=1)
        return (y + h * scaling) * (self.m.weight[:, 0] / norm) - y

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by public name."""
        found = dict(self.state_dict())
        for name in ("vera_D", "vera_B"):
            if name in found:
                found[name] = torch.diag(found[name])
        return found

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by public name; factors of another rank than the configuration's keep it."""
        diagonals = ("vera_D", "vera_B")
        tensors = {k: t.diagonal() if k in diagonals and t.dim() == 2 else t for k, t in tensors.items()}
        own = dict(self.named_parameters())
        for name in ("lora_A", "lora_B"):
            if name in tensors and name in own and tensors[name].shape != own[name].shape:
                setattr(self, name, nn.Parameter(torch.empty_like(tensors[name], dtype=own[name].dtype)))
        self.load_state_dict(tensors)


class Between(nn.Module):
    """The matrix of one task between A and B: a diagonal, or a whole one."""

    def __init__(self, rank: int, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        if whole:
            self.linear = nn.Linear(rank, rank, bias=False)
            nn.init.eye_(self.linear.weight)
        else:
            self.values = nn.Parameter(torch.ones(rank))

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h) if self.whole else h * self.values


class Magnitude(nn.Module):
    """The length of each row of a weight, (out, 1)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().norm(dim=1, keepdim=True).to(weight.dtype))


def attach(config: LoRAConfig, places: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """The parts of one adapter with their places."""
    chosen = [p for layer in places.layers for p in layer.linears if config.wants(p)]
    pair = None
    if config.vera_d is not None and chosen:
        shapes = [(p.module.in_features, p.module.out_features) for p in chosen]
        pair = SharedPair(config.r, max(s[0] for s in shapes), max(s[1] for s in shapes))
        entry.share("", pair)
    for place in chosen:
        made = Low(config, place.module, pair)
        made.bias_behind = place.role != "ffn" and places.layers[place.layer].model_type in BIAS_BEHIND
        yield place, made


class LinearSite(nn.Module, Method):
    """The site of a projection while adapters of this file are active: (x, y, linear) -> y."""

    def __init__(self, setup: Any, parts: dict[str, list[Low]], facts: Any) -> None:
        super().__init__()
        self.setup, self.parts, self.facts = setup, parts, facts
        self.linear: Any = [None]
        self.batched = Grouped(setup, parts, facts, Low)

    def forward(self, x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
        change = self.batched(x, y)
        if change is None:
            self.linear = [linear]
            change, _ = run(self.setup, (None, None), (x, y), self, self.facts)
        return y if change is None else y + change.to(y.dtype)  # parts may have a dtype of their own

    def level_rows(self, flows: list[Flow], parts: list[tuple[Flow, Flow]]) -> list[Flow]:
        zeros: Any = [torch.zeros_like(rest[1]) for _, rest in parts]  # type: ignore[arg-type]
        return [(z if f[0] is None else f[0], f[1]) for f, z in zip(flows, zeros, strict=True)]

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        change, hidden = flow
        x, y = fixed
        assert x is not None and y is not None
        parts = self.parts.get(name, ())
        if not parts and change is None:
            return torch.zeros_like(y), hidden
        for part in parts:
            if part.whole:
                more = part(x, y if change is None else y + change, self.linear[0])
                change = more if change is None else change + more
                continue
            if not part.scales and hidden is not None:
                # Public adapters feed the first low-rank path into the second: B2 A2 B1 A1 x.
                hidden = part.hidden(hidden)
                change = part.change(x, y, hidden, self.linear[0])
                hidden = hidden * part.scaling
                continue
            now = y if change is None else y + change
            hidden = None if part.scales else part.hidden(x)
            vector = part.lora_B[:, 0] if hidden is None else hidden
            more = part.change(x, now, vector, self.linear[0])
            change = more if change is None else change + more
            hidden = None if hidden is None else hidden * part.scaling
        return change, hidden
