"""A filled cache on disk: tensors in cache.safetensors, the rest in cache.json, for the same model."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import Cache, CrossCache, KVCache, StateCache, _keepers
from phyla.checkpoints.atomic import atomic_write, prepare_folder
from phyla.errors import (
    ArgumentError,
    CorruptFileError,
    GenerationError,
    MissingFileError,
    ShapeMismatchError,
)
from phyla.generation.caches.float8 import Float8KV
from phyla.generation.caches.quantized import QuantizedCacheConfig, QuantizedKV
from phyla.generation.caches.sinks import SinkKV

_TENSORS, _TABLE, _FORMAT = "cache.safetensors", "cache.json", 1


def save_cache(cache: Cache, folder: str | os.PathLike) -> None:
    """Write a cache, so that `load_cache` continues from it: what is kept, not the room around it.

    Packed keys and values are written whole. Raises GenerationError for memory that is no tensors and
    numbers.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    slots: list[Any] = []
    for number, slot in enumerate(cache.slots):
        kept = _tensors(slot)
        tensors |= {f"{number}.{name}": t.detach().contiguous().cpu() for name, t in kept.items()}
        entry = None if slot is None else {"kind": type(slot).__name__, "first": getattr(slot, "first", 0)}
        if isinstance(slot, QuantizedKV):
            asked = {k: v for k, v in slot.config.to_dict().items() if k not in ("compute_dtype", "device")}
            entry = {**(entry or {}), "config": asked}
        if isinstance(slot, SinkKV):
            entry = {**(entry or {}), "most": slot.most, "sinks": slot.sinks}
        if slot is not None and not isinstance(slot, _KNOWN):
            entry = {**(entry or {}), "numbers": _own(slot)[1]}
        slots.append(entry)
    table = {"format": _FORMAT, "rows": cache.batch, "length": cache.length, "slots": slots}
    place = Path(folder)
    prepare_folder(place)
    atomic_write(place / _TENSORS, save(tensors))
    atomic_write(place / _TABLE, json.dumps(table, indent=1).encode())


def load_cache(folder: str | os.PathLike, model: Any, room: int = 0) -> Cache:
    """The cache that `save_cache` wrote, for `model`, with `room` more positions ready.

    Raises MissingFileError, CorruptFileError, and ShapeMismatchError for a cache of another model.
    """
    place = Path(folder)
    table, tensors = _table(place / _TABLE), _read(place / _TENSORS)
    rows, length, slots = table["rows"], table["length"], table["slots"]
    cache = model.new_cache(rows, max(length + room, 1))
    if type(cache) is not Cache or len(cache.slots) != len(slots):
        found = "none" if cache is None else len(getattr(cache, "slots", []))
        raise ShapeMismatchError(
            f"{place} holds the memory of {len(slots)} mixers, but {type(model).__name__} has {found}"
        )
    mixers = _keepers(model)
    for number, (slot, entry) in enumerate(zip(cache.slots, slots, strict=True)):
        prefix = f"{number}."
        kept = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        kept = {name: t.to(model.device) for name, t in kept.items()}
        if (slot is None) != (entry is None):
            raise ShapeMismatchError(f"{place} and {type(model).__name__} differ in mixer {number}")
        if slot is not None:
            if entry.get("kind") == "SinkKV" and type(slot) is KVCache:
                position = getattr(mixers[number], "position", None)
                slot = SinkKV(slot.batch, int(entry["most"]), int(entry["sinks"]), position)
            cache.slots[number] = _filled(slot, entry, kept, f"{place}, mixer {number}")
    _check(cache, model, rows, place)
    cache.length = length
    return cache


# Slots that are read by their methods; others by what they hold.
_KNOWN: Any = (StateCache, KVCache, CrossCache, QuantizedKV, Float8KV)
# Kinds of slots that a cache puts in place of the model's own.
_PUT = {"OffloadedKV": "KVCache", "QuantizedKV": "KVCache", "Float8KV": "KVCache"}


def _own(slot: Any) -> tuple[dict[str, Tensor], dict[str, int | None]]:
    """The tensors and the numbers that a family's own kind of slot holds."""
    tensors = {name: t for name, t in vars(slot).items() if isinstance(t, Tensor)}
    numbers = {name: n for name, n in vars(slot).items() if name not in tensors}
    odd = [name for name, n in numbers.items() if n is not None and type(n) is not int]
    if odd:
        raise GenerationError(f"a cache with a {type(slot).__name__}, which holds {odd}, cannot be saved")
    return tensors, numbers


