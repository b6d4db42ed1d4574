"""Memory between decoding steps: preallocated, owned by the mixers that write it."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError


@runtime_checkable
class Slot(Protocol):
    """What the cache of one mixer can do; rows are the first dimension of all its tensors."""

    def reorder(self, index: Tensor) -> None: ...
    def truncate(self, length: int) -> None: ...


class KVCache:
    """Keys and values of one self-attention, (B, G, capacity, E), written in place.

    With a window the oldest positions are dropped once nobody can attend to them: the buffer holds two
    windows, and when it is full the newer part moves to the front, so that a step costs the same on average
    at any length.
    """

    def __init__(self, batch: int, length: int, window: int | None = None) -> None:
        self.batch, self.window = batch, window
        self.capacity = max(length, 1) if window is None else max(1, min(length, 2 * window))
        self.first = self.used = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def _reserve(self, k: Tensor, v: Tensor, extra: int) -> tuple[Tensor, Tensor]:
        """The keys and values in use, with room for `extra` more positions behind them."""
        keys, values = old_keys, old_values = self.keys, self.values
        if keys is not None and values is not None and self.used + extra <= self.capacity:
            return keys, values
        drop = 0
        if self.window is not None and old_keys is not None:
            drop = max(0, self.used - (self.window - 1))
        kept = self.used - drop
        need = kept + extra
        if keys is None or values is None or need > self.capacity:
            if old_keys is not None:
                need = max(need, self.capacity * 2 if self.window is None else need)
            self.capacity = max(self.capacity, need)
            batch, heads, _, width = k.shape
            keys = k.new_empty(batch, heads, self.capacity, width)
            values = v.new_empty(batch, heads, self.capacity, v.shape[-1])
        if old_keys is not None and old_values is not None:
            keys[:, :, :kept] = old_keys[:, :, drop : self.used].clone()
            values[:, :, :kept] = old_values[:, :, drop : self.used].clone()
        self.keys, self.values = keys, values
        self.first, self.used = self.first + drop, kept
        return keys, values

    def room(self, new: int, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values with room for `new` positions behind those that are used.

        like: (B, G, any, E), what an empty cache is made after.
        """
        keys, values = (like if t is None else t for t in (self.keys, self.values))
        if keys is None or values is None:
            raise ArgumentError("an empty cache makes room for what it is shown: pass `like`")
        return self._reserve(keys, values, new)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Append new keys and values (B, G, S, E); returns all that are kept and the slot of the first."""
        new = k.shape[2]
        keys, values = self._reserve(k, v, new)
        end = self.used + new
        keys[:, :, self.used : end] = k
        values[:, :, self.used : end] = v
        self.used = end
        return keys[:, :, :end], values[:, :, :end], self.first

    def reorder(self, index: Tensor) -> None:
        """Rows `index` of this cache, in that order (beams, batch selection, repetition)."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
        self.batch = len(index)

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if length < self.first:
            raise ArgumentError(
                f"a sliding cache can be cut back to {self.first} positions at most, "
                f"but {length} was asked for"
            )
        self.used = max(0, min(self.used, length - self.first))


class CrossCache:
    """Keys and values of the encoder's states (B, G, K, E), computed at the first step, read at each."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)

    def truncate(self, length: int) -> None:
        """Nothing: the encoder's states do not depend on the decoder's length."""


class StateCache:
    """Named state tensors of a recurrent mixer, rows first; `set` replaces one."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    def set(self, name: str, value: Tensor) -> None:
        self.tensors[name] = value

    def reorder(self, index: Tensor) -> None:
        self.tensors = {
            name: value.index_select(0, index.to(value.device)) for name, value in self.tensors.items()
        }

    def truncate(self, length: int) -> None:
        raise ArgumentError(
            "the state of a recurrent layer cannot be cut back to an earlier position; keep a copy"
        )


class Cache:
    """All memory of one batch in one model: a slot for each mixer that keeps one, and the positions seen.

    It is what models return and take as `past_key_values`.
    """

    def __init__(self, slots: list[Slot | None], batch: int) -> None:
        self.slots, self.batch, self.length = slots, batch, 0

    @classmethod
    def of(cls, model: nn.Module, batch: int, length: int) -> "Cache":
        """An empty cache for the mixers of `model`, with room for `length` positions of `batch` rows."""
        slots = [mixer.new_cache(batch, length) for mixer in _keepers(model)]
        return cls(slots, batch)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions seen so far (public name of `length`)."""
        return self.length

    def reorder(self, index: Tensor) -> None:
        """Keep the rows `index`, in that order; an index may repeat."""
        for slot in self.slots:
            if slot is not None:
                slot.reorder(index)
        self.batch = len(index)

    def repeat(self, times: int) -> None:
        """Each row `times` times, side by side."""
        keys = (getattr(slot, "keys", None) for slot in self.slots)
        device = next((k.device for k in keys if k is not None), None)
        self.reorder(torch.arange(self.batch, device=device).repeat_interleave(times))

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on (speculation, re-use of a prefix)."""
        if not 0 <= length <= self.length:
            raise ArgumentError(f"a cache of {self.length} positions cannot be cut to {length}")
        for slot in self.slots:
            if slot is not None:
                slot.truncate(length)
        self.length = length

    crop = truncate
    reorder_cache = reorder
    batch_repeat_interleave = repeat


def number_slots(model: nn.Module) -> None:
    """Give every mixer that keeps a cache its number, in module order (the order of `Cache.of`)."""
    for index, mixer in enumerate(_keepers(model)):
        mixer.slot = index


def _keepers(model: nn.Module) -> list[Any]:
    """The mixers that keep memory between calls, in module order."""
    return [module for module in model.modules() if getattr(module, "caches", False)]
