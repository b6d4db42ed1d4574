"""LoRA on parameters that public modules hold without a projection of their own: `target_parameters`.

The experts of a mixture in one tensor (X, out, in), or any matrix by its name. A file's A (X r, in) and
B (out, r X) hold all experts; until PEFT 0.18 they stood the other way round, A (X r, out) and B (in, r X).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.adapters.peft.configs import AdaLoraConfig, LoraConfig, by_pattern
from phyla.adapters.peft.low import LowRank
from phyla.adapters.peft.part import Delta, Part
from phyla.adapters.peft.targets import Piece, Target, Targets
from phyla.checkpoints.names import Line
from phyla.checkpoints.ops import Same, Split, Stack
from phyla.errors import AdapterError, nearest

# What newer public modules call a block that files of checkpoints still have under its old name.
RENAMED = {".block_sparse_moe.": ".mlp."}
FLIPPED = (0, 19)  # the version of PEFT whose files are the first of today's layout


@dataclass(frozen=True)
class Share:
    """What one of our parameters is of a public one: the index of what the line makes of it."""

    line: Line
    shapes: tuple[torch.Size, ...]
    index: int

    def __call__(self, whole: Tensor) -> Tensor:
        return self.line.op.load([whole], self.shapes)[self.index]


class Experts(Delta):
    """scaling B_x A_x for each expert x of one tensor (X, out, in), or one matrix (out, in)."""

    leaves: ClassVar[dict[str, str]] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}

    def __init__(self, config: LoraConfig, target: Target, name: str) -> None:
        super().__init__(target)
        for setting in ("lora_dropout", "lora_bias", "use_dora", "fan_in_fan_out"):
            if getattr(config, setting):
                raise AdapterError(f"{setting} has no meaning for target_parameters, which name {name}")
        rank = by_pattern(config.rank_pattern, name, config.r)
        alpha = by_pattern(config.alpha_pattern, name, config.lora_alpha)
        if not isinstance(rank, int) or rank < 1:
            raise AdapterError(f"r must be a positive integer, but is {rank!r} for {name}")
        self.scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
        self.old = _version(config.peft_version) < FLIPPED
        *experts, out, inner = target.shape
        self.experts = math.prod(experts)
        self.lora_A = nn.Parameter(torch.empty(rank * self.experts, inner))
        self.lora_B = nn.Parameter(torch.zeros(out, rank * self.experts))
        how = config.init_lora_weights
        if how == "gaussian":
            nn.init.normal_(self.lora_A, std=1 / rank)
        elif isinstance(how, str):
            raise AdapterError(f"init_lora_weights must be a boolean or gaussian for {name}, but is {how!r}")
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        if not how:
            nn.init.kaiming_uniform_(self.lora_B, a=math.sqrt(5))

    def delta(self, rows: Any = None) -> Tensor:
        """The matrices of all experts, (X, out, in), or the one matrix; rows: a slice of out."""
        high = self.lora_B if rows is None else self.lora_B[rows]
        if len(self.shape) == 2:
            return high @ self.lora_A * self.scaling
        low = self.lora_A.unflatten(0, (self.experts, -1))  # (X, r, in)
        return high.unflatten(1, (-1, self.experts)).permute(2, 0, 1) @ low * self.scaling

    def merged(self, weight: Tensor, bias: Tensor | None, rows: Any) -> tuple[Tensor, Tensor | None]:
        change = rows(self.delta()) if isinstance(rows, Share) else self.delta(rows)
        return weight + change.to(weight.dtype), bias

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        a, b = (tensors.get(leaf) for leaf in self.leaves.values())
        if a is not None and b is not None and len(self.shape) == 3:
            turned = (len(self.lora_A), len(self.lora_B)), (self.lora_A.shape[1], len(self.lora_A))
            given = (tuple(a.shape), tuple(b.shape))
            today = (tuple(self.lora_A.shape), tuple(self.lora_B.shape))
            if given == turned and (self.old or given != today):
                tensors = dict(zip(self.leaves.values(), self._turned(a, b), strict=True))
        super().from_file(tensors)

    def _turned(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of the old layout as today's."""
        low = b.unflatten(1, (-1, self.experts)).permute(2, 1, 0).flatten(0, 1)  # (X r, in)
        return low, a.unflatten(0, (self.experts, -1)).permute(2, 1, 0).flatten(1)


