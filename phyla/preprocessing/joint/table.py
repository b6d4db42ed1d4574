"""What one row of the table of joint processors says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One public joint processor.

    kind: the class that takes the call. parts: attribute to the public class of the part, or (slow, fast).
    settings: further constructor arguments with their defaults, saved in processor_config.json. order: the
    inputs and what else the call takes by position; needs: of these inputs at least one must be given (all,
    where `all_needed`). join: how the results of the parts become one. defaults: options by part, where a
    call says nothing. names: further options by part. swaps: whether exchanged pictures and text are put
    right. fixed: what the kind reads besides the settings. folders: parts that have a folder of their own.
    """

    kind: str
    parts: Mapping[str, str | tuple[str, str | None]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = ("images", "text")
    needs: tuple[str, ...] = ("images", "text")
    join: str = "update"
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swaps: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    target: str | None = None
