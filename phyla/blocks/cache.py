"""Memory between decoding steps: preallocated, owned by the mixers that write it."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from phyla.blocks.cache_layers import LayeredCache
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
            keys = self.made(k, (batch, heads, self.capacity, width))
            values = self.made(v, (batch, heads, self.capacity, v.shape[-1]))
        if old_keys is not None and old_values is not None:
            keys[:, :, :kept] = old_keys[:, :, drop : self.used].clone()
            values[:, :, :kept] = old_values[:, :, drop : self.used].clone()
        self.keys, self.values = keys, values
        self.first, self.used = self.first + drop, kept
        return keys, values

    def made(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Memory for keys or values of this shape."""
        return like.new_empty(tuple(shape))

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

    def read(self) -> tuple[Tensor, Tensor] | None:
        """The keys and values that are kept, (B, G, K, E) each; None before the first."""
        if self.keys is None or self.values is None:
            return None
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if length < self.first:
            raise ArgumentError(
                f"a sliding cache can be cut back to {self.first} positions at most, "
                f"but {length} was asked for"
            )
        self.used = max(0, min(self.used, length - self.first))

    def shift(self, by: Sequence[int]) -> None:
        """Move the positions of each row back by as many slots; what comes free in front holds anything."""
        for row, places in enumerate(by):
            for kept in (self.keys, self.values):
                if places and kept is not None:
                    kept[row, :, places : self.used] = kept[row, :, : self.used - places].clone()

    def forget(self, count: int) -> None:
        """Drop the first `count` slots of all rows; the others get smaller numbers."""
        drop = min(max(0, count - self.first), self.used)
        for kept in (self.keys, self.values):
            if drop and kept is not None:
                kept[:, :, : self.used - drop] = kept[:, :, drop : self.used].clone()
        self.first, self.used = max(0, self.first - count), self.used - drop


class CrossCache:
    """Keys and values of the encoder's states (B, G, K, E), computed at the first step, read at each."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)

    def read(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values (B, G, K, E) of the encoder's states, once there are any."""
        return None if self.keys is None or self.values is None else (self.keys, self.values)

    def truncate(self, length: int) -> None:
        """Nothing: the encoder's states do not depend on the decoder's length."""

    def shift(self, by: Sequence[int]) -> None:
        """Nothing, likewise."""

    def forget(self, count: int) -> None:
        """Nothing, likewise."""


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

    def shift(self, by: Sequence[int]) -> None:
        """Nothing: a state has no positions. Who moves rows puts back the states that fit."""

    def forget(self, count: int) -> None:
        """Nothing, likewise."""

    def truncate(self, length: int) -> None:
        raise ArgumentError(
            "the state of a recurrent layer cannot be cut back to an earlier position; keep a copy"
        )


