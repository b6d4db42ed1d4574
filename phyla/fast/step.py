"""All layers of a plain stack in native code: one call for a few new tokens, a few calls a layer for many."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from phyla.blocks.cache import KVCache
from phyla.blocks.context import Context
from phyla.blocks.matmul import is_watched
from phyla.blocks.stack import Stack
from phyla.fast.flat import pages_fit
from phyla.fast.plan import Plan, Plans, address
from phyla.fast.wide import Wide

StackRunner = Callable[[Stack, Tensor, Context], Tensor | None]

MOST_ROWS = 8


def runner_of(library: ctypes.CDLL, parallel: int, count: int, number: int) -> StackRunner:
    """run(stack, x, ctx): the states after all layers, (B, S, D), or None where the kernels do not apply."""
    function = library.phyla_stack
    pointer = ctypes.c_void_p
    function.restype = ctypes.c_int
    function.argtypes = [pointer, ctypes.c_uint, pointer, pointer, pointer]
    plans, wide = Plans(), Wide(library, parallel)

    def run(stack: Stack, x: Tensor, ctx: Context) -> Tensor | None:
        mask = ctx.attention_mask
        if (
            type(x) is not Tensor
            or not x.is_cpu
            or stack.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or ctx.implementation != "sdpa"
            or not (ctx.attentions is ctx.router_logits is ctx.head_mask is ctx.blocks is None)
            or (mask is not None and (mask.dim() != 2 or mask.dtype != torch.bool))
            or x.dim() != 3
            or not x.numel()
            or getattr(ctx.cache, "fixed", False)
            or is_watched()
        ):
            return None
        plan = plans.of(stack)
        if plan is None or x.dtype != plan.dtype or (ctx.cache is not None and not plan.causal):
            return None
        slots = [ctx.slot(attn.slot) for attn in plan.attns]
        if getattr(ctx.cache, "flat", False):
            return wide(plan, slots, x, ctx) if mask is None and pages_fit(slots, plan) else None
        if ctx.cache is not None and not all(_fits(slot, plan, len(x)) for slot in slots):
            return None
        few = x.shape[0] * x.shape[1] <= MOST_ROWS and ctx.cache is not None and len(plan.positions) < 2
        if few and all(slot.keys is not None for slot in slots):
            return step(plan, slots, x, ctx)
        return wide(plan, slots, x, ctx)

    def step(plan: Plan, slots: list[KVCache], x: Tensor, ctx: Context) -> Tensor | None:
        batch, length = x.shape[:2]
        made = plan.stack
        for layer, slot in zip(plan.layers, slots, strict=True):
            keys, values = slot.room(length)
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
            layer.capacity, layer.used, layer.first = slot.capacity, slot.used, slot.first
        states = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        made.batch, made.length, made.x = batch, length, states.data_ptr()
        if plan.position is not None:
            cos, sin = (t.contiguous() for t in plan.position.angles(ctx, torch.float32))
            made.angle_rows, made.cos, made.sin = cos.shape[0], cos.data_ptr(), sin.data_ptr()
        seen = None if ctx.attention_mask is None else ctx.attention_mask.contiguous()
        made.mask, made.mask_stride = address(seen), 0 if seen is None else seen.shape[1]
        if function(ctypes.byref(made), torch.get_num_threads(), parallel, count, number):
            return None
        for slot in slots:
            slot.used += length
        return states.to(x.dtype)

    return run


def _fits(slot: KVCache, plan: Plan, batch: int) -> bool:
    """Whether the cache of a layer holds what the kernels read and write."""
    keys = slot.keys
    return keys is None or (keys.dtype == plan.dtype and len(keys) == batch and keys.is_contiguous())
