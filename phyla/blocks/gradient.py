"""Training on a CPU: linear maps, token tables and losses over a vocabulary, by what is fastest."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from phyla.blocks.pages import LEAST, keep_freed, zeros
from phyla.blocks.processor import is_foreign_to_blas

# Multiplications from which the faster product outweighs the calls around it.
LEAST_WORK = 1 << 21
# Classes from which a copy of the scores is worth avoiding.
LEAST_CLASSES = 1024
# Rows from which x is a stream of tokens: such models allocate what repeats exactly. A classifier over
# images does not say that of the convolutions before it.
STREAM_ROWS = 64
HAS_PRODUCT = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# The `Training` of phyla/fast/train.py, which phyla/fast/native.py puts here.
native: Any = None
# Whether a training step would have used kernels that are not there: see `PreTrainedModel.__call__`.
wanted = False

_PLAIN = (Tensor, torch.nn.Parameter)
_dispatched = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_has_memory = getattr(torch._C, "_has_storage", lambda x: True)
_transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def is_watched() -> bool:
    """Whether anything observes or changes what torch does, and so must see torch's own operations."""
    return bool(
        _dispatched()
        or _transformed()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or getattr(forward_ad, "_current_level", -1) >= 0
    )


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether all are dense float32 tensors in memory of the CPU, and nobody watches."""
    for x in tensors:
        if x is None:
            continue
        if (
            x.dtype is not torch.float32
            or not x.is_cpu
            or type(x) not in _PLAIN
            or x.layout is not torch.strided
        ):
            return False
        if not _has_memory(x):  # batched by vmap, functional, fake
            return False
    return not is_watched()


def want_kernels() -> None:
    """Let the next call of a model in training put the kernels into their slots."""
    global wanted
    wanted = True


def linear_in_training(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """x W^T + b for x (..., K), weight (N, K), with its gradient; None where torch's own is wanted."""
    if (
        torch.compiler.is_compiling()
        or not HAS_PRODUCT
        or not is_foreign_to_blas()
        or x.numel() * len(weight) < LEAST_WORK
        or weight.dim() != 2
        or x.shape[-1] != weight.shape[1]
        or not weight.is_contiguous()
        or (bias is not None and bias.shape != weight.shape[:1])
        or not torch._C._get_mkldnn_enabled()
        or not is_plain(x, weight, bias)
    ):
        return None
    if native is None:
        want_kernels()
    return _Linear.apply(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """y = x W^T + b; dx = dy W, dW = dy^T x, db = the sum of dy's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if native is not None and x.numel() >= STREAM_ROWS * x.shape[-1]:
            keep_freed()
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        # A gradient that is itself differentiated, or watched, needs torch's own products.
        plain = not torch.is_grad_enabled() and is_plain(dy, x, weight)
        dx = dw = db = None
        if for_x:
            dx = _product(dy, weight.t()) if plain else F.linear(dy, weight.t())
        if for_weight or for_bias:
            dy = dy.reshape(-1, dy.shape[-1])
        if for_weight:
            x = x.reshape(-1, x.shape[-1])
            found = native.weight_gradient(dy, x, for_bias) if plain and native is not None else None
            dw, db = (dy.t() @ x, None) if found is None else found
        if for_bias and db is None:
            db = dy.sum(0)
        return dx, dw, db


def lookup(ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
    """weight[ids], (..., D) of (V, D); the row `padding` gets no gradient."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and weight.requires_grad):
        return F.embedding(ids, weight, padding)
    few = weight.numel() >= LEAST and ids.numel() * 4 <= len(weight) and type(ids) is Tensor
    if not few or not is_plain(weight):
        return F.embedding(ids, weight, padding)
    return _Lookup.apply(ids, weight, padding)


class _Lookup(torch.autograd.Function):
    """weight[ids], whose gradient touches no memory for the rows that were not looked up."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding = weight.shape, padding
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        padding = -1 if ctx.padding is None else ctx.padding % ctx.shape[0]
        if torch.is_grad_enabled() or not is_plain(dy):
            return None, torch.ops.aten.embedding_dense_backward(dy, ids, ctx.shape[0], padding, False), None
        dw = zeros(*ctx.shape)
        dw.index_add_(0, ids.flatten(), dy.reshape(-1, ctx.shape[1]))
        if padding >= 0:
            dw[padding] = 0
        return None, dw, None


def losses_in_training(scores: Tensor, labels: Tensor, ignored: int) -> Tensor | None:
    """Cross-entropy (M) of scores (M, V) and labels (M), 0 for ignored ones; None where torch's is wanted."""
    if (
        torch.compiler.is_compiling()
        or scores.dim() != 2
        or scores.shape[1] < LEAST_CLASSES
        or not scores.numel()
        or scores.stride(1) != 1
        or labels.dtype is not torch.int64
        or labels.shape != scores.shape[:1]
        or not labels.is_cpu
        or type(labels) is not Tensor
        or not is_plain(scores)
    ):
        return None
    if native is None:
        want_kernels()
        return None
    return _Losses.apply(scores, labels, ignored)


class _Losses(torch.autograd.Function):
    """log sum exp(scores) - scores[label]; d scores = softmax(scores) - 1 at the label."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor, ignored: int) -> Tensor:
        labels = labels.contiguous()
        losses, log_sums, bad = native.losses(scores, labels, ignored)
        if bad is not None:
            raise IndexError(f"labels must be {ignored} or below {scores.shape[1]}, but there is {bad}")
        ctx.save_for_backward(scores, labels, log_sums)
        ctx.ignored = ignored
        return losses

    @staticmethod
    def backward(ctx: Any, change: Tensor) -> tuple[Tensor, None, None]:
        scores, labels, log_sums = ctx.saved_tensors
        if not torch.is_grad_enabled() and native is not None and is_plain(change, scores):
            return native.losses_back(scores, labels, ctx.ignored, log_sums, change), None, None
        used = labels != ctx.ignored
        right = F.one_hot(labels.where(used, 0), scores.shape[1])
        return (torch.softmax(scores, -1) - right) * (change * used)[:, None], None, None
