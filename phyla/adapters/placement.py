"""On which device, and in which dtype, the parts of adapters are: those of the sites that they stand at."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from phyla.adapters.places import LinearSlice, Place


def settle(entry: Any, like: Tensor) -> None:
    """Move the parts of an adapter to devices and dtypes of their sites; `like` answers where none does."""
    places = list(entry.items())
    first = _stand(places[0][0], like) if places else (like.device, like.dtype)
    for module in (entry.shared, entry.around):
        module.to(*first)
    for overlay in entry.overlays:
        overlay.to(_device(overlay.module, like), like.dtype)
    for parameter, (module, leaf) in zip(entry.replaced, entry.targets, strict=True):
        held = module._parameters[leaf]
        parameter.data = parameter.data.to(held.device, held.dtype)
    done: set[int] = set()
    for place, part in places:
        if id(part) not in done:  # one that stands at two sites is where the first is
            done.add(id(part))
            part.to(*_stand(place, like))


def settle_layers(layers: Iterable[tuple[nn.Module, Place]], like: Tensor) -> None:
    """The same for modules, such as the layers of a fusion, with their places."""
    for module, place in layers:
        module.to(*_stand(place, like))


def end_of(model: Any, like: Tensor) -> Tensor:
    """The last parameter of a model's layers, or `like`: where heads read the states."""
    found = [p for p in model.backbone.parameters() if p.is_floating_point()]
    return found[-1] if found and found[-1].device != like.device else like


def _stand(place: Place, like: Tensor) -> tuple[torch.device, torch.dtype]:
    """Device and dtype at a place: those of its weights, or the dtype of `like` where those are packed."""
    module = place.module.linear if isinstance(place.module, LinearSlice) else place.module
    weights = (
        p for m in _own(module) for p in m._parameters.values() if isinstance(p, nn.Parameter) and p.dim() > 1
    )
    kinds = (p.dtype for p in weights if p.is_floating_point() and p.dtype.itemsize > 1)
    return _device(module, like), next(kinds, like.dtype)


def _device(module: nn.Module, like: Tensor) -> torch.device:
    tensors = (t for m in _own(module) for t in (*m._parameters.values(), *m._buffers.values()))
    return next((t.device for t in tensors if t is not None), like.device)


def _own(module: nn.Module) -> list[nn.Module]:
    """A module with what is in it, without the sites of adapters."""
    return [m for m in module.modules() if not type(m).__module__.startswith("phyla.adapters")]
