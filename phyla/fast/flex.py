"""FlexAttention of PyTorch: masks, biases and caps as functions of places, compiled into one kernel.

A call goes there where it reads more than one query and all that it asks can be said so: rules of masks,
padding, ready masks, biases of positions, caps. Others go to the fused call, or step by step where scores
have a cap: single queries (a step of decoding), dropout, recorded weights, masked heads, exported graphs,
biases that are trained; on a CPU, where each shape is compiled for itself, also gradients, fewer than `LEAST`
queries and more than `SHAPES` shapes. The debug log says which.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.attending import Asked, kernels
from phyla.blocks.context import SLOTS
from phyla.blocks.mask import Causal, Full, Window, additive, self_mask

log = logging.getLogger("phyla.fast.flex")

LEAST = 512  # queries from which a CPU compiles: it takes seconds, once
NARROWEST = 16  # elements of a head that the kernels for CUDA take
SHAPES = 32  # shapes that a CPU compiles for: kernels for any length cannot be built there (torch 2.13)
MOST = 64  # kinds of call (rules, biases, caps, dtypes) that other devices compile for
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# (row, head, query, key) -> whether it is seen, or what is added to its score
Rule = Callable[[Any, Any, Any, Any], Any]


def enable() -> None:
    """Let attention find the kernel."""
    kernels["flex"] = attend_flexibly


def attend_flexibly(asked: Asked) -> Tensor | None:
    """What heads find, (B, H, S, E), by FlexAttention; None where it does not apply."""
    why = refusal(asked)
    if why is not None:
        log.debug("not by FlexAttention: %s", why)
        return None
    q, k, v = asked.q, asked.k, asked.v
    if asked.mixer.kv_site is not None:
        k, v = asked.tensors()[:2]
    bias = bias_of(asked)
    if bias is not None and bias[1]:
        log.debug("not by FlexAttention: gradients of a bias")
        return None
    block_mask, added = mask_of(asked, k.shape[2])
    cap = asked.mixer.softcap
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        kind = (q.shape, k.shape, v.shape[3], q.dtype, cap, bias is None, block_mask is None, added is None)
        if kind not in shapes and len(shapes) >= SHAPES:
            log.debug("not by FlexAttention: %d shapes have been compiled for", SHAPES)
            return None
        shapes.add(kind)
    try:
        return run(
            q, k, v, score_mod=scored(bias and bias[0], cap, added), block_mask=block_mask,
            scale=asked.mixer.scale, enable_gqa=k.shape[1] != q.shape[1],
        )  # fmt: skip
    except _failures() as error:
        if torch.compiler.is_compiling():
            raise
        broken.append(str(error))
        log.debug("FlexAttention was not compiled, and is left out from now on: %s", error)
        return None


# Why compiling failed in this process, if it did.
broken: list[str] = []

# Calls that this process's CPU has compiled for.
shapes: set[Any] = set()


def refusal(asked: Asked) -> str | None:
    """Why a call is none for FlexAttention; None where it is one."""
    q, k, v = asked.q, asked.k, asked.v
    if q.shape[2] == 1:
        return "a single query"
    if asked.record is not None or asked.ctx.head_mask is not None:
        return "weights are looked at"
    if asked.dropout:
        return "dropout of weights"
    if q.device.type not in ("cpu", "cuda") or q.dtype not in _DTYPES:
        return f"{q.dtype} on {q.device.type}"
    if torch.compiler.is_exporting():
        return "an exported graph"
    if q.is_cuda:
        if q.shape[3] < NARROWEST:
            return f"heads of fewer than {NARROWEST} elements"
    elif q.requires_grad or k.requires_grad or v.requires_grad:
        return "gradients on a CPU"
    elif q.shape[2] < LEAST and not torch.compiler.is_compiling():
        return f"fewer than {LEAST} queries on a CPU"
    return broken[0] if broken else None


def run(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Tensor:
    """`flex_attention`, compiled; within a graph that is being compiled, as a part of it."""
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q, k, v, **named)
    return _compiled(q.device.type == "cpu")(q, k, v, **named)


@functools.cache
def _compiled(fixed: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    can_say = "recompile_limit" in inspect.signature(torch.compile).parameters
    more: dict[str, Any] = {"recompile_limit": max(MOST, 4 * SHAPES)} if can_say else {}
    return torch.compile(flex_attention, dynamic=False if fixed else None, **more)


@functools.cache
def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException, NotImplementedError)


def scored(bias: Rule | None, cap: float | None, added: Rule | None) -> Callable[..., Any] | None:
    """What becomes of a scaled score, in the order of open attention: bias, cap, additive mask."""
    if bias is None and cap is None and added is None:
        return None

    def score(value: Any, row: Any, head: Any, query: Any, key: Any) -> Any:
        if bias is not None:
            value = value + bias(row, head, query, key)
        if cap is not None:
            value = torch.tanh(value / cap) * cap
        if added is not None:
            value = value + added(row, head, query, key)
        return value

    return score


def looked_up(table: Tensor) -> Rule:
    """The entries of a tensor that broadcasts to (B, H, S, K), by place."""
    rows, heads, queries, keys = (size > 1 for size in table.shape)

    def entry(row: Any, head: Any, query: Any, key: Any) -> Any:
        return table[row if rows else 0, head if heads else 0, query if queries else 0, key if keys else 0]

    return entry


def bias_of(asked: Asked) -> tuple[Rule, bool] | None:
    """What positions add to a score by place, and whether it is trained; None where they add nothing."""
    position, ctx = asked.mixer.position, asked.ctx
    if position is None:
        return None
    if asked.mixer.kv_site is None:
        length = asked.q.shape[2]
        table = position.by_distance(asked.first, asked.k.shape[2], ctx)
        if table is not None:
            nearest: Tensor = table  # (H, S + K - 1)
            return (
                lambda row, head, query, key: nearest[head, key - query + length - 1]
            ), table.requires_grad
    if asked.made is not None:
        bias = asked.made[3]
    else:
        bias = position.bias(asked.q, asked.k, asked.first, asked.mixer.scale, ctx)
    return None if bias is None else (looked_up(bias), bias.requires_grad)


def mask_of(asked: Asked, keys: int) -> tuple[Any, Rule | None]:
    """The blocks of places that are looked at, or None for all, and what is added to scores, or None."""
    ctx, mixer = asked.ctx, asked.mixer
    if mixer.kv_site is not None:
        return _ready(asked, asked.tensors()[2], None)
    if mixer.cross:
        given = ctx.memory_mask
        if given is not None and given.dim() == 4:  # which may change from layer to layer
            return _ready(asked, given, None)
        return _ready(asked, given if given is None else given[:, None, None], "memory")
    rule, given = mixer.rule, ctx.attention_mask
    whole = given is not None and given.dim() == 4
    made_before = rule in ctx.memo  # perhaps by the caller, of more than slots and padding
    special = whole or ctx.blocks is not None or SLOTS in ctx.memo or getattr(ctx.cache, "fixed", False)
    if special or made_before or type(rule) not in (Full, Causal, Window):
        return _ready(asked, self_mask(rule, ctx, asked.first, keys), rule)
    limits = rule.limits(ctx.start - asked.first, ctx.length, keys)
    if not limits and given is None:
        return None, None
    queries = asked.q.shape[2]

    def made() -> Any:
        rows = None if given is None else given.shape[0]
        seen = placed(rule if limits else None, given, ctx.start, asked.first, asked.q.device)
        return _blocks(seen, rows, None, queries, keys, asked.q.device)

    return ctx.once(("flex", rule, given is None), made), None


def placed(rule: Any, given: Tensor | None, start: int, first: int, device: Any) -> Rule:
    """Whether a place is seen by a rule and padding (B, slots): queries start at `start`, keys at `first`."""
    # tensors, for a number would be compiled in
    ahead = torch.full((), start - first, dtype=torch.long, device=device)
    behind = torch.full((), first, dtype=torch.long, device=device)

    def seen(row: Any, head: Any, query: Any, key: Any) -> Any:
        if rule is None:
            return given[row, key + behind]  # type: ignore[index]
        visible = rule.visible(query + ahead, key)
        return visible if given is None else visible & given[row, key + behind]

    return seen


def _ready(asked: Asked, mask: Tensor | None, key: Any) -> tuple[Any, Rule | None]:
    """A mask (B or 1, 1 or H, S or 1, K) that is there already: bool as blocks, additive as numbers."""
    if mask is None:
        return None, None
    if mask.dtype != torch.bool:
        return None, looked_up(additive(mask, mask.dtype))
    held: Tensor = mask

    def made() -> Any:
        rows, heads = (size if size > 1 else None for size in held.shape[:2])
        return _blocks(looked_up(held), rows, heads, asked.q.shape[2], held.shape[3], held.device)

    return (made() if key is None else asked.ctx.once(("flex", key), made)), None


def _blocks(seen: Rule, rows: Any, heads: Any, queries: int, keys: int, device: Any) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    apart = device.type == "cuda" and not torch.compiler.is_compiling()
    more: dict[str, Any] = {"_compile": True} if apart else {}  # without it all places are a tensor at once
    return create_block_mask(seen, rows, heads, queries, keys, device=device, **more)
