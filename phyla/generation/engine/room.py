"""How much memory there is for keys and values, and how much they take."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from phyla.blocks.flat import FlatCache, Pages
from phyla.errors import ArgumentError, GenerationError
from phyla.generation.prompt import accepted

log = logging.getLogger("phyla.generation.engine")
_MOST_SHARE = 0.25  # of the machine's memory, unless max_memory says otherwise


def paged_memory(
    model: Any, prefix: str, size: int, most: int | None, rows: int, context: int | None
) -> FlatCache | None:
    """The pages of an engine, or None for a model that has none.

    size: positions a page; most: bytes; rows: texts at once; context: the model's positions.
    Raises ArgumentError where there is no room for a page.
    """
    missing = {f"{prefix}position_ids", "past_key_values", "logits_to_keep"} - (
        accepted(model.forward) or set()
    )
    if missing:
        log.debug("%s has no pages: it takes no %s", type(model).__name__, sorted(missing))
        return None
    try:
        FlatCache(model, 1, size)
    except ArgumentError as error:
        log.debug("%s has no pages: %s", type(model).__name__, error)
        return None
    each, count = page_bytes(model, size), 1
    if each:
        count = (int(_MOST_SHARE * machine_memory()) if most is None else most) // each
        if context is not None and most is None:
            count = min(count, rows * -(-context // size))
    if count < 1:
        raise ArgumentError(f"max_memory must hold at least one page of {each} bytes, but is {most}")
    return FlatCache(model, count, size)


def page_bytes(model: Any, size: int) -> int:
    """Bytes of keys and values of `size` positions in all layers of a model; 0 where it has no pages."""
    try:
        probe, each = FlatCache(model, 1, size), 0
    except ArgumentError:
        return 0
    for module in model.modules():
        slot = getattr(module, "slot", -1)
        if slot >= 0 and isinstance(probe.slots[slot], Pages):
            each += 2 * module.num_kv_heads * module.head_width * size * model.dtype.itemsize
    return each


def machine_memory() -> int:
    """Bytes of main memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise GenerationError for a request that asks for more memory than there is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise GenerationError(
                "a request must fit the memory of the machine, but its prompt and new tokens do not: ask for "
                "fewer tokens or beams"
            ) from error
        raise
