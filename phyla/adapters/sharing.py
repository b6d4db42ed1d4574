"""Parameters that several adapters of MTL-LoRA (arXiv:2410.09437) have in common."""

from typing import Any

from torch import nn

from phyla.adapters.api import adapters_of
from phyla.adapters.composition import MultiTask
from phyla.adapters.lora import Low
from phyla.errors import AdapterError
from phyla.model import PreTrainedModel

SHARED = ("lora_A", "lora_B", "weights")


def _names(adapter_names: Any) -> list[str]:
    if isinstance(adapter_names, MultiTask):
        return list(adapter_names.names())
    names = adapter_names.split(",") if isinstance(adapter_names, str) else list(adapter_names)
    if not names:
        raise AdapterError("there must be at least one adapter to share parameters, but the list is empty")
    return names


def share_parameters(
    self: PreTrainedModel,
    adapter_names: Any,
    name: str | None = None,
    reference_adapter_name: str | None = None,
) -> None:
    """Give several MTL-LoRA adapters the same A, B and weights, those of the reference (the first).

    adapter_names: a MultiTask, a list or `a,b`. The matrix between A and B stays each adapter's own.
    """
    adapters, names = adapters_of(self), _names(adapter_names)
    reference = reference_adapter_name or names[0]
    if reference not in names:
        raise AdapterError(f"the reference must be one of {names}, but is {reference!r}")
    entries = {n: adapters.get(n) for n in names}
    for n, entry in entries.items():
        if entry.config.architecture != "mtl_lora":
            raise AdapterError(f"parameters are shared by MTL-LoRA adapters, but {n!r} is none")
    source: list[Any] = list(entries[reference].parts)
    for entry in entries.values():
        for part, own in zip(entry.parts, source, strict=True):
            for leaf in SHARED:
                if getattr(part, leaf).shape != getattr(own, leaf).shape:
                    raise AdapterError(f"{leaf} must have one shape in all of {names}, but has several")
    for entry in entries.values():
        for part, own in zip(entry.parts, source, strict=True):
            for leaf in SHARED:
                setattr(part, leaf, getattr(own, leaf))
    adapters.shared[name or ",".join(names)] = tuple(names)


def unshare_parameters(self: PreTrainedModel, adapter_names: Any = None, name: str | None = None) -> None:
    """Give adapters that share parameters copies of their own."""
    adapters = adapters_of(self)
    key = name or ",".join(_names(adapter_names))
    if key not in adapters.shared:
        raise AdapterError(f"nothing is shared under {key!r}; there is {list(adapters.shared)}")
    for member in adapters.shared.pop(key)[1:]:
        for part in adapters.get(member).parts:
            assert isinstance(part, Low)
            for leaf in SHARED:
                old = getattr(part, leaf)
                setattr(part, leaf, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))
