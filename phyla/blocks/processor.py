"""What the machine's processor is, read once."""

import platform
from functools import cache

import torch


@cache
def description() -> str:
    """Model and flags of the processor: what compiled code for exactly this machine depends on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            text = file.read(8192).split("\n\n")[0]
    except OSError:
        return platform.processor()
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
    return "\n".join(line for line in text.splitlines() if line.startswith(kept))


@cache
def is_foreign_to_blas() -> bool:
    """Whether torch brings MKL and its maker does not sell this processor: oneDNN is faster here."""
    return torch.backends.mkl.is_available() and "AuthenticAMD" in description()
