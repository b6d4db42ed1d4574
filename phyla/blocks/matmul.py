"""The one matrix product of all projections, by the arithmetic fastest for the shape, dtype and device."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.gradient import linear_in_training
from phyla.blocks.processor import is_foreign_to_blas

FEW_ROWS = 64
# float32: rows and multiplications from which oneDNN is asked where it beats the BLAS.
ONEDNN_ROWS, ONEDNN_WORK = 9, 1 << 18
HAS_ONEDNN_PRODUCT = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Activations by their public names as oneDNN computes them behind a product: its name, its variant.
_FUSED = {
    "relu": ("relu", ""), "gelu": ("gelu", "none"), "gelu_python": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"), "gelu_pytorch_tanh": ("gelu", "tanh"),
    "gelu_python_tanh": ("gelu", "tanh"), "silu": ("swish", ""), "swish": ("swish", ""),
}  # fmt: skip
HAS_BFLOAT16 = any(
    getattr(torch.cpu, name, lambda: False)()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)
_SLICES = (8, 4, 2)
_MIN_SLICE = 16
_TILE = 16  # rows of a product at a time where no row may see how many there are
# (x, weight, bias) -> result, or None where it does not apply: phyla/fast/native.py puts its kernel here.
native: Callable[[Tensor, Tensor, Tensor | None], Tensor | None] | None = None
# The same, with sums whose order does not depend on the number of rows.
native_alike: Callable[[Tensor, Tensor, Tensor | None], Tensor | None] | None = None
_asked = threading.local()


@contextmanager
def rows_alike() -> Iterator[None]:
    """Inside, on a CPU, a row of a product has the same bits whatever rows, and how many, stand beside it."""
    before, _asked.alike = getattr(_asked, "alike", False), True
    try:
        yield
    finally:
        _asked.alike = before


def wants_rows_alike() -> bool:
    """Whether `rows_alike` is in force."""
    return getattr(_asked, "alike", False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., K), weight (N, K), bias (N) -> (..., N).

    On a CPU, products of few rows are bound by reading W: the figures are in benchmarks/results.
    """
    if not is_inference_on_cpu(weight):
        y = linear_in_training(x, weight, bias)
        return F.linear(x, weight, bias) if y is None else y
    rows = x.numel() // x.shape[-1] if x.numel() else 0
    if rows and getattr(_asked, "alike", False):
        return _alike(x, weight, bias)
    if rows >= ONEDNN_ROWS and _is_for_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
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


def linear_act(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor | None:
    """act(x W^T + b) in one pass for an activation by its public name, or None where nothing does that."""
    fused = _FUSED.get(act)
    if fused is None or not is_inference_on_cpu(weight) or x.numel() < ONEDNN_ROWS * x.shape[-1]:
        return None
    if getattr(_asked, "alike", False) or not _is_for_onednn(x, weight):
        return None
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, fused[0], [], fused[1])


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN has the fastest product of float32 here; the sums of its results need no gradient."""
    return (
        x.dtype == torch.float32 == weight.dtype
        and HAS_ONEDNN_PRODUCT
        and is_foreign_to_blas()
        and x.numel() * len(weight) >= ONEDNN_WORK
        and type(x) is Tensor
        and type(weight) in _PLAIN
        and torch._C._get_mkldnn_enabled()
        and not is_watched()
    )


_PLAIN = (Tensor, torch.nn.Parameter)
_dispatched = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)


def is_watched() -> bool:
    """Whether anything observes or changes what torch does, and so must see torch's own operation."""
    return bool(
        _dispatched() or torch.is_autocast_enabled("cpu") or torch._C._get_tracing_state() is not None
    )


def is_inference_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU and neither gradients nor a captured graph are wanted: every call counts then."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _alike(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product by a kernel that takes rows alike, or in tiles of one size, the last filled with zeros."""
    y = None if native_alike is None else native_alike(x, weight, bias)
    if y is not None:
        return y
    flat = x.reshape(-1, x.shape[-1])
    rows, plain = len(flat), x.dtype == torch.float32 == weight.dtype and type(weight) in _PLAIN
    if plain and HAS_ONEDNN_PRODUCT and not is_watched() and _onednn_takes_rows_alike():
        # one row alone takes another way through oneDNN
        flat = flat.expand(2, -1).contiguous() if rows == 1 else flat.contiguous()
        y = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")[:rows]
        return y.view(*x.shape[:-1], len(weight))
    over = -rows % _TILE
    flat = F.pad(flat, (0, 0, 0, over)) if over else flat.contiguous()
    tiles = [F.linear(tile, weight) for tile in flat.split(_TILE)]
    y = (tiles[0] if len(tiles) == 1 else torch.cat(tiles))[:rows].view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


@functools.cache
def _onednn_takes_rows_alike() -> bool:
    """Whether this processor's products by oneDNN give a row the same bits among any number of others."""
    numbers = torch.Generator().manual_seed(0)
    for width, outs in ((192, 160), (68, 52)):
        x, weight = (torch.randn(n, width, generator=numbers) for n in (200, outs))
        whole = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        for rows in (2, 3, 5, 8, 13, 16, 31, 33, 64, 97, 130):
            part = torch.ops.mkldnn._linear_pointwise(x[7 : 7 + rows], weight, None, "none", [], "")
            if not torch.equal(part, whole[7 : 7 + rows]):
                return False
    return True


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
