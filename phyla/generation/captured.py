"""The decode step on fixed buffers: recorded once as a CUDA graph, then run again for every token.

A step of one new token a row writes its keys where a tensor says, reads all slots of the memory and hides
those that are not filled yet; so its shapes, and all that the processor does for it, are the same at every
length. The buffers are those of an ordinary cache: any call may go on from what a replayed step wrote, and
the other way round.
"""

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.attention import Attention
from phyla.blocks.cache import Cache, KVCache
from phyla.blocks.mask import Causal
from phyla.blocks.matmul import is_watched
from phyla.blocks.position import Rotary
from phyla.generation.compiled import compiler, tag
from phyla.generation.config import CompileConfig

log = logging.getLogger("phyla.generation.captured")

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
ROOM = 256  # positions: memories of neighbouring lengths have the same size, and share a recorded step
LEAST = 8  # new tokens of a call from which recording pays
KEPT = 2  # recorded steps, with their memory, that a model keeps for later calls


def record_cuda(step: Callable[[], None]) -> Callable[[], None]:
    """Run a step twice, so that libraries have made their rooms, and record it; what runs it again."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def record_nothing(step: Callable[[], None]) -> Callable[[], None]:
    """The step itself: the same buffers without a recording, for devices that have none (and for tests)."""
    step()
    return step


# device type -> how its steps are recorded; others are not
RECORDERS: dict[str, Recorder] = {"cuda": record_cuda}


class FixedKV:
    """Keys and values (B, G, capacity, E) of a KVCache, written at the slot that a tensor holds."""

    def __init__(self, slot: KVCache, place: Tensor) -> None:
        # a weight of nothing times what memory happens to hold may be no number: what is not filled is zero
        slot.keys, slot.values = _filled(slot.keys, slot.used), _filled(slot.values, slot.used)
        self.keys, self.values, self.place = slot.keys, slot.values, place

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Write one position (B, G, 1, E); all slots, filled or not."""
        self.keys.index_copy_(2, self.place, k)
        self.values.index_copy_(2, self.place, v)
        return self.keys, self.values, 0


def _filled(kept: Tensor | None, used: int) -> Tensor:
    """A copy of the first `used` positions, with zeros behind them."""
    assert kept is not None
    copy = torch.zeros_like(kept)
    copy[:, :, :used] = kept[:, :, :used]
    return copy


class RecordedCache(Cache):
    """The memory of a recorded step: how much of it is filled, its tensors say."""

    @property
    def length(self) -> int:
        """None that is known beforehand."""
        return 0

    @length.setter
    def length(self, value: int) -> None:
        """What a stack counts means nothing here."""


class FixedCache(RecordedCache):
    """The memory of a captured step; it says itself which slots are visible, for no number does."""

    fixed = True

    def __init__(self, slots: list[Any], seen: Tensor, place: Tensor) -> None:
        super().__init__(slots, len(seen))
        self.seen, self.place = seen, place
        self.numbers = torch.arange(seen.shape[1], device=seen.device)

    def visible(self, rule: Causal) -> Tensor:
        """bool (B, 1, 1, capacity): what the new position may see by a rule and the rows' padding."""
        return (self.seen & rule.visible(self.place, self.numbers))[:, None, None]


class RecordedStep:
    """What is recorded: `model` on the ids, positions and cache of one step, its last `keep` scores kept."""

    ids: Tensor
    positions: Tensor
    cache: RecordedCache

    def __init__(self, model: Any, keep: int) -> None:
        self.model, self.marks, self.keep = weakref.ref(model), marks(model), keep
        self.logits: Tensor | None = None

    def _step(self) -> None:
        out = self.model()(  # type: ignore[misc]
            input_ids=self.ids, position_ids=self.positions, past_key_values=self.cache, use_cache=True,
            logits_to_keep=self.keep, return_dict=True,
        )  # fmt: skip
        if self.logits is None:
            with torch.inference_mode(False):  # later calls may be outside of it
                self.logits = torch.empty_like(out.logits)
        self.logits.copy_(out.logits)


