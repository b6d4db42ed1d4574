"""The attention of the package flash-attn, for those who ask for "flash_attention_2" by name."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks import attention
from phyla.errors import require

DEVICES = {"cuda"}
_WIDEST = 256  # elements of a head


def enable() -> None:
    """Let attention find the kernel; MissingExtraError without the package."""
    if "flash" in attention.kernels:
        return
    why = 'attn_implementation="flash_attention_2" ("sdpa" has a flash kernel of PyTorch\'s)'
    attention.kernels["flash"] = kernel_of(require("flash_attn", "flash", why).flash_attn_func)


def kernel_of(function: Any) -> attention.Kernel:
    """The public function (batch, positions, heads, width) as attention calls it."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, dropout: float
    ) -> Tensor | None:  # (B, H, S, E)
        if q.device.type not in DEVICES or q.dtype not in (torch.float16, torch.bfloat16):
            return None
        if q.shape[-1] > _WIDEST or q.shape[-1] != v.shape[-1]:
            return None
        turned = (t.transpose(1, 2) for t in (q, k, v))
        return function(*turned, dropout_p=dropout, softmax_scale=scale, causal=causal).transpose(1, 2)

    return attend
