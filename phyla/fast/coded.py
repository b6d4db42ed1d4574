"""Quantised maps of a model in the form that the kernels take; their public parts come back on demand."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.memory import Room
from phyla.fast import codes, native
from phyla.fast.codes import CodeMatrix
from phyla.fast.packed import PackedWeight
from phyla.quantization.experts import PackedExperts
from phyla.quantization.linear import PackedParts, QuantizedLinear


def put_into_codes(model: nn.Module) -> None:
    """Give every QuantizedLinear on a CPU the codes of its rows, where kernels are in use or being built.

    The codes then lie in memory once, in the kernel's order; scales twice, as stored and as the kernel reads
    them. What no kernel takes (odd groups, e5m2) stays as it is, and is expanded for each product.
    """
    if codes.native is None and not native.is_coming():
        return
    sharing: dict[PackedParts, list[QuantizedLinear]] = {}
    rooms: dict[str, Room] = defaultdict(Room)
    for module in model.modules():
        if isinstance(module, QuantizedLinear) and module.coded is None:
            sharing.setdefault(module.packed, []).append(module)
    for packed, maps in sharing.items():
        if not packed.is_plain and packed.is_cpu():
            packed.is_plain = not _code(packed, maps, rooms)
    for module in list(model.modules()):
        if isinstance(module, PackedExperts) and module.coded is None and not module.is_plain:
            if all(parts.is_cpu() for parts in module.held):
                module.is_plain = not _code_experts(module)


def _code(packed: PackedParts, maps: list[QuantizedLinear], rooms: dict[str, Room]) -> bool:
    """Whether the maps of one public weight have their codes now."""
    numbers = packed.scheme.numbers(packed.parts, packed.facts)
    if numbers is None or sum(m.out_features for m in maps) != packed.shape[0]:
        return False
    for linear in maps:
        rows = _rows(linear)
        part = numbers if rows is None else numbers.rows(rows)
        linear.coded = PackedWeight(CodeMatrix.build(part, rooms))
    if packed.lend(maps):
        return True
    for linear in maps:
        linear.coded = None
    return False


def _code_experts(experts: PackedExperts) -> bool:
    """Whether the matrices of all experts have their codes now."""
    made = []
    for parts in experts.held:
        numbers = parts.scheme.numbers(parts.parts, parts.facts)
        if numbers is None:
            return False
        made.append(CodeMatrix.build(numbers))
    whole = one_below_the_other(made)
    if whole is None:
        return False
    experts.coded = PackedWeight(whole)
    lenders: list[Any] = experts.lenders()  # which answer as maps do
    for parts, lender in zip(experts.held, lenders, strict=True):
        if not parts.lend([lender]):
            experts.release(-1)
            return False
    return True


def one_below_the_other(matrices: Sequence[CodeMatrix]) -> CodeMatrix | None:
    """Matrices of one shape as one, each from a block of its own on; None where they differ in form.

    Orders of inputs stand one behind the other in it, so that it serves to be cut again.
    """
    first = matrices[0]
    if len({(m.shape, m.group, m.kind, m.relative, m.zero is None, m.order is None) for m in matrices}) > 1:
        return None
    tables = [m.table for m in matrices if m.table is not None]
    if tables and (len(tables) < len(matrices) or any(not torch.equal(tables[0], t) for t in tables)):
        return None
    whole = _joined([m.codes for m in matrices])
    zeros, orders = [m.zero for m in matrices if m.zero is not None], [m.order for m in matrices]
    return replace(
        first, codes=whole, scale=_joined([m.scale for m in matrices]),
        zero=_joined(zeros) if zeros else None,
        order=None if first.order is None else _joined([order for order in orders if order is not None]),
        shape=(len(whole) * codes.ROWS, first.shape[1]),
    )  # fmt: skip


def _joined(parts: list[Tensor]) -> Tensor:
    """Tensors one behind the other, in float32 where their dtypes differ."""
    kinds = {part.dtype for part in parts}
    return torch.cat(parts if len(kinds) == 1 else [part.float() for part in parts])


def _rows(linear: QuantizedLinear) -> Tensor | None:
    if linear.span is None:
        return linear.rows
    return torch.arange(*linear.span)
