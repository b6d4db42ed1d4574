"""Modules that hold quantised weights: a linear map, and a token table that an output head can share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from phyla.checkpoints.weights import PackedTensor
from phyla.fast.ggml import nibble_matrix
from phyla.fast.nibbles import NibbleMatrix


class PackedWeight(nn.Module):
    """A quantised matrix (N, K) as buffers, so that it moves with its model; several modules may share one.

    exact: float32 inputs get float32 products, in three passes; otherwise one bfloat16 pass, sums in float32.
    """

    codes: Tensor
    scales: Tensor
    fine: Tensor | None

    def __init__(self, matrix: NibbleMatrix) -> None:
        super().__init__()
        for name in ("codes", "scales", "fine"):
            self.register_buffer(name, None, persistent=False)
        self.look_at(matrix)

    @classmethod
    def from_ggml(cls, packed: PackedTensor, exact: bool = True) -> "PackedWeight":
        """From the blocks of a GGUF file; ggml.LOSSLESS names the types that keep their values exactly."""
        return cls(nibble_matrix(packed, exact))

    def look_at(self, matrix: NibbleMatrix) -> None:
        """Take the memory of `matrix` for this weight's own."""
        self.shape, self.planes = matrix.shape, matrix.planes
        # stands for the expanded weights where names and shapes count; tied modules have it in common
        self.outline = torch.empty(self.shape, device="meta")
        # int16 stands for bfloat16: casting a model to another dtype must not touch the scales.
        self.codes, self.scales = matrix.codes, matrix.scales.view(torch.int16)
        self.fine = None if matrix.fine is None else matrix.fine.view(torch.int16)
        self._matrix: NibbleMatrix | None = None

    @property
    def matrix(self) -> NibbleMatrix:
        """The matrix over these buffers."""
        if self._matrix is None:
            fine = None if self.fine is None else self.fine.view(torch.bfloat16)
            scales = self.scales.view(torch.bfloat16)
            self._matrix = NibbleMatrix(self.codes, scales, fine, self.shape, self.planes)
        return self._matrix

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedWeight":
        self._matrix = None  # it looks at buffers that are about to be replaced
        return super()._apply(fn, recurse)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The expanded weights, (N, K), in memory of their own."""
        return self.matrix.dense(dtype)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, bits={4 * self.planes}, exact={self.fine is not None}"


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
        else:
            y = weight.matrix.matmul(flat)
        y = y.view(*x.shape[:-1], self.out_features)
        if self.bias is not None:
            y = y + self.bias
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
