"""Checkpoint files in and out: sources, safetensors, shards, .bin, GGUF, tensor names, atomic saving.

Importing this loads no torch; what needs it (`open_weights`, `save_weights`) is fetched on first use.
"""

from typing import TYPE_CHECKING

# Imported here, not on first use: a function and its module share the name `resolve`, and the function must
# win.
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.paths import safe_join
from phyla.checkpoints.resolve import resolve

if TYPE_CHECKING:
    from phyla.checkpoints.save import save_weights
    from phyla.checkpoints.weights import open_weights

__all__ = ["open_weights", "read_json", "resolve", "safe_join", "save_weights"]


def __getattr__(name: str):
    if name == "open_weights":
        from phyla.checkpoints.weights import open_weights

        return open_weights
    if name == "save_weights":
        from phyla.checkpoints.save import save_weights

        return save_weights
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
