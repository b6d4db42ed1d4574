"""Matrices kept as codes of 4 or 8 bits with a scale and perhaps a zero for each group of inputs.

Products of few rows decode in registers (codes.cpp), exactly and in float32; those of many rows, and all
where there is no kernel, expand the weights piece by piece.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.matmul import is_watched, linear, wants_rows_alike
from phyla.errors import ShapeMismatchError
from phyla.quantization.numbers import Numbers

ROWS = 32  # rows of a block: codes.h
BY_TABLE, WHOLE, FLOAT8 = range(3)
_KINDS = (torch.float32, torch.float16, torch.bfloat16)  # of scales, by their number in codes.h
# Elements of an expanded piece: enough for an efficient product, few enough for the second-level cache.
_PIECE = 1 << 18
# Rows up to which the kernel beats expanding the weights once and multiplying them densely.
_MOST_ROWS = {torch.float32: 128, torch.bfloat16: 64}
# Without the kernel: rows up to which scaling each group's sums beats scaling the weights.
_FEW_ROWS = 8
_long, _pointer = ctypes.c_long, ctypes.c_void_p


class _Codes(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("codes", "scale", "zero", "table", "order")),
        *((name, _long) for name in (
            "outs", "width", "group", "groups", "kind", "scale_kind", "zero_kind", "relative",
        )),
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class CodeMatrix:
    """A matrix (N, K) as codes uint8 (blocks, K, 16 or 32) and scale, zero (blocks, groups, 32).

    A block is 32 rows, the last one filled up. Byte j of a column is row j, with a table row j in its low
    half and row j + 16 in its high one. scale and zero have the narrowest dtype that keeps them exactly.
    order: the input of each column. The weight is that of `Numbers`.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    table: Tensor | None
    order: Tensor | None
    shape: tuple[int, int]
    group: int
    kind: int
    relative: bool
    first: float | None = None  # the value of code 0, where the others follow it in steps of one

    @classmethod
    def build(cls, numbers: Numbers) -> "CodeMatrix":
        """From the numbers of a weight; ShapeMismatchError where codes and scales do not fit."""
        codes, order = numbers.codes, numbers.order
        rows, width = codes.shape
        groups = -(-width // numbers.group)
        for name, t in (("scale", numbers.scale), ("zero", numbers.zero)):
            if t is not None and tuple(t.shape) != (rows, groups):
                raise ShapeMismatchError(
                    f"the {name} must have shape {(rows, groups)} for codes {(rows, width)} in groups of "
                    f"{numbers.group}, but has {tuple(t.shape)}"
                )
        if order is not None:
            codes = codes.view(torch.uint8)[:, order.long()]
        octets = F.pad(codes.view(torch.uint8), (0, 0, 0, -rows % ROWS)).view(-1, ROWS, width)
        if numbers.table is not None:
            octets = octets[:, : ROWS // 2] | octets[:, ROWS // 2 :] << 4
        kinds = {torch.uint8: BY_TABLE, torch.int8: WHOLE, torch.float8_e4m3fn: FLOAT8}
        return cls(
            octets.transpose(1, 2).contiguous(), _in_blocks(numbers.scale),
            None if numbers.zero is None else _in_blocks(numbers.zero),
            None if numbers.table is None else numbers.table.float().contiguous(),
            None if order is None else order.to(torch.int32).contiguous(), (rows, width), numbers.group,
            kinds[numbers.codes.dtype], numbers.relative, _first(numbers.table),
        )  # fmt: skip

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b for x (M, K), in the dtype of x: (M, N). W is exact in float32, or rounded to x's dtype
        for many rows."""
        alike = wants_rows_alike()
        if native is not None and (alike or len(x) <= _MOST_ROWS.get(x.dtype, 0)):
            y = native.product(self, x, bias)
            if y is not None:
                return y
        if self.order is not None:
            x = x[:, self.order.long()]
        fits = x.dtype == torch.float32 and x.shape[1] == self.shape[1] and not x.shape[1] % self.group
        if fits and 0 < len(x) <= _FEW_ROWS and not alike:
            return self._few_rows(x, bias)
        parts = [linear(x, piece) for piece in self._expanded(x.dtype)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return y if bias is None else y + bias

    def _few_rows(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product of a few rows by torch alone: codes are summed within each group, then scaled."""
        rows, groups = len(x), self.scale.shape[1]
        grouped = x.view(rows, groups, self.group).transpose(0, 1)  # (G, M, g)
        whole = grouped.sum(-1)[None, :, :, None]  # (1, G, M, 1)
        step = max(1, _PIECE // (ROWS * self.shape[1]))
        parts = []
        for first in range(0, len(self.codes), step):
            blocks = slice(first, first + step)
            values = self._plain(self.codes[blocks])  # (blocks, K, 32)
            sums = grouped @ values.view(-1, groups, self.group, ROWS)  # (blocks, G, M, 32)
            scale = self.scale[blocks, :, None].float()
            zero = None if self.zero is None else self.zero[blocks, :, None].float() * whole
            if zero is not None and self.relative:
                sums = (sums - zero) * scale
            else:
                sums = sums * scale if zero is None else sums * scale + zero
            parts.append(sums.sum(1))
        y = torch.cat(parts).transpose(0, 1).reshape(rows, -1)[:, : self.shape[0]]
        return y if bias is None else y + bias

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole matrix expanded: (N, K)."""
        whole = torch.cat([piece.clone() for piece in self._expanded(dtype)])
        return whole if self.order is None else torch.empty_like(whole).index_copy_(
            1, self.order.long(), whole
        )  # fmt: skip

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the matrix at `index` (any shape), expanded: (*index, K); an error outside 0..N-1."""
        flat = index.reshape(-1)
        if flat.is_cpu and not torch.compiler.is_compiling() and len(flat):
            low, high = flat.aminmax()
            if int(low) < 0 or int(high) >= self.shape[0]:
                raise IndexError(f"rows must be in 0..{self.shape[0] - 1}, but are {int(low)}..{int(high)}")
        block, place = flat // ROWS, flat % ROWS
        if self.kind == BY_TABLE:
            codes = self.codes[block, :, place % (ROWS // 2)]
            codes = torch.where((place >= ROWS // 2)[:, None], codes >> 4, codes & 15)
        else:
            codes = self.codes[block, :, place]
        zero = None if self.zero is None else self.zero[block, :, place]
        values = self._scaled(self._values(codes), self.scale[block, :, place], zero)
        if self.order is not None:
            values = torch.empty_like(values).index_copy_(1, self.order.long(), values)
        return values.to(dtype).view(*index.shape, self.shape[1])

    def numbers(self) -> Tensor:
        """The codes (N, K) as they were given: uint8, int8 or float8."""
        codes = self.codes
        if self.kind == BY_TABLE:
            codes = torch.cat((codes & 15, codes >> 4), -1)
        codes = codes.transpose(1, 2).reshape(-1, self.shape[1])[: self.shape[0]]
        if self.order is not None:
            codes = torch.empty_like(codes).index_copy_(1, self.order.long(), codes)
        dtype = (torch.uint8, torch.int8, torch.float8_e4m3fn)[self.kind]
        return codes.contiguous().view(dtype)

    def split(self, sizes: Sequence[int]) -> list["CodeMatrix"]:
        """Matrices of so many rows each, as views; every size but the last must be a multiple of 32."""
        parts, first = [], 0
        for size in sizes:
            blocks = slice(first // ROWS, -(-(first + size) // ROWS))
            zero = None if self.zero is None else self.zero[blocks]
            parts.append(
                replace(
                    self, codes=self.codes[blocks], scale=self.scale[blocks], zero=zero,
                    shape=(size, self.shape[1]),
                )
            )  # fmt: skip
            first += size
        return parts

    def _plain(self, codes: Tensor) -> Tensor:
        """Blocks of codes as the values that they stand for, without scales: (blocks, K, 32), float32."""
        return self._values(torch.cat((codes & 15, codes >> 4), -1) if self.kind == BY_TABLE else codes)

    def _values(self, codes: Tensor) -> Tensor:
        """What codes (uint8 of any shape) stand for, without scales, in float32."""
        if self.table is not None:
            if self.first is not None:  # looking up costs more
                return codes.float().add_(self.first)
            return F.embedding(codes.int(), self.table[:, None]).squeeze(-1)
        return codes.view((torch.uint8, torch.int8, torch.float8_e4m3fn)[self.kind]).float()

    def _scaled(self, values: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """values (n, K, ...) with scale and zero (n, groups, ...) of their group."""
        width, whole = values.shape[1], values
        even = width % self.group == 0
        if even:
            values = values.unflatten(1, (-1, self.group))

        def spread(t: Tensor) -> Tensor:
            return t[:, :, None].float() if even else t.repeat_interleave(self.group, 1)[:, :width].float()

        if zero is None:
            values.mul_(spread(scale))
        elif self.relative:
            values.sub_(spread(zero)).mul_(spread(scale))
        else:
            values.mul_(spread(scale)).add_(spread(zero))
        return whole

    def _expanded(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The weights in pieces (rows, K), in order of the columns, in memory that the next one reuses."""
        width = self.shape[1]
        step = max(1, _PIECE // (ROWS * width))
        use = native is not None and native.expands(self, dtype)
        room = torch.empty(step * ROWS, width, dtype=dtype, device=self.codes.device) if use else None
        for first in range(0, len(self.codes), step):
            count = min(step, len(self.codes) - first)
            rows = min(count * ROWS, self.shape[0] - first * ROWS)
            if room is not None and native is not None:
                native.expand(self, first, count, room)
                yield room[:rows]
                continue
            blocks = slice(first, first + count)
            zero = None if self.zero is None else self.zero[blocks]
            values = self._plain(self.codes[blocks])
            values = self._scaled(values, self.scale[blocks], zero).to(dtype)  # (count, K, 32)
            yield values.transpose(1, 2).reshape(-1, width)[:rows]

    @cached_property
    def struct(self) -> Any:
        """What the kernel is told."""
        tensors = (self.codes, self.scale, self.zero, self.table, self.order)
        return _Codes(
            *(None if t is None else t.data_ptr() for t in tensors), *self.shape, self.group,
            self.scale.shape[1], self.kind, _KINDS.index(self.scale.dtype),
            0 if self.zero is None else _KINDS.index(self.zero.dtype), self.relative,
        )  # fmt: skip


def concatenate(parts: Sequence[CodeMatrix]) -> CodeMatrix | None:
    """The rows of several matrices as one; None where one ends within a block or they differ in form."""
    first = parts[0]
    if len({_form(p) for p in parts}) != 1 or any(p.shape[0] % ROWS for p in parts):
        return None
    for name in ("table", "order"):
        a = getattr(first, name)
        if a is not None and any(not torch.equal(a, getattr(p, name)) for p in parts[1:]):
            return None
    zeros = [p.zero for p in parts if p.zero is not None]
    return replace(
        first, codes=torch.cat([p.codes for p in parts]), scale=torch.cat([p.scale for p in parts]),
        zero=torch.cat(zeros) if zeros else None, shape=(sum(p.shape[0] for p in parts), first.shape[1]),
    )  # fmt: skip


def _form(m: CodeMatrix) -> tuple[Any, ...]:
    zero = None if m.zero is None else m.zero.dtype
    return (
        m.shape[1], m.group, m.kind, m.relative, m.scale.dtype, zero, m.order is None, m.codes.device,
    )  # fmt: skip


def _first(table: Tensor | None) -> float | None:
    if table is None or not torch.equal(table, table[0] + torch.arange(16.0, device=table.device)):
        return None
    return float(table[0])


def _in_blocks(t: Tensor) -> Tensor:
    """Scales (N, groups) as (blocks, groups, 32), in the narrowest dtype that keeps them."""
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(t.to(dtype).float(), t.float()):
            t = t.to(dtype)
            break
    else:
        t = t.float()
    return F.pad(t, (0, 0, 0, -len(t) % ROWS)).view(-1, ROWS, t.shape[1]).transpose(1, 2).contiguous()


class Coder(NamedTuple):
    """The two functions of codes.cpp."""

    multiply: Any
    spread: Any
    parallel: int

    def product(self, m: CodeMatrix, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """x W^T + b for x (M, K) in float32 or bfloat16, or None where the kernel does not apply."""
        fits = x.dtype in (torch.float32, torch.bfloat16) and x.is_cpu and m.codes.is_cpu and len(x)
        if not fits or (bias is not None and (bias.dtype != x.dtype or not bias.is_contiguous())) or _seen(x):
            return None
        y = x.new_empty(len(x), m.shape[0])
        wide = x.float()
        wide = wide if wide.stride(-1) == 1 else wide.contiguous()
        failed = self.multiply(
            ctypes.byref(m.struct), x.dtype == torch.bfloat16, len(x), wide.data_ptr(), wide.stride(0),
            None if bias is None else bias.data_ptr(), y.data_ptr(), m.shape[0], torch.get_num_threads(),
            self.parallel,
        )  # fmt: skip
        return None if failed else y

    def expands(self, m: CodeMatrix, dtype: torch.dtype) -> bool:
        """Whether `expand` applies."""
        return dtype in (torch.float32, torch.bfloat16) and m.codes.is_cpu and not _seen(m.codes)

    def expand(self, m: CodeMatrix, first: int, blocks: int, out: Tensor) -> None:
        """Rows of so many blocks into out (rows, K), in order of the columns."""
        self.spread(
            ctypes.byref(m.struct), out.dtype == torch.bfloat16, first, blocks, out.data_ptr(), out.stride(0),
            torch.get_num_threads(), self.parallel,
        )  # fmt: skip


def _seen(x: Tensor) -> bool:
    return type(x) is not Tensor or torch.compiler.is_compiling() or is_watched()


def coder_of(library: ctypes.CDLL, parallel: int) -> Coder:
    """The kernels of a built library."""
    multiply, spread, integer = library.phyla_codes, library.phyla_codes_expand, ctypes.c_int
    for function in (multiply, spread):
        function.restype = integer
    threads = (ctypes.c_uint, _pointer)
    multiply.argtypes = [
        _pointer, integer, _long, _pointer, _long, _pointer, _pointer, _long, *threads,
    ]  # fmt: skip
    spread.argtypes = [_pointer, integer, _long, _long, _pointer, _long, *threads]
    return Coder(multiply, spread, parallel)


# phyla/fast/native.py puts its kernels here.
native: Coder | None = None
