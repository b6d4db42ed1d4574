"""Keys and values in main memory, each layer's brought to the device while the layer before it computes.

What a layer does with its memory, in order: take what was fetched for it (or fetch it now), put the new
positions behind it, send those home, and have the next layer's fetched. Fetching and sending are jobs of a
carrier: on CUDA a stream of its own, with pinned memory and events; in tests a thread. Positions are the
first axis in memory, so that the filled ones, and the new ones, are one piece.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from phyla.blocks.cache import KVCache


class Done(Protocol):
    """A job that was given to a carrier."""

    def before_use(self) -> None:
        """What is computed on the device from now on comes behind the job."""

    def wait(self) -> None:
        """Return when the job is over."""


class Carrier(Protocol):
    """Does copies one after the other, beside what the device computes."""

    pinned: bool

    def start(self, copies: Sequence[tuple[Tensor, Tensor]]) -> Done:
        """Copy each source into its target, behind all that the device was told so far."""


class _Event:
    __slots__ = ("event",)

    def __init__(self, event: Any) -> None:
        self.event = event

    def before_use(self) -> None:
        torch.cuda.current_stream().wait_event(self.event)

    def wait(self) -> None:
        self.event.synchronize()


class StreamCarrier:
    """A stream of its own on a CUDA device."""

    __slots__ = ("stream",)
    pinned = True

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def start(self, copies: Sequence[tuple[Tensor, Tensor]]) -> Done:
        """As `Carrier.start`."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            for source, target in copies:
                target.copy_(source, non_blocking=True)
                for t in (source, target):
                    if t.is_cuda:  # whose memory may be given away before the copy is over
                        t.record_stream(self.stream)
            return _Event(self.stream.record_event())


# device type -> its carrier; others look at the memory where it lies
CARRIERS: dict[str, Callable[[torch.device], Carrier]] = {"cuda": StreamCarrier}


class Ring:
    """The offloaded layers of one cache, in order, and their carrier."""

    __slots__ = ("carrier", "slots")

    def __init__(self, slots: "list[OffloadedKV]") -> None:
        self.slots = slots
        self.carrier: Carrier | None = None

    def carry(self, device: torch.device, copies: Sequence[tuple[Tensor, Tensor]]) -> Done:
        """Give copies to the device's carrier."""
        if self.carrier is None:
            self.carrier = CARRIERS[device.type](device)
        return self.carrier.start(copies)

    def behind(self, slot: "OffloadedKV") -> "OffloadedKV | None":
        """The layer whose turn is next: after the last one, the first, for the next step."""
        if len(self.slots) < 2:
            return None
        return self.slots[(next(i for i, s in enumerate(self.slots) if s is slot) + 1) % len(self.slots)]


class Visit:
    """Keys and values of a layer on the device, with room for one position more, and the copies to them."""

    __slots__ = ("done", "first", "keys", "used", "values")

    def __init__(self, keys: Tensor, values: Tensor, first: int, used: int, done: Done) -> None:
        self.keys, self.values, self.first, self.used, self.done = keys, values, first, used, done


