"""Compositions of adapters as plain objects, and the rules that say which of them have a meaning."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from phyla.errors import AdapterError

Setup = "str | AdapterCompositionBlock"


class AdapterCompositionBlock(Sequence):
    """Several adapters (names or further blocks) that work together; see the classes below."""

    def __init__(self, *children: Any) -> None:
        if not children:
            raise AdapterError(f"{type(self).__name__} needs at least one adapter")
        self.children = [parse_composition(c) for c in children]

    def __getitem__(self, index: Any) -> Any:
        return self.children[index]

    def __len__(self) -> int:
        return len(self.children)

    def __eq__(self, other: object) -> bool:
        return (
            type(self) is type(other)
            and self.children == other.children
            and self.options() == other.options()
        )

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        words = [repr(c) for c in self.children] + [f"{k}={v!r}" for k, v in self.options().items()]
        return f"{type(self).__name__}({', '.join(words)})"

    def options(self) -> dict[str, Any]:
        """The keyword arguments that make this block again."""
        return {}

    def names(self) -> Iterator[str]:
        """The adapters in it, in order."""
        for child in self.children:
            yield from names_of(child)

    def flatten(self) -> set[str]:
        """The adapters in it, as a set."""
        return set(self.names())

    def first(self) -> str:
        """The adapter that works first."""
        return next(self.names())

    def last(self) -> str:
        """The adapter that works last."""
        return list(self.names())[-1]

    @property
    def parallel_channels(self) -> int:
        """How many copies of the rows this block needs."""
        return max(copies(c) for c in self.children)


class Stack(AdapterCompositionBlock):
    """One after the other: each works on what the one before made."""


class Fuse(AdapterCompositionBlock):
    """A learned attention over the children's outputs (Pfeiffer et al. 2021, arXiv:2005.00247)."""

    def __init__(self, *children: Any, name: str | None = None) -> None:
        super().__init__(*children)
        self.given = name

    @property
    def name(self) -> str:
        """The fusion layer's name: the adapters joined by commas, unless it was given."""
        return self.given or ",".join(last_of(c) for c in self.children)

    def options(self) -> dict[str, Any]:
        return {} if self.given is None else {"name": self.given}


class Split(AdapterCompositionBlock):
    """Each child works on its own part of the positions; `splits` are their lengths."""

    def __init__(self, *children: Any, splits: Any) -> None:
        super().__init__(*children)
        self.splits = [splits] * len(self.children) if isinstance(splits, int) else list(splits)
        if len(self.splits) != len(self.children):
            raise AdapterError(
                f"Split needs one length for each of its {len(self.children)} children, but has {self.splits}"
            )

    def options(self) -> dict[str, Any]:
        return {"splits": self.splits}


class BatchSplit(AdapterCompositionBlock):
    """Each child works on its own rows; `batch_sizes` are their numbers."""

    def __init__(self, *children: Any, batch_sizes: Any) -> None:
        super().__init__(*children)
        self.batch_sizes = (
            [batch_sizes] * len(self.children) if isinstance(batch_sizes, int) else list(batch_sizes)
        )
        if len(self.batch_sizes) != len(self.children):
            raise AdapterError(
                f"BatchSplit needs one size for each of its {len(self.children)} children, but has "
                f"{self.batch_sizes}"
            )

    def options(self) -> dict[str, Any]:
        return {"batch_sizes": self.batch_sizes}


class Parallel(AdapterCompositionBlock):
    """Each child works on its own copy of all rows."""

    @property
    def parallel_channels(self) -> int:
        return len(self.children)


class Average(AdapterCompositionBlock):
    """The weighted average of the children's outputs."""

    def __init__(self, *children: Any, weights: Any = None, normalize_weights: bool = True) -> None:
        super().__init__(*children)
        count = len(self.children)
        self.normalize_weights = normalize_weights
        weights = [1 / count] * count if weights is None else [float(w) for w in weights]
        if len(weights) != count:
            raise AdapterError(f"Average needs {count} weights, but has {weights}")
        if normalize_weights:
            total = sum(weights)
            if not total:
                raise AdapterError("weights that are normalised must not sum to 0")
            weights = [w / total for w in weights]
        self.weights = weights

    def options(self) -> dict[str, Any]:
        return {"weights": self.weights, "normalize_weights": self.normalize_weights}


class MultiTask(AdapterCompositionBlock):
    """Each row goes to the child that its number in `task_ids` of the call says."""


