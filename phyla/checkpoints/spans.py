"""What a rank reads of a checkpoint where it holds parts of the model (see phyla/blocks/shares.py)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.checkpoints.names import Line
from phyla.checkpoints.ops import Same, Split, Stack, Transpose
from phyla.checkpoints.weights import TensorInfo, Weights

Runs = list[tuple[int, int]]


def spans_of(model: nn.Module) -> dict[str, Any]:
    """The span of each parameter that is divided, by path."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, span in getattr(module, "spans", {}).items():
            found[f"{path}.{name}" if path else name] = span
    return found


def ranks_of(model: nn.Module) -> Any:
    """The ranks that hold a model together, also as a part of another; None where one process has it all."""
    spans = spans_of(model)
    return next(iter(spans.values())).ranks if spans else vars(model).get("ranks")


@dataclass(frozen=True)
class Reading:
    """How a line is read: runs of dimension `dim` of each public tensor, and what makes our parts of them."""

    dim: int
    runs: Runs
    op: Same


def whole_shapes(line: Line, spans: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[torch.Size]:
    """The shapes that our parameters of a line have in the whole model."""
    own = [tensors[path].shape for path in line.ours]
    return [spans[p].shape(s) if p in spans else s for p, s in zip(line.ours, own, strict=True)]


def reading_of(
    line: Line, spans: Mapping[str, Any], tensors: Mapping[str, Tensor], infos: Mapping[str, TensorInfo]
) -> Reading | None:
    """What of a line's public tensors is enough for this rank; None where they must be read whole."""
    parts = [spans.get(path) for path in line.ours]
    shapes = whole_shapes(line, spans, tensors)
    outlines = line.op.save([torch.empty(shape, device="meta") for shape in shapes])
    found = [infos[name] for name in line.theirs]
    if [o.shape for o in outlines] != [torch.Size(i.shape) for i in found] or any(i.quant for i in found):
        return None  # another shape is for the ordinary way to report
    part, op, rank = parts[0], line.op, len(shapes[0])
    if isinstance(op, Split):
        return _of_split(op, parts, shapes)
    if part is None or len(line.ours) > 1:
        return None
    run = [(part.start, part.stop)]
    if type(op) is Same:
        return Reading(part.dim, run, op)
    if type(op) is Transpose:
        return Reading(1 - part.dim if rank == 2 else part.dim, run, op)
    return Reading(part.dim - 1, run, op) if type(op) is Stack and part.dim else None


def readings(
    reads: Mapping[str, Line], spans: Mapping[str, Any], tensors: Mapping[str, Tensor],
    infos: Mapping[str, TensorInfo],
) -> dict[str, Reading]:  # fmt: skip
    """The public tensors of which a part is enough, and which."""
    found = {}
    for name, line in reads.items() if spans else ():
        if any(path in spans for path in line.ours):
            reading = reading_of(line, spans, tensors, infos)
            if reading is not None:
                found[name] = reading
    return found


def read_parts(
    weights: Weights, names: Iterable[str], parts: Mapping[str, Reading], into: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """As `weights.read_many`, but of some tensors only parts."""
    into = {name: place for name, place in into.items() if name not in parts}
    yield from weights.read_many([name for name in names if name not in parts], dtype=None, into=into)
    for name, part in parts.items():
        yield name, weights.read_part(name, part.dim, part.runs)


@contextmanager
def alike(model: nn.Module, fresh: Sequence[str]) -> Iterator[None]:
    """Inside, ranks draw fresh values: of their parts each its own, of what all hold those of the first."""
    ranks = vars(model).get("ranks")
    if ranks is None or not fresh:
        yield
        return
    ranks.align()
    before = torch.get_rng_state()
    torch.manual_seed(int(torch.randint(1 << 62, ())) + ranks.rank)
    yield
    torch.set_rng_state(before)
    spans, tensors = spans_of(model), dict(model.named_parameters()) | dict(model.named_buffers())
    for path in fresh:
        if path in tensors and path not in spans:
            ranks.copy_first(tensors[path])


def _of_split(op: Split, parts: Sequence[Any], shapes: Sequence[torch.Size]) -> Reading | None:
    """Runs of a fused tensor: whole groups where its parts alternate, else a run of each part."""
    if any(p is not None and p.dim != op.dim for p in parts):
        return None
    dim = 1 - op.dim if op.transpose and len(shapes[0]) == 2 else op.dim
    sizes = [shape[op.dim] for shape in shapes]
    bounds = [(0, n) if p is None else (p.start, p.stop) for p, n in zip(parts, sizes, strict=True)]
    if op.groups == 1:
        ahead = [sum(sizes[:i]) for i in range(len(sizes))]
        return Reading(dim, [(a + b, a + e) for a, (b, e) in zip(ahead, bounds, strict=True)], op)
    groups = {(b * op.groups / n, e * op.groups / n) for (b, e), n in zip(bounds, sizes, strict=True)}
    first, last = groups.pop()
    if groups or first % 1 or last % 1:
        return None
    each = sum(sizes) // op.groups
    return Reading(dim, [(int(first) * each, int(last) * each)], replace(op, groups=int(last - first)))
