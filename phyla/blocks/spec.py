"""Frozen descriptions of blocks: calling a block class records the call; `make` turns it into modules."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

_HALVES = (torch.float16, torch.bfloat16)


class Spec:
    """A block class with its bound arguments: printable, comparable, hashable.

    It can be used again without tying weights. Fields are readable as attributes (`spec.width`);
    `but(**changes)` gives a changed copy.
    """

    __slots__ = ("args", "block", "branch")

    def __init__(
        self, block: type, args: Mapping[str, Any], branch: "Mapping[str, Any] | None" = None
    ) -> None:
        self.block, self.args, self.branch = block, dict(args), branch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self.args[name]
        except KeyError:
            raise AttributeError(
                f"{self.block.__name__} has no field {name!r}; it has {list(self.args)}"
            ) from None

    def but(self, **changes: Any) -> "Spec":
        """A copy with some arguments replaced."""
        unknown = set(changes) - set(self.args)
        if unknown:
            raise TypeError(f"{self.block.__name__} has no field {sorted(unknown)}; it has {list(self.args)}")
        return Spec(self.block, {**self.args, **changes}, self.branch)

    def make(self) -> nn.Module:
        """Build the module on the current default device (usually `meta`)."""
        variadic = _variadic(self.block)
        args = dict(self.args)
        extra = args.pop(variadic, {}) if variadic else {}
        module = type.__call__(self.block, **args, **extra)
        module.spec, module.signature = self, repr(self)
        if self.branch is not None:
            module.attach(**self.branch)
        return module

    def _key(self) -> tuple:
        branch = None if self.branch is None else tuple(sorted(self.branch.items()))
        return (self.block, _freeze(self.args), _freeze(branch))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return (
            f"{self.block.__name__}({', '.join(f'{k}={v!r}' for k, v in self.args.items() if v is not None)})"
        )


class _BlockMeta(type):
    """Turns `Block(...)` into a Spec; the module itself is made by `Spec.make`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Spec:
        bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)  # type: ignore[misc]
        bound.apply_defaults()
        fields = list(bound.arguments.items())[1:]
        return Spec(cls, dict(fields))


if TYPE_CHECKING:

    class _Described(Spec, nn.Module):
        """What type checkers, blind to the metaclass, take a block for: `B(...)` a Spec, `self` a module."""

        def __init__(self) -> None: ...

else:
    _Described = nn.Module


class Block(_Described, metaclass=_BlockMeta):
    """Base of all parts. `B(...)` is a frozen description, `make(B(...))` a module with that as `spec`."""

    spec: Spec
    signature: str  # text of the description: parts of equal text may share what one call computes

    def __init__(self) -> None:
        super().__init__()

    def _apply(self, fn: Any, recurse: bool = True) -> "Block":
        """As for any module, but computed tables stay float32: rounded angles would spoil long texts."""
        super()._apply(fn, recurse)
        tables = [(name, self._buffers[name]) for name in self._non_persistent_buffers_set]
        rounded = [(name, t) for name, t in tables if t is not None and t.dtype in _HALVES]
        for name, table in rounded:
            self._buffers[name] = table.float()
        if rounded and not rounded[0][1].is_meta:
            self.fill_buffers()
        return self

    def fill_buffers(self) -> None:
        """Recompute tables that no checkpoint holds (called once the module has left the meta device)."""

    def reset(self, std: float) -> bool:
        """Give own parameters fresh random values; False means the default rule of `init_weights` applies."""
        return False


def make(part: Any) -> Any:
    """Build a Spec (or a sequence of them); None and ready modules pass through."""
    if isinstance(part, Spec):
        return part.make()
    if isinstance(part, Sequence) and not isinstance(part, str):
        return nn.ModuleList(make(p) for p in part)
    return part


@cache
def _variadic(block: type) -> str | None:
    """Name of the `**branches` parameter of a block, if it has one."""
    for name, parameter in inspect.signature(block.__init__).parameters.items():  # type: ignore[misc]
        if parameter.kind is parameter.VAR_KEYWORD:
            return name
    return None


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(sorted((k, _freeze(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    return value
