"""The attention of the flash-attn packages, for those who ask for "flash_attention_2", 3 or 4 by name.

They take calls without padding, in half precision on CUDA: plain, causal, with a window or a cap. Others go
to the fused call, or step by step where scores have a cap.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.attending import Asked, Kernel, kernels
from phyla.blocks.context import SLOTS
from phyla.blocks.mask import Causal, Full, Window
from phyla.blocks.position import Position
from phyla.errors import MissingExtraError, require

DEVICES = {"cuda"}
_WIDEST = 256  # elements of a head

# our name -> (module, what to do where it is missing)
_LATER = {
    "flash3": ("flash_attn_interface", "FlashAttention 3, built from the folder hopper of its sources"),
    "flash4": ("flash_attn.cute", 'FlashAttention 4: pip install "flash-attn-4"'),
}


def enable(name: str = "flash") -> None:
    """Let attention find the kernel; MissingExtraError without the package."""
    if name in kernels:
        return
    if name == "flash":
        why = 'attn_implementation="flash_attention_2" ("sdpa" has a flash kernel of PyTorch\'s)'
        kernels[name] = kernel_of(require("flash_attn", "flash", why).flash_attn_func)
        return
    module, hint = _LATER[name]
    try:
        function = importlib.import_module(module).flash_attn_func
    except (ImportError, AttributeError) as error:
        raise MissingExtraError(
            f'attn_implementation="flash_attention_{name[-1]}" needs the package {module} ({hint}); "sdpa" '
            "has a flash kernel of PyTorch's"
        ) from error
    kernels[name] = kernel_of(function, takes_dropout=False)


def kernel_of(function: Any, takes_dropout: bool = True) -> Kernel:
    """The public function (batch, positions, heads, width) as attention calls it."""

    def attend(asked: Asked) -> Tensor | None:  # (B, H, S, E)
        q, k, v = asked.q, asked.k, asked.v
        named = settings_of(asked)
        if named is None or (asked.dropout and not takes_dropout):
            return None
        if takes_dropout:
            named["dropout_p"] = asked.dropout
        found = function(*(t.transpose(1, 2) for t in (q, k, v)), **named)
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    return attend


def settings_of(asked: Asked) -> dict[str, Any] | None:
    """The arguments of the public function that say a call; None where they cannot."""
    q, mixer, ctx = asked.q, asked.mixer, asked.ctx
    if q.device.type not in DEVICES or q.dtype not in (torch.float16, torch.bfloat16):
        return None
    if q.shape[-1] > _WIDEST or q.shape[-1] != asked.v.shape[-1]:
        return None
    if asked.record is not None or ctx.head_mask is not None or mixer.kv_site is not None:
        return None
    if mixer.position is not None and type(mixer.position).bias is not Position.bias:
        return None
    named: dict[str, Any] = {"softmax_scale": mixer.scale, "causal": False}
    if mixer.softcap is not None:
        named["softcap"] = mixer.softcap
    if mixer.cross:
        return named if ctx.memory_mask is None else None
    if ctx.attention_mask is not None or ctx.blocks is not None or SLOTS in ctx.memo:
        return None
    if getattr(ctx.cache, "fixed", False):
        return None
    return _ruled(asked, named)


def _ruled(asked: Asked, named: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments with those of the rule of the mask; queries are the last of the keys there."""
    rule, ctx, keys = asked.mixer.rule, asked.ctx, asked.k.shape[2]
    ahead = ctx.start - asked.first
    if not rule.limits(ahead, ctx.length, keys):
        return named
    if type(rule) is Window and keys == ctx.length:
        return {**named, "window_size": (rule.radius, rule.radius)}
    if type(rule) is not Causal or ahead + ctx.length != keys:
        return named if type(rule) is Full else None
    if rule.window is not None and keys > rule.window:
        named["window_size"] = (rule.window - 1, 0)
    return {**named, "causal": True}