class Rows(AdapterCompositionBlock):
    """A setup for each row of the batch: what `adapter_names=[...]` of a call activates while it runs.

    children: the setups that occur, None for rows without adapters; numbers: that of each row's child.
    """

    def __init__(self, *setups: Any) -> None:
        super().__init__(*setups)
        seen: dict[Any, int] = {}
        self.numbers = tuple(seen.setdefault(child, len(seen)) for child in self.children)
        self.children = list(seen)

    def options(self) -> dict[str, Any]:
        return {"numbers": self.numbers}


BLOCKS: dict[str, type[AdapterCompositionBlock]] = {
    c.__name__: c for c in (Stack, Fuse, Split, BatchSplit, Parallel, Average, MultiTask)
}

# What a block may hold besides names.
CHILDREN: dict[type, tuple[type, ...]] = {
    Stack: (Fuse, Split, Parallel, BatchSplit, Average, MultiTask),
    Fuse: (Stack,),
    Split: (Split, Stack, BatchSplit, Average),
    BatchSplit: (Stack, Split, BatchSplit, Average),
    Parallel: (Stack, BatchSplit, Average),
    Average: (Stack, Split, BatchSplit),
    MultiTask: (Stack, Average, Fuse),
    Rows: (Stack, Fuse, Split, Average),
}


class Meaning:
    """Which blocks a method has a meaning in; each row of the table in docs/adapters.md comes from here."""

    _rows: ClassVar[frozenset] = frozenset({Stack, BatchSplit, Parallel, MultiTask})
    table: ClassVar[dict[str, frozenset]] = {
        "bottleneck": frozenset(BLOCKS.values()),
        "invertible": _rows | {Average, Fuse},
        "prefix": _rows,
        "lora": _rows | {Average},
        "reft": _rows | {Average},
        "prompt": frozenset({BatchSplit, Parallel, MultiTask}),
    }


def names_of(setup: Any) -> Iterator[str]:
    """The adapters of a setup, in order."""
    if isinstance(setup, str):
        yield setup
    elif setup is not None:
        yield from setup.names()


def last_of(setup: Any) -> str:
    """The adapter that works last."""
    return setup if isinstance(setup, str) else setup.last()


def rows_of(names: Any) -> Any:
    """The setup that `adapter_names` of a call means: names, None or "__base__", or small compositions."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise AdapterError(
            f"adapter_names must be a list with a name (or None) for each row, but is {names!r}"
        )
    made = Rows(*(None if name == "__base__" else name for name in names))
    return made if any(child is not None for child in made.children) else None


def copies(setup: Any) -> int:
    """How many copies of the rows a setup needs."""
    return 1 if setup is None or isinstance(setup, str) else setup.parallel_channels


def parse_composition(setup: Any) -> Any:
    """A setup from what users write: None, a name, a list (a Stack), a block."""
    if setup is None or isinstance(setup, str | AdapterCompositionBlock):
        return setup
    if isinstance(setup, list | tuple):
        return setup[0] if len(setup) == 1 and isinstance(setup[0], str) else Stack(*setup)
    raise AdapterError(f"an adapter setup must be a name, a list or a block, but is {setup!r}")


def blocks_of(setup: Any) -> Iterator[AdapterCompositionBlock]:
    """All blocks of a setup, the outer ones first."""
    if isinstance(setup, AdapterCompositionBlock):
        yield setup
        for child in setup.children:
            yield from blocks_of(child)


def check_nesting(setup: Any) -> None:
    """AdapterError where a block holds another one that has no meaning in it."""
    for block in blocks_of(setup):
        for child in block.children:
            if isinstance(block, Rows) and child is None:
                continue
            if not isinstance(child, str) and type(child) not in CHILDREN[type(block)]:
                allowed = ", ".join(c.__name__ for c in CHILDREN[type(block)])
                raise AdapterError(
                    f"{type(block).__name__} may hold names and {allowed}, but holds {type(child).__name__}"
                )


def to_json(setup: Any) -> Any:
    """A setup as adapter_setup.json holds it."""
    if setup is None:
        return None
    if isinstance(setup, str):
        return {"type": "single", "children": [setup]}
    return {
        "type": type(setup).__name__,
        "children": [to_json(c) for c in setup.children],
        "kwargs": setup.options(),
    }


def from_json(data: Any) -> Any:
    """The setup of an adapter_setup.json; AdapterError for an unknown block."""
    if data is None or isinstance(data, str):
        return data
    if data["type"] == "single":
        return data["children"][0]
    if data["type"] not in BLOCKS:
        raise AdapterError(f"{data['type']!r} is none of the blocks {sorted(BLOCKS)}")
    return BLOCKS[data["type"]](*(from_json(c) for c in data["children"]), **data.get("kwargs", {}))
