"""The public kinds of cache: made without a model, bound to one at the first call."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import Cache, CrossCache, KVCache
from phyla.blocks.position import Rotary
from phyla.errors import ArgumentError, GenerationError
from phyla.generation.caches.float8 import Float8KV
from phyla.generation.caches.offloaded import OffloadedKV
from phyla.generation.caches.quantized import QuantizedCacheConfig, QuantizedKV, read_settings
from phyla.generation.caches.sinks import SinkKV


class DynamicCache(Cache):
    """Grows with the text: `DynamicCache()`; layers that slide keep their windows alone.

    config: for the public call alone. offloading: as OffloadedCache, all layers or those that do not slide.
    """

    offloading = offload_only_non_sliding = False

    def __init__(
        self, _distributed_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None, config: Any = None,
        offloading: bool = False, offload_only_non_sliding: bool = False,
        ddp_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        given = _distributed_cache_data if ddp_cache_data is None else ddp_cache_data
        for number, (keys, values) in enumerate(given or ()):
            self.update(keys, values, number)
        if offloading:
            self.offloading, self.offload_only_non_sliding = True, offload_only_non_sliding

    def shape(self, slot: Any, mixer: Any) -> Any:
        """An offloaded slot where the model has keys and values, if they are offloaded."""
        return _offloaded(slot, self)

    def batch_split(self, full_batch_size: int, split_size: int) -> list[Cache]:
        """Caches of `split_size` rows each, in order."""
        if self.batch != full_batch_size or split_size < 1:
            raise ArgumentError(
                f"full_batch_size must be the rows of the cache ({self.batch}), split_size at least 1, but "
                f"they are {full_batch_size} and {split_size}"
            )
        rows = (range(i, min(i + split_size, self.batch)) for i in range(0, self.batch, split_size))
        return [self.fork(torch.tensor(list(part))) for part in rows]


class StaticCache(Cache):
    """Room for `max_cache_len` positions is made at once: no memory moves while a text grows in it.

    config, batch_size (max_batch_size), device, dtype: public arguments; the model's own decide. offloading:
    as OffloadedStaticCache, those layers that do not slide, or all.
    """

    offloading = False
    offload_only_non_sliding = True

    def __init__(
        self, config: Any = None, batch_size: int | None = None, max_cache_len: int | None = None,
        device: Any = None, dtype: Any = None, max_batch_size: int | None = None,
        layer_device_map: Any = None, offloading: bool = False, offload_only_non_sliding: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if offloading:
            self.offloading, self.offload_only_non_sliding = True, offload_only_non_sliding
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        longest = getattr(text, "max_position_embeddings", None) or 1
        self.room = longest if max_cache_len is None else max_cache_len
        if self.room < 1:
            raise ArgumentError(f"max_cache_len must be at least 1, but is {max_cache_len}")
        self.max_batch_size = batch_size if batch_size is not None else max_batch_size

    def shape(self, slot: Any, mixer: Any) -> Any:
        """An offloaded slot where the model has keys and values, if they are offloaded."""
        return _offloaded(slot, self)

    def get_max_cache_shape(self) -> int:
        """The positions that there is room for."""
        return self.room

    @property
    def max_cache_len(self) -> int:
        """A public name of the room."""
        return self.room


class SlidingWindowCache(StaticCache):
    """A static cache whose layers slide, as the model has them."""


class HybridCache(StaticCache):
    """A static cache of layers that slide and others, as the model has them."""


class MambaCache(StaticCache):
    """The states of recurrent layers."""

    def __init__(
        self, config: Any = None, batch_size: int | None = None, dtype: Any = None, device: Any = None,
        max_batch_size: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, batch_size, 1, device, dtype, max_batch_size)

    @property
    def conv_states(self) -> list[Tensor]:
        """The last inputs of each convolution, (B, I, taps - 1)."""
        return self._states("conv")

    @property
    def ssm_states(self) -> list[Tensor]:
        """The state of each scan."""
        return self._states("state")

    def _states(self, name: str) -> list[Tensor]:
        found = [getattr(slot, "tensors", {}).get(name) for slot in self.slots]
        return [t for t in found if t is not None]


class OffloadedCache(DynamicCache):
    """Keys and values lie in main memory; those of the next layer come to the device while one computes."""

    offloading = True


class OffloadedStaticCache(StaticCache):
    """As OffloadedCache, with room made at once."""

    offloading, offload_only_non_sliding = True, False

    def __init__(
        self, config: Any = None, max_batch_size: int | None = None, max_cache_len: int | None = None,
        device: Any = None, dtype: Any = None, offload_device: Any = "cpu", layer_device_map: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(config, max_batch_size, max_cache_len, device, dtype)
        if str(offload_device) != "cpu":
            raise ArgumentError(f"offload_device must be cpu, but is {offload_device}")


def _offloaded(slot: Any, owner: DynamicCache | StaticCache) -> Any:
    """The slot for a layer of a cache that may be offloaded."""
    stays = type(slot) is not KVCache or (slot.window is not None and owner.offload_only_non_sliding)
    return slot if stays or not owner.offloading else OffloadedKV(slot.batch, slot.capacity, slot.window)


class QuantizedCache(DynamicCache):
    """Keys and values in few bits; see QuantizedCacheConfig.

    `QuantizedCache(settings)`, or as in newer releases `QuantizedCache(backend, config, nbits=..., ...)` with
    the model's config.
    """

    def __init__(
        self, cache_config: QuantizedCacheConfig | dict[str, Any] | str | None = None, config: Any = None,
        **settings: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(cache_config, str):
            self.config = read_settings({"backend": cache_config, **settings})
        elif settings:
            raise ArgumentError(
                f"{sorted(settings)} go with the name of a backend: QuantizedCache('quanto', ...)"
            )
        else:
            self.config = read_settings(cache_config)

    def shape(self, slot: Any, mixer: Any) -> Any:
        """A packed slot where the model has keys and values."""
        if type(slot) is not KVCache:
            return slot
        if self.config.backend == "fp8":
            return Float8KV(slot.batch, slot.capacity, slot.window)
        return QuantizedKV(self.config, slot.batch, slot.window)


class QuantoQuantizedCache(QuantizedCache):
    """A public name: phyla packs by itself, whatever the backend is called."""


class HQQQuantizedCache(QuantizedCache):
    """A public name: phyla packs by itself, whatever the backend is called."""


class SinkCache(Cache):
    """The first `num_sink_tokens` positions and the newest, `window_length` in all; one unpadded text a row.

    Xiao et al. 2023, arXiv:2309.17453.
    """

    def __init__(self, window_length: int, num_sink_tokens: int) -> None:
        super().__init__()
        if not 0 <= num_sink_tokens < window_length:
            raise ArgumentError(
                f"num_sink_tokens must be at least 0 and below window_length ({window_length}), but is "
                f"{num_sink_tokens}"
            )
        self.window_length, self.num_sink_tokens = window_length, num_sink_tokens

    def shape(self, slot: Any, mixer: Any) -> Any:
        """A slot that drops the middle; ArgumentError where angles depend on the length of the text."""
        if type(slot) is not KVCache or slot.window is not None:
            return slot
        position = mixer.position
        if isinstance(position, Rotary) and position.table.depends_on_length:
            raise ArgumentError("a SinkCache needs rotary angles that do not change with the text's length")
        return SinkKV(slot.batch, self.window_length, self.num_sink_tokens, position)

    def get_max_cache_shape(self) -> int:
        """The positions that are kept at most."""
        return self.window_length


class EncoderDecoderCache(Cache):
    """Two caches as one: of the decoder's own positions, and of the encoder's states."""

    def __init__(self, self_attention_cache: Cache, cross_attention_cache: Cache | None = None) -> None:
        super().__init__()
        self.own = self_attention_cache
        self.room = self_attention_cache.room
        crossed = [] if cross_attention_cache is None else cross_attention_cache.places()
        for number, (slot, _) in enumerate(self_attention_cache.places()):
            self.slots.append(slot)
            seen = crossed[number][0].read() if number < len(crossed) else None
            if seen is not None:
                cross = CrossCache()
                cross.keys, cross.values = seen
                self.slots.append(cross)
        self.batch, self.length = self_attention_cache.batch, self_attention_cache.length

    def shape(self, slot: Any, mixer: Any) -> Any:
        """As the cache of the decoder's own positions has it."""
        return self.own.shape(slot, mixer)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any = None) -> "EncoderDecoderCache":
        """A cache with (keys, values, cross keys, cross values) of each layer."""
        made = cls(DynamicCache())
        read = Cache.from_legacy_cache(past_key_values)
        made.slots, made.batch, made.length = read.slots, read.batch, read.length
        return made

    @property
    def self_attention_cache(self) -> Cache:
        """The decoder's own part, which shares its memory with this."""
        return self._part([slot for slot in self.slots if not isinstance(slot, CrossCache)])

    @property
    def cross_attention_cache(self) -> Cache:
        """The encoder's part, which shares its memory with this."""
        return self._part([slot for slot in self.slots if isinstance(slot, CrossCache)])

    @property
    def is_updated(self) -> dict[int, bool]:
        """Whether the encoder's states of each layer are there."""
        crossed = [cross for _, cross in self.places()]
        return {i: cross is not None and cross.keys is not None for i, cross in enumerate(crossed)}

    def _part(self, slots: list[Any]) -> Cache:
        part = Cache(slots, self.batch)
        part.length = self.length
        return part


