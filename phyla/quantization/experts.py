"""The matrices of a mixture's experts in a public format, expanded one by one, as tokens choose them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.quantization.linear import PackedParts


class PackedExperts(nn.Module):
    """Matrices (X, out, in) of which each is one packed public weight, none of which gets a gradient.

    parts: of each expert, in order; none where only the kernels' form is there (GGUF). compute: dtype of the
    products, None for that of the input.
    """

    def __init__(
        self, shape: Sequence[int], parts: Sequence[PackedParts] = (), compute: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.shape, self.compute = tuple(shape), compute
        self.parts = nn.ModuleList(parts)
        # Set by fast.coded and fast.install: the codes of all experts, one below the other in whole blocks.
        self.coded: Any
        self.register_module("coded", None)
        self.is_plain = False  # whether the kernels were found not to take them
        self.releasing = False
        self.cut: tuple[Any, list[Any]] = (None, [])
        # Stands for the weight among the names of the model.
        self.outline = torch.empty(self.shape, device="meta")

    @property
    def held(self) -> list[PackedParts]:
        """The packed public weights of the experts, in order."""
        return [part for part in self.parts if isinstance(part, PackedParts)]

    def __len__(self) -> int:
        return self.shape[0]

    def matrices(self) -> list[Any]:
        """The codes of each expert, as views of those of all; empty without them."""
        if self.coded is None:
            return []
        whole, cut = self.coded.matrix, self.cut[1]
        if self.cut[0] is not whole:
            experts, out, width = self.shape
            step = len(whole.codes) // experts
            cut = []
            for e in range(experts):
                blocks = slice(e * step, (e + 1) * step)
                zero = None if whole.zero is None else whole.zero[blocks]
                order = None if whole.order is None else whole.order.view(experts, width)[e]
                cut.append(replace(
                    whole, codes=whole.codes[blocks], scale=whole.scale[blocks], zero=zero, order=order,
                    shape=(out, width),
                ))  # fmt: skip
            self.cut = (whole, cut)
        return cut

    def expert(self, number: int, dtype: torch.dtype) -> Tensor:
        """One matrix expanded, (out, in)."""
        if self.coded is not None:
            return self.matrices()[number].dense(dtype)
        return self.held[number].dense(dtype)

    def __getitem__(self, number: int) -> Tensor:
        """One matrix expanded, (out, in), in float32."""
        return self.expert(number, torch.float32)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All matrices expanded, (X, out, in)."""
        return torch.stack([self.expert(e, dtype) for e in range(len(self))])

    def forward(self, x: Tensor, number: int) -> Tensor:
        """x W^T for the matrix of one expert: x (N, in) -> (N, out)."""
        wants = torch.is_grad_enabled() and x.requires_grad
        if self.coded is not None and not wants:
            return self.matrices()[number].matmul(x)
        dtype = self.compute or x.dtype
        y = x.to(dtype)
        if wants and not torch.compiler.is_compiling():
            y = _Product.apply(y, self, number)
        else:
            y = F.linear(y, self.expert(number, dtype))
        return y.to(x.dtype)

    def lenders(self) -> "list[Lender]":
        """What stands for the kernels' form towards the parts of each expert."""
        return [Lender(self, e) for e in range(len(self))]

    def release(self, asking: int) -> None:
        """Let all parts hold their codes again and forget those of the kernels; `asking` does so itself."""
        if self.releasing or self.coded is None:
            return
        self.releasing = True
        for e, parts in enumerate(self.held):
            if e != asking and parts.away is not None:
                parts.take_back()
        self.coded, self.releasing, self.cut = None, False, (None, [])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cut": (None, [])}  # without what kernels are told

    def extra_repr(self) -> str:
        return f"experts={self.shape[0]}, in={self.shape[2]}, out={self.shape[1]}"


class Lender:
    """One expert as `PackedParts` asks a map for the codes that it has lent."""

    rows = span = None

    def __init__(self, owner: PackedExperts, number: int) -> None:
        self.owner, self.number = owner, number

    @property
    def coded(self) -> Any:
        """The codes of this expert."""
        return self.owner.matrices()[self.number]

    @coded.setter
    def coded(self, value: None) -> None:
        self.owner.release(self.number)


class _Product(torch.autograd.Function):
    """x W^T that keeps no expanded weight for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, experts: PackedExperts, number: int) -> Tensor:
        ctx.experts, ctx.number = experts, number
        return F.linear(x, experts.expert(number, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.experts.expert(ctx.number, gradient.dtype), None, None
