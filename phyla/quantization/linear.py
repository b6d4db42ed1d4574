"""A linear map whose weight stays in a public format, expanded for each product."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.quantization.scheme import Parts, Scheme


class OwnDtypes(nn.Module):
    """Buffers whose dtypes are those of a format: casting the model leaves them."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OwnDtypes":
        for name, old in self._buffers.items():
            if old is not None:
                new = fn(old)
                self._buffers[name] = new if new.dtype == old.dtype else old.to(new.device)
        return self


class PackedParts(OwnDtypes):
    """The parts of one public weight (out, in) as buffers; several maps may be rows of it."""

    def __init__(self, scheme: Scheme, parts: Parts) -> None:
        super().__init__()
        self.scheme, self.facts = scheme, scheme.check(parts)
        self.shape = self.facts.shape
        self.places = {leaf: leaf.replace(".", "__") + "_" * hasattr(self, leaf) for leaf in parts}
        for leaf, place in self.places.items():
            self.register_buffer(place, parts[leaf])
        # Set by fast.coded: maps whose kernels hold the codes, in place of one leaf; that leaf on meta.
        self.maps: list[QuantizedLinear] = []
        self.away: Tensor | None = None
        self.is_plain = False  # whether the kernels were found not to take it

    @property
    def parts(self) -> Parts:
        """The tensors by their public leaves."""
        found = {leaf: self._buffers[place] for leaf, place in self.places.items()}
        if self.away is not None:
            leaf = next(name for name, part in found.items() if part is None)
            found[leaf] = self.scheme.stored(self._codes(), self.away, self.facts)
        return found  # type: ignore[return-value]

    def is_cpu(self) -> bool:
        """Whether all parts are in main memory."""
        return all(part is None or part.is_cpu for part in self._buffers.values())

    def lend(self, maps: "list[QuantizedLinear]") -> bool:
        """Let the kernels' form of the maps stand for the codes; False where it does not hold all of them."""
        leaf = self.scheme.bulk(self.parts)
        place = self.places[leaf]
        whole = self._buffers[place]
        assert whole is not None
        self.maps = maps
        made = self.scheme.stored(self._codes(), torch.empty_like(whole, device="meta"), self.facts)
        if whole.shape != made.shape or not torch.equal(_octets(whole), _octets(made)):
            self.maps = []
            return False
        self.away = torch.empty_like(whole, device="meta")
        self._buffers[place] = None
        return True

    def take_back(self) -> None:
        """Hold all parts again, and let the maps forget what the kernels made of them."""
        for leaf, part in self.parts.items():
            self._buffers[self.places[leaf]] = part
        for linear in self.maps:
            linear.coded = None
        self.maps, self.away = [], None

    def _codes(self) -> Tensor:
        """The codes (out, in) from the maps."""
        whole: Tensor | None = None
        for linear in self.maps:
            numbers, rows = linear.coded.numbers(), linear.rows
            if whole is None:
                whole = torch.empty(self.shape, dtype=numbers.dtype, device=numbers.device)
            if rows is not None:
                _octets(whole)[rows] = _octets(numbers)
            else:
                first, last = linear.span or (0, len(whole))
                whole[first:last] = numbers
        assert whole is not None
        return whole

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for leaf, part in self.parts.items():
            destination[prefix + self.places[leaf]] = part

    def _load_from_state_dict(self, *asked: Any) -> None:
        if self.away is not None:
            self.take_back()
        super()._load_from_state_dict(*asked)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in), in memory of its own."""
        return self.scheme.dense(self.parts, self.facts).to(dtype)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, {self.scheme.method}"


class QuantizedLinear(nn.Module):
    """y = x W^T + b with a packed W that gets no gradient, and the site. x (..., in), y (..., out).

    rows: which rows of the packed weight are W's, None for all. compute: dtype of the product, None for x's.
    """

    site_kind = "linear"
    site: nn.Module | None
    rows: Tensor | None

    def __init__(
        self,
        packed: PackedParts,
        rows: Tensor | None,
        bias: Tensor | None,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.packed, self.compute = packed, compute
        self.out_features = packed.shape[0] if rows is None else len(rows)
        self.in_features = packed.shape[1]
        self.span = _span(rows)
        self.register_buffer("rows", rows if self.span is None else None, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_module("site", None)
        # Set by fast.coded: the form that the kernels take.
        self.coded: Any
        self.register_module("coded", None)
        # Stands for the weight among the names of the model.
        self.outline = torch.empty(self.out_features, self.in_features, device="meta")

    @property
    def weight(self) -> Tensor:
        """The expanded weight (out, in), a copy, in the dtype of the bias, without one in float32."""
        return self.dense(torch.float32 if self.bias is None else self.bias.dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The expanded weight (out, in)."""
        if self.coded is not None:
            return self.coded.dense(dtype)
        whole = self.packed.dense(dtype)
        if self.rows is not None:
            return whole[self.rows]
        return whole if self.span is None else whole[self.span[0] : self.span[1]]

    def forward(self, x: Tensor) -> Tensor:
        if self.coded is not None and not (torch.is_grad_enabled() and x.requires_grad):
            y = self.coded.matrix.matmul(x.reshape(-1, self.in_features), self.bias)
            y = y.view(*x.shape[:-1], self.out_features)
            return y if self.site is None else self.site(x, y, self)
        dtype = self.compute or x.dtype
        y = x.to(dtype)
        if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
            y = _Product.apply(y, self)
        else:
            y = F.linear(y, self.dense(dtype))
        y = y.to(x.dtype)
        if self.bias is not None:
            y = y + self.bias
        return y if self.site is None else self.site(x, y, self)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, bias={self.bias is not None}"


def _octets(t: Tensor) -> Tensor:
    return t if not t.dim() else t.contiguous().view(torch.uint8)


def _span(rows: Tensor | None) -> tuple[int, int] | None:
    """(first, last + 1) of rows that follow each other."""
    if rows is None or not len(rows):
        return None
    first = int(rows[0])
    follow = torch.equal(rows, torch.arange(first, first + len(rows), device=rows.device))
    return (first, first + len(rows)) if follow else None


class _Product(torch.autograd.Function):
    """x W^T that keeps no expanded weight for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.dense(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.linear.dense(gradient.dtype), None
