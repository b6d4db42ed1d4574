"""Which heads belong to a setup of adapters."""

from typing import Any

from phyla.adapters.composition import AdapterCompositionBlock, BatchSplit, Parallel, Stack


def heads_of(setup: Any) -> Any:
    """The heads that belong to a setup of adapters: of the last one, of each of Parallel or BatchSplit."""
    if isinstance(setup, Stack):
        setup = setup.children[-1]
    if setup is None or isinstance(setup, str):
        return setup
    if isinstance(setup, Parallel | BatchSplit):
        names = [c if isinstance(c, str) else c.last() for c in setup.children]
        return names if isinstance(setup, Parallel) else BatchSplit(*names, batch_sizes=setup.batch_sizes)
    return None


def names_in(heads: Any) -> list[str]:
    """The names in a setup of heads: a name, a list, a composition."""
    if heads is None:
        return []
    if isinstance(heads, str):
        return [heads]
    return list(heads.names()) if isinstance(heads, AdapterCompositionBlock) else list(heads)