class Cache(LayeredCache):
    """All memory of one batch in one model: a slot for each mixer that keeps one, and the positions seen.

    It is what models return and take as `past_key_values`. One without slots takes those of the model that it
    is first used with; what was put into it before goes there.
    """

    flat = False  # several texts side by side in one row: see blocks/flat.py
    # read whole at every length, and `visible(rule)` says what counts: see generation/captured.py
    fixed = False
    room = 1  # positions to make room for at least

    def __init__(self, slots: list[Any] | None = None, batch: int = 0) -> None:
        self.slots: list[Any] = slots or []
        self.batch, self.length, self.bound = batch, 0, bool(slots)

    @classmethod
    def of(cls, model: nn.Module, batch: int, length: int) -> "Cache":
        """An empty cache for the mixers of `model`, with room for `length` positions of `batch` rows."""
        slots = [mixer.new_cache(batch, length) for mixer in _keepers(model)]
        return cls(slots, batch)

    def bind(self, model: Any, batch: int, length: int) -> None:
        """Take the slots of `model`, if this is the first use: rows `batch`, room for `length` positions.

        Raises ArgumentError for a model that keeps no memory, or another kind, or other layers than were
        filled before.
        """
        if self.bound:
            return
        made = model.new_cache(batch, max(length + self.length, self.room))
        if type(made) is not Cache:
            raise ArgumentError(
                f"a {type(self).__name__} needs a model whose layers keep memory of the common kind, but "
                f"{type(model).__name__} {'keeps none' if made is None else 'has one of its own'}"
            )
        filled = self.places()
        self.slots = [self.shape(s, m) for s, m in zip(made.slots, _keepers(model), strict=True)]
        self.bound, self.batch = True, self.batch or batch
        _link(self.slots)
        if not filled:
            return
        places = self.places()
        if len(places) != len(filled):
            raise ArgumentError(
                f"past_key_values holds {len(filled)} layers, but {type(model).__name__} has {len(places)}"
            )
        for (old, aside), (new, cross) in zip(filled, places, strict=True):
            kept, seen = old.read(), None if aside is None else aside.read()
            if kept is not None:
                new.update(*kept)
            if seen is not None and cross is not None:
                cross.keys, cross.values = seen

    def shape(self, slot: Any, mixer: Any) -> Any:
        """The slot that this kind of cache keeps for a mixer, from the model's own."""
        return slot

    def places(self) -> list[tuple[Any, Any]]:
        """The slots of each layer: its own, and that of its cross-attention or None."""
        found: list[tuple[Any, Any]] = []
        for slot in self.slots:
            aside = isinstance(slot, CrossCache) and found and not isinstance(found[-1][0], CrossCache)
            if aside and found[-1][1] is None:
                found[-1] = (found[-1][0], slot)
            elif slot is not None:
                found.append((slot, None))
        return found

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Positions seen so far (public name of `length`)."""
        return self.length

    def get_max_cache_shape(self) -> int | None:
        """The positions that this kind of cache makes room for, or None where it grows."""
        return None

    @property
    def seen_tokens(self) -> int:
        """An older public name of `length`."""
        return self.length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, G, S, E) of a layer; returns all that the layer keeps."""
        if not self.bound and layer_idx == len(self.slots):
            self.slots.append(KVCache(len(key_states), key_states.shape[2]))
            self.batch = len(key_states)
        places = self.places()
        if not 0 <= layer_idx < len(places):
            raise ArgumentError(f"layer_idx must be below {len(places)} or the next, but is {layer_idx}")
        keys, values, _ = places[layer_idx][0].update(key_states, value_states)
        if layer_idx == 0:
            self.length += key_states.shape[2]
        return keys, values

    def __len__(self) -> int:
        """Layers that keep memory."""
        return len(self.places())

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, layer: int) -> tuple[Tensor, ...]:
        """Keys and values of a layer, then those of its cross-attention where it has one."""
        places = self.places()
        if not -len(places) <= layer < len(places):
            raise IndexError(f"the cache has {len(places)} layers, but layer {layer} was asked for")
        return tuple(t for slot in places[layer] for t in _read(slot))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[i] for i in range(len(self)))

    @property
    def key_cache(self) -> list[Tensor]:
        """The keys (B, G, K, E) of each layer that has any."""
        return [kept[0] for kept in self if kept]

    @property
    def value_cache(self) -> list[Tensor]:
        """The values (B, G, K, E) of each layer that has any."""
        return [kept[1] for kept in self if kept]

    def to_legacy_cache(self) -> tuple[tuple[Tensor, ...], ...]:
        """(keys, values) of each layer, with those of its cross-attention behind them."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Sequence[Sequence[Tensor]] | None = None) -> "Cache":
        """A cache with the (keys, values[, cross keys, cross values]) of each layer."""
        cache = cls()
        for number, kept in enumerate(past_key_values or ()):
            if len(kept) not in (2, 4) or any(not isinstance(t, Tensor) or t.dim() != 4 for t in kept):
                raise ArgumentError(
                    "past_key_values must hold (keys, values) of each layer, 4-dimensional, or with those of "
                    f"its cross-attention behind them, but layer {number} is not so"
                )
            slot = KVCache(len(kept[0]), kept[0].shape[2])
            slot.update(kept[0], kept[1])
            cache.slots.append(slot)
            if len(kept) == 4:
                cross = CrossCache()
                cross.keys, cross.values = kept[2], kept[3]
                cache.slots.append(cross)
            if number == 0:
                cache.batch, cache.length = len(kept[0]), kept[0].shape[2]
        return cache

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

    def fork(self, rows: int | Tensor | None = None) -> "Cache":
        """A copy that goes its own way; `rows` times as many rows, side by side, or those of an index."""
        made = copy.copy(self)
        for slot in self.slots:
            if hasattr(slot, "settle"):
                slot.settle()
        made.slots = [_copied(slot) for slot in self.slots]
        _link(made.slots)
        if isinstance(rows, Tensor):
            made.reorder(rows)
        elif rows is not None and rows != 1:
            made.repeat(rows)
        return made

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on (speculation, re-use of a prefix)."""
        if not 0 <= length <= self.length:
            raise ArgumentError(f"a cache of {self.length} positions cannot be cut to {length}")
        for slot in self.slots:
            if slot is not None:
                slot.truncate(length)
        self.length = length

    @property
    def shifts(self) -> bool:
        """Whether each row can be moved by itself: keys and values can, lists of states cannot."""
        return all(slot is None or getattr(slot, "shift", None) is not None for slot in self.slots)

    def shift(self, by: Sequence[int]) -> None:
        """Move each row back by a number of slots of its own; a mask has to hide what comes free in front."""
        if any(by):
            for slot in self.slots:
                if slot is not None:
                    slot.shift(by)

    def forget(self, count: int) -> None:
        """Drop the first `count` positions of all rows, which a mask has hidden."""
        for slot in self.slots:
            if slot is not None:
                slot.forget(count)
        self.length -= count

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` positions at most, or all but the last -max_length."""
        length = self.length + max_length if max_length < 0 else min(max_length, self.length)
        self.truncate(length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` (a public name of `reorder`)."""
        self.reorder(indices)

    def reset(self) -> None:
        """Forget everything; the next use makes room anew."""
        self.slots, self.length, self.bound, self.batch = [], 0, False, 0

    reorder_cache = reorder
    batch_repeat_interleave = repeat


def _link(slots: list[Any]) -> None:
    """Let slots that work with each other know those of their cache."""
    first = next((slot for slot in slots if hasattr(slot, "link")), None)
    if first is not None:
        first.link(slots)


def _copied(value: Any) -> Any:
    """A slot, or a part of one, with tensors of its own; modules stay shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(part) for part in value)
    if isinstance(value, nn.Module) or not hasattr(value, "__dict__"):
        return value
    made = copy.copy(value)
    made.__dict__.update({name: _copied(part) for name, part in value.__dict__.items()})
    return made


def _read(slot: Any) -> tuple[Tensor, ...]:
    """Keys and values of a slot; nothing where it is empty or keeps another kind of memory."""
    read = getattr(slot, "read", None)
    return (None if read is None else read()) or ()


def number_slots(model: nn.Module) -> None:
    """Give every mixer that keeps a cache its number, in module order (the order of `Cache.of`)."""
    for index, mixer in enumerate(_keepers(model)):
        mixer.slot = index


def _keepers(model: nn.Module) -> list[Any]:
    """The mixers that keep memory between calls, in module order."""
    return [module for module in model.modules() if getattr(module, "caches", False)]
