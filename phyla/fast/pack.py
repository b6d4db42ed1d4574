"""Maps that read the same stream as one product: q, k, v of attention and gate, up of a feed-forward.

The parts stay where they are (`attn.q.weight`, sites, public names); their weights become views of one.
"""

import itertools
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.attention import Attention
from phyla.blocks.ffn import GatedFFN
from phyla.blocks.linear import Linear
from phyla.blocks.matmul import linear
from phyla.blocks.memory import memory, side_by_side
from phyla.fast import native
from phyla.fast.coded import put_into_codes
from phyla.fast.codes import CodeMatrix, concatenate
from phyla.fast.packed import PackedLinear, PackedWeight
from phyla.quantization.linear import QuantizedLinear

Map = Linear | PackedLinear | QuantizedLinear


def pack(model: nn.Module) -> nn.Module:
    """Join the maps of every attention and gated feed-forward where they can be joined; the model itself.

    Values, names, sites and gradients stay. Pack anew after `model.to(...)`: until then the parts run alone.
    """
    if any(t.device.type == "cpu" for t in itertools.chain(model.parameters(), model.buffers())):
        native.enable()
    put_into_codes(model)
    for module in model.modules():
        if isinstance(module, Attention) and not module.cross:
            three = (module.q, module.k, module.v)  # keys may serve as values
            maps: tuple[Map, ...] = tuple(m for m in three if m is not None)
        elif isinstance(module, GatedFFN):
            maps = (module.gate, module.up)
        else:
            continue
        if module.joined is None or not module.joined.whole():
            module.joined = join(maps, module._modules)
    return model


