"""What the running call of a model with adapters is asked to tell, and what it has told so far."""

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar, Token
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from phyla.adapters.fusion import Fusion
from phyla.adapters.places import Place

Scores = dict[str, dict[int, dict[str, np.ndarray]]]  # adapter or fusion -> layer -> location
_LOCATIONS = {
    "attn": "mh_adapter", "cross": "cross_adapter", "ffn": "output_adapter",
    "up": "intermediate_lora", "gate": "intermediate_lora", "down": "output_lora",
}  # fmt: skip


class ForwardContext(AbstractContextManager):
    """One call: its arguments for adapters as attributes, and the scores recorded while it runs.

    Every call of a model with adapters has one; `get_context()` gives the innermost to custom heads.
    """

    context_args: ClassVar[tuple[str, ...]] = (
        "output_adapter_gating_scores",
        "output_adapter_fusion_attentions",
        "adapter_input_parallelized",
        "task_ids",
    )
    context_attributes: ClassVar[tuple[str, ...]] = ("adapter_gating_scores", "adapter_fusion_attentions")
    running: ClassVar[ContextVar[tuple["ForwardContext", ...]]] = ContextVar("forward_context", default=())

    def __init__(self, model: nn.Module, *args: Any, **named: Any) -> None:
        self.model = model
        for name in self.context_args:
            setattr(self, name, named.get(name))
        self.adapter_gating_scores: Scores = defaultdict(dict)
        self.adapter_fusion_attentions: Scores = defaultdict(dict)
        self._token: Token | None = None
        self._watched = ExitStack()

    def __enter__(self) -> "ForwardContext":
        self._token = self.running.set((*self.running.get(), self))
        adapters: Any = self.model._modules.get("adapters")
        if adapters is not None:
            if self.asked("adapter_gating_scores"):
                self._watched.enter_context(_gates(adapters, self.adapter_gating_scores))
            if self.asked("adapter_fusion_attentions"):
                self._watched.enter_context(_shares(adapters, self.adapter_fusion_attentions))
        return self

    def __exit__(self, *error: Any) -> None:
        self._watched.close()
        assert self._token is not None
        self.running.reset(self._token)

    def asked(self, attribute: str) -> bool:
        """Whether the call's argument `output_<attribute>` is set."""
        return bool(getattr(self, f"output_{attribute}"))

    def told(self, result: Any) -> Any:
        """The result of the call with what was asked for: as keys of outputs, at the end of tuples."""
        for name in self.context_attributes:
            if not self.asked(name):
                continue
            found = dict(getattr(self, name))
            if isinstance(result, tuple):
                result = (*result, found)
            else:
                result[name] = found
        return result

    @classmethod
    def get_contexts(cls) -> list["ForwardContext"]:
        """The contexts of this thread, the outermost first."""
        return list(cls.running.get())

    @classmethod
    def get_context(cls) -> "ForwardContext | None":
        """The context of the innermost call, or None outside of calls."""
        return cls.running.get()[-1] if cls.running.get() else None

    @classmethod
    def wrap(cls, forward: Callable) -> Callable:
        """Decorator for the `forward` of a model of one's own: each call gets a context."""

        @functools.wraps(forward)
        def wrapped(model: nn.Module, *args: Any, **named: Any) -> Any:
            with cls(model, *args, **named) as context:
                rest = {k: v for k, v in named.items() if k not in cls.context_args}
                return context.told(forward(model, *args, **rest))

        return wrapped

    @classmethod
    def wrap_base(cls, forward: Callable) -> Callable:
        """As `wrap`, where no context is there yet."""
        made = cls.wrap(forward)

        @functools.wraps(forward)
        def wrapped(model: nn.Module, *args: Any, **named: Any) -> Any:
            return (made if cls.get_context() is None else forward)(model, *args, **named)

        return wrapped

    @classmethod
    def add_context_args_in_signature(cls, forward: Callable) -> inspect.Signature:
        """The signature of `forward` with the arguments that contexts take."""
        signature = inspect.signature(forward)
        old = list(signature.parameters.values())
        kinds = (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        )
        at = next((i for i, p in enumerate(old) if p.kind in kinds), len(old))
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        new = [
            inspect.Parameter(n, kind, default=None)
            for n in cls.context_args
            if n not in signature.parameters
        ]
        return signature.replace(parameters=[*old[:at], *new, *old[at:]])


@contextmanager
def _gates(adapters: Any, scores: Scores) -> Iterator[None]:
    """Record the gates of all adapters, (rows) at each location; several at one location side by side."""
    seen: dict[int, Any] = {}
    for entry in adapters.entries.values():
        for place, part in entry.items():
            gate = getattr(part, "gate", None)
            gate = getattr(gate, "blocks", gate)  # of several projections that files hold as one
            if isinstance(gate, nn.Module) and id(gate) not in seen:
                keep = functools.partial(
                    _keep_gate, scores, entry.name, place.layer, location(adapters, place)
                )
                seen[id(gate)] = gate.register_forward_hook(keep)
    try:
        yield
    finally:
        for handle in seen.values():
            handle.remove()


def _keep_gate(scores: Scores, name: str, layer: int, at: str, gate: Any, given: tuple, out: Tensor) -> None:
    value = torch.sigmoid(out.detach().float())
    value = value.mean(1) if value.dim() > 2 else value  # (B, columns)
    found = scores[name].setdefault(layer, {})
    columns = value.cpu().numpy()
    if at in found:
        columns = np.concatenate([found[at].reshape(len(columns), -1), columns], 1)
    found[at] = columns[:, 0] if columns.shape[1] == 1 else columns


@contextmanager
def _shares(adapters: Any, scores: Scores) -> Iterator[None]:
    """Record what share every adapter of a fusion has at each position: (rows, positions, adapters)."""
    watched: list[Fusion] = []
    where = {place.path: place for layer in adapters.where.layers for _, place in layer.branches()}
    for key, layers in adapters.fusions.items():
        for path, fusion in layers.items():
            place = where[path[1:].replace("\u2024", ".")]
            name, at = key[1:].replace("\u2024", "."), location(adapters, place)
            fusion.seen = functools.partial(_keep_shares, scores, name, place.layer, at)
            watched.append(fusion)
    try:
        yield
    finally:
        for fusion in watched:
            fusion.seen = None


def _keep_shares(scores: Scores, name: str, layer: int, at: str, shares: Tensor) -> None:
    scores[name].setdefault(layer, {})[at] = shares.detach().float().cpu().numpy()


def location(adapters: Any, place: Place) -> str:
    """The public name of a place within its layer: output_adapter, selfattn_lora, self_prefix, ..."""
    if place.kind == "keys-values":
        return adapters.where.group(adapters.where.layers[place.layer], place.role)
    if place.kind == "linear":
        return _LOCATIONS.get(place.part, "selfattn_lora")
    return _LOCATIONS.get(place.role, place.kind)
