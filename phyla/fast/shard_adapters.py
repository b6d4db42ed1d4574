"""Adapters of a divided model: they are whole on every rank, made for the whole model and drawn alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import AdapterError
from phyla.fast.shares import HeadShare


def changed_by_adapters(model: nn.Module) -> set[int]:
    """The ids of modules whose parameters adapters replace or change, rather than what goes in and out."""
    found: set[int] = set()
    for module in model.modules():
        adapters: Any = module._modules.get("adapters")
        for entry in getattr(adapters, "entries", {}).values():
            found |= {id(target) for target, _ in entry.targets} | {id(o.module) for o in entry.overlays}
    return found


def adding(model: Any, method: Callable[..., Any], given: tuple, named: dict[str, Any]) -> Any:
    """The result of add_adapter or load_adapter on a model whose parts seem whole meanwhile.

    Raises AdapterError for adapters that must read or change whole weights.
    """
    adapters = model._modules.get("adapters")
    before = set() if adapters is None else set(adapters.names())
    refusal = (
        f"the adapter must read or change whole weights of the base, but the model is divided over "
        f"{model.ranks.size} ranks: add it to the whole model, then divide that by fast.shard"
    )
    try:
        with whole_head(model), _heads_seen(model), _replaced(model, _blank):
            result = method(*given, **named)
    except torch.linalg.LinAlgError as error:
        raise AdapterError(refusal) from error
    adapters = model._modules["adapters"]
    divided = {id(m) for m in model.modules() if getattr(m, "spans", None)}
    for name in [n for n in adapters.names() if n not in before]:
        read = any(bool(p.isnan().any()) for p in adapters.get(name).parameters() if p.is_floating_point())
        if read or changed_by_adapters(model) & divided:
            model.delete_adapter(name)
            raise AdapterError(refusal)
    return result


def saving(model: Any, method: Callable[..., Any], given: tuple, named: dict[str, Any]) -> None:
    """Let the first rank write adapters and heads."""
    with whole_head(model):
        model.ranks.on_first(lambda: method(*given, **named))


@contextmanager
def whole_head(model: Any) -> Iterator[None]:
    """Inside, the parameters of the model's head are whole, and may be given other values."""
    head = model._modules.get("head")
    ids = set() if head is None else {id(p) for p in head.parameters()}
    with _replaced(model, lambda own, span: span.joined(own.detach()).clone(), ids, keep=True):
        yield


@contextmanager
def _heads_seen(model: nn.Module) -> Iterator[None]:
    """Inside, attentions have all heads."""
    shares: list[Any] = [m for m in model.modules() if isinstance(m, HeadShare)]
    counts = [(m.num_heads, m.num_kv_heads) for m in shares]
    try:
        for module in shares:
            module.num_heads, module.num_kv_heads = module.every
        yield
    finally:
        for module, (heads, groups) in zip(shares, counts, strict=True):
            module.num_heads, module.num_kv_heads = heads, groups


def _blank(own: Tensor, span: Any) -> Tensor:
    """NaN in the shape of the whole, in the memory of one number."""
    return torch.full((), torch.nan, dtype=own.dtype, device=own.device).expand(span.shape(own.shape))


@contextmanager
def _replaced(
    model: nn.Module, make: Callable[[Tensor, Any], Tensor], ids: set[int] | None = None, keep: bool = False
) -> Iterator[None]:
    """Inside, others stand for divided parameters (those of the ids); keep: values that they got stay."""
    held: list[tuple[Any, str, Any]] = []
    seen: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, span in getattr(module, "spans", {}).items():
            own: Any = module._parameters[name]
            if own.shape == span.shape(own.shape) or (ids is not None and id(own) not in ids):
                continue
            if id(own) not in seen:
                seen[id(own)] = nn.Parameter(make(own, span), own.requires_grad)
            held.append((module, name, own))
    try:
        for module, name, own in held:
            module._parameters[name] = seen[id(own)]
        yield
    finally:
        for module, name, own in held:
            if keep:
                own.data.copy_(module.spans[name].cut(module._parameters[name].detach()))
            module._parameters[name] = own
