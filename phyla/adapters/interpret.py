"""What a composition of adapters computes at one site, whatever the method."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from phyla.adapters.composition import Average, BatchSplit, Fuse, MultiTask, Parallel, Rows, Split, Stack
from phyla.errors import AdapterError

Flow = tuple[Tensor | None, ...]


@dataclass
class Facts:
    """What adapters must know of the running call: the rows' task numbers, which rows a child of Rows has.

    tokens: where a call's one row holds several texts, which of its tokens each child of Rows has.
    """

    task_ids: Tensor | None = None
    tokens: list[Tensor] | None = None
    copied: bool = False  # whether the rows of the inputs were copied for Parallel already
    known: dict[Any, Any] = field(default_factory=dict)

    def groups(self, node: Rows, rows: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """(rows of each child, where each row stands when the children's rows are put together).

        Several rows of a tensor may belong to one row of the batch (beams, windows): they follow each other.
        """
        key = ("groups", node.numbers, rows, device)
        if key not in self.known:
            index, times = node.numbers, _times(node, rows)
            at = [[r for r, child in enumerate(index) if child == c] for c in range(len(node.children))]
            wide = [[r * times + i for r in group for i in range(times)] for group in at]
            order = [r for group in wide for r in group]
            back = sorted(range(rows), key=order.__getitem__)
            with torch.inference_mode(False):  # training may use them later
                lists = [torch.tensor(g, device=device) for g in (*wide, back)]
            self.keep(key, (lists[:-1], lists[-1]))
        return self.known[key]

    def children(self, node: Rows, rows: int, device: torch.device) -> Tensor:
        """The child's number of each row."""
        key = ("children", node.numbers, rows, device)
        if key not in self.known:
            times = _times(node, rows)
            with torch.inference_mode(False):
                self.keep(key, torch.tensor(node.numbers, device=device).repeat_interleave(times))
        return self.known[key]

    def keep(self, key: Any, value: Any) -> None:
        """Remember something for later calls, a few dozen things at most."""
        if len(self.known) > 63:
            self.known.clear()
        self.known[key] = value


def _times(node: Rows, rows: int) -> int:
    """How many rows of a tensor one row of the batch has."""
    if rows % len(node.numbers):
        raise AdapterError(
            f"adapter_names must name an adapter for each row, but has {len(node.numbers)} for {rows} rows"
        )
    return rows // len(node.numbers)


class Method:
    """How one method works at one site. `flow` is what adapters change, `fixed` what they read; rows first.

    `leaf` applies one adapter; `level` makes the flows of several children alike (prefixes of one length);
    `fuse` joins the children of a Fuse.
    """

    positions = True  # whether dimension 1 of three-dimensional tensors counts positions

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        """The flow after the adapter of this name; unchanged where it has no part here."""
        raise NotImplementedError(f"{type(self).__name__} must say what an adapter does to a flow: leaf()")

    def level(self, flows: list[Flow], flow: Flow, fixed: Flow) -> list[Flow]:
        """The flows with shapes that fit together."""
        return flows

    def level_rows(self, flows: list[Flow], parts: list[tuple[Flow, Flow]]) -> list[Flow]:
        """As `level`, where children have rows of their own, with (flow, fixed) of each."""
        return self.level(flows, *parts[0])

    def finish(self, block: Any, child: Any, flow: Flow, fixed: Flow) -> Flow:
        """What a child of a block whose children stand side by side made, in the form of its siblings."""
        return flow

    def fuse(self, block: Fuse, flow: Flow, fixed: Flow, facts: Facts) -> Flow:
        """The fused flow; unchanged where none of the block's adapters has a part."""
        parts: dict[str, Any] = getattr(self, "parts", {})
        if not any(parts.get(name) for name in block.names()):
            return flow
        raise AdapterError(f"{type(self).__name__} has no meaning in Fuse")


def run(node: Any, flow: Flow, fixed: Flow, method: Method, facts: Facts, inverse: bool = False) -> Flow:
    """The flow after a setup."""
    if node is None:
        return flow
    if isinstance(node, str):
        return method.leaf(node, flow, fixed)
    if isinstance(node, Stack):
        for child in reversed(node.children) if inverse else node.children:
            flow = run(child, flow, fixed, method, facts, inverse)
        return flow
    if isinstance(node, Fuse):
        return method.fuse(node, flow, fixed, facts)
    if isinstance(node, Average):
        flows = _each(node, flow, fixed, method, facts, inverse)
        return tuple(_weighted(items, node.weights) for items in zip(*flows, strict=True))
    if isinstance(node, MultiTask):
        return _by_task(_each(node, flow, fixed, method, facts, inverse), facts)
    if isinstance(node, Rows):
        return _by_row(node, flow, fixed, method, facts, inverse)
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
    flows, parts, start = [], [], 0
    for child, size in zip(node.children, cut, strict=True):
        end = start + size
        part, rest = _slice(flow, dim, start, end), _slice(fixed, dim, start, end)
        flows.append(method.finish(node, child, run(child, part, rest, method, facts, inverse), rest))
        parts.append((part, rest))
        start = end
    flows = method.level_rows(flows, parts)
    return tuple(
        None if any(item is None for item in items) else torch.cat(items, dim)
        for items in zip(*flows, strict=True)
    )


def _each(node: Any, flow: Flow, fixed: Flow, method: Method, facts: Facts, inverse: bool) -> list[Flow]:
    """Every child's flow for all rows."""
    flows = [
        method.finish(node, child, run(child, flow, fixed, method, facts, inverse), fixed)
        for child in node.children
    ]
    return method.level(flows, flow, fixed)


def _by_row(node: Rows, flow: Flow, fixed: Flow, method: Method, facts: Facts, inverse: bool) -> Flow:
    """Each child on its own rows, wherever those stand; the results in the rows' order."""
    first, dim = _first(flow, fixed), 0
    if facts.tokens is None:
        groups, back = facts.groups(node, first.shape[0], first.device)
    else:
        groups, dim, back = facts.tokens, 1, torch.cat(facts.tokens).argsort()
        if first.dim() != 3 or first.shape[:2] != (1, len(back)) or len(groups) != len(node.children):
            raise AdapterError(f"{node!r} does not work token by token here")
    flows, parts = [], []
    for child, rows in zip(node.children, groups, strict=True):
        part = tuple(None if t is None else t.index_select(dim, rows) for t in flow)
        rest = tuple(None if t is None else t.index_select(dim, rows) for t in fixed)
        flows.append(method.finish(node, child, run(child, part, rest, method, facts, inverse), rest))
        parts.append((part, rest))
    flows = method.level_rows(flows, parts)
    return tuple(
        None if any(item is None for item in items) else torch.cat(items, dim).index_select(dim, back)
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
