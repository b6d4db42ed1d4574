"""All layers of a plain stack in native code: one call for a few new tokens, a few calls a layer for many."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import CrossCache, KVCache
from phyla.blocks.context import Context
from phyla.blocks.matmul import is_watched
from phyla.blocks.stack import Stack
from phyla.fast.flat import pages_fit
from phyla.fast.plan import Plan, Plans, StackPart, address
from phyla.fast.positions import Positions
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
            or ctx.cross_attentions is not None
            or any(m is not None and (m.dim() != 2 or m.dtype != torch.bool) for m in (mask, ctx.memory_mask))
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
            if plan.crosses:
                return None
            fits = mask is None and not plan.biased and pages_fit(slots, plan)
            return wide(plan, slots, x, ctx) if fits else None
        if ctx.cache is not None and not all(_fits(slot, plan, len(x)) for slot in slots):
            return None
        few = x.shape[0] * x.shape[1] <= MOST_ROWS and ctx.cache is not None
        if few and all(slot.keys is not None for slot in slots):
            if not plan.by_query or x.shape[1] == 1:
                parts = plan.parts()
                return step(plan, parts, slots, x, ctx) if _tell_memory(plan, parts, x, ctx) else None
        return None if plan.crosses or plan.by_query else wide(plan, slots, x, ctx)

    def step(plan: Plan, parts: Any, slots: list[KVCache], x: Tensor, ctx: Context) -> Tensor | None:
        batch, length = x.shape[:2]
        made, held = StackPart.from_buffer_copy(plan.stack), Positions(plan, ctx)
        made.layer = parts
        for layer, attn, slot in zip(parts, plan.attns, slots, strict=True):
            keys, values = slot.room(length)
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
            layer.capacity, layer.used, layer.first = slot.capacity, slot.used, slot.first
            held.tell(layer, attn, slot.first, slot.used + length)
        states = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        made.batch, made.length, made.x = batch, length, states.data_ptr()
        seen = None if ctx.attention_mask is None else ctx.attention_mask.contiguous()
        made.mask, made.mask_stride = address(seen), 0 if seen is None else seen.shape[1]
        known = None if ctx.memory_mask is None else ctx.memory_mask.contiguous()
        made.memory_mask, made.memory_stride = address(known), 0 if known is None else known.shape[1]
        if function(ctypes.byref(made), torch.get_num_threads(), parallel, count, number):
            return None
        for slot in slots:
            slot.used += length
        return states.to(x.dtype)

    return run


def _tell_memory(plan: Plan, parts: Any, x: Tensor, ctx: Context) -> bool:
    """Whether the keys and values of an encoder's states are there, and the parts know where."""
    slots = [ctx.slot(cross.slot) for cross in plan.crosses]
    if any(type(slot) is not CrossCache or slot.keys is None for slot in slots):
        return False
    if any(slot.keys.dtype != plan.dtype or len(slot.keys) != len(x) for slot in slots):
        return False
    for layer, slot in zip(parts, slots, strict=bool(slots)):
        slot.keys, slot.values = slot.keys.contiguous(), slot.values.contiguous()
        cross = layer.cross.contents
        cross.keys, cross.values = slot.keys.data_ptr(), slot.values.data_ptr()
        cross.count = slot.keys.shape[2]
    mask = ctx.memory_mask
    return mask is None or all(mask.shape == (len(x), slot.keys.shape[2]) for slot in slots)


def _fits(slot: KVCache, plan: Plan, batch: int) -> bool:
    """Whether the cache of a layer holds what the kernels read and write."""
    keys = slot.keys
    return keys is None or (keys.dtype == plan.dtype and len(keys) == batch and keys.is_contiguous())
