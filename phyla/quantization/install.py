"""Packed linear maps in a model about to be filled: of a quantised checkpoint, or made from a dense one."""

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from phyla.blocks.linear import Linear
from phyla.blocks.moe import Experts
from phyla.checkpoints.load import choose_lines
from phyla.checkpoints.names import Line, modern
from phyla.checkpoints.ops import Same, Split, Stack, Transpose
from phyla.checkpoints.state import Layout
from phyla.checkpoints.weights import Weights
from phyla.quantization.experts import PackedExperts
from phyla.quantization.linear import PackedParts, QuantizedLinear
from phyla.quantization.scheme import Parts, Scheme
from phyla.quantization.view import QuantizedWeights


def install_quantized(
    model: Any, weights: Weights, layout: Layout, dtype: torch.dtype, scheme: Scheme | None = None,
    skipped: list[str] | None = None, compute: torch.dtype | None = None,
) -> set[str]:  # fmt: skip
    """Replace every linear map whose weight the checkpoint holds quantised; the paths of those weights.

    scheme: make the weights in this format from a dense checkpoint, in all maps but the `skipped` public
    modules (None: the output matrix). Weights that several modules share stay dense, and experts where not
    all of a layer are quantised.
    """
    spelled = {modern(name): name for name in weights.infos}
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    lines = choose_lines(layout, spelled)
    if scheme is not None and skipped is None:
        skipped = _last(model, layout)
    done: set[str] = set()
    for line in lines:
        held = [name for public in line.theirs if (name := spelled.get(public)) is not None]
        if len(held) != len(line.theirs):
            continue
        of_experts = _is_of_experts(line, model)
        if not of_experts and not _is_of_maps(line, model, owners):
            continue
        shape = _joint_shape(line, model)
        maker = None if scheme is None else _Maker(line, scheme, skipped or [], dtype)
        if not all(_is_packed(name, shape, weights, maker) for name in held):
            continue
        packed = [_parts_of(name, shape, weights, maker) for name in held]
        if any(part is None or part.shape != shape for part in packed):
            continue  # a wrong shape is for the ordinary way to report
        if of_experts:
            _replace_experts(model, line.ours[0], [p for p in packed if p is not None], compute)
        elif packed[0] is not None:
            _replace(model, line, packed[0], compute)
        done |= set(line.ours)
    return done


class _Maker(NamedTuple):
    """How the weights of a line are quantised at load."""

    line: Line
    scheme: Scheme
    skipped: list[str]
    dtype: torch.dtype


def _is_packed(name: str, shape: tuple[int, ...], weights: Weights, maker: _Maker | None) -> bool:
    """Whether a public weight is quantised in the file, or is to be."""
    if isinstance(weights, QuantizedWeights):
        return name in weights.held
    if maker is None or is_skipped(name.removesuffix(".weight"), maker.skipped):
        return False
    return maker.scheme.packs(shape)


def _parts_of(
    name: str, shape: tuple[int, ...], weights: Weights, maker: _Maker | None
) -> PackedParts | None:
    """A public weight (out, in), packed; None for one that is of another shape."""
    if isinstance(weights, QuantizedWeights):
        parts = weights.parts(name)
        weights.facts(name, parts)
        return PackedParts(weights.scheme_of(name), parts)
    assert maker is not None
    scheme = maker.scheme.one(name, {}, shape)
    found = _quantised(maker.line, weights.read(name).to(maker.dtype), shape, scheme)
    return None if found is None else PackedParts(scheme, found)


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


def _is_of_experts(line: Line, model: Any) -> bool:
    """Whether a line fills one matrix of each expert of a mixture."""
    if type(line.op) is not Stack or len(line.ours) != 1:
        return False
    owner, _, leaf = line.ours[0].rpartition(".")
    experts = model.get_submodule(owner)
    if not isinstance(experts, Experts) or leaf not in ("gate", "up", "down"):
        return False
    return len(line.theirs) == experts.experts and all(name.endswith(".weight") for name in line.theirs)


def _joint_shape(line: Line, model: Any) -> tuple[int, ...]:
    """(out, in) of the public weight that a line's maps share, or of one of its experts."""
    shapes = [model.get_parameter(path).shape for path in line.ours]
    if type(line.op) is Stack:
        return tuple(shapes[0][1:])
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


def _replace_experts(model: Any, path: str, packed: list[PackedParts], compute: torch.dtype | None) -> None:
    owner, _, leaf = path.rpartition(".")
    experts = model.get_submodule(owner)
    put_experts(experts, leaf, PackedExperts(getattr(experts, leaf).shape, packed, compute))


def put_experts(experts: nn.Module, name: str, matrices: nn.Module) -> None:
    """Let packed matrices stand in the place of a parameter."""
    delattr(experts, name)
    setattr(experts, name, matrices.train(experts.training))


def _replace(model: Any, line: Line, packed: PackedParts, compute: torch.dtype | None) -> None:
    for path, rows in zip(line.ours, _rows(line, model), strict=True):
        holder = path.rpartition(".")[0]
        old = model.get_submodule(holder)
        bias = old.get_parameter("bias") if old.bias is not None else None
        new: nn.Module = QuantizedLinear(packed, rows, bias, compute)
        new.register_module("site", old.get_submodule("site") if old.site is not None else None)
        parent, _, name = holder.rpartition(".")
        setattr(model.get_submodule(parent), name, new.train(old.training))