class CapturedStep(RecordedStep):
    """One step of `model` for the rows of a filled cache, on buffers of its own and the cache's memory."""

    def __init__(self, model: Any, cache: Cache, recorder: Recorder) -> None:
        slots: list[Any] = cache.slots
        device, rows = model.device, cache.batch
        if len({slot.keys.shape[2] for slot in slots}) != 1:
            raise ValueError("the layers have room for different numbers of positions")
        super().__init__(model, 1)
        with torch.inference_mode(False):
            self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
            self.positions = torch.zeros_like(self.ids)
            self.place = torch.zeros(1, dtype=torch.long, device=device)
            self.seen = torch.ones(rows, slots[0].capacity, dtype=torch.bool, device=device)
            self.slots = [FixedKV(slot, self.place) for slot in slots]
            fixed = FixedCache(self.slots, self.seen, self.place)
            self.cache, self.numbers = fixed, fixed.numbers
        # nothing that is kept is written: the place is one that the first real step fills
        self.place.fill_(cache.length)
        with torch.cuda.device_of(self.ids):
            self.replay = recorder(self._step)

    def holds(self, cache: Cache) -> bool:
        """Whether a cache still lies in the memory that this step writes."""
        slots: list[Any] = cache.slots
        return len(slots) == len(self.slots) and all(
            slot.keys is own.keys and slot.values is own.values
            for slot, own in zip(slots, self.slots, strict=True)
        )

    def buffers(self) -> list[Tensor]:
        """All that stays where it is from step to step."""
        kept = [t for slot in self.slots for t in (slot.keys, slot.values)]
        own = [self.ids, self.positions, self.place, self.seen, self.numbers, *kept]
        return own if self.logits is None else [*own, self.logits]

    def look_at(self, mask: Tensor | None) -> None:
        """Take the padding of a call: mask (rows, positions), 1 at real ones, or None."""
        self.seen.fill_(True)
        if mask is not None:
            self.seen[:, : mask.shape[1]] = mask.bool()
        self.lead = self.seen.int().argmax(-1, keepdim=True)

    def __call__(self, ids: Tensor, positions: Tensor | None, cache: Cache) -> Tensor:
        """Scores (rows, 1, V) behind ids (rows, 1), which later calls overwrite; the cache is one longer."""
        self.ids.copy_(ids)
        self.place.fill_(cache.length)
        if positions is None:
            self.positions.copy_(cache.length - self.lead)
        else:
            self.positions.copy_(positions.expand_as(self.positions))
        self.replay()
        for slot in cache.slots:
            slot.used += 1
        cache.length += 1
        assert self.logits is not None
        return self.logits


def marks(model: Any) -> tuple[Any, ...]:
    """What a recorded step depends on beside its buffers: where the weights lie, what modules there are.

    The last are the hooks of these: with any, somebody may want to see each step, or change it.
    """
    found: dict[int, Any] = {}
    waiting = [model]
    while waiting:  # by hand: the engine asks at each step, and named walks take four times as long
        module = waiting.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            waiting += module._modules.values()
    places = [p.data_ptr() for m in found.values() for p in m._parameters.values() if p is not None]
    hooks = [key for m in found.values() for key in _hooks_of(m)]
    return model.training, model.implementation, tuple(found), tuple(places), tuple(hooks)


def _hooks_of(module: Any) -> tuple[Any, ...]:
    if not (module._forward_hooks or module._forward_pre_hooks):
        return ()
    return (*module._forward_hooks, *module._forward_pre_hooks)


def _steps_by_ids(model: Any) -> bool:
    return getattr(model, "steps_by_ids", False)  # models from outside do not say


def is_plain(model: Any) -> bool:
    """Whether a step of the model has the same work at every length: a text decoder of plain attention.

    All its weights lie on one device.
    """
    if not _steps_by_ids(model) or hasattr(model, "next_inputs") or model.training or is_watched():
        return False
    if len({p.device for p in model.parameters()}) != 1:
        return False
    keepers = [m for m in model.modules() if getattr(m, "caches", False)]
    return bool(keepers) and all(
        type(m) is Attention
        and not m.cross
        and isinstance(m.mask, Causal)
        and (m.position is None or (type(m.position) is Rotary and not m.position.table.depends_on_length))
        for m in keepers
    )


