"""Memory of training steps: zeros that cost nothing until touched, and freed memory kept."""

import ctypes
import mmap
import os
import sys
from functools import cache
from math import prod

import torch
from torch import Tensor

# Elements from which the allocator would ask the system too.
LEAST = 1 << 20
HAS_PAGES = hasattr(mmap, "MAP_ANONYMOUS") and hasattr(mmap, "MAP_PRIVATE")
# Bytes of freed memory that stay, and bytes of a tensor from which the system is asked for it alone.
KEPT, ALONE = (1 << 31) - 1, 1 << 30
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in <malloc.h>
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def zeros(*shape: int) -> Tensor:
    """float32 zeros (*shape) on the CPU, few of which will be written."""
    count = prod(shape)
    if count >= LEAST and HAS_PAGES:
        try:
            memory = mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            return torch.frombuffer(memory, dtype=torch.float32, count=count).view(shape)
        except OSError:  # the process has as many mappings as it may have
            pass
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


@cache
def keep_freed() -> bool:
    """Let glibc keep what is freed, up to 2 GiB, for the process's next tensors; whether it does.

    Without it every step gets hundreds of megabytes from the system anew, which clears them: a tenth of the
    time of a training step. Who has set glibc's variables keeps what they chose; PHYLA_KEEP_FREED=0 says no.
    """
    if os.environ.get("PHYLA_KEEP_FREED") == "0":
        return False
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _CHOSEN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, ALONE)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
