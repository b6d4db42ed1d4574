"""Adapters put into the weights of the base, and taken out again."""

from collections import Counter
from typing import Any

from torch import Tensor, nn

from phyla.adapters.places import LinearSlice
from phyla.errors import AdapterError

Kept = list[
    tuple[nn.Module, str, Tensor]
]  # parameters from before a merge: copies, or shared ones themselves
Values = dict[tuple[int, str], tuple[Any, str, Tensor]]


def merged_values(entry: Any) -> Values:
    """The values of the base's parameters that compute what base and adapter compute together."""
    found: Values = {}

    def now(module: Any, leaf: str, path: str) -> Any:
        value = module._parameters.get(leaf)
        if leaf != "bias" and not isinstance(value, nn.Parameter):
            raise AdapterError(
                f"{path}.{leaf} is quantised and takes no merged adapter: keep {entry.name!r} active "
                "beside it, or load the model without quantized=True, merge, and quantise the result"
            )
        return found.get((id(module), leaf), (None, None, value))[2]

    for (owner, name), value in zip(entry.targets, entry.replaced, strict=True):
        found[id(owner), name] = (owner, name, value)
    for place, part in entry.items():
        module: Any = place.module
        rows = slice(None)
        if isinstance(module, LinearSlice):
            module, rows = module.linear, slice(module.start, module.end)
        whole = (now(module, "weight", place.path), now(module, "bias", place.path))
        values = part.merged(*(None if v is None else v[rows] for v in whole))
        if rows != slice(None):
            values = tuple(
                None if v is None else _with_rows(w, rows, v) for w, v in zip(whole, values, strict=True)
            )
        for leaf, value in zip(("weight", "bias"), values, strict=True):
            if value is not None:
                found[id(module), leaf] = (module, leaf, value)
    overlay: Any
    for overlay in entry.overlays:
        module, leaf = overlay.module, overlay.leaf
        found[id(module), leaf] = (module, leaf, overlay(now(module, leaf, overlay.pieces[0].path)))
    return found


def _with_rows(whole: Tensor, rows: slice, value: Tensor) -> Tensor:
    """A copy of a parameter with other values in some rows."""
    made = whole.detach().clone()
    made[rows] = value
    return made


def put_values(model: Any, values: Values) -> Kept:
    """Give parameters new values; what puts the old ones back. Those that modules share are parted."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    kept: Kept = []
    for module, leaf, value in values.values():
        old = module._parameters[leaf]
        if owners[id(old)] > 1:
            kept.append((module, leaf, old))
            module._parameters[leaf] = nn.Parameter(value.to(old.dtype).clone(), old.requires_grad)
        else:
            kept.append((module, leaf, old.detach().clone()))
            old.copy_(value)
    return kept
