"""Packages whose files are imported when one of their names is first asked for (PEP 562)."""

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from phyla.errors import nearest


@contextmanager
def collection_paused() -> Iterator[None]:
    """No search for garbage meanwhile: classes and models are thousands of new objects, none of them garbage,
    and each search would go through all that torch has made."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def quick_import(module: str) -> ModuleType:
    """The module, imported without a search for garbage."""
    found = sys.modules.get(module)
    if found is not None:
        return found
    with collection_paused():
        return importlib.import_module(module)


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, from file -> the public names in it."""
    places = {name: f"{package}.{file}" for file, listed in names.items() for name in listed}

    def find(name: str) -> Any:
        if name not in places:
            near = "" if name.startswith("_") else nearest(name, places)
            raise AttributeError(f"{package} has no {name!r}.{near}")
        value = getattr(quick_import(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted({*vars(sys.modules[package]), *places})