KINDS: dict[str, type[Cache]] = {
    "dynamic": DynamicCache, "static": StaticCache, "sliding_window": SlidingWindowCache,
    "hybrid": HybridCache, "mamba": MambaCache, "offloaded": OffloadedCache,
    "offloaded_static": OffloadedStaticCache, "quantized": QuantizedCache,
}  # fmt: skip
IMPLEMENTATIONS = tuple(KINDS)


def new_cache(model: Any, kind: str | None, settings: Any, batch: int, length: int) -> Any:
    """An empty memory of a public kind for `length` positions of `batch` rows; None where the model keeps
    none.
    """
    made: Any = model.new_cache(batch, length)
    if kind is None or type(made) is not Cache:
        return made
    cache = QuantizedCache(settings) if kind == "quantized" else _of(KINDS[kind], length, settings)
    cache.bind(model, batch, length)
    return cache


def _of(kind: type[Cache], length: int, settings: Any) -> Cache:
    """A cache of a kind; `settings` may give max_cache_len for those that make room at once."""
    asked = dict(settings.to_dict() if hasattr(settings, "to_dict") else settings or {})
    if issubclass(kind, MambaCache) or not issubclass(kind, StaticCache):
        return kind()
    asked = {name: value for name, value in asked.items() if name not in ("batch_size", "device")}
    room = asked.pop("max_cache_len", length)
    if asked:
        raise GenerationError(f"a static cache takes max_cache_len in cache_config, but got {sorted(asked)}")
    return kind(max_cache_len=max(room, length))
