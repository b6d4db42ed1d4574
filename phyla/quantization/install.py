"""Packed linear maps in a model about to be filled: of a quantised checkpoint, or made from a dense one."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.linear import Linear
from phyla.checkpoints.load import choose_lines
from phyla.checkpoints.names import Line, modern
from phyla.checkpoints.ops import Same, Split, Transpose
from phyla.checkpoints.state import Layout
from phyla.checkpoints.weights import Weights
from phyla.quantization.linear import PackedParts, QuantizedLinear
from phyla.quantization.scheme import Parts, Scheme
from phyla.quantization.view import QuantizedWeights


def install_quantized(
    model: Any, weights: Weights, layout: Layout, dtype: torch.dtype, scheme: Scheme | None = None,
    skipped: list[str] | None = None, compute: torch.dtype | None = None,
) -> set[str]:  # fmt: skip
    """Replace every linear map whose weight the checkpoint holds quantised; the paths of those weights.

    scheme: make the weights in this format from a dense checkpoint, in all maps but the `skipped` public
    modules (None: the output matrix). Weights that several modules share and stacks of experts stay dense.
    """
    spelled = {modern(name): name for name in weights.infos}
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    lines = choose_lines(layout, spelled)
    if scheme is not None and skipped is None:
        skipped = _last(model, layout)
    done: set[str] = set()
    for line in lines:
        name = spelled.get(line.theirs[0])
        if name is None or not _is_of_maps(line, model, owners):
            continue
        module = name.removesuffix(".weight")
        if isinstance(weights, QuantizedWeights):
            if name not in weights.held:
                continue
            parts = weights.parts(name)
            made = weights.scheme_of(name)
            facts = weights.facts(name, parts)
            if facts.shape != _joint_shape(line, model):
                continue  # a wrong shape is for the ordinary way to report
        elif scheme is None or is_skipped(module, skipped or []):
            continue
        else:
            shape = _joint_shape(line, model)
            if not scheme.packs(shape):
                continue
            made = scheme.one(name, {}, shape)
            found = _quantised(line, weights.read(name).to(dtype), shape, made)
            if found is None:
                continue
            parts = found
        _replace(model, line, PackedParts(made, parts), compute)
        done |= set(line.ours)
    return done


def is_skipped(module: str, skipped: list[str]) -> bool:
    """Whether a public module path is among the names, as the public library compares them."""
    return any(module == key or f"{key}." in module for key in skipped)


def _last(model: Any, layout: Layout) -> list[str]:
    """What is kept by default: the output matrix, or the last map of a model without one."""
    out = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    paths = {id(module): path for path, module in model.named_modules()}
    for line in reversed(layout.lines(True)):
        owner = model.get_submodule(line.ours[0].rpartition(".")[0])
        if out is None or paths.get(id(out)) == line.ours[0].rpartition(".")[0] or owner is out:
            return [line.theirs[0].rpartition(".")[0]]
    return []


def _is_of_maps(line: Line, model: Any, owners: Counter) -> bool:
    """Whether a line fills weights of linear maps that nothing else shares, and keeps their rows whole."""
    plain = type(line.op) in (Same, Transpose) or (type(line.op) is Split and line.op.dim == 0)
    if not plain or len(line.theirs) != 1 or not line.theirs[0].endswith(".weight"):
        return False
    for path in line.ours:
        holder, _, leaf = path.rpartition(".")
        module = model.get_submodule(holder)
        if leaf != "weight" or type(module) is not Linear or owners[id(module.weight)] > 1:
            return False
    return True


def _joint_shape(line: Line, model: Any) -> tuple[int, ...]:
    """(out, in) of the public weight that a line's maps share."""
    shapes = [model.get_parameter(path).shape for path in line.ours]
    return (sum(shape[0] for shape in shapes), shapes[0][1])


def _is_turned(line: Line) -> bool:
    return type(line.op) is Transpose or (isinstance(line.op, Split) and line.op.transpose)


def _quantised(line: Line, weight: Tensor, shape: tuple[int, ...], scheme: Scheme) -> Parts | None:
    weight = weight.t().contiguous() if _is_turned(line) and weight.dim() == 2 else weight
    return scheme.quantise(weight) if tuple(weight.shape) == shape else None


def _rows(line: Line, model: Any) -> list[Tensor | None]:
    """The rows of the public weight that each of a line's maps is, None for all in order."""
    if type(line.op) is not Split:
        return [None]
    sizes = [model.get_parameter(path).shape[0] for path in line.ours]
    numbers = torch.arange(sum(sizes))[:, None]
    found = line.op.load([numbers.t() if line.op.transpose else numbers], [torch.Size((n, 1)) for n in sizes])
    return [part.flatten() for part in found]


def _replace(model: Any, line: Line, packed: PackedParts, compute: torch.dtype | None) -> None:
    for path, rows in zip(line.ours, _rows(line, model), strict=True):
        holder = path.rpartition(".")[0]
        old = model.get_submodule(holder)
        bias = old.get_parameter("bias") if old.bias is not None else None
        new: nn.Module = QuantizedLinear(packed, rows, bias, compute)
        new.register_module("site", old.get_submodule("site") if old.site is not None else None)
        parent, _, name = holder.rpartition(".")
        setattr(model.get_submodule(parent), name, new.train(old.training))
