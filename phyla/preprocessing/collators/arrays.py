"""The two libraries that collators make arrays of, behind one face: making, stacking, drawing at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..text.batch import framework_of


class NumpyArrays:
    """Batches of numpy arrays."""

    name = "np"

    def tensor(self, value: Any, dtype: str | None = None) -> Any:
        """An array of nested lists; dtype "int" (int64) or "float" (float32), or as the values are."""
        kinds = {None: None, "int": np.int64, "float": np.float32}
        return np.array(value, dtype=kinds[dtype])

    def stack(self, values: list) -> Any:
        return np.stack(values)

    def copy(self, value: Any) -> Any:
        return np.copy(value)

    def bools(self, value: Any) -> Any:
        return np.asarray(value, dtype=bool)

    def generator(self, seed: int) -> Any:
        """Random numbers of a seed."""
        return np.random.default_rng(seed)

    def coins(self, chances: Any, shape: Any, generator: Any) -> Any:
        """True with the given chance (one number or one for each place)."""
        draw = np.random if generator is None else generator
        return draw.binomial(1, chances, size=tuple(shape)).astype(bool)

    def put_random_ids(self, ids: Any, where: Any, high: int, generator: Any) -> None:
        """Put random ids below `high` where `where`, in place."""
        count = np.count_nonzero(where)
        if generator is None:
            ids[where] = np.random.randint(0, high, size=count, dtype=np.int64)
        else:
            ids[where] = generator.integers(low=0, high=high, size=count, dtype=np.int64)


class TorchArrays:
    """Batches of torch tensors."""

    name = "pt"

    def __init__(self):
        self.torch = require("torch", "torch", 'return_tensors="pt"')

    def tensor(self, value: Any, dtype: str | None = None) -> Any:
        """A tensor of nested lists or numpy arrays."""
        kinds = {None: None, "int": self.torch.int64, "float": self.torch.float}
        if isinstance(value, list) and value and framework_of(value[0]) == "np":
            value = np.stack(value)
        return self.torch.tensor(value, dtype=kinds[dtype])

    def stack(self, values: list) -> Any:
        if framework_of(values[0]) == "np":
            return self.torch.from_numpy(np.stack(values))
        return self.torch.stack(values)

    def copy(self, value: Any) -> Any:
        return value.clone()

    def bools(self, value: Any) -> Any:
        return self.torch.as_tensor(value).bool()

    def generator(self, seed: int) -> Any:
        return self.torch.Generator().manual_seed(seed)

    def coins(self, chances: Any, shape: Any, generator: Any) -> Any:
        if isinstance(chances, float):
            chances = self.torch.full(shape, chances)
        elif framework_of(chances) == "np":
            chances = self.torch.tensor(chances, dtype=self.torch.float)
        return self.torch.bernoulli(chances, generator=generator).bool()

    def put_random_ids(self, ids: Any, where: Any, high: int, generator: Any) -> None:
        random = self.torch.randint(high, ids.shape, dtype=self.torch.long, generator=generator)
        ids[where] = random[where]


def arrays(kind: Any) -> NumpyArrays | TorchArrays:
    """The library of `return_tensors`; ArgumentError for others than "pt" and "np"."""
    kind = getattr(kind, "value", kind)
    if kind == "pt":
        return TorchArrays()
    if kind == "np":
        return NumpyArrays()
    raise ArgumentError(f"return_tensors of this collator must be 'pt' or 'np', but is {kind!r}")


def plain_list(value: Any) -> list:
    """A list of numbers of a list, array or tensor."""
    return value.tolist() if hasattr(value, "tolist") else list(value)
