"""The modules of a model under their public paths, as PEFT's settings and files call them."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.adapters.places import Survey
from phyla.blocks.embed import Tokens
from phyla.checkpoints.names import Line, NameMap
from phyla.checkpoints.ops import Stack
from phyla.checkpoints.state import Layout, layout_of, saves_prefix, tensors_of
from phyla.errors import AdapterError, nearest

HEADS = ("classifier", "score")  # what PEFT leaves out of "all-linear" in classifiers, and trains with them


@dataclass(frozen=True)
class Piece:
    """What one module of ours is of a public one: the parameter `leaf` of `module`, its rows or expert."""

    path: str
    module: Any
    leaf: str = "weight"
    rows: Any = None  # a slice or a tensor of row numbers of the public matrix; None: all
    expert: int | None = None


@dataclass(frozen=True)
class Target:
    """A public module: kind (linear, table, conv, expert, other), shape of its weight as (out, in, ...).

    idle: a table that public models never read themselves, because encoder and decoder have own names for it:
    what changes its output changes nothing.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    idle: bool = False

    @property
    def weight(self) -> Tensor:
        """The whole public weight, (out, in, ...), put together from its pieces."""
        if self.kind == "expert":
            return getattr(self.pieces[0].module, self.pieces[0].leaf)[self.pieces[0].expert]
        parts = [dense(piece.module) for piece in self.pieces]
        if len(parts) == 1:
            return parts[0]
        whole = parts[0].new_empty(self.shape)
        for piece, part in zip(self.pieces, parts, strict=True):
            whole[piece.rows] = part
        return whole


