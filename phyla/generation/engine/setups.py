"""Adapters of single requests: which setup a request has, and the model with it while a step runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from phyla.blocks.flat import ALIKE
from phyla.errors import GenerationError
from phyla.generation.engine.request import Row

# Setups that look at the rows of a call: a row of the engine's is several texts.
_OF_ROWS = ("BatchSplit", "MultiTask", "Parallel", "Rows", "Split")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Setup:
    """What of a model's adapters is active for a request, and in which layers it is left out.

    each: of a step for several, the setups that stand in it.
    """

    active: Any = None
    skip: tuple[int, ...] = ()
    each: tuple["Setup", ...] = ()

    @property
    def root(self) -> bytes:
        """What tells pages that were read with it from others."""
        return b"" if self.active is None else repr((self.active, self.skip)).encode()


NONE = Setup()


class Apart(GenerationError):
    """A request that cannot stand in pages, and so goes on by itself, in a call of its own."""


def with_setup(model: Any, names: Any, run: Callable[..., Found], **given: Any) -> tuple[Setup, Found]:
    """The setup of a request, and what `run(**given)` gives with it, `given` as its adapters change them.

    names: of one row, as `adapter_names` of a call has them (or the name alone); None is what is active.
    Raises AdapterError for adapters that the model does not have.
    """
    adapters = model._modules.get("adapters")
    if adapters is None:
        if names is not None:
            raise GenerationError(
                f"adapter_names is {names!r}, but the model has no adapters: load_adapter first"
            )
        return NONE, run(**given)

    def inside(one_row: Any = None, **named: Any) -> tuple[Setup, Found]:
        active = adapters.setup
        if type(active).__name__ == "Rows":
            active = active.children[0]
        return Setup(active, tuple(adapters.skip_layers)), run(**named)

    row = None if names is None else list(names) if isinstance(names, list | tuple) else [names]
    given = {"one_row": torch.zeros(1, 1), **given, "adapter_names": row}  # it says how many names there are
    return model._generate_with_adapters(lambda _, **named: inside(**named), (), given)


def check_paged(model: Any) -> None:
    """Raise Apart where the adapters that are active now have no place in a row of several texts."""
    adapters = model._modules.get("adapters")
    if adapters is None:
        return
    active = adapters.setup
    if type(active).__name__ == "Rows":
        active = active.children[0]
    waiting = [active]
    while waiting:
        node = waiting.pop()
        waiting += getattr(node, "children", ())
        if type(node).__name__ in _OF_ROWS:
            raise Apart(f"{active!r} looks at the rows of a batch")
    names = [active] if isinstance(active, str) else [] if active is None else list(active.names())
    if adapters.prompts() is not None or any(len(adapters.get(name).around) for name in names):
        raise Apart(f"{active!r} changes the inputs of a call")
    for name in names:  # a row of the engine's has no first and last positions
        if hasattr(adapters.get(name).config, "suffix_positions"):
            raise Apart(f"{name!r} looks at the first and last positions of a row")


def together(model: Any, setups: list[Setup]) -> Setup | None:
    """One setup for tokens that have these, or None where they leave out different layers."""
    if len({setup.skip for setup in setups}) > 1:
        return None
    made = model._modules["adapters"].side_by_side([setup.active for setup in setups])
    return Setup(made, setups[0].skip, tuple(setups))


def tokens_of(setup: Setup, placed: list, device: torch.device) -> list[Tensor] | None:
    """Which tokens of a step's row each of its setups has; what fills it up goes with the first."""
    if not setup.each:
        return None
    found: dict[Setup, list[int]] = {own: [] for own in setup.each}
    end = 0
    for row, part in placed:
        found[row.handle.setup] += range(part.begin, part.end)
        end = max(end, part.end)
    found[setup.each[0]] += range(end, -(-end // ALIKE) * ALIKE)
    return [torch.tensor(numbers, device=device) for numbers in found.values()]


@contextmanager
def in_force(
    model: Any, setup: Setup, tokens: list[Tensor] | None = None, copied: bool = False
) -> Iterator[None]:
    """The model's calls inside have this setup, whatever is active around them.

    tokens: which of the one row's tokens each child of the setup's Rows has. copied: the rows of the calls
    are as `generate` prepared them.
    """
    adapters = model._modules.get("adapters")
    if adapters is None:
        yield
        return
    with adapters.turn:
        before, skip, settled = adapters.setup, adapters.skip_layers, adapters.settled
        rows = adapters.facts.copied
        change = (before, tuple(skip)) != (setup.active, setup.skip)
        adapters.settled, adapters.facts.tokens, adapters.facts.copied = True, tokens, copied or rows
        try:
            if change:
                adapters.activate(setup.active, list(setup.skip))
            yield
        finally:
            adapters.settled, adapters.facts.tokens, adapters.facts.copied = settled, None, rows
            if change:
                adapters.activate(before, skip)


def by_setup(placed: list) -> dict[Setup, list]:
    """What stands in a step, by the setups of the rows."""
    groups: dict[Setup, list] = {}
    for row, part in placed:
        assert isinstance(row, Row)
        groups.setdefault(row.handle.setup, []).append((row, part))
    return groups


def groups_of(
    model: Any, placed: list, plain: bool, parted: set[frozenset[Setup]]
) -> list[tuple[Setup, list]]:
    """What stands in a step, in the groups that run apart: by setup, unless `plain` rows can run as one.

    parted: setups that were found not to go together.
    """
    groups = by_setup(placed)
    if any(row.watched for row, _ in placed):  # others' arithmetic stays as it is
        apart = [
            (setup, [pair for pair in pairs if bool(pair[0].watched) == watched])
            for setup, pairs in groups.items() for watched in (False, True)
        ]  # fmt: skip
        return [(setup, pairs) for setup, pairs in apart if pairs]
    whole = any(row.given is not None and not part.start for row, part in placed)
    if len(groups) == 1 or not plain or whole or frozenset(groups) in parted:
        return list(groups.items())
    joint = together(model, list(groups))
    if joint is None:
        return list(groups.items())
    return [(joint, [pair for group in groups.values() for pair in group])]
