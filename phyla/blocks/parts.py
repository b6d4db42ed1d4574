"""Between products in training on a CPU: RMS norm and silu(gate) * up, their inputs saved alone."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.gradient import is_plain, want_kernels

# Elements from which one call saves more than it costs.
LEAST = 1 << 14
# The `Parts` of phyla/fast/parts.py, which phyla/fast/native.py puts here.
native: Any = None


def _applies(x: Tensor, *others: Tensor) -> bool:
    """Whether gradients of dense float32 tensors on the CPU are wanted, and nobody watches."""
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and x.numel() >= LEAST
        and x.is_contiguous()
        and all(t.is_contiguous() for t in others)
        and is_plain(x, *others)
    )


def rms_norm_in_training(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """x / sqrt(mean(x^2) + eps) * weight for x (..., D), weight (D); None where torch's own is wanted."""
    if weight.shape != x.shape[-1:] or not _applies(x, weight):
        return None
    if native is None:
        want_kernels()
    return _RMSNorm.apply(x, weight, eps)


def silu_gate_in_training(gate: Tensor, up: Tensor) -> Tensor | None:
    """silu(gate) * up of two tensors of one shape; None where torch's own is wanted."""
    if gate.shape != up.shape or not _applies(gate, up):
        return None
    if native is None:
        want_kernels()
    return _SiluGate.apply(gate, up)


# What is saved does not depend on whether there are kernels: they may come between a forward and a
# checkpoint's second one.
class _RMSNorm(torch.autograd.Function):
    """y = x r w for r = 1 / sqrt(mean(x^2) + eps); dx = r (g - x r mean(g x r)) for g = dy w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if native is not None:
            y, scales = native.norm(x, weight, eps)
        else:
            y = F.rms_norm(x, weight.shape, weight, eps)
            scales = torch.rsqrt(x.square().mean(-1) + eps).flatten()
        ctx.save_for_backward(x, weight, scales)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scales = ctx.saved_tensors
        for_x, for_weight, _ = ctx.needs_input_grad
        plain = not torch.is_grad_enabled() and is_plain(dy, x, weight)
        if plain and native is not None:
            return *native.norm_back(dy, x, weight, scales, for_x, for_weight), None
        # Anew from x where this gradient is itself differentiated.
        scale = scales.view(*x.shape[:-1], 1) if plain else torch.rsqrt(x.square().mean(-1, True) + ctx.eps)
        z, g = x * scale, dy * weight
        dx = (g - z * (g * z).mean(-1, keepdim=True)) * scale if for_x else None
        dw = (dy * z).flatten(0, -2).sum(0) if for_weight else None
        return dx, dw, None


class _SiluGate(torch.autograd.Function):
    """y = silu(gate) up; d up = dy silu(gate), d gate = dy up silu'(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up) if native is None else native.gate(gate, up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if native is not None and not torch.is_grad_enabled() and is_plain(dy, gate, up):
            return native.gate_back(dy, gate, up)
        part = torch.sigmoid(gate)
        act = gate * part
        return dy * up * (part + act * (1 - part)), dy * act
