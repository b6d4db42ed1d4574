"""Quantised maps of a model in the form that the kernels take; their public parts come back on demand."""

import torch
from torch import Tensor, nn

from phyla.fast import codes, native
from phyla.fast.codes import CodeMatrix
from phyla.fast.packed import PackedWeight
from phyla.quantization.linear import PackedParts, QuantizedLinear


def put_into_codes(model: nn.Module) -> None:
    """Give every QuantizedLinear on a CPU the codes of its rows, where kernels are in use or being built.

    The codes then lie in memory once, in the kernel's order; scales twice, as stored and as the kernel reads
    them. What no kernel takes (odd groups, e5m2) stays as it is, and is expanded for each product.
    """
    if codes.native is None and not native.is_coming():
        return
    sharing: dict[PackedParts, list[QuantizedLinear]] = {}
    for module in model.modules():
        if isinstance(module, QuantizedLinear) and module.coded is None:
            sharing.setdefault(module.packed, []).append(module)
    for packed, maps in sharing.items():
        if not packed.is_plain and packed.is_cpu():
            packed.is_plain = not _code(packed, maps)


def _code(packed: PackedParts, maps: list[QuantizedLinear]) -> bool:
    """Whether the maps of one public weight have their codes now."""
    numbers = packed.scheme.numbers(packed.parts, packed.facts)
    if numbers is None or sum(m.out_features for m in maps) != packed.shape[0]:
        return False
    for linear in maps:
        rows = _rows(linear)
        part = numbers if rows is None else numbers.rows(rows)
        linear.coded = PackedWeight(CodeMatrix.build(part))
    if packed.lend(maps):
        return True
    for linear in maps:
        linear.coded = None
    return False


def _rows(linear: QuantizedLinear) -> Tensor | None:
    if linear.span is None:
        return linear.rows
    return torch.arange(*linear.span)
