"""Packages whose files are imported when one of their names is first asked for (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from phyla.errors import nearest


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, from file -> the public names in it."""
    places = {name: f"{package}.{file}" for file, listed in names.items() for name in listed}

    def find(name: str) -> Any:
        if name not in places:
            near = "" if name.startswith("_") else nearest(name, places)
            raise AttributeError(f"{package} has no {name!r}.{near}")
        value = getattr(importlib.import_module(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted({*vars(sys.modules[package]), *places})
