"""What training asks of the native kernels: the gradient of a linear map's weight, and cross-entropy."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class _Learned(ctypes.Structure):
    _fields_ = [
        ("count", _long), ("outs", _long), ("width", _long),
        ("dy", _pointer), ("dy_stride", _long), ("x", _pointer), ("x_stride", _long),
        ("dw", _pointer), ("db", _pointer),
    ]  # fmt: skip


class _Scored(ctypes.Structure):
    _fields_ = [
        ("rows", _long), ("classes", _long), ("stride", _long), ("scores", _pointer), ("labels", _pointer),
        ("ignored", ctypes.c_int64), ("log_sums", _pointer), ("losses", _pointer), ("change", _pointer),
        ("gradient", _pointer), ("bad", ctypes.c_int64),
    ]  # fmt: skip


@dataclass(frozen=True)
class Training:
    """The kernels as `blocks/gradient.py` calls them.

    weight_gradient(dy (M, N), x (M, K), biased): dW = dy^T x (N, K), if biased db (N); None where it does
    not apply. losses(scores (M, V), labels (M), ignored): losses (M), log-sums (M), and a label that names no
    class or None. losses_back(scores, labels, ignored, log-sums, gradient of the losses): gradient (M, V).
    """

    weight_gradient: Callable[[Tensor, Tensor, bool], "tuple[Tensor, Tensor | None] | None"]
    losses: Callable[[Tensor, Tensor, int], "tuple[Tensor, Tensor, int | None]"]
    losses_back: Callable[[Tensor, Tensor, int, Tensor, Tensor], Tensor]


def training_of(library: ctypes.CDLL, parallel: int) -> Training:
    """The kernels of a library, which take their threads from `parallel`."""
    names = ("phyla_learn", "phyla_losses", "phyla_losses_back")
    learn, forward, backward = (getattr(library, name) for name in names)
    for function in (learn, forward, backward):
        function.restype = ctypes.c_int
        function.argtypes = [_pointer, ctypes.c_uint, _pointer]

    def weight_gradient(dy: Tensor, x: Tensor, biased: bool) -> tuple[Tensor, Tensor | None] | None:
        if not (dy.dtype is x.dtype is torch.float32 and dy.numel() and x.numel()):
            return None
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        x = x if x.stride(-1) == 1 else x.contiguous()
        dw = x.new_empty(dy.shape[1], x.shape[1])
        db = x.new_empty(dy.shape[1]) if biased else None
        what = _Learned(
            len(dy), dy.shape[1], x.shape[1], dy.data_ptr(), dy.stride(0), x.data_ptr(), x.stride(0),
            dw.data_ptr(), None if db is None else db.data_ptr(),
        )  # fmt: skip
        if learn(ctypes.byref(what), torch.get_num_threads(), parallel):
            return None
        return dw, db

    def scored(scores: Tensor, labels: Tensor, ignored: int, log_sums: Tensor) -> _Scored:
        return _Scored(
            len(scores), scores.shape[1], scores.stride(0), scores.data_ptr(), labels.data_ptr(), ignored,
            log_sums.data_ptr(),
        )  # fmt: skip

    def losses(scores: Tensor, labels: Tensor, ignored: int) -> tuple[Tensor, Tensor, int | None]:
        found, log_sums = scores.new_empty(len(scores)), scores.new_empty(len(scores))
        what = scored(scores, labels, ignored, log_sums)
        what.losses = found.data_ptr()
        forward(ctypes.byref(what), torch.get_num_threads(), parallel)
        return found, log_sums, None if what.bad < 0 else what.bad

    def losses_back(scores: Tensor, labels: Tensor, ignored: int, log_sums: Tensor, change: Tensor) -> Tensor:
        change = change.contiguous()
        gradient = torch.empty_like(scores, memory_format=torch.contiguous_format)
        what = scored(scores, labels, ignored, log_sums)
        what.change, what.gradient = change.data_ptr(), gradient.data_ptr()
        backward(ctypes.byref(what), torch.get_num_threads(), parallel)
        return gradient

    return Training(weight_gradient, losses, losses_back)
