"""Generation: settings, logits processors, stopping, streaming and the decoding loop; importing it loads no
torch.
"""

import importlib
from typing import Any

from phyla.generation._names import NAMES

__all__ = sorted(NAMES)


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
