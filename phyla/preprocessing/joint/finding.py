"""The class behind a part of a joint processor."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from phyla.checkpoints.json_file import read_json
from phyla.errors import ConfigError


def public_class(name: str | None) -> Any:
    """The public preprocessing class of a name, or None where phyla has none."""
    from .._names import NAMES

    module = NAMES.get(name or "")
    return None if module is None else getattr(importlib.import_module(module), name or "")


def part_class(public: str | tuple[str | None, ...], file: Path, part: str, fast: bool | None) -> Any:
    """The class of a part: the one name, or of (slow, fast) the one asked for.

    Tokenizers are fast and image processors slow where nothing is asked, unless the file names the fast one.
    """
    if isinstance(public, str):
        found = public_class(public)
    else:
        if fast is None:
            fast = "tokenizer" in part
            if not fast and os.path.lexists(file):
                fast = read_json(file).get("image_processor_type") == public[1]
        first, second = (public[1], public[0]) if fast else public
        found = public_class(first) or public_class(second)
    if found is None and "tokenizer" in part:
        found = public_class("AutoTokenizer")
    if found is None:
        raise ConfigError(f"phyla has no {public!r}, which the part `{part}` of this processor needs")
    return found
