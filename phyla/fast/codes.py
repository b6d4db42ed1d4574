"""Matrices kept as codes of 4 or 8 bits with a scale and perhaps a zero for each group of inputs.

Products of few rows decode in registers (codes.cpp), exactly and in float32; those of many rows, and all
where there is no kernel, expand the weights piece by piece.
"""

import ctypes
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.matmul import is_watched, linear, wants_rows_alike
from phyla.blocks.memory import Room, side_by_side
from phyla.errors import ShapeMismatchError
from phyla.quantization.numbers import Numbers

_log = logging.getLogger(__name__)
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
            "outs", "width", "group", "groups", "kind", "scale_kind", "zero_kind", "relative", "steps",
        )),
        ("first", ctypes.c_float),
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class CodeMatrix:
    """A matrix (N, K) as codes uint8 (blocks, words of a row, 32, 4) and scale, zero (blocks, groups, 32).

    A block is 32 rows, the last one filled up. A word is four columns of a row, with a table eight: byte i
    has column i in its low half and i + 4 in its high one. scale and zero have the narrowest dtype that keeps
    them exactly. order: the input of each column. The weight is that of `Numbers`.
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
    def build(cls, numbers: Numbers, rooms: Mapping[str, Room] | None = None) -> "CodeMatrix":
        """From the numbers of a weight, each part in its room; ShapeMismatchError where they do not fit."""

        def placed(name: str, t: Tensor) -> Tensor:
            return t.contiguous() if rooms is None or not t.is_cpu else rooms[name].copy(t)

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
        columns = 4 if numbers.table is None else 8
        octets = F.pad(codes.view(torch.uint8), (0, -width % columns, 0, -rows % ROWS))
        words = octets.view(len(octets), -1, columns)
        if numbers.table is not None:
            words = words[..., :4] | words[..., 4:] << 4
        words = words.contiguous().view(torch.int32).view(-1, ROWS, words.shape[1]).transpose(1, 2)
        kinds = {torch.uint8: BY_TABLE, torch.int8: WHOLE, torch.float8_e4m3fn: FLOAT8}
        return cls(
            placed("codes", words).unsqueeze(-1).view(torch.uint8),
            placed("scale", _in_blocks(numbers.scale)),
            None if numbers.zero is None else placed("zero", _in_blocks(numbers.zero)),
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
        if 0 < len(x) <= _FEW_ROWS and not alike and self._has_whole_words(x):
            return self._few_rows(x, bias)
        parts = [linear(x, piece) for piece in self._expanded(x.dtype)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return y if bias is None else y + bias

    def _has_whole_words(self, x: Tensor) -> bool:
        """Whether `_few_rows` computes a product of x."""
        return self.shape[1] % self.group == 0 == self.group % 8 and x.dtype in _KINDS and not x.requires_grad

    def _few_rows(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product of a few rows by torch alone, in float32, with few passes over parts of the weights."""
        _tell_once()
        rows, width, groups = len(x), self.shape[1], self.scale.shape[1]
        wide = x.float()
        sums = wide.view(rows, groups, self.group).sum(-1)
        halves, step = self.first is not None, max(1, _PIECE // (ROWS * width))
        columns = wide.view(rows, -1, 2, 4).transpose(1, 2).reshape(rows, 2, -1) if halves else wide[:, None]
        made, room = [], wide.new_empty(step * ROWS, width // 2 if halves else width)
        for start in range(0, len(self.codes), step):
            blocks = slice(start, start + step)
            if keeps_rows and not torch.compiler.is_compiling():
                words = self._rows[start : start + step]
            else:
                words = self._in_rows(self.codes[blocks])
            scale = self.scale[blocks].transpose(1, 2).flatten(0, 1).float()  # (rows of w, G)
            y = x.new_zeros(())
            for i, codes in enumerate((words & 15, words >> 4) if halves else (self._apart(words),)):
                values = codes if halves else self._kinds(codes)
                values = room[: len(scale)].copy_(values.view(len(scale), -1))
                values.view(len(scale), groups, -1).mul_(scale[..., None])
                y = y + F.linear(columns[:, i], values)
            if self.first is not None:
                y.addmm_(sums, scale.t(), alpha=self.first)
            if self.zero is not None:
                zero = self.zero[blocks].transpose(1, 2).flatten(0, 1).float()
                y.addmm_(sums, (zero * -scale if self.relative else zero).t())
            made.append(y)
        y = torch.cat(made, 1)[:, : self.shape[0]].to(x.dtype)
        return y if bias is None else y + bias

    def _in_rows(self, blocks: Tensor) -> Tensor:
        """Blocks of codes row by row: (blocks, 32, W, 4)."""
        return blocks.view(torch.int32).transpose(1, 2).contiguous().view(torch.uint8)

    @cached_property
    def _rows(self) -> Tensor:
        return self._in_rows(self.codes)

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
        if native is not None and 0 < len(flat) <= _FEW_ROWS and self.zero is None is self.order:
            if native.expands(self, dtype) and not _seen(index):
                room = torch.empty(ROWS, self.shape[1], dtype=dtype, device="cpu")
                few = torch.empty(len(flat), self.shape[1], dtype=dtype, device="cpu")
                for row, at in zip(few, flat.tolist(), strict=True):
                    native.expand(self, at // ROWS, 1, room)
                    row.copy_(room[at % ROWS])
                return few.view(*index.shape, self.shape[1])
        block, place = flat // ROWS, flat % ROWS
        zero = None if self.zero is None else self.zero[block, :, place]
        codes = self._apart(self.codes[block, :, place])
        values = self._scaled(self._values(codes), self.scale[block, :, place], zero)
        if self.order is not None:
            values = torch.empty_like(values).index_copy_(1, self.order.long(), values)
        return values.to(dtype).view(*index.shape, self.shape[1])

    def numbers(self) -> Tensor:
        """The codes (N, K) as they were given: uint8, int8 or float8."""
        codes = self._octets(self.codes).reshape(-1, self.shape[1])[: self.shape[0]]
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

    def _apart(self, words: Tensor) -> Tensor:
        """Words (..., W, 4) as a byte for each column: (..., K)."""
        if self.kind == BY_TABLE:
            words = torch.stack((words & 15, words >> 4), -2)
        return words.flatten(words.dim() - (3 if self.kind == BY_TABLE else 2))[..., : self.shape[1]]

    def _octets(self, blocks: Tensor) -> Tensor:
        """Blocks of codes as a byte for each row and column: (blocks, 32, K)."""
        return self._apart(self._in_rows(blocks))

    def _values(self, codes: Tensor) -> Tensor:
        """What codes (uint8 of any shape) stand for, without scales, in float32."""
        if self.table is not None:
            if self.first is not None:  # looking up costs more
                return codes.float().add_(self.first)
            return F.embedding(codes.int(), self.table[:, None]).squeeze(-1)
        return self._kinds(codes).float()

    def _kinds(self, codes: Tensor) -> Tensor:
        """Codes (uint8) in the dtype of what they stand for."""
        if self.table is not None:
            return self._values(codes)
        return codes.view((torch.uint8, torch.int8, torch.float8_e4m3fn)[self.kind])

    def _scaled(self, values: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """values (..., K) with scale and zero (..., groups) of their group, in place."""
        width, whole = values.shape[-1], values
        even = width % self.group == 0
        if even:
            values = values.unflatten(-1, (-1, self.group))

        def spread(t: Tensor) -> Tensor:
            return t[..., None].float() if even else t.repeat_interleave(self.group, -1)[..., :width].float()

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
            zero = None if self.zero is None else self.zero[blocks].transpose(1, 2)
            values = self._values(self._octets(self.codes[blocks]))  # (count, 32, K)
            values = self._scaled(values, self.scale[blocks].transpose(1, 2), zero)
            yield values.to(dtype).view(-1, width)[:rows]

    @property
    def struct(self) -> Any:
        """What the kernel is told; anew where the tensors were moved in their places (`share_memory`)."""
        if self._struct.codes != self.codes.data_ptr():
            self.__dict__.pop("_struct")
        return self._struct

    @cached_property
    def _struct(self) -> Any:
        tensors = (self.codes, self.scale, self.zero, self.table, self.order)
        return _Codes(
            *(None if t is None else t.data_ptr() for t in tensors), *self.shape, self.group,
            self.scale.shape[1], self.kind, _KINDS.index(self.scale.dtype),
            0 if self.zero is None else _KINDS.index(self.zero.dtype), self.relative, self.first is not None,
            self.first or 0.0,
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
    return replace(
        first, codes=_below([p.codes for p in parts]), scale=_below([p.scale for p in parts]),
        zero=None if first.zero is None else _below([p.zero for p in parts if p.zero is not None]),
        shape=(sum(p.shape[0] for p in parts), first.shape[1]),
    )  # fmt: skip


def _below(parts: Sequence[Tensor]) -> Tensor:
    """Parts of blocks as one, copied unless they lie side by side."""
    whole = side_by_side(parts)
    return torch.cat([*parts]) if whole is None else whole


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
    return F.pad(t, (0, 0, 0, -len(t) % ROWS)).view(-1, ROWS, t.shape[1]).transpose(1, 2)


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


def _tell_once() -> None:
    """A warning where packed weights are slow for want of a kernel, at the first product."""
    global missing
    if missing is not None and not torch.compiler.is_compiling():
        reason, missing = missing, None
        _log.warning("packed weights are multiplied without native kernels, ten times slower: %s", reason)


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


# phyla/fast/native.py puts its kernels here, or says that none will come: codes are then kept by row, too.
native: Coder | None = None
keeps_rows = False
missing: str | None = None  # why there are no kernels, until it was told
