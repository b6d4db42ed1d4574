"""Quantised modules in a model that is about to be filled from a GGUF file."""

from collections import defaultdict

import torch
from torch import nn

from phyla.blocks.embed import Tokens
from phyla.blocks.linear import Linear
from phyla.blocks.memory import Room
from phyla.blocks.moe import Experts
from phyla.checkpoints.load import choose_lines
from phyla.checkpoints.names import Line, modern
from phyla.checkpoints.ops import Same, Split, Stack
from phyla.checkpoints.state import Layout
from phyla.checkpoints.weights import PackedTensor, Weights
from phyla.fast.coded import one_below_the_other
from phyla.fast.ggml import GROUP, code_matrix
from phyla.fast.packed import PackedLinear, PackedTokens, PackedWeight
from phyla.quantization.experts import PackedExperts
from phyla.quantization.install import put_experts


def install_packed(model: nn.Module, weights: Weights, layout: Layout, dtype: torch.dtype) -> set[str]:
    """Replace every Linear and token table whose weight the file holds quantised; the paths of those weights.

    A weight that several modules share stays shared. Biases stay parameters on meta, to be filled like the
    rest.
    """
    spelled = {modern(name): name for name in weights.infos}
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        if type(module) in (Linear, Tokens):
            holders.setdefault(id(module.weight), []).append(path)
    done: set[str] = set()
    rooms: dict[str, Room] = defaultdict(Room)
    for line in choose_lines(layout, spelled):
        if _install_experts(line, model, weights, spelled):
            done.add(line.ours[0])
            continue
        for path, packed in _packed_parts(line, model, weights, spelled):
            weight = PackedWeight.from_ggml(packed, rooms)
            for holder in holders[id(model.get_parameter(path))]:
                _replace(model, holder, weight, dtype)
                done.add(f"{holder}.weight")
    return done


def _install_experts(line: Line, model: nn.Module, weights: Weights, spelled: dict[str, str]) -> bool:
    """Whether a line fills one matrix of each expert of a mixture, and they are packed now."""
    if type(line.op) is not Stack or len(line.ours) != 1 or any(name not in spelled for name in line.theirs):
        return False
    owner, _, leaf = line.ours[0].rpartition(".")
    experts = model.get_submodule(owner)
    if not isinstance(experts, Experts) or leaf not in ("gate", "up", "down"):
        return False
    shape = experts.get_parameter(leaf).shape
    if len(line.theirs) != shape[0] or shape[2] % GROUP:
        return False
    found = []
    for name in line.theirs:
        packed = weights.read_packed(spelled[name])
        if packed is None or packed.shape != tuple(shape[1:]):
            return False
        found.append(code_matrix(packed))
    whole = one_below_the_other(found)
    if whole is None:
        return False
    matrices = PackedExperts(shape)
    matrices.coded = PackedWeight(whole)
    put_experts(experts, leaf, matrices)
    return True


def _packed_parts(
    line: Line, model: nn.Module, weights: Weights, spelled: dict[str, str]
) -> list[tuple[str, PackedTensor]]:
    """Our weights that a line fills, with their quantised rows; empty where one must be filled as numbers."""
    if len(line.theirs) != 1 or line.theirs[0] not in spelled:
        return []
    owners = [model.get_submodule(path.rpartition(".")[0]) for path in line.ours]
    if not all(type(owner) in (Linear, Tokens) for owner in owners) or not line.ours[0].endswith(".weight"):
        return []
    plain = type(line.op) is Same or line.op == Split()
    packed = weights.read_packed(spelled[line.theirs[0]]) if plain else None
    shapes = [tuple(model.get_parameter(path).shape) for path in line.ours]
    sizes = [shape[0] for shape in shapes]
    # A wrong shape is for the ordinary way to report.
    if packed is None or packed.shape != (sum(sizes), shapes[0][1]) or packed.shape[1] % GROUP:
        return []
    blocks = packed.blocks.split(sizes)
    return [
        (path, PackedTensor(rows, packed.ggml_type, shape))
        for path, rows, shape in zip(line.ours, blocks, shapes, strict=True)
    ]


def _replace(model: nn.Module, path: str, weight: PackedWeight, dtype: torch.dtype) -> None:
    old = model.get_submodule(path)
    if isinstance(old, Tokens):
        new: nn.Module = PackedTokens(weight, dtype, old.padding)
    else:
        new = PackedLinear(weight, old.get_parameter("bias") if old.bias is not None else None)
        new.register_module("site", old.get_submodule("site") if old.site is not None else None)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new.train(old.training))
