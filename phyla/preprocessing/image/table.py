"""What one row of the table of image processors says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .sizes import size_dict


@dataclass(frozen=True)
class Row:
    """One public image processor.

    settings: constructor arguments with their defaults, in order. steps: names of pipeline steps.
    resize: rule for the size to resize to. rgb: how PIL pictures become RGB (None: they stay).
    take: how the call's argument becomes a list of pictures. kind: the class that takes the call.
    inputs: names of the model's inputs. sizes: settings that are size dictionaries; an integer there
    means a square (True), the shortest edge (False), that with a longest edge (a number), or the longest
    edge ("longest"). late: sizes that keep the form they were given in. optional: settings that may be
    None though a step reads them. fixed: what steps read besides the settings. call: further arguments of
    the call. post: groups of post-processing. old: former names of settings. alias: public name of the
    deprecated class.
    """

    settings: Mapping[str, Any]
    steps: tuple[str, ...] = ("resize", "crop", "rescale", "normalize")
    resize: str = "exact"
    rgb: str | None = None
    take: str = "list"
    kind: str = "plain"
    inputs: tuple[str, ...] = ("pixel_values",)
    sizes: Mapping[str, bool | int | str] | None = None
    late: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    call: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    old: Mapping[str, str] = field(default_factory=dict)
    alias: str | None = None

    def size_names(self) -> Mapping[str, bool | int | str]:
        """The settings that are size dictionaries, and whether an integer means a square."""
        if self.sizes is not None:
            return self.sizes
        names: dict[str, bool | int | str] = {
            name: True for name in ("size", "crop_size") if isinstance(self.settings.get(name), dict)
        }
        if "size" in names and "shortest_edge" in self.settings["size"]:
            names["size"] = False
        return names

    def sized(self, name: str, value: Any) -> Any:
        """A setting with its size brought into the dictionary form."""
        kind = self.size_names().get(name)
        if kind is None or value is None:
            return value
        if isinstance(kind, bool):
            return size_dict(value, kind, what=name)
        if kind == "longest":
            return {"longest_edge": value} if isinstance(value, int) else size_dict(value, what=name)
        if kind == "wide":
            return size_dict(value, what=name, height_first=False)
        return size_dict(value, False, None if isinstance(value, dict) else int(kind), what=name)