# model -> (key, step), the newest last; a step that a call uses is not among them
_kept: "weakref.WeakKeyDictionary[Any, list[tuple[Any, CapturedStep]]]" = weakref.WeakKeyDictionary()

# model -> as it was when a step of it could not be recorded
_refused: "weakref.WeakKeyDictionary[Any, tuple[Any, ...]]" = weakref.WeakKeyDictionary()


class Steps:
    """The captured step of one call of `generate`: found, recorded when it is first needed, given back.

    `cache` is the call's memory, still empty; it gets the room that the step needs.
    tag: what tells its recorder from others.
    """

    def __init__(self, model: Any, cache: Cache, length: int, recorder: Recorder, tag: Any = ()) -> None:
        self.model, self.cache, self.recorder, self.tag = model, cache, recorder, tag
        self.step: CapturedStep | None = None
        self.begun = self.failed = False
        room = -(-length // ROOM) * ROOM
        self.key = (cache.batch, room, tag)
        self._find()
        for number, slot in enumerate(cache.slots):
            slot.capacity = room
            slot.window = None  # hidden by the mask
            if self.step is not None:
                own = self.step.slots[number]
                slot.keys, slot.values = own.keys.zero_(), own.values.zero_()

    def _find(self) -> None:
        kept = _kept.get(self.model, [])
        for entry in kept:
            if entry[0] == self.key:
                kept.remove(entry)
                if entry[1].marks == marks(self.model):
                    self.step = entry[1]
                return

    def __call__(self, ids: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Scores of the step behind ids (rows, 1), or None where it is the model that must run."""
        if self.failed or (positions is not None and positions.dim() != 2):
            return None
        if self.step is None or not self.step.holds(self.cache):
            if self.begun:  # the memory moved in the midst of the call: recording again would not pay
                self.failed, self.step = True, None
                return None
            self._record()
        if self.step is None:
            return None
        if not self.begun:
            self.begun = True
            self.step.look_at(mask)
        return self.step(ids, positions, self.cache)

    def _record(self) -> None:
        try:
            self.step = CapturedStep(self.model, self.cache, self.recorder)
        except Exception as error:
            self.failed, self.step = True, None
            _refused[self.model] = (self.tag, marks(self.model))
            log.debug("the decode step of %s was not recorded: %s", type(self.model).__name__, error)

    def close(self, keep: bool = True) -> None:
        """The call is over; `keep` lets later ones have its step, and the memory that it writes."""
        step, self.step, self.failed = self.step, None, True
        if step is None or not keep or not step.holds(self.cache) or "adapters" in self.model._modules:
            return
        if self.cache.batch != self.key[0]:
            return
        kept = _kept.setdefault(self.model, [])
        kept.append((self.key, step))
        del kept[:-KEPT]


def steps_for(
    model: Any, cache: Any, length: int, new: int, settings: CompileConfig | None = None
) -> Steps | None:
    """What captures the steps of a call with a memory of `length` positions, still empty, and `new` tokens.

    None where its device has no recorder, its model is not plain, or its memory is of another kind.
    settings: steps are compiled so, on every device, in place of being recorded.
    """
    if not _steps_by_ids(model):
        return None
    recorder = RECORDERS.get(model.device.type)
    if settings is not None:
        recorder, new = compiler(settings), LEAST
    if recorder is None or new < LEAST or os.environ.get("PHYLA_CAPTURE") == "0" or not is_plain(model):
        return None
    if any(_hooks_of(module) for module in model.modules()):
        return None
    if not isinstance(cache, Cache) or any(type(slot) is not KVCache for slot in cache.slots):
        return None
    if any(slot.window is not None and slot.window < length for slot in cache.slots):
        return None  # layers that slide would have to keep all
    if model in _refused and _refused[model] == (tag(settings), marks(model)):
        return None
    return Steps(model, cache, length, recorder, tag(settings))
