"""One layer of a cache as code written for newer public releases reads it: `cache.layers[i].keys`."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from phyla.errors import ArgumentError

NO_BOUND = -1  # the public word for a layer that grows


class CacheLayer:
    """A view of one layer's memory: what is asked of it, its slot answers."""

    def __init__(self, owner: Any, number: int, slot: Any) -> None:
        self.owner, self.number, self.slot = owner, number, slot

    def _read(self) -> tuple[Tensor, Tensor] | None:
        read = getattr(self.slot, "read", None)
        return None if read is None else read()

    @property
    def keys(self) -> Tensor | None:
        """The keys (B, G, K, E) that are kept; None before the first, and of layers of another kind."""
        kept = self._read()
        return None if kept is None else kept[0]

    @property
    def values(self) -> Tensor | None:
        """The values (B, G, K, E), likewise."""
        kept = self._read()
        return None if kept is None else kept[1]

    @property
    def conv_states(self) -> Tensor | None:
        """The last inputs of a recurrent layer's convolution."""
        return getattr(self.slot, "tensors", {}).get("conv")

    @property
    def recurrent_states(self) -> Tensor | None:
        """The state of a recurrent layer's scan."""
        return getattr(self.slot, "tensors", {}).get("state")

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the keys."""
        return None if self.keys is None else self.keys.dtype

    @property
    def device(self) -> torch.device | None:
        """Where the keys are given."""
        return None if self.keys is None else self.keys.device

    @property
    def is_initialized(self) -> bool:
        """Whether there is anything in it."""
        return self._read() is not None or bool(getattr(self.slot, "tensors", None))

    @property
    def is_linear(self) -> bool:
        """Whether the layer keeps states in place of positions."""
        return hasattr(self.slot, "tensors")

    @property
    def is_sliding(self) -> bool:
        """Whether the layer keeps its newest positions alone."""
        return getattr(self.slot, "window", None) is not None

    @property
    def sliding_window(self) -> int | None:
        """How many positions a query sees of a layer that slides."""
        return getattr(self.slot, "window", None)

    @property
    def is_compileable(self) -> bool:
        """Whether room is made at once (public name): steps can be compiled for it."""
        return self.is_linear or self.owner.room > 1

    def get_seq_length(self) -> int:
        """Positions seen so far, those that were dropped too; of an encoder's states their number."""
        if hasattr(self.slot, "update") or self.is_linear:
            return self.owner.length
        return 0 if self.keys is None else self.keys.shape[2]

    def get_max_length(self) -> int:
        """The positions kept at most: the window of a layer that slides, the room of a static one, or -1."""
        if self.is_linear:
            return NO_BOUND
        if self.sliding_window is not None:
            return self.sliding_window
        return self.owner.room if self.owner.room > 1 else NO_BOUND

    get_max_cache_shape = get_max_length

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """How many keys `query_length` new positions will be given, and the number of the first.

        query_length: as newer releases pass it, or the positions (S) themselves, as older ones do.
        """
        new = query_length.shape[0] if isinstance(query_length, Tensor) else query_length
        slot = self.slot
        if not hasattr(slot, "update"):
            return self.get_seq_length(), 0
        first, used = getattr(slot, "first", 0), self.owner.length - getattr(slot, "first", 0)
        capacity = getattr(slot, "capacity", None)
        if self.sliding_window is not None and capacity is not None and used + new > capacity:
            drop = max(0, used - (self.sliding_window - 1))
            first, used = first + drop, used - drop
        return used + new, first

    def update(self, key_states: Tensor, value_states: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """As `Cache.update` for this layer."""
        return self.owner.update(key_states, value_states, self.number)

    def crop(self, max_length: int) -> None:
        """Keep the first positions of this layer alone; the others of the cache go with `Cache.crop`."""
        self.slot.truncate(self.owner.length + max_length if max_length < 0 else max_length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of this layer in another order."""
        self.slot.reorder(beam_idx)

    batch_select_indices = reorder_cache


class CacheLayers(Sequence[CacheLayer]):
    """The layers of a cache that keep memory, in order."""

    def __init__(self, owner: Any, slots: list[Any]) -> None:
        self.owner, self.slots = owner, slots

    @overload
    def __getitem__(self, index: int) -> CacheLayer: ...
    @overload
    def __getitem__(self, index: slice) -> list[CacheLayer]: ...
    def __getitem__(self, index: int | slice) -> CacheLayer | list[CacheLayer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"the cache has {len(self)} layers, but layer {index} was asked for")
        return CacheLayer(self.owner, index % len(self), self.slots[index])

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[CacheLayer]:
        return (self[i] for i in range(len(self)))


class LayeredCache:
    """What newer public releases ask a cache for; the cache itself is in blocks/cache.py."""

    length: int
    batch: int
    room: int

    def places(self) -> list[tuple[Any, Any]]:
        """The slots of each layer: its own, and that of its cross-attention or None."""
        raise NotImplementedError

    @property
    def layers(self) -> CacheLayers:
        """The layers that keep memory, each with `keys`, `values` and its sizes."""
        return CacheLayers(self, [own for own, _ in self.places()])

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """The most positions that a layer, or any of them, keeps; -1 where they grow."""
        if layer_idx is not None:
            return self.layers[layer_idx].get_max_length() if layer_idx < len(self.layers) else NO_BOUND
        return max((layer.get_max_length() for layer in self.layers), default=NO_BOUND)

    def get_mask_sizes(self, query_length: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """How many keys a layer will give `query_length` new positions, and the number of the first."""
        layers = self.layers
        if layer_idx >= len(layers):
            new = query_length.shape[0] if isinstance(query_length, Tensor) else query_length
            return self.length + new, 0
        if layers[layer_idx].is_linear:
            attending = [i for i, layer in enumerate(layers) if not layer.is_linear]
            if not attending or layer_idx:
                raise ArgumentError(f"layer {layer_idx} keeps a state, which has no positions")
            layer_idx = attending[0]
        return layers[layer_idx].get_mask_sizes(query_length)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The number of the next position."""
        return self.length

    def has_previous_state(self, layer_idx: int | None = None) -> bool:
        """Whether a recurrent layer, or the last of them, has a state."""
        states = [layer for layer in self.layers if layer.is_linear]
        layer = self.layers[layer_idx] if layer_idx is not None else states[-1] if states else None
        if layer is None or not layer.is_linear:
            raise ArgumentError("has_previous_state asks for a recurrent layer, but there is none")
        return layer.is_initialized

    @property
    def batch_size(self) -> int:
        """The rows (public name of `batch`), or -1 before the first."""
        return self.batch or NO_BOUND

    @property
    def is_compileable(self) -> bool:
        """Whether all layers make room at once."""
        return bool(len(self.layers)) and all(layer.is_compileable for layer in self.layers)

    @property
    def is_initialized(self) -> bool:
        """Whether all layers hold something."""
        return bool(len(self.layers)) and all(layer.is_initialized for layer in self.layers)

    @property
    def is_croppable(self) -> bool:
        """Whether it can be cut back: keys and values can, states cannot."""
        return not any(self.is_linear)

    @property
    def is_sliding(self) -> list[bool]:
        """Which layers keep their newest positions alone."""
        return [layer.is_sliding for layer in self.layers]

    @property
    def is_linear(self) -> list[bool]:
        """Which layers keep states in place of positions."""
        return [layer.is_linear for layer in self.layers]