class Joined:
    """Maps of one input as one product; a call gives each map's result, (..., out), with its bias and site.

    No module: its maps are registered where they belong, and this only looks at them.
    """

    def __init__(self, maps: Sequence[Map]) -> None:
        self.maps = tuple(maps)
        self.sizes = [m.out_features for m in maps]
        self.table: dict[str, Any] = {}  # the modules among which the maps stand, under these names
        self.names: tuple[str, ...] = ()
        self.placed: list[Any] = []

    def stand(self, table: dict[str, Any]) -> None:
        """Hold only as long as the maps stand in this table of modules."""
        self.table, maps = table, {id(m) for m in self.maps}
        self.names = tuple(name for name, m in table.items() if id(m) in maps)
        self.placed = [table[name] for name in self.names]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = self.product(x).split_with_sizes(self.sizes, -1)
        return tuple(_finish(m, x, y) for m, y in zip(self.maps, parts, strict=True))

    def product(self, x: Tensor) -> Tensor:
        """All results side by side, (..., sum of outs), without biases and sites."""
        raise TypeError(f"{type(self).__name__} must define product(x)")

    def ready(self) -> bool:
        """Whether the maps still look into the joined weight, and neither gradients nor hooks are wanted."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return self.whole() and not any(m._forward_hooks or m._forward_pre_hooks for m in self.maps)

    def bare(self) -> bool:
        """Whether the product alone is the maps' result: none has a bias or something at its site."""
        return all(m.bias is None and m.site is None for m in self.maps)

    def whole(self) -> bool:
        """Whether the maps stand where they stood, and look into the joined weight, which `to` may end."""
        return [*map(self.table.get, self.names)] == self.placed and self.looks()

    def looks(self) -> bool:
        """Whether the maps still look into the joined weight."""
        raise TypeError(f"{type(self).__name__} must define looks()")

    def __deepcopy__(self, memo: dict) -> "Joined | None":
        return join([deepcopy(m, memo) for m in self.maps], deepcopy(self.table, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return join, (self.maps, self.table)  # without the memory that the maps write by themselves


class _JoinedDense(Joined):
    def __init__(self, maps: Sequence[Linear], weight: Tensor) -> None:
        super().__init__(maps)
        self.weight = weight
        self.places = [m.weight.data_ptr() for m in maps]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if any(m.site is not None for m in self.maps):
            return super().__call__(x)
        return self.biased(x).split_with_sizes(self.sizes, -1)

    def biased(self, x: Tensor) -> Tensor:
        """All results side by side with their biases, (..., sum of outs); sites are not asked."""
        biases = [m.bias for m in self.maps]
        if all(b is None for b in biases):
            return self.product(x)
        whole = [x.new_zeros(n) if b is None else b for b, n in zip(biases, self.sizes, strict=True)]
        return linear(x, self.weight, torch.cat(whole))

    def product(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)

    def looks(self) -> bool:
        return all(m.weight.data_ptr() == place for m, place in zip(self.maps, self.places, strict=True))


class _JoinedPacked(Joined):
    def __init__(self, maps: Sequence[Map], weights: Sequence[PackedWeight], matrix: CodeMatrix) -> None:
        super().__init__(maps)
        self.matrix, self.weights = matrix, list(weights)
        self.views = [weight.codes for weight in weights]

    def product(self, x: Tensor) -> Tensor:
        return self.matrix.matmul(x.reshape(-1, self.matrix.shape[1])).view(*x.shape[:-1], -1)

    def looks(self) -> bool:
        pairs = zip(self.maps, self.weights, self.views, strict=True)
        return all(weight_of(m) is weight and weight.codes is view for m, weight, view in pairs)


def weight_of(linear: Map) -> PackedWeight | None:
    """The codes of a packed map, None where it has none for the kernels."""
    return linear.packed if isinstance(linear, PackedLinear) else getattr(linear, "coded", None)


def join(maps: Sequence[Map], table: dict[str, Any] | None = None) -> Joined | None:
    """The maps joined, as long as they stand in a table of modules.

    None where they differ in kind, input, dtype or device, or are one and the same.
    """
    joined = _joined(maps)
    if joined is not None and table is not None:
        joined.stand(table)
    return joined


def _joined(maps: Sequence[Map]) -> Joined | None:
    if len({m.in_features for m in maps}) != 1 or len({id(m) for m in maps}) != len(maps):
        return None
    # Subclasses may compute something else.
    dense = [m for m in maps if type(m) is Linear]
    if len(dense) == len(maps):
        return _join_dense(dense)
    packed = [m for m in maps if type(m) in (PackedLinear, QuantizedLinear)]
    weights = [w for w in map(weight_of, packed) if w is not None]
    return _join_packed(packed, weights) if len(weights) == len(maps) else None


def _join_dense(maps: Sequence[Linear]) -> Joined | None:
    weights = [m.weight for m in maps]
    alike = len({(w.dtype, w.device) for w in weights}) == 1
    if not alike or weights[0].is_meta or len({id(w) for w in weights}) != len(maps):
        return None
    parts = [w.data for w in weights]
    whole = side_by_side(parts)
    if whole is not None:
        return _JoinedDense(maps, whole)
    whole = _cat(parts)
    for weight, rows in zip(weights, whole.split([len(w) for w in weights]), strict=True):
        weight.data = rows
    return _JoinedDense(maps, whole)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """Matrices one below the other, in memory that is read fast."""
    first, rows = parts[0], sum(map(len, parts))
    if not first.is_cpu:
        return torch.cat([*parts])
    place = memory(rows * first.shape[1] * first.element_size()).view(first.dtype)
    return torch.cat([*parts], out=place.view(rows, first.shape[1]))


def _join_packed(maps: Sequence[Map], weights: Sequence[PackedWeight]) -> Joined | None:
    whole = concatenate([w.matrix for w in weights])
    if whole is None:
        return None
    for weight, part in zip(weights, whole.split([w.shape[0] for w in weights]), strict=True):
        weight.look_at(part)
    return _JoinedPacked(maps, weights, whole)


def _finish(m: Map, x: Tensor, y: Tensor) -> Tensor:
    if m.bias is not None:
        y = y + m.bias
    site: Any = m.site
    return y if site is None else site(x, y, m)