def _tensors(slot: Any) -> dict[str, Tensor]:
    if slot is None:
        return {}
    if isinstance(slot, StateCache):
        return slot.tensors
    if not isinstance(slot, _KNOWN):
        return _own(slot)[0]
    kept = slot.read()
    return {} if kept is None else dict(zip(("keys", "values"), kept, strict=True))


def _filled(slot: Any, entry: dict[str, Any], kept: dict[str, Tensor], where: str) -> Any:
    kind = entry.get("kind")
    expected = _PUT.get(str(kind), kind)
    if expected != type(slot).__name__:
        raise ShapeMismatchError(f"{where} holds a {kind}, but the model keeps a {type(slot).__name__} there")
    if isinstance(slot, StateCache):
        slot.tensors = kept
        return slot
    if not isinstance(slot, _KNOWN):
        return _refilled(slot, entry.get("numbers"), kept, where)
    if kind == "QuantizedKV":
        slot = QuantizedKV(QuantizedCacheConfig(**entry["config"]), slot.batch, slot.window)
    elif kind == "Float8KV":
        slot = Float8KV(slot.batch, slot.capacity, slot.window)
    if "keys" not in kept:
        return slot
    if "values" not in kept or kept["keys"].dim() != 4:
        raise CorruptFileError(f"{where} must hold keys and values of four dimensions, but does not")
    if isinstance(slot, CrossCache):
        slot.keys, slot.values = kept["keys"], kept["values"]
        return slot
    slot.update(kept["keys"], kept["values"])
    if isinstance(slot, KVCache | Float8KV):
        slot.first = int(entry.get("first", 0))
    elif isinstance(slot, QuantizedKV):  # which may have dropped some
        slot.first += int(entry.get("first", 0))
    return slot


def _refilled(slot: Any, numbers: Any, kept: dict[str, Tensor], where: str) -> Any:
    """A family's own kind of slot with the tensors and numbers of a file."""
    names = set(vars(slot))
    sound = isinstance(numbers, dict) and all(n is None or type(n) is int for n in numbers.values())
    if not sound or {*numbers, *kept} != names or set(numbers) & set(kept):
        found = sorted({*kept, *(numbers if isinstance(numbers, dict) else ())})
        raise CorruptFileError(f"{where} must hold {sorted(names)}, but has {found}")
    for name, value in (*numbers.items(), *kept.items()):
        setattr(slot, name, value)
    return slot


def _check(cache: Cache, model: Any, rows: int, place: Path) -> None:
    """Keys that the model's attention cannot read are named before they are."""
    from phyla.blocks.attention import Attention

    for module in model.modules():
        slot = cache.slots[module.slot] if isinstance(module, Attention) and module.slot >= 0 else None
        read = getattr(slot, "read", None)
        kept = None if read is None else read()
        if kept is None:
            continue
        want, found = (rows, module.num_kv_heads, module.head_width), kept[0].shape
        if (found[0], found[1], found[3]) != want or kept[0].dtype != module.k.weight.dtype:
            raise ShapeMismatchError(
                f"{place} must hold keys of {want[0]} rows, {want[1]} heads and {want[2]} elements in "
                f"{module.k.weight.dtype}, but has {tuple(found)} in {kept[0].dtype}: it is of another model"
            )


def _table(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"{file} is missing: save_cache(cache, folder) writes it") from None
    except ValueError as error:
        raise CorruptFileError(f"{file} is no JSON: {error}") from error
    numbers = [table.get(name) for name in ("rows", "length")] if isinstance(table, dict) else [None]
    sound = all(isinstance(n, int) and n >= 0 for n in numbers) and isinstance(table.get("slots"), list)
    if not sound or not all(e is None or isinstance(e, dict) for e in table["slots"]):
        raise CorruptFileError(f"{file} must have rows, length and slots, but does not")
    if table.get("format") != _FORMAT:
        raise ArgumentError(f"{file} must have format {_FORMAT}, but has {table.get('format')!r}")
    return table


def _read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.exists():
        raise MissingFileError(f"{file} is missing: save_cache(cache, folder) writes it")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(f"{file} cannot be read: {error}") from error
