"""Engine steps of one new token a text, recorded for powers of two of texts and of pages, and replayed."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.attention import Attention, attend
from phyla.blocks.context import Context
from phyla.blocks.flat import FlatCache, Pages, Segment
from phyla.generation import captured
from phyla.generation.captured import RecordedCache, RecordedStep, Recorder, is_plain, marks

log = logging.getLogger("phyla.generation.captured")


class _Slot:
    """The pages of one attention, as texts of one new token each see them: each its row of the table."""

    def __init__(self, pages: Pages, step: "PagedStep") -> None:
        assert pages.keys is not None and pages.values is not None
        self.pages, self.step, self.keys, self.values = pages, step, pages.keys, pages.values

    def attend(
        self, mixer: Attention, q: Tensor, k: Tensor, v: Tensor, x: Tensor, ctx: Context
    ) -> Tensor:  # (1, N, H * E)
        """As `Pages.attend`: q (1, H, N, E), k and v (1, G, N, E)."""
        step = self.step
        self.pages.write(k, v, step.pages, step.offsets)
        keys = self.keys[step.table].permute(0, 2, 1, 4, 3).flatten(2, 3)  # (N, G, pages * P, E)
        values = self.values[step.table].permute(0, 2, 1, 3, 4).flatten(2, 3)
        mask = ctx.once(mixer.mask, lambda: mixer.mask.visible(step.places[:, None], step.numbers[None]))
        queries = q[0].transpose(0, 1)[:, :, None]  # (N, H, 1, E)
        y = attend(queries, keys, values, mask[:, None, None], None, False, mixer.scale, 0.0)
        return y.reshape(1, len(step.places), -1)


class _SteadyPages(RecordedCache):
    """The memory of a recorded step; all its slots are pages."""

    flat = True

    def mix(self, mixer: Any, x: Tensor, ctx: Context) -> Tensor:
        """As `FlatCache.mix`."""
        return mixer.mix(x, ctx)


class PagedStep(RecordedStep):
    """One step of `model` for `count` texts of at most `width` pages, on buffers of its own."""

    def __init__(self, model: Any, cache: FlatCache, count: int, width: int, recorder: Recorder) -> None:
        super().__init__(model, count)
        device = model.device

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.long, device=device)

        with torch.inference_mode(False):
            self.ids, self.positions = numbers(1, count), numbers(1, count)
            self.pages, self.offsets, self.places = numbers(count), numbers(count), numbers(count)
            self.table = numbers(count, width)
            self.numbers = torch.arange(width * cache.size, device=device)
        self.slots = [_Slot(slot, self) for slot in cache.slots]
        self.cache = _SteadyPages(list(self.slots), 1)
        self.recorder = recorder
        self.replay: Callable[[], None] | None = None

    def holds(self, cache: FlatCache, now: tuple[Any, ...]) -> bool:
        """Whether the pages and the model, of marks `now`, are those that it was recorded with."""
        return self.marks == now and all(
            slot.keys is own.keys and slot.values is own.values
            for slot, own in zip(cache.slots, self.slots, strict=True)
        )

    def __call__(self, parts: Sequence[Segment], ids: list[int], places: list[int], size: int) -> Tensor:
        """Scores (texts, V) behind ids at places; what is over of the buffers repeats the first text."""
        over = [0] * (len(self.places) - len(parts))
        index = [*range(len(parts)), *over]
        width = self.table.shape[1]
        rows = [[max(p, 0) for p in part.text.pages[:width]] for part in parts]
        device = self.ids.device
        told = torch.tensor([
            [ids[i] for i in index],
            [places[i] for i in index],
            [parts[i].start for i in index],
            [rows[i][parts[i].start // size] for i in index],
        ])  # fmt: skip
        table = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in index])
        told = told.to(device, non_blocking=True)
        self.ids.copy_(told[:1])
        self.positions.copy_(told[1:2])
        self.places.copy_(told[2])
        self.offsets.copy_(told[2] % size)
        self.pages.copy_(told[3])
        self.table.copy_(table, non_blocking=True)
        if self.replay is None:  # with a real step in the buffers: its own slots are all that it writes
            with torch.cuda.device_of(self.ids):
                self.replay = self.recorder(self._step)
        self.replay()
        assert self.logits is not None
        return self.logits[0, : len(parts)].float()


class PagedSteps:
    """The recorded steps of an engine, each made when it is first needed."""

    def __init__(self, model: Any, cache: FlatCache, recorder: Recorder) -> None:
        self.model, self.cache, self.recorder = model, cache, recorder
        self.made: dict[tuple[int, int], PagedStep] = {}
        self.failed = False

    def __call__(self, parts: Sequence[Segment], ids: list[int], places: list[int]) -> Tensor | None:
        """Scores (texts, V) of a step whose every text gets one token, or None where the model must run."""
        if (
            self.failed
            or any(part.length != 1 for part in parts)
            or len({id(p.text) for p in parts}) < len(parts)
        ):
            return None
        if any(slot.keys is None for slot in self.cache.slots) or "adapters" in self.model._modules:
            return None
        now = marks(self.model)
        if now[-1]:  # hooks are called in steps that run
            return None
        if not _is_fused(self.model):
            return None
        key = _power(len(parts)), _power(max(len(part.text.pages) for part in parts))
        step = self.made.get(key)
        if step is not None and not step.holds(self.cache, now):
            self.made.clear()
            step = None
        try:
            if step is None:
                step = self.made[key] = PagedStep(self.model, self.cache, *key, self.recorder)
            return step(parts, ids, places, self.cache.size)
        except Exception as error:
            if step is not None and step.replay is not None:
                raise  # it was recorded: this is no failure to record
            self.failed, self.made = True, {}
            log.debug("the engine's step of %s was not recorded: %s", type(self.model).__name__, error)
            return None


def _is_fused(model: Any) -> bool:
    """Whether single queries are answered by the fused call, as recorded steps answer them."""
    if model.implementation == "sdpa":
        return True
    plain = model.implementation in ("flex", "flash", "flash3", "flash4")
    return plain and all(getattr(m, "softcap", None) is None for m in model.modules())


def _power(count: int) -> int:
    """The least power of two that is not below a count."""
    return 1 << max(count - 1, 0).bit_length()


def paged_steps(model: Any, cache: FlatCache) -> PagedSteps | None:
    """What records the steps of an engine; None without a recorder for its device, or for other models."""
    recorder = captured.RECORDERS.get(model.device.type)
    if recorder is None or os.environ.get("PHYLA_CAPTURE") == "0" or not is_plain(model):
        return None
    if not all(isinstance(slot, Pages) and slot.whole for slot in cache.slots):
        return None
    return PagedSteps(model, cache, recorder)
