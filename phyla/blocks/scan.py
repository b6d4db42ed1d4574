"""The linear recurrences that all state-space and recurrent mixers go through."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from phyla.blocks.matmul import is_inference_on_cpu
from phyla.blocks.shapes import State, Steps

# Steps that a selective scan holds states of at once: more cost memory, fewer cost calls.
SPAN, COMPILED_SPAN = 64, 256
LOWEST = -1e30  # the exponent of an empty sum
# (x, step, a, b, c, state) -> (y, last state), or None where it does not apply: see phyla/fast/recurrent.py.
native: Callable[..., tuple[Tensor, Tensor] | None] | None = None


def scan(decay: Tensor, entry: Steps, state: State | None = None) -> tuple[Steps, State]:
    """h_t = decay_t * h_{t-1} + entry_t along dimension 1.

    decay, entry (B, S, ...), decay perhaps broadcast; state (B, ...) is h_0 (default 0). Returns all h
    (B, S, ...) and the last one (B, ...).
    """
    length = entry.shape[1]
    if length == 1:
        last = entry[:, 0] if state is None else torch.addcmul(entry[:, 0], decay[:, 0], state)
        return last[:, None], last
    if entry.device.type == "cpu" and not torch.compiler.is_compiling():
        # One pass over the memory; a scan of logarithmic depth passes over it at every level.
        wanted = (decay, entry) if state is None else (decay, entry, state)
        if torch.is_grad_enabled() and any(t.requires_grad for t in wanted):
            states = _Walk.apply(decay, entry, state)
        else:
            states = _walk(decay, entry, state)
        return states, states[:, -1]
    if state is not None:
        first = torch.addcmul(entry[:, 0], decay[:, 0], state)
        entry = torch.cat((first[:, None], entry[:, 1:]), 1)
    states = _doubling(decay, entry)
    return states, states[:, -1]


def _doubling(decay: Tensor, entry: Tensor) -> Tensor:
    """Log-depth scan: after round r every element holds the recurrence over its last 2^r inputs."""
    length, reach = entry.shape[1], 1
    while reach < length:
        entry = torch.cat(
            (entry[:, :reach], torch.addcmul(entry[:, reach:], decay[:, reach:], entry[:, :-reach])), 1
        )
        if 2 * reach < length:
            decay = torch.cat((decay[:, :reach], decay[:, reach:] * decay[:, :-reach]), 1)
        reach *= 2
    return entry


def _walk(decay: Tensor, entry: Tensor, state: Tensor | None) -> Tensor:
    """Step after step into one buffer."""
    states = torch.empty_like(entry)
    outs, entries, decays = states.unbind(1), entry.unbind(1), decay.unbind(1)
    if state is None:
        outs[0].copy_(entries[0])
    else:
        torch.addcmul(entries[0], decays[0], state, out=outs[0])
    for t in range(1, len(outs)):
        torch.addcmul(entries[t], decays[t], outs[t - 1], out=outs[t])
    return states


class _Walk(torch.autograd.Function):
    """`_walk` whose backward is the same recurrence from the end: dh_t = g_t + decay_{t+1} dh_{t+1}."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, entry: Tensor, state: Tensor | None) -> Tensor:
        states = _walk(decay, entry, state)
        ctx.save_for_backward(decay, states, state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        decay, states, state = ctx.saved_tensors
        later = torch.cat((decay[:, 1:], torch.ones_like(decay[:, :1])), 1)
        flow = _walk(later.flip(1), grad.flip(1), None).flip(1)  # dh, of the shape of entry
        past = torch.zeros_like(states[:, :1]) if state is None else state[:, None].expand_as(states[:, :1])
        to_decay = (flow * torch.cat((past, states[:, :-1]), 1)).sum_to_size(decay.shape)
        return to_decay, flow, None if state is None else flow[:, 0] * decay[:, 0]


def selective_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(step_t a) h_{t-1} + step_t b_t x_t; y_t = c_t h_t (Gu & Dao, arXiv:2312.00752, eq. 2).

    x, step (B, S, I); a (I, N); b, c (B, S, N); state (B, I, N). Returns y (B, S, I) and the last h. States
    are held for a span of steps alone, in training too.
    """
    if native is not None and is_inference_on_cpu(x):
        found = native(x, step, a, b, c, state)
        if found is not None:
            return found
    span = COMPILED_SPAN if torch.compiler.is_compiling() else SPAN
    length = x.shape[1]
    if length <= span:
        return _selective_span(x, step, a, b, c, state)
    outs = []
    again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    for at in range(0, length, span):
        inputs = [t[:, at : at + span] for t in (x, step, b, c)]
        call = (inputs[0], inputs[1], a, inputs[2], inputs[3], state)
        y, state = (
            checkpoint(_selective_span, *call, use_reentrant=False) if again else _selective_span(*call)
        )
        outs.append(y)
    return torch.cat(outs, 1), state  # type: ignore[return-value]


def _selective_span(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    decay = torch.exp(step[..., None] * a)  # (B, T, I, N)
    entry = (step * x)[..., None] * b[:, :, None]
    states, last = scan(decay, entry, state)
    y = torch.matmul(states, c[..., None])[..., 0]  # (B, T, I)
    return y, last.clone()  # a view would keep the span's states alive


def chunked_scan(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """h_t = exp(log_decay_t) h_{t-1} + x_t b_t^T; y_t = h_t c_t, by chunks (arXiv:2405.21060, section 6).

    x (B, S, G, R, P); log_decay (B, S, G, R), not positive; b, c (B, S, G, N), shared by the R heads of a
    group; state (B, G, R, P, N). Returns y (B, S, G, R, P) and the last h. Inside a chunk the recurrence is
    attention with a decay for a mask; states exist at the ends of chunks alone.
    """
    length = x.shape[1]
    if length == 1:
        entry = x[:, 0, ..., None] * b[:, 0, :, None, None]  # (B, G, R, P, N)
        if state is not None:
            entry = torch.addcmul(entry, log_decay[:, 0, ..., None, None].exp(), state)
        return torch.matmul(entry, c[:, 0, :, None, :, None])[..., 0][:, None], entry
    chunk = min(chunk, length)
    short = -length % chunk
    if short:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, short))
        log_decay = F.pad(log_decay, (0, 0, 0, 0, 0, short))
        b, c = (F.pad(t, (0, 0, 0, 0, 0, short)) for t in (b, c))
    x, log_decay, b, c = (t.unflatten(1, (-1, chunk)) for t in (x, log_decay, b, c))  # (B, C, L, ...)
    per_head = log_decay.permute(0, 1, 3, 4, 2)  # (B, C, G, R, L)
    over = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device)
    # Sums of log decays between two steps, added up rather than subtracted: differences of long sums round.
    between = per_head[..., None].expand(*per_head.shape, chunk).masked_fill(~over.tril(-1), 0).cumsum(-2)
    weights = between.masked_fill(~over.tril(), -torch.inf).exp()  # (B, C, G, R, L, L)
    scores = torch.einsum("bclgn,bcsgn->bcgls", c, b)[:, :, :, None] * weights
    y = torch.einsum("bcgrls,bcsgrp->bclgrp", scores, x)
    to_end = weights[..., -1, :].permute(0, 1, 4, 2, 3)[..., None]  # (B, C, L, G, R, 1)
    entries = torch.einsum("bcsgrp,bcsgn->bcgrpn", x * to_end, b)
    sums = per_head.cumsum(-1)
    states, last = scan(sums[..., -1, None, None].exp(), entries, state)
    first = torch.zeros_like(entries[:, :1]) if state is None else state[:, None]
    before = torch.cat((first, states[:, :-1]), 1)  # (B, C, G, R, P, N)
    from_start = sums.exp().permute(0, 1, 4, 2, 3)[..., None]
    y = y + torch.einsum("bclgn,bcgrpn->bclgrp", c, before) * from_start
    return y.flatten(1, 2)[:, :length], last


def decayed_average(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """An average of v, weighted by exp(k), that forgets by exp(decay) a step (arXiv:2305.13048, eq. 16).

    y_t = (sum_{s<t} e^{(t-1-s) decay + k_s} v_s + e^{bonus + k_t} v_t) / (the same sum without v). k, v
    (B, S, I); decay (not positive), bonus (I); state: both sums (B, I) and the exponent (B, I) that they are
    divided by. Returns y (B, S, I) and the state.
    """
    fall = decay * torch.arange(1, k.shape[1] + 1, device=k.device)[:, None]  # (S, I)
    lowest = torch.full_like(k[:, 0], LOWEST)
    start = lowest if state is None else state[2]
    # Any exponent near the largest will do: it divides out, so it needs no gradient.
    peak = torch.maximum(torch.cummax((k - fall).detach(), 1).values, start[:, None].detach())
    top = peak + fall.detach()  # (B, S, I)
    before = torch.cat((start[:, None].detach(), top[:, :-1]), 1)
    gain = torch.exp(k - top)
    entry = torch.stack((gain * v, gain), -1)  # (B, S, I, 2)
    first = torch.zeros_like(entry[:, 0]) if state is None else torch.stack(state[:2], -1)
    sums, last = scan(torch.exp(before + decay - top)[..., None], entry, first)
    past = torch.cat((first[:, None], sums[:, :-1]), 1)
    here = bonus + k
    most = torch.maximum(before, here).detach()
    old, new = torch.exp(before - most), torch.exp(here - most)
    y = (old * past[..., 0] + new * v) / (old * past[..., 1] + new)
    return y, (last[..., 0], last[..., 1], top[:, -1])


@cache
def kernel(module: str, name: str) -> Callable[..., Any] | None:
    """A function of an optional package of fast kernels, or None where it cannot be imported."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, OSError, RuntimeError):
        return None
