"""Going back in a model's memory: keys and values are cut, states of recurrent layers put back and refed; the
rows of a batch may each keep a number of their own.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import StateCache
from phyla.generation.forward import Forward

_SPARE = 32  # slots of padding in front of all rows from which they are dropped
_FAR = 1 << 30


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


class Lanes:
    """A batch whose rows have read different numbers of ids: all end at one slot, with padding in front.

    `ragged` says whether rows can part; where they cannot (recurrent layers, no mask), `keep` is given one
    number for all.
    """

    def __init__(self, forward: Forward, ragged: bool):
        self.forward = forward
        self.ragged = ragged and _parts(forward)
        self.fresh: list[Tensor] = []  # what was fed since the last mark
        self.slack: list[int] = []  # how far each row has moved back
        self.mark()

    def mark(self) -> None:
        """Remember this point: `keep` counts from here."""
        self.before = snapshot(self.forward)
        self.first = dict(self.forward.first)
        self.fresh = []

    def feed(self, fresh: Tensor, keep: int) -> Any:
        """The model's output for the next ids (rows, count) of all rows; logits of the last `keep`."""
        self.fresh.append(fresh)
        return self.forward(self._behind(self.forward.fed, fresh), keep=keep)

    def keep(self, counts: list[int], going: list[bool]) -> None:
        """Forget all that was fed since the mark but the first counts[r] ids of each row r.

        Rows that are not `going` forget everything; a point to come back to is made here.
        """
        forward = self.forward
        most = max((n for n, on in zip(counts, going, strict=True) if on), default=0)
        if not self.ragged:
            if self.before.states and forward.fed > self.before.fed + most:
                text = self._behind(self.before.fed, torch.cat(self.fresh, 1)[:, : most + 1])
                rewind(forward, text, self.before)
            elif forward.fed > self.before.fed + most:
                forward.truncate(self.before.fed + most)
            self.mark()
            return
        if self.before.states:
            self._restate(counts, going)
        _truncate(forward, self.before.fed + most)
        back = [most - n if on else 0 for n, on in zip(counts, going, strict=True)]
        self.slack = [a + b for a, b in zip(self.slack or [0] * len(back), back, strict=True)]
        _move_back(forward, back, going)
        spare = min((a for a, on in zip(self.slack, going, strict=True) if on), default=0)
        if spare >= _SPARE:
            self.slack = [a - spare for a in self.slack]
            _forget(forward, spare)
        self.mark()

    def _restate(self, counts: list[int], going: list[bool]) -> None:
        """Give the recurrent layers the states of each row behind the ids that it keeps.

        Rows that keep less than was fed read what they keep once more, those of one number at a time.
        """
        if not self.fresh:
            return
        forward, fresh = self.forward, torch.cat(self.fresh, 1)
        slots: Any = forward.cache.slots  # type: ignore[union-attr]
        short = {n for n, on in zip(counts, going, strict=True) if on and n < fresh.shape[1]}
        for count in sorted(short):
            rows = [r for r, n in enumerate(counts) if going[r] and n == count]
            index = torch.tensor(rows, device=fresh.device)
            states = {i: {k: t[index] for k, t in s.items()} for i, s in self.before.states.items()}
            if count:
                states = self._reread(index, fresh[index, :count], states)
            for i, kept in states.items():
                for name, value in kept.items():
                    slots[i].tensors[name] = slots[i].tensors[name].index_copy(0, index, value)

    def _reread(self, index: Tensor, fresh: Tensor, states: dict[int, dict[str, Tensor]]) -> dict:
        """The states behind fresh ids (rows, count) of the rows `index`, from those before them."""
        twin = copy.copy(self.forward)
        cache: Any = twin.cache
        twin.first, twin.fed = dict(self.first), self.before.fed
        twin.cache = cache.fork()
        twin.steady = {k: twin.cache if v is cache else v for k, v in twin.steady.items()}
        twin.select(index)
        _truncate(twin, self.before.fed)
        for i, kept in states.items():
            twin.cache.slots[i].tensors = dict(kept)
        twin(self._behind(self.before.fed, fresh))
        return {i: twin.cache.slots[i].tensors for i in states}

    def _behind(self, fed: int, fresh: Tensor) -> Tensor:
        """Ids of which only those behind the first `fed` are looked at."""
        return torch.cat([fresh.new_zeros(len(fresh), fed), fresh], 1)


def _parts(forward: Forward) -> bool:
    """Whether the rows of a model's memory can be moved one by one, and what comes free be masked."""
    cache: Any = forward.cache
    slots = getattr(cache, "slots", ())
    tables = [k for slot in slots if (k := getattr(slot, "keys", None)) is not None and k.dim() > 1]
    masked = not slots or any(not isinstance(slot, StateCache | None) for slot in slots)
    return (
        getattr(cache, "shifts", False)
        and all(len(keys) == forward.rows for keys in tables)
        and forward.takes is not None
        and (not masked or f"{forward.prefix}attention_mask" in forward.takes)
    )


def _truncate(forward: Forward, ids: int) -> None:
    """Forget all ids from number `ids` on, but for the states of recurrent layers."""
    cache: Any = forward.cache
    slots = getattr(cache, "slots", None)
    if slots is None:
        forward.truncate(ids)
        return
    cache.slots = [None if isinstance(slot, StateCache) else slot for slot in slots]
    try:
        forward.truncate(ids)
    finally:
        cache.slots = slots


def _move_back(forward: Forward, back: list[int], going: list[bool]) -> None:
    """Let each row end `back` slots later than it does; of rows that are over a single slot stays."""
    if not any(back) and all(going):
        return
    forward.cache.shift(back)  # type: ignore[union-attr]
    reach = forward.fed + forward.hidden_positions
    if forward.mask is None:
        forward.mask = forward.prompt_ids.new_ones(forward.rows, reach)
    mask = forward.mask
    for row, (places, on) in enumerate(zip(back, going, strict=True)):
        if places:
            mask[row, places:reach] = mask[row, : reach - places].clone()
            mask[row, :places] = 0
        elif not on:  # its positions stay few, whatever is fed
            mask[row, : reach - 1] = 0
    name = f"{forward.prefix}position_ids"
    if name in forward.first:
        places = forward.first[name]
        steps = torch.tensor([n if on else _FAR for n, on in zip(back, going, strict=True)])
        forward.first[name] = (places - steps.to(places)[:, None]).clamp(min=0)


def _forget(forward: Forward, count: int) -> None:
    """Drop the first `count` slots of all rows, which are padding."""
    forward.cache.forget(count)  # type: ignore[union-attr]
    forward.fed -= count
    assert forward.mask is not None
    tail = forward.mask.new_ones(forward.rows, count)
    forward.mask = torch.cat([forward.mask[:, count:], tail], 1)
