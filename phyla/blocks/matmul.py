"""The one matrix product of all projections, by the arithmetic fastest for the shape, dtype and device."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 64
HAS_BFLOAT16 = any(
    getattr(torch.cpu, name, lambda: False)()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)
_SLICES = (8, 4, 2)
_MIN_SLICE = 16
# (x, weight, bias) -> result, or None where it does not apply: phyla/fast/native.py puts its kernel here.
native: Callable[[Tensor, Tensor, Tensor | None], Tensor | None] | None = None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., K), weight (N, K), bias (N) -> (..., N).

    On a CPU, products of few rows are bound by reading W: the figures are in benchmarks/results.
    """
    if not is_inference_on_cpu(weight):
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1] if x.numel() else 0
    if native is not None and rows:
        y = native(x, weight, bias)
        if y is not None:
            return y
    if weight.dtype == torch.float32:
        if 0 < rows <= FEW_ROWS and torch.get_num_threads() > 1 and weight.is_contiguous():
            return _sliced(x, weight, bias, rows)
    elif weight.dtype == torch.bfloat16:
        if rows >= 4 and not HAS_BFLOAT16:
            # Without bfloat16 arithmetic, widening W costs less than emulating every product.
            return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
        if 0 < rows < 4 and torch.backends.mkldnn.enabled:
            # oneDNN reorders the whole weight at each call; the native product reads it once.
            torch._C._set_mkldnn_enabled(False)
            try:
                return F.linear(x, weight, bias)
            finally:
                torch._C._set_mkldnn_enabled(True)
    return F.linear(x, weight, bias)


def is_inference_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU and neither gradients nor a captured graph are wanted: every call counts then."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _sliced(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """The product as a batch of slices of W, so that every thread reads its own part of it."""
    out, width = weight.shape
    slices = next((s for s in _SLICES if out % s == 0 and out // s >= _MIN_SLICE), 0)
    if not slices:
        return F.linear(x, weight, bias)
    flat = x.reshape(1, rows, width).expand(slices, rows, width)
    y = torch.bmm(
        flat, weight.view(slices, out // slices, width).transpose(1, 2)
    )  # (slices, rows, N / slices)
    y = y.view(*x.shape[:-1], out) if rows == 1 else y.transpose(0, 1).reshape(*x.shape[:-1], out)
    return y if bias is None else y + bias