def dense(module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight of a module, expanded where it is quantised."""
    weight = module.weight
    return weight.dense(dtype) if hasattr(weight, "dense") else weight


@dataclass
class Targets:
    """All public modules, the parameters of a model by public name, and names that stand for tied ones."""

    modules: dict[str, Target] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    tied: set[str] = field(default_factory=set)
    bias: dict[str, str] = field(default_factory=dict)  # public module -> public name of its bias
    prefix: str = ""
    output: str | None = None
    model: Any = None

    def spellings(self, key: str) -> list[str]:
        """A key as it is, without the backbone's prefix, and with it."""
        if not self.prefix:
            return [key]
        bare = [key.removeprefix(self.prefix + ".")] if key.startswith(self.prefix + ".") else []
        return [key, *bare, f"{self.prefix}.{key}"]

    def find(self, key: str) -> tuple[str, str]:
        """(public module, rest) of a key without `base_model.model.`; AdapterError if there is none."""
        for name in self.spellings(key):
            pieces = name.split(".")
            for cut in range(len(pieces) - 1, 0, -1):
                path = ".".join(pieces[:cut])
                if path in self.modules or path in self.tied:
                    return path, ".".join(pieces[cut:])
        raise AdapterError(
            f"the PEFT file changes {key}, which is no module of this model.{nearest(key, self.modules)}"
        )


def targets_of(model: Any) -> Targets:
    """Every module of a model that PEFT can name."""
    layout, tensors = _named(model)
    prefixed = saves_prefix(model)
    found = Targets(tensors=tensors, prefix=layout.prefix, model=model)
    lines = layout.lines(prefixed)
    if not prefixed:
        found.prefix = ""
    for line in [*lines, *_tied_lines(model, tensors)]:
        if all(name in found.lines for name in line.theirs):
            continue
        found.lines.update(dict.fromkeys(line.theirs, line))
        _add(found, model, line)
    _alias(found, model, layout.aliases)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found.output = next(
        (p for p, t in found.modules.items() if output is not None and t.pieces[0].module is output), None
    )
    return found


def _named(model: Any) -> tuple[Layout, dict[str, Tensor]]:
    """Layout and tensors of a model; what it holds packed has the name and shape that it has unpacked."""
    tensors = tensors_of(model)
    if model.is_own() or not any(getattr(m, "packed", None) is not None for m in model.modules()):
        return layout_of(model), tensors
    with torch.device("meta"):
        twin = type(model)(model.config, add_pooling_layer=model._pooled)
    return layout_of(twin), {**tensors_of(twin), **tensors}


def _alias(found: Targets, model: Any, aliases: dict[str, tuple[str, ...]]) -> None:
    """Further names of token tables: those of towers that share one; others are copies of what is known."""
    found.tied = {n.rpartition(".")[0] for names in aliases.values() for n in names} - set(found.modules)
    shared: dict[int, list[tuple[str, nn.Module]]] = {}
    for ours, module in model.named_modules():
        if isinstance(module, Tokens):
            shared.setdefault(id(module.weight), []).append((ours, module))
    for target in [t for t in found.modules.values() if t.kind == "table"]:
        members = shared.get(id(target.pieces[0].module.weight), [])
        own = {p for p in found.tied if p.rpartition(".")[2].startswith("embed")}
        for path in sorted(own):
            side = next((w for w in ("encoder", "decoder") if w in path.split(".")), None)
            fit = [(p, m) for p, m in members if side is not None and side in p.split(".")]
            if len(fit) == 1:
                found.tied.discard(path)
                found.modules[path] = replace(target, path=path, pieces=(Piece(*fit[0]),))
                found.modules[target.path] = replace(target, idle=True)


def _tied_lines(model: Any, tensors: dict[str, Tensor]) -> list[Line]:
    """The head's lines with those of tied parameters, which a file of the model does not hold."""
    names = model.head_spec.names
    names = names(model.config) if callable(names) else names
    table = names if isinstance(names, NameMap) else NameMap(names)
    own = {p.removeprefix("head."): t.shape for p, t in tensors.items() if p.startswith("head.")}
    lines = table.bind(own, type(model).__name__, own).lines
    return [Line(tuple(f"head.{p}" for p in line.ours), line.theirs, line.op) for line in lines]


def _add(found: Targets, model: Any, line: Line) -> None:
    if isinstance(line.op, Stack):
        owner, _, leaf = line.ours[0].rpartition(".")
        shape = tuple(found.tensors[line.ours[0]].shape)[1:]
        for expert, name in enumerate(line.theirs):
            path, _, last = name.rpartition(".")
            if last == "weight":
                piece = Piece(owner, model.get_submodule(owner), leaf, expert=expert)
                found.modules[path] = Target(path, "expert", shape, (piece,))
        return
    path, _, leaf = line.theirs[0].rpartition(".")
    if leaf == "bias":
        found.bias[path] = line.theirs[0]
    if leaf != "weight" or any(p.rpartition(".")[2] != "weight" for p in line.ours):
        return
    modules = [model.get_submodule(p.rpartition(".")[0]) for p in line.ours]
    kinds = {_kind(module) for module in modules}
    if len(kinds) > 1:
        return
    shapes = [tuple(found.tensors[p].shape) for p in line.ours]
    rows = _rows(line, shapes) if len(modules) > 1 else [None]
    pieces = tuple(
        Piece(p.rpartition(".")[0], module, rows=part)
        for p, module, part in zip(line.ours, modules, rows, strict=True)
    )
    shape = (sum(s[0] for s in shapes), *shapes[0][1:])
    found.modules[path] = Target(path, kinds.pop(), shape, pieces)


def _kind(module: nn.Module) -> str:
    if getattr(module, "site_kind", None) == "linear":
        return "linear"
    if isinstance(module, Tokens):
        return "table"
    return "conv" if isinstance(module, nn.Conv1d | nn.Conv2d) else "other"


def _rows(line: Line, shapes: list[tuple[int, ...]]) -> list[Any]:
    """Which rows of the public matrix each of our parts is."""
    numbers = torch.arange(sum(s[0] for s in shapes), dtype=torch.float64)[:, None]
    whole = numbers.T if getattr(line.op, "transpose", False) else numbers
    found: list[Any] = []
    for part in line.op.load([whole], [torch.Size((s[0], 1)) for s in shapes]):
        index = part.flatten().long()
        start, stop = int(index[0]), int(index[-1]) + 1
        contiguous = len(index) == stop - start and bool((index.diff() == 1).all())
        found.append(slice(start, stop) if contiguous else index)
    return found


def usual(model: Any, targets: Targets, where: Survey, letters: tuple[str, ...] = ("q", "v")) -> list[str]:
    """The public paths of some projections of all layers: what PEFT changes where nothing is said."""
    wanted = {place.path for layer in where.layers for place in layer.linears if place.means(letters)}
    return [
        path
        for path, target in targets.modules.items()
        if target.kind == "linear" and any(piece.path in wanted for piece in target.pieces)
    ]


def all_linear(targets: Targets, task: str | None) -> list[str]:
    """What "all-linear" means: every projection but the output matrix, or the head of a classifier."""
    left = {targets.output}
    if targets.output is None and task == "SEQ_CLS":
        left |= set(HEADS)
    return [p for p, t in targets.modules.items() if t.kind in ("linear", "expert") and p not in left]
