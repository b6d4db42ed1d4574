"""How much memory there is for keys and values, and how much they take."""

import os
from typing import Any

from phyla.blocks.flat import FlatCache, Pages


def page_bytes(model: Any, size: int) -> int:
    """Bytes of keys and values of `size` positions in all layers of a model."""
    probe, each = FlatCache(model, 1, size), 0
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
