"""Modules that hold quantised weights: a linear map, and a token table that an output head can share."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.memory import Room
from phyla.checkpoints.weights import PackedTensor
from phyla.fast.codes import BY_TABLE, CodeMatrix
from phyla.fast.ggml import code_matrix
from phyla.quantization.linear import OwnDtypes

_BUFFERS = ("codes", "scale", "zero", "table", "order")


class PackedWeight(OwnDtypes):
    """A quantised matrix (N, K) as buffers, which moves with its model; several modules may share one."""

    def __init__(self, matrix: CodeMatrix) -> None:
        super().__init__()
        for name in _BUFFERS:
            self.register_buffer(name, None, persistent=False)
        self.look_at(matrix)

    @classmethod
    def from_ggml(cls, packed: PackedTensor, rooms: Mapping[str, Room] | None = None) -> "PackedWeight":
        """From the blocks of a GGUF file; ggml.LOSSLESS names the types that keep their values exactly."""
        return cls(code_matrix(packed, rooms))

    def look_at(self, matrix: CodeMatrix) -> None:
        """Take the memory of `matrix` for this weight's own."""
        self.shape = matrix.shape
        # stands for the expanded weights where names and shapes count; tied modules have it in common
        self.outline = torch.empty(self.shape, device="meta")
        for name in _BUFFERS:
            setattr(self, name, getattr(matrix, name))
        self._matrix = matrix

    @property
    def matrix(self) -> CodeMatrix:
        """The matrix over these buffers."""
        now = self._buffers
        if now["codes"] is not self._matrix.codes or now["scale"] is not self._matrix.scale:
            self._matrix = _over(self._matrix, now)
        return self._matrix

    def _apart(self) -> CodeMatrix:
        """A copy of the matrix without what else lies in the same memory."""
        return _over(self.matrix, {k: None if t is None else t.clone() for k, t in self._buffers.items()})

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedWeight":
        memo[id(self)] = twin = PackedWeight(self._apart())
        return twin

    def __getstate__(self) -> dict[str, Any]:
        made = self._apart()  # without what the kernel is told, too
        return {**self.__dict__, "_buffers": {n: getattr(made, n) for n in _BUFFERS}, "_matrix": made}

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The expanded weights, (N, K), in memory of their own."""
        return self.matrix.dense(dtype)

    def numbers(self) -> Tensor:
        """The codes (N, K) as they were given."""
        return self.matrix.numbers()

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, bits={4 if self._matrix.kind == BY_TABLE else 8}"


def _over(matrix: CodeMatrix, tensors: dict[str, Any]) -> CodeMatrix:
    """The same matrix over other tensors."""
    return replace(matrix, **tensors)


class PackedLinear(nn.Module):
    """y = x W^T + b with a quantised W that gets no gradient, and the site. x (..., in), y (..., out)."""

    site_kind = "linear"
    site: nn.Module | None

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = weight
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_module("site", None)

    @property
    def weight(self) -> Tensor:
        """The expanded weights (out, in) in float32: a copy, for those who merge, compare or save."""
        return self.packed.dense()

    def forward(self, x: Tensor) -> Tensor:
        weight: PackedWeight = self.packed
        flat = x.reshape(-1, self.in_features)
        if x.requires_grad and torch.is_grad_enabled():
            y = _Product.apply(flat, weight)
            y = y if self.bias is None else y + self.bias
        else:
            y = weight.matrix.matmul(flat, self.bias)
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.site is None else self.site(x, y, self)


class PackedTokens(nn.Module):
    """A quantised table of token vectors, (V, width); give its `packed` to a PackedLinear for a tied head."""

    like: Tensor

    def __init__(
        self, weight: PackedWeight, dtype: torch.dtype = torch.float32, padding: int | None = None
    ) -> None:
        super().__init__()
        self.packed, self.padding = weight, padding
        # An empty tensor that follows `model.to(dtype)`: the dtype in which vectors come out.
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def num_embeddings(self) -> int:
        """V."""
        return self.packed.shape[0]

    @property
    def weight(self) -> Tensor:
        """The expanded table (V, width) in float32: a copy."""
        return self.packed.dense()

    def forward(self, ids: Tensor) -> Tensor:
        return self.packed.matrix.rows(ids, self.like.dtype)


class _Product(torch.autograd.Function):
    """x W^T with the gradient of x, which adapters on a quantised model need."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: PackedWeight) -> Tensor:
        ctx.packed = weight
        return weight.matrix.matmul(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.packed.dense(gradient.dtype), None
