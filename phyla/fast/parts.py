"""RMS norm and silu(gate) * up in training by the native kernels, with their gradients."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
_BLOCK = 32  # rows of one sum of the weight's gradient, as in parts.cpp


class _Normed(ctypes.Structure):
    _fields_ = [
        ("rows", _long), ("width", _long), ("x", _pointer), ("weight", _pointer), ("eps", _float),
        *((name, _pointer) for name in ("y", "scales", "dy", "dx", "parts", "dw")),
    ]  # fmt: skip


class _Gated(ctypes.Structure):
    _fields_ = [
        ("count", _long),
        *((name, _pointer) for name in ("gate", "up", "y", "dy", "dgate", "dup")),
    ]


@dataclass(frozen=True)
class Parts:
    """The kernels as `blocks/parts.py` calls them, on dense float32 tensors.

    norm(x (..., D), weight (D), eps): y (..., D) and each row's factor (rows). norm_back(dy, x, weight,
    factors, for_x, for_weight): dx and dW, None where not asked for. gate(gate, up): silu(gate) * up.
    gate_back(dy, gate, up): the gradients of both.
    """

    norm: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
    norm_back: Callable[[Tensor, Tensor, Tensor, Tensor, bool, bool], tuple[Tensor | None, Tensor | None]]
    gate: Callable[[Tensor, Tensor], Tensor]
    gate_back: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def parts_of(library: ctypes.CDLL, parallel: int) -> Parts:
    """The kernels of a library, which take their threads from `parallel`."""
    run_norm, run_norm_back, run_gate = (
        getattr(library, name) for name in ("phyla_norm_learn", "phyla_norm_back", "phyla_gate_learn")
    )
    for function in (run_norm, run_norm_back, run_gate):
        function.restype = None
        function.argtypes = [_pointer, ctypes.c_uint, _pointer]

    def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        rows = x.numel() // width
        y, scales = torch.empty_like(x), x.new_empty(rows)
        what = _Normed(
            rows, width, x.data_ptr(), weight.data_ptr(), eps, y.data_ptr(), scales.data_ptr()
        )  # fmt: skip
        run_norm(ctypes.byref(what), torch.get_num_threads(), parallel)
        return y, scales

    def norm_back(
        dy: Tensor, x: Tensor, weight: Tensor, scales: Tensor, for_x: bool, for_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        dy, width = dy.contiguous(), x.shape[-1]
        dx = torch.empty_like(x) if for_x else None
        dw = torch.empty_like(weight) if for_weight else None
        parts = x.new_empty(-(-len(scales) // _BLOCK), width) if for_weight else None
        what = _Normed(
            len(scales), width, x.data_ptr(), weight.data_ptr(), 0.0, None, scales.data_ptr(), dy.data_ptr(),
            *(None if t is None else t.data_ptr() for t in (dx, parts, dw)),
        )  # fmt: skip
        run_norm_back(ctypes.byref(what), torch.get_num_threads(), parallel)
        return dx, dw

    def gate(gate: Tensor, up: Tensor) -> Tensor:
        y = torch.empty_like(gate)
        what = _Gated(gate.numel(), gate.data_ptr(), up.data_ptr(), y.data_ptr())
        run_gate(ctypes.byref(what), torch.get_num_threads(), parallel)
        return y

    def gate_back(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        dy = dy.contiguous()
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        what = _Gated(
            gate.numel(), gate.data_ptr(), up.data_ptr(), None, dy.data_ptr(), dgate.data_ptr(),
            dup.data_ptr(),
        )  # fmt: skip
        run_gate(ctypes.byref(what), torch.get_num_threads(), parallel)
        return dgate, dup

    return Parts(norm, norm_back, gate, gate_back)
