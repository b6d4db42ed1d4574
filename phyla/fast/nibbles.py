"""Matrices kept as 4-bit codes with a scale and a zero for every 32 inputs, and their products.

A weight is w = sum over planes p of (code_p - 8) * scale_p + zero_p. One plane holds 4-bit weights exactly,
two hold 8-bit weights (high and low half). Planes stand side by side along the inputs: one kernel does all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.errors import ShapeMismatchError

GROUP = 32
# None in versions of torch that lack it; then weights are expanded piece by piece for each product.
_KERNEL: Any = getattr(torch, "_weight_int4pack_mm_for_cpu", None)
# Rows up to which the 4-bit kernel beats expanding the weights once and multiplying them densely.
_KERNEL_ROWS, _EXACT_ROWS = 128, 4
# Elements of an expanded piece: enough for an efficient product, few enough for the second-level cache.
_PIECE = 1 << 18


@dataclass(frozen=True)
class NibbleMatrix:
    """A matrix (N, K) as codes uint8 (P / block, columns, block / 2) and scales bfloat16 (groups, P, 2).

    P is N rounded up to 64, block the rows that the kernel takes at once. columns = planes * K, and 32 more
    where `fine` is there; groups = columns / 32. The low half of byte j belongs to row j of the block, the
    high half to row j + block / 2. A scale stands before its zero. fine is what bfloat16 rounds off them;
    with it float32 products are exact to 1e-5.
    """

    codes: Tensor
    scales: Tensor
    fine: Tensor | None
    shape: tuple[int, int]
    planes: int

    @classmethod
    def build(cls, codes: Tensor, scale: Tensor, zero: Tensor, exact: bool) -> "NibbleMatrix":
        """From codes uint8 (planes, N, K) of 0..15 and float32 scale, zero (planes, N, K / 32).

        exact: keep `fine` (an eighth of a byte a weight). Raises ShapeMismatchError unless 32 divides K.
        """
        planes, rows, width = codes.shape
        if width % GROUP or scale.shape != (planes, rows, width // GROUP) or zero.shape != scale.shape:
            raise ShapeMismatchError(
                f"codes (planes, N, K) need K in whole groups of {GROUP}, and a scale and zero for each, "
                f"but they are {tuple(codes.shape)}, {tuple(scale.shape)} and {tuple(zero.shape)}"
            )
        block = _block()
        half = block // 2
        padded = -rows % 64
        if padded:
            codes = F.pad(codes, (0, 0, 0, padded), value=8)
            scale, zero = F.pad(scale, (0, 0, 0, padded)), F.pad(zero, (0, 0, 0, padded))
        blocks = (rows + padded) // block
        columns = planes * width + (GROUP if exact else 0)
        packed = torch.full((blocks, columns, half), 0x88, dtype=torch.uint8)
        for plane in range(planes):
            pair = codes[plane].view(blocks, 2, half, width)
            both = pair[:, 1].bitwise_left_shift(4).bitwise_or_(pair[:, 0])  # (blocks, half, K)
            packed[:, plane * width : (plane + 1) * width] = both.transpose(1, 2)
        groups = columns // GROUP
        table = torch.zeros(groups, rows + padded, 2)
        table[: planes * width // GROUP, :, 0] = scale.transpose(1, 2).flatten(0, 1)
        table[: planes * width // GROUP, :, 1] = zero.transpose(1, 2).flatten(0, 1)
        coarse = table.bfloat16()
        fine = (table - coarse.float()).bfloat16() if exact else None
        return cls(packed, coarse, fine, (rows, width), planes)

    def matmul(self, x: Tensor) -> Tensor:
        """x W^T for x (M, K) in float32 or bfloat16, in the dtype of x: (M, N).

        float32 with `fine`: as the float32 product of the expanded weights, to 1e-5 of the result's size.
        Otherwise x and the scales are rounded to bfloat16, sums are float32, and the result is rounded again.
        """
        rows, dtype = x.shape[0], x.dtype
        fine = self.fine if dtype == torch.float32 else None
        if not 0 < rows <= (_KERNEL_ROWS if fine is None else _EXACT_ROWS) or not _kernel_works(
            x.device.type
        ):
            return self._dense_matmul(x)
        if fine is not None:
            y = (
                torch.cat([self._exact_row(row, fine) for row in x.split(1)])
                if rows > 1
                else self._exact_row(x, fine)
            )
        elif dtype == torch.bfloat16:
            y = self._kernel(self._columns(x), self.scales)
        else:
            y = self._kernel(self._columns(x.bfloat16()), self.scales).to(dtype)
        return y if y.shape[1] == self.shape[0] else y[:, : self.shape[0]]

    @cached_property
    def _kernel_codes(self) -> Tensor:
        return self.codes.view(-1, self.codes.shape[1] // 2)

    def _kernel(self, x: Tensor, scales: Tensor) -> Tensor:
        return _KERNEL(x, self._kernel_codes, GROUP, scales.contiguous())

    def _columns(self, x: Tensor) -> Tensor:
        """x (M, K) repeated for every plane, with zeros for the spare group: (M, columns)."""
        if self.planes > 1:
            x = x.repeat(1, self.planes)
        return F.pad(x, (0, GROUP)) if self.fine is not None else x

    def _exact_row(self, x: Tensor, fine: Tensor) -> Tensor:
        """The float32 product of one row (1, K), from three bfloat16 products whose errors cancel.

        x and the scales are split into a rounded part and its remainder. The kernel rounds its result; so it
        runs again with the spare group subtracting the first result, and returns what that rounding lost.
        """
        coarse = x.bfloat16()
        both = self._columns(torch.cat((coarse, (x - coarse.float()).bfloat16())))  # (2, columns)
        first = self._kernel(both[:1], self.scales)
        scales = self.scales.clone(memory_format=torch.contiguous_format)
        scales[-1, :, 1] = -first[0]
        both[0, -1] = 1
        rest = self._kernel(both, scales).float()
        return first.float() + (rest[:1] + rest[1:] + self._kernel(both[:1], fine).float())

    def _dense_matmul(self, x: Tensor) -> Tensor:
        """The product with the weights expanded piece by piece, in the dtype of x."""
        y = x.new_empty(x.shape[0], self.scales.shape[1])
        for first, piece in self._expanded(x.dtype):
            y[:, first : first + piece.shape[1]] = x @ piece
        return y[:, : self.shape[0]]

    def _expanded(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """The weights in pieces: number of the first row, and (K, rows) in memory that the next reuses."""
        width, half = self.shape[1], self.codes.shape[2]
        columns, device = self.planes * width, self.codes.device
        table = self.scales[: columns // GROUP].float()
        if self.fine is not None:
            table += self.fine[: columns // GROUP].float()
        scale = table[..., 0].contiguous()  # (groups, N)
        zero = table[..., 1] - 8 * scale
        step = max(1, _PIECE // (columns * 2 * half))
        # Fresh memory costs more than the arithmetic here, so all pieces share it.
        both = torch.empty(columns, step, 2, half, dtype=torch.uint8, device=device)
        wide = torch.empty(columns, step, 2, half, device=device)
        cast = None
        if dtype != torch.float32:
            cast = torch.empty(width * step * 2 * half, dtype=dtype, device=device)
        for block in range(0, len(self.codes), step):
            codes = self.codes[block : block + step, :columns].transpose(0, 1)  # (columns, blocks, half)
            count = codes.shape[1]
            if count < step:
                size = columns * count * 2 * half
                both, wide = (t.view(-1)[:size].view(columns, count, 2, half) for t in (both, wide))
            torch.bitwise_and(codes, 15, out=both[:, :, 0])
            torch.bitwise_right_shift(codes, 4, out=both[:, :, 1])
            rows = slice(block * 2 * half, (block + count) * 2 * half)
            values = wide.copy_(both).view(-1, GROUP, count * 2 * half)
            torch.addcmul(zero[:, None, rows], values, scale[:, None, rows], out=values)
            values = values.view(self.planes, width, -1)
            for plane in values[1:]:
                values[0].add_(plane)
            if cast is None:
                yield rows.start, values[0]
            else:
                yield rows.start, cast[: values[0].numel()].view_as(values[0]).copy_(values[0])

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the matrix at `index` (any shape), expanded: (*index, K); an error outside 0..N-1."""
        flat = index.reshape(-1)
        (count, width), half = self.shape, self.codes.shape[2]
        columns = self.planes * width
        table = self.scales[: columns // GROUP, :count].index_select(1, flat).float()  # (groups, n, 2)
        if self.fine is not None:
            table = table + self.fine[: columns // GROUP, :count].index_select(1, flat).float()
        place = flat % (2 * half)
        codes = self.codes[flat // (2 * half), :columns, place % half]  # (n, columns)
        codes = torch.where((place >= half)[:, None], codes >> 4, codes & 15)
        scale, zero = table.permute(2, 1, 0)[..., None]  # (n, groups, 1) each
        values = (codes.view(len(flat), columns // GROUP, GROUP).float() - 8) * scale + zero
        return values.view(len(flat), self.planes, width).sum(1).to(dtype).view(*index.shape, width)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole matrix expanded: (N, K)."""
        out = torch.empty(self.scales.shape[1], self.shape[1], dtype=dtype, device=self.codes.device)
        for first, piece in self._expanded(dtype):
            out[first : first + piece.shape[1]] = piece.t()
        return out[: self.shape[0]]

    def split(self, sizes: Sequence[int]) -> list["NibbleMatrix"]:
        """Matrices of so many rows each, as views; every size must be a multiple of 64."""
        block = 2 * self.codes.shape[2]
        parts, first = [], 0
        for size in sizes:
            rows, blocks = slice(first, first + size), slice(first // block, (first + size) // block)
            fine = None if self.fine is None else self.fine[:, rows]
            codes, scales = self.codes[blocks], self.scales[:, rows]
            parts.append(NibbleMatrix(codes, scales, fine, (size, self.shape[1]), self.planes))
            first += size
        return parts


def concatenate(parts: Sequence[NibbleMatrix]) -> NibbleMatrix | None:
    """The rows of several matrices as one; None where one has padding or they differ in layout or device."""
    first, fines = parts[0], [p.fine for p in parts if p.fine is not None]
    alike = {(p.shape[1], p.planes, p.fine is None, p.codes.device) for p in parts}
    if len(alike) != 1 or any(p.shape[0] % 64 for p in parts):
        return None
    return replace(
        first,
        codes=torch.cat([p.codes for p in parts]),
        scales=torch.cat([p.scales for p in parts], 1),
        fine=torch.cat(fines, 1) if fines else None,
        shape=(sum(p.shape[0] for p in parts), first.shape[1]),
    )


@cache
def _block() -> int:
    """Rows that one kernel block holds: by the vectors of this processor."""
    return 32 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 64


@cache
def _kernel_works(device: str) -> bool:
    """Whether torch's 4-bit kernel is there, is vectorised, and reads codes in the order we write them."""
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if _KERNEL is None or device != "cpu" or not vectors:
        return False
    codes = (torch.arange(128 * 32) * 7 % 16).to(torch.uint8).view(1, 128, 32)
    ones = torch.ones(1, 128, 1)
    matrix = NibbleMatrix.build(codes, ones, ones, exact=False)
    x = torch.eye(32, dtype=torch.bfloat16)
    try:
        return torch.equal(matrix._kernel(x, matrix.scales), (codes[0].t().bfloat16() - 7))
    except RuntimeError:
        return False
