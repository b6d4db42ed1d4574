"""What a composition of adapters computes at one site, whatever the method."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phyla.adapters.composition import Average, BatchSplit, Fuse, MultiTask, Parallel, Split, Stack
from phyla.errors import AdapterError

Flow = tuple[Tensor | None, ...]


@dataclass
class Facts:
    """What adapters must know of the running call: task numbers of the rows."""

    task_ids: Tensor | None = None


class Method:
    """How one method works at one site. `flow` is what adapters change, `fixed` what they read; rows first.

    `leaf` applies one adapter; `level` makes the flows of several children alike (prefixes of one length);
    `fuse` joins the children of a Fuse.
    """

    positions = True  # whether dimension 1 of three-dimensional tensors counts positions

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        """The flow after the adapter of this name; unchanged where it has no part here."""
        raise NotImplementedError

    def level(self, flows: list[Flow], flow: Flow, fixed: Flow) -> list[Flow]:
        """The flows with shapes that fit together."""
        return flows

    def fuse(self, block: Fuse, flow: Flow, fixed: Flow, facts: Facts) -> Flow:
        """The fused flow."""
        raise AdapterError(f"{type(self).__name__} has no meaning in Fuse")


def run(node: Any, flow: Flow, fixed: Flow, method: Method, facts: Facts, inverse: bool = False) -> Flow:
    """The flow after a setup."""
    if isinstance(node, str):
        return method.leaf(node, flow, fixed)
    if isinstance(node, Stack):
        for child in reversed(node.children) if inverse else node.children:
            flow = run(child, flow, fixed, method, facts, inverse)
        return flow
    if isinstance(node, Fuse):
        return method.fuse(node, flow, fixed, facts)
    if isinstance(node, Average):
        flows = [run(child, flow, fixed, method, facts, inverse) for child in node.children]
        flows = method.level(flows, flow, fixed)
        return tuple(_weighted(items, node.weights) for items in zip(*flows, strict=True))
    if isinstance(node, MultiTask):
        flows = [run(child, flow, fixed, method, facts, inverse) for child in node.children]
        return _by_task(method.level(flows, flow, fixed), facts)
    if isinstance(node, BatchSplit | Parallel):
        sizes = node.batch_sizes if isinstance(node, BatchSplit) else [1] * len(node.children)
        dim, cut = 0, _rows(sizes, _first(flow, fixed).shape[0])
    elif isinstance(node, Split):
        dim, cut = 1, node.splits
        length = _first(flow, fixed).shape[1]
        if sum(cut) != length:
            raise AdapterError(
                f"the splits {cut} must sum to the number of positions, but there are {length}"
            )
    else:
        raise AdapterError(f"{type(node).__name__} is no composition")
    flows, start = [], 0
    for child, size in zip(node.children, cut, strict=True):
        end = start + size
        part, rest = _slice(flow, dim, start, end), _slice(fixed, dim, start, end)
        flows.append(run(child, part, rest, method, facts, inverse))
        start = end
    flows = method.level(flows, flow, fixed)
    return tuple(
        None if any(item is None for item in items) else torch.cat(items, dim)
        for items in zip(*flows, strict=True)
    )


def _first(flow: Flow, fixed: Flow) -> Tensor:
    return next(t for t in (*fixed, *flow) if t is not None)


def _rows(sizes: list[int], rows: int) -> list[int]:
    """Rows of each child; several rows of a tensor may belong to one row of the batch (beams, windows)."""
    total = sum(sizes)
    if rows % total:
        raise AdapterError(f"the batch sizes {sizes} must sum to the rows of the batch, but those are {rows}")
    return [size * (rows // total) for size in sizes]


def _slice(items: Flow, dim: int, start: int, end: int) -> Flow:
    return tuple(
        item if item is None or (item.dim() <= dim + 1 and dim) else item.narrow(dim, start, end - start)
        for item in items
    )


def _weighted(items: tuple[Tensor | None, ...], weights: list[float]) -> Tensor | None:
    total: Tensor | None = None
    for item, weight in zip(items, weights, strict=True):
        if item is None:
            return None
        total = item * weight if total is None else total + item * weight
    return total


def _by_task(flows: list[Flow], facts: Facts) -> Flow:
    ids = facts.task_ids
    if ids is None:
        raise AdapterError("MultiTask needs to know the task of each row: pass task_ids to the call")
    chosen: list[Any] = []
    for items in zip(*flows, strict=True):
        if any(item is None for item in items):
            chosen.append(None)
            continue
        value = items[0]
        rows = ids.to(value.device).repeat_interleave(value.shape[0] // ids.shape[0])
        shape = (-1, *[1] * (value.dim() - 1))
        for number, item in enumerate(items[1:], 1):
            value = torch.where((rows == number).view(shape), item, value)
        chosen.append(value)
    return tuple(chosen)
