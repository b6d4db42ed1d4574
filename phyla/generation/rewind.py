"""Going back in a model's memory: keys and values are cut, states of recurrent layers put back and refed."""

from typing import Any

from torch import Tensor

from phyla.blocks.cache import StateCache
from phyla.generation.forward import Forward


class Snapshot:
    """The states of recurrent layers after `fed` ids; empty where all memory can be cut."""

    def __init__(self, fed: int, states: dict[int, dict[str, Tensor]]):
        self.fed, self.states = fed, states


def snapshot(forward: Forward) -> Snapshot:
    """What `rewind` needs to come back to this point."""
    slots: list[Any] = getattr(forward.cache, "slots", [])
    states = {
        i: {name: value.clone() for name, value in slot.tensors.items()}
        for i, slot in enumerate(slots)
        if isinstance(slot, StateCache)
    }
    return Snapshot(forward.fed, states)


def rewind(forward: Forward, ids: Tensor, before: Snapshot) -> None:
    """Keep only what all but the last of ids (rows, length) left in the memory."""
    keep = ids.shape[1] - 1
    if forward.fed <= keep:
        return
    if not before.states:
        forward.truncate(keep)
        return
    cache: Any = forward.cache
    kept = {i: cache.slots[i] for i in before.states}
    for i, slot in kept.items():
        slot.tensors = {name: value.clone() for name, value in before.states[i].items()}
        cache.slots[i] = None
    forward.truncate(before.fed)
    for i, slot in kept.items():
        cache.slots[i] = slot
    if before.fed < keep:
        forward(ids[:, :keep])
