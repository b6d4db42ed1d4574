"""A quantised checkpoint seen as a dense one: names and tensors as the family's name map knows them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from phyla.checkpoints.weights import Weights
from phyla.errors import CheckpointError, MissingWeightsError, ShapeMismatchError
from phyla.quantization.scheme import Facts, Parts, Scheme


class QuantizedWeights(Weights):
    """The tensors of a checkpoint with every quantised weight expanded, one at a time, when it is read.

    turned: names of weights that dense files hold as (in, out). shapes: of weights (out, in), by the model.
    Closing closes the file below.
    """

    def __init__(self, inner: Weights, scheme: Scheme) -> None:
        super().__init__({}, inner.metadata, inner.config)
        self.inner, self.scheme = inner, scheme
        self.held: dict[str, dict[str, str]] = {}  # dense name -> leaf -> name in the file
        self.turned: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}
        taken: set[str] = set()
        for module, leaves in scheme.modules(inner.infos.keys()):
            names = {leaf: scheme.file_name(module, leaf) for leaf in leaves}
            lacking = [leaf for leaf in scheme.needed if leaf not in leaves]
            if lacking:
                raise MissingWeightsError(
                    f"{scheme.file_name(module, lacking[0])} must stand beside {names[leaves[0]]} in a "
                    f"checkpoint of method {scheme.method}, but is not there; the checkpoint is incomplete"
                )
            self.held[scheme.dense_name(module)] = names
            taken |= set(names.values())
        for name, info in inner.infos.items():
            if name not in taken and not self._beside(name):
                self.infos[name] = info
        for name, names in self.held.items():
            info = inner.infos[next(iter(names.values()))]
            self.infos[name] = replace(info, name=name, shape=(), dtype=torch.float32, quant=scheme.method)

    def _beside(self, name: str) -> bool:
        """Whether a tensor only says how to quantise what goes into a weight."""
        module, _, leaf = name.rpartition(".")
        return self.scheme.passes_over(leaf, f"{module}.weight" in self.held)

    def parts(self, name: str) -> Parts:
        """What stands for a quantised weight, as stored."""
        return {leaf: self.inner.read(stored) for leaf, stored in self.held[name].items()}

    def scheme_of(self, name: str) -> Scheme:
        """How one quantised weight is stored."""
        return self.scheme.one(name, self.inner.metadata, self.shapes.get(name))

    def facts(self, name: str, parts: Parts) -> Facts:
        """What the parts of a quantised weight say of it; raises ShapeMismatchError naming the tensor."""
        stem = name.removesuffix(".weight")
        try:
            return self.scheme_of(name).check(parts)
        except ShapeMismatchError as error:
            where = self.inner.infos[next(iter(self.held[name].values()))].file
            raise ShapeMismatchError(
                f"{stem}.{error} ({self.scheme.method} weight of {where}); the file is damaged or its "
                "quantization_config is another's"
            ) from None

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor; a quantised weight expanded, in float32 or in dtype."""
        if name not in self.held:
            return self.inner.read(name, dtype)
        parts = self.parts(name)
        facts = self.facts(name, parts)
        try:
            value = self.scheme_of(name).dense(parts, facts)
        except (IndexError, RuntimeError) as error:
            raise CheckpointError(f"{name} cannot be expanded ({self.scheme.method}): {error}") from error
        value = value.t().contiguous() if name in self.turned else value
        return value if dtype is None else value.to(dtype)

    def read_many(
        self,
        names: Iterable[str] | None = None,
        dtype: torch.dtype | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Plain tensors as the file reads them fastest, then the quantised ones one by one."""
        wanted = list(self.infos if names is None else names)
        plain = [name for name in wanted if name not in self.held]
        yield from self.inner.read_many(plain, dtype, into)
        for name in wanted:
            if name in self.held:
                yield name, self.read(name, dtype)

    def close(self) -> None:
        self.inner.close()


def public_shapes(model: Any, layout: Any, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """(out, in) of the weights that a file holds, by what the model has in their places."""
    from phyla.checkpoints.load import choose_lines
    from phyla.checkpoints.names import modern

    spelled, found = {modern(name): name for name in names}, {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for line in choose_lines(layout, spelled):
        held = [spelled[name] for name in line.theirs if name in spelled]
        if not held or not all(path in parameters for path in line.ours):
            continue
        outlines = line.op.save([parameters[path].to("meta") for path in line.ours])
        turned = bool(turned_names([line]))
        for name, outline in zip(line.theirs, outlines, strict=True):
            if name in spelled:
                found[spelled[name]] = tuple(outline.shape)[:: -1 if turned else 1]
    return found


def turned_names(lines: Iterable[Any]) -> set[str]:
    """Public names of matrices that a name map turns around: quantised, they stand as (out, in)."""
    from phyla.checkpoints.ops import Split, Transpose

    return {
        name
        for line in lines
        for name in line.theirs
        if isinstance(line.op, Transpose) or (isinstance(line.op, Split) and line.op.transpose)
    }