class OffloadedKV(KVCache):
    """Keys and values that lie in main memory and visit the device while they are looked at."""

    def __init__(self, batch: int, length: int, window: int | None = None) -> None:
        super().__init__(batch, length, window)
        self.ring: Ring | None = None
        self.visit: Visit | None = None
        self.sent: Done | None = None
        self.device: torch.device | None = None

    @staticmethod
    def link(slots: Sequence[Any]) -> None:
        """Let the layers of one cache know each other."""
        own = [slot for slot in slots if isinstance(slot, OffloadedKV)]
        ring = Ring(own)
        for slot in own:
            slot.settle()
            slot.ring = ring

    def made(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Main memory for keys or values, which copies can run beside; as ever where nothing is copied."""
        if self.device is None or self.device.type not in CARRIERS:
            return super().made(like, shape)
        pinned = self.device.type == "cuda"
        return _by_position(shape, like.dtype, torch.device("cpu"), pinned)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """As `KVCache.update`: on the device, and in main memory soon."""
        self.device = k.device
        if k.device.type not in CARRIERS:
            return super().update(k, v)
        if self.ring is None:
            self.link([self])
        assert self.ring is not None
        new, seen = k.shape[2], self._visited()
        if self.keys is None or self.used + new > self.capacity:
            self._home()  # the memory is about to move
        before = self.first
        keys, values = self._reserve(k, v, new)
        drop, end = self.first - before, self.used + new
        places = slice(self.used, end)
        homes = ((k, keys[:, :, places]), (v, values[:, :, places]))
        found = (k, v) if seen is None else tuple(
            _appended(old[:, :, drop:], t, self.used) for old, t in zip(seen, (k, v), strict=True)
        )  # fmt: skip
        self.used = end
        self.sent = self.ring.carry(
            k.device, [(t.detach().movedim(2, 0), home.movedim(2, 0)) for t, home in homes]
        )
        behind = self.ring.behind(self)
        if behind is not None:
            behind.fetch()
        return found[0], found[1], self.first

    def fetch(self) -> None:
        """Start bringing what is kept to the device, unless it is under way."""
        if self.used and self.device is not None and self.visit is None and self.ring is not None:
            self.visit = self._fetched()

    def _fetched(self) -> Visit:
        kept = super().read()
        assert kept is not None and self.ring is not None
        used, device = self.used, self.device
        assert device is not None
        room = [_by_position((*t.shape[:2], used + 1, t.shape[3]), t.dtype, device) for t in kept]
        done = self.ring.carry(
            device,
            [(t.movedim(2, 0), place.movedim(2, 0)[:used]) for t, place in zip(kept, room, strict=True)],
        )
        return Visit(room[0], room[1], self.first, used, done)

    def _visited(self) -> tuple[Tensor, Tensor] | None:
        """What is kept, on the device; None where nothing is."""
        if not self.used:
            return None
        visit, self.visit = self.visit, None
        if visit is None:
            visit = self._fetched()
        visit.done.before_use()
        return visit.keys, visit.values

    def _home(self) -> None:
        """Wait for what is on its way to main memory."""
        if self.sent is not None:
            self.sent.wait()
            self.sent = None

    def settle(self) -> None:
        """Wait for all copies, and forget what was fetched: the memory is about to change or to be read."""
        self._home()
        if self.visit is not None:
            self.visit.done.wait()
            self.visit = None

    def read(self) -> tuple[Tensor, Tensor] | None:
        """As `KVCache.read`, in main memory."""
        self.settle()
        return super().read()

    def reorder(self, index: Tensor) -> None:
        """As `KVCache.reorder`."""
        self.settle()
        for name in ("keys", "values"):
            kept = getattr(self, name)
            if kept is not None:
                moved = self.made(kept, (len(index), *kept.shape[1:]))
                moved[:, :, : self.used] = kept[:, :, : self.used].index_select(0, index.cpu())
                setattr(self, name, moved)
        self.batch = len(index)

    def truncate(self, length: int) -> None:
        """As `KVCache.truncate`."""
        self.settle()
        super().truncate(length)

    def shift(self, by: Sequence[int]) -> None:
        """As `KVCache.shift`."""
        self.settle()
        super().shift(by)

    def forget(self, count: int) -> None:
        """As `KVCache.forget`."""
        self.settle()
        super().forget(count)


def _by_position(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, pinned: bool = False
) -> Tensor:
    """Memory for (B, G, K, E) whose first axis is that of positions."""
    rows, heads, count, width = shape
    made = torch.empty(count, rows, heads, width, dtype=dtype, device=device, pin_memory=pinned)
    return made.permute(1, 2, 0, 3)


def _appended(kept: Tensor, new: Tensor, used: int) -> Tensor:
    """Keys or values with new ones behind the first `used`: in place where there is room."""
    end = used + new.shape[2]
    if end > kept.shape[2]:
        return torch.cat((kept[:, :, :used], new), 2)
    kept[:, :, used:end] = new
    return kept[:, :, :end]
