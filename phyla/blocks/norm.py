"""Normalisation over the last dimension."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.matmul import is_inference_on_cpu
from phyla.blocks.parts import rms_norm_in_training
from phyla.blocks.shapes import Rows
from phyla.blocks.spec import Block

# Rows up to which the calls of a norm cost more than its arithmetic.
FEW = 4


class LayerNorm(Block):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al., arXiv:1607.06450).

    affine=False drops weight and bias; bias=False drops the bias alone.
    """

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True, affine: bool = True) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.empty(width)) if affine else None
        self.bias = nn.Parameter(torch.empty(width)) if affine and bias else None

    def forward(self, x: Rows) -> Rows:
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)

    def reset(self, std: float) -> bool:
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        return True


class RMSNorm(Block):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich, arXiv:1910.07467, eq. 4).

    offset is added to the weight (Gemma stores weight - 1). The mean is taken in float32; `cast` says when
    the result returns to the dtype of x: "early" before the weight (Llama), "late" after it (Gemma).
    """

    def __init__(self, width: int, eps: float = 1e-6, offset: float = 0.0, cast: str = "early") -> None:
        super().__init__()
        self.width, self.eps, self.offset, self.cast = width, eps, offset, cast
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Rows) -> Rows:
        if x.numel() <= FEW * self.width and is_inference_on_cpu(x):
            return self._few(x)
        if x.dtype == torch.float32 == self.weight.dtype and not self.offset:
            y = rms_norm_in_training(x, self.weight, self.eps)
            return F.rms_norm(x, (self.width,), self.weight, self.eps) if y is None else y
        if x.is_cuda and x.dtype == self.weight.dtype and not self.offset and not torch.is_grad_enabled():
            # one kernel, and one rounding less, for eight
            return F.rms_norm(x, (self.width,), self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.cast == "early":
            return (self.weight + self.offset if self.offset else self.weight) * wide.to(x.dtype)
        return (wide * (self.weight.float() + self.offset)).to(x.dtype)

    def _few(self, x: Tensor) -> Tensor:
        """The same for few rows in half the time: (x, -x) has mean 0, so its layer norm is x's RMS norm."""
        width, late = self.width, self.cast == "late"
        both = torch.cat((x, -x), -1)
        y = F.layer_norm(both.float() if late else both, (2 * width,), None, None, self.eps)[..., :width]
        weight = self.weight.float() if late else self.weight
        y = y * (weight + self.offset if self.offset else weight)
        return y.to(x.dtype) if late else y

    def reset(self, std: float) -> bool:
        nn.init.constant_(self.weight, 1.0 - self.offset)
        return True