def _version(text: str | None) -> tuple[int, ...]:
    """The first two numbers of a version; what says none counts as today's."""
    pieces = (text or "").split("@")[0].split(".")[:2]
    return tuple(map(int, pieces)) if len(pieces) == 2 and all(p.isdigit() for p in pieces) else FLIPPED


def parameters_of(targets: Targets) -> dict[str, Line]:
    """Every public parameter as its module calls it; experts that files hold apart as one tensor."""
    found: dict[str, Line] = {}
    stacked: dict[str, dict[str, Line]] = {}
    for name, line in targets.lines.items():
        if isinstance(line.op, Stack):
            owner, _, leaf = line.ours[0].rpartition(".")
            stacked.setdefault(owner, {})[leaf] = line
        else:
            found[_today(name)] = line
    for lines in stacked.values():
        container, number = lines["down"].theirs[0].rsplit(".", 3)[:2] if "down" in lines else ("", "")
        if set(lines) == {"gate", "up", "down"} and number.isdigit():
            joint = (*lines["gate"].ours, *lines["up"].ours)
            made = {"gate_up_proj": (joint, Split(dim=1)), "down_proj": (lines["down"].ours, Same())}
            for leaf, (ours, op) in made.items():
                name = f"{_today(container + '.')}{leaf}"
                found[name] = Line(ours, (name,), op)
    return found


def _today(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def parts_of(config: LoraConfig, targets: Targets) -> Iterator[tuple[Part, Target]]:
    """A part for each parameter that `target_parameters` names: whole, or by the end of its name."""
    if isinstance(config, AdaLoraConfig):
        raise AdapterError("AdaLoRA takes no target_parameters: name modules in target_modules")
    known = parameters_of(targets)
    wanted = list(config.target_parameters or ())
    for name in wanted:
        if not any(_means(name, path) for path in known):
            raise AdapterError(
                f"target_parameters {name!r} fit no parameter of this model.{nearest(name, known)}"
            )
    chosen = [path for path in known if any(_means(name, path) for name in wanted)]
    for name in chosen:
        owner = name.rpartition(".")[0]
        inside = [n for n in chosen if n.rpartition(".")[0] == owner]
        # PEFT wraps a module once for each of its parameters, the first one innermost.
        path = owner + ".base_layer" * (len(inside) - 1 - inside.index(name))
        yield _part(config, targets, known[name], name, path)


def _means(name: str, path: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _part(config: LoraConfig, targets: Targets, line: Line, name: str, path: str) -> tuple[Part, Target]:
    module = targets.modules.get(line.theirs[0].rpartition(".")[0])
    if module is not None and module.kind == "linear" and type(line.op) is Same:
        linear = replace(module, path=path)
        return LowRank(config, linear), linear
    shapes = tuple(targets.tensors[p].shape for p in line.ours)
    shape = tuple(line.op.save([torch.empty(s, device="meta") for s in shapes])[0].shape)
    if len(shape) not in (2, 3):
        raise AdapterError(f"target_parameters must name matrices or stacks of them, but {name} is {shape}")
    pieces, start = [], 0
    for index, ours in enumerate(line.ours):
        rows: Any = Share(line, shapes, index)
        if line.op in (Same(), Split(dim=len(shape) - 2)):
            stop = start + shapes[index][-2]
            rows, start = (None if len(shapes) == 1 else slice(start, stop)), stop
        owner, _, leaf = ours.rpartition(".")
        pieces.append(Piece(owner, targets.model.get_submodule(owner), leaf, rows))
    target = Target(path, "parameter", shape, tuple(pieces))
    return Experts(config, target, name), target
