"""Recurrences by native kernels, for calls that want no gradient: the selective scan and the LSTM."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from phyla.blocks.matmul import is_watched

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor] | None]

Memory = Callable[[Tensor, Tensor], Tensor | None]

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class _Scanned(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in ("batch", "length", "inner", "states")),
        *((name, _pointer) for name in ("x", "step", "a", "b", "c")),
        ("b_stride", _long), ("c_stride", _long),
        *((name, _pointer) for name in ("before", "y", "after")),
    ]  # fmt: skip


def scan_of(library: ctypes.CDLL, parallel: int) -> Scan:
    """run(x, step, a, b, c, state): what `selective_scan` gives, None where the kernel does not apply."""
    function = library.phyla_selective_scan
    function.restype = ctypes.c_int
    function.argtypes = [_pointer, ctypes.c_uint, _pointer]

    def run(
        x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        given = (x, step, a, b, c) if state is None else (x, step, a, b, c, state)
        if is_watched() or not all(map(_is_dense, given)):
            return None
        batch, length, inner = x.shape
        x, step, a = x.contiguous(), step.contiguous(), a.contiguous()
        b, c = (t if _rows_follow(t) else t.contiguous() for t in (b, c))
        before = None if state is None else state.contiguous()
        y, after = torch.empty_like(x), x.new_empty(batch, inner, a.shape[1])
        made = _Scanned(
            batch=batch, length=length, inner=inner, states=a.shape[1], x=x.data_ptr(), step=step.data_ptr(),
            a=a.data_ptr(), b=b.data_ptr(), c=c.data_ptr(), b_stride=b.stride(1), c_stride=c.stride(1),
            before=None if before is None else before.data_ptr(), y=y.data_ptr(), after=after.data_ptr(),
        )  # fmt: skip
        return None if function(ctypes.byref(made), torch.get_num_threads(), parallel) else (y, after)

    return run


class _Remembered(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in ("length", "batch", "width")),
        *((name, _pointer) for name in ("gates", "weight", "cell", "out")),
    ]  # fmt: skip


def memory_of(library: ctypes.CDLL, parallel: int, count: int, number: int) -> Memory:
    """run(gates, weight): the states of an LSTM's layer, (T, B, W), None where the kernel does not apply."""
    function = library.phyla_lstm
    function.restype = ctypes.c_int
    function.argtypes = [_pointer, ctypes.c_uint, _pointer, _pointer, _pointer]

    def run(gates: Tensor, weight: Tensor) -> Tensor | None:
        if is_watched() or not (_is_dense(gates) and _is_dense(weight) and weight.is_contiguous()):
            return None
        length, batch, width = *gates.shape[:2], weight.shape[1]
        gates = gates.contiguous()
        out, cell = gates.new_zeros(length + 1, batch, width), gates.new_zeros(batch, width)
        made = _Remembered(
            length, batch, width, gates.data_ptr(), weight.data_ptr(), cell.data_ptr(), out.data_ptr()
        )
        failed = function(ctypes.byref(made), torch.get_num_threads(), parallel, count, number)
        return None if failed else out[1:]

    return run


def _is_dense(t: Tensor) -> bool:
    """Whether t has numbers of float32 in this machine's memory."""
    return type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 and t.is_cpu and t.numel() > 0


def _rows_follow(t: Tensor) -> bool:
    """Whether rows (B, S, N) are each in one piece and the same number of elements apart."""
    return t.stride(2) == 1 and (len(t) == 1 or t.stride(0) == t.stride(1) * t.shape[1])
