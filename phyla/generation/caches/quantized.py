"""Keys and values in few bits: each group of numbers has its least value and its step beside it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError, UnknownArgumentError, nearest

_BITS = (2, 4, 8)


class QuantizedCacheConfig:
    """nbits: 2, 4 or 8 a number. q_group_size: numbers that share a scale. residual_length: newest positions
    kept whole. backend: "fp8" for 8-bit floating numbers, to which the three do not apply; another name, like
    axis_key, axis_value, compute_dtype and device, is for the public files: groups lie along the width.
    """

    def __init__(
        self, backend: str = "quanto", nbits: int = 4, axis_key: int = 0, axis_value: int = 0,
        q_group_size: int = 64, residual_length: int = 128, compute_dtype: Any = None, device: Any = None,
    ):  # fmt: skip
        if nbits not in _BITS or q_group_size < 1 or residual_length < 1:
            raise GenerationError(
                f"nbits must be one of {_BITS}, q_group_size and residual_length at least 1, but are "
                f"{nbits!r}, {q_group_size!r} and {residual_length!r}"
            )
        self.backend, self.nbits, self.q_group_size = backend, nbits, q_group_size
        self.axis_key, self.axis_value, self.residual_length = axis_key, axis_value, residual_length
        self.compute_dtype, self.device = compute_dtype, device

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return dict(self.__dict__)


class PackedNumbers:
    """Numbers (..., width) in few bits: each group's least value and step beside them."""

    def __init__(self, values: Tensor, bits: int, group: int):
        self.bits, self.shape, self.dtype = bits, values.shape, values.dtype
        self.group = group if values.shape[-1] % group == 0 else values.shape[-1]
        parts = values.float().unflatten(-1, (-1, self.group))
        low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
        self.low, self.step = low, ((high - low) / (2**bits - 1)).clamp(min=1e-12)
        codes = ((parts - low) / self.step).round().to(torch.uint8).flatten(-2)
        many = 8 // bits
        codes = nn.functional.pad(codes, (0, -codes.shape[-1] % many)).unflatten(-1, (-1, many))
        self.codes = sum((codes[..., i] << (bits * i) for i in range(many)), torch.zeros_like(codes[..., 0]))

    def whole(self) -> Tensor:
        """The numbers, nearly."""
        many = 8 // self.bits
        codes = torch.stack([self.codes >> (self.bits * i) for i in range(many)], -1) & (2**self.bits - 1)
        codes = codes.flatten(-2)[..., : self.shape[-1]].unflatten(-1, (-1, self.group))
        return (codes * self.step + self.low).flatten(-2).to(self.dtype)

    def rows(self, index: Tensor) -> "PackedNumbers":
        """The rows `index`."""
        new = object.__new__(PackedNumbers)
        new.__dict__.update(self.__dict__)
        new.shape = torch.Size((len(index), *self.shape[1:]))
        new.low, new.step, new.codes = (
            t.index_select(0, index) for t in (self.low, self.step, self.codes)
        )  # fmt: skip
        return new

    def slots(self, begin: int, end: int) -> "PackedNumbers":
        """The positions (their second last axis) from `begin` to `end`."""
        return self._with(
            torch.Size((*self.shape[:-2], end - begin, self.shape[-1])),
            self.low[..., begin:end, :, :], self.step[..., begin:end, :, :], self.codes[..., begin:end, :],
        )  # fmt: skip

    def _with(self, shape: torch.Size, low: Tensor, step: Tensor, codes: Tensor) -> "PackedNumbers":
        new = object.__new__(PackedNumbers)
        new.__dict__.update(self.__dict__)
        new.shape, new.low, new.step, new.codes = shape, low, step, codes
        return new

    @staticmethod
    def joined(parts: "list[PackedNumbers]") -> "PackedNumbers":
        """Parts of the same rows, one behind the other."""
        first = parts[0]
        low, step = (torch.cat([getattr(p, name) for p in parts], -3) for name in ("low", "step"))
        codes = torch.cat([p.codes for p in parts], -2)
        return first._with(torch.Size((*codes.shape[:-1], first.shape[-1])), low, step, codes)

    def shifted(self, row: int, places: int) -> None:
        """Move the positions of a row back; what comes free holds anything."""
        for kept in (self.low, self.step, self.codes):
            end = kept.shape[2]
            kept[row, :, min(places, end) :] = kept[row, :, : max(end - places, 0)].clone()


class QuantizedKV:
    """Keys and values in few bits, but for the newest; a block of `residual_length` is packed at a time.

    window: of a layer that slides; blocks that nobody can attend to any more are dropped.
    """

    keys = torch.empty(0, dtype=torch.uint8)  # nothing that a kernel could read in place

    def __init__(self, config: QuantizedCacheConfig, batch: int, window: int | None = None):
        self.config, self.batch, self.window, self.first = config, batch, window, 0
        self.packed: list[tuple[PackedNumbers, PackedNumbers]] = []
        self.recent: tuple[Tensor, Tensor] | None = None

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Append keys and values (rows, heads, new, width); returns all and the slot of the first."""
        if self.recent is not None:
            k, v = (torch.cat([old, new], 2) for old, new in zip(self.recent, (k, v), strict=True))
        old = [(a.whole(), b.whole()) for a, b in self.packed]
        keys, values = (torch.cat([*(pair[i] for pair in old), (k, v)[i]], 2) for i in (0, 1))
        size = self.config.residual_length
        while k.shape[2] >= 2 * size:
            block = (self._pack(t[:, :, :size]) for t in (k, v))
            self.packed.append((next(block), next(block)))
            k, v = k[:, :, size:], v[:, :, size:]
        self.recent = (k, v)
        first = self.first
        while self.window is not None and self.packed and self._used() - size >= self.window - 1:
            del self.packed[0]
            self.first += size
        return keys, values, first

    def _used(self) -> int:
        """How many positions are kept."""
        own = 0 if self.recent is None else self.recent[0].shape[2]
        return own + self.config.residual_length * len(self.packed)

    def read(self) -> tuple[Tensor, Tensor] | None:
        """As `KVCache.read`; packed positions come nearly as they were."""
        if self.recent is None:
            return None
        old = [(a.whole(), b.whole()) for a, b in self.packed]
        keys, values = (torch.cat([*(pair[i] for pair in old), self.recent[i]], 2) for i in (0, 1))
        return keys, values

    def _pack(self, values: Tensor) -> PackedNumbers:
        return PackedNumbers(values, self.config.nbits, self.config.q_group_size)

    def reorder(self, index: Tensor) -> None:
        """As `KVCache.reorder`."""
        self.packed = [(a.rows(index), b.rows(index)) for a, b in self.packed]
        if self.recent is not None:
            self.recent = (self.recent[0].index_select(0, index), self.recent[1].index_select(0, index))
        self.batch = len(index)

    def truncate(self, length: int) -> None:
        """As `KVCache.truncate`."""
        size = self.config.residual_length
        if length < self.first:
            raise ArgumentError(
                f"a sliding cache can be cut back to {self.first} positions at most, "
                f"but {length} was asked for"
            )
        length -= self.first
        while self.packed and length < size * len(self.packed):
            keys, values = self.packed.pop()
            self.recent = (keys.whole(), values.whole())
        if self.recent is not None:
            kept = max(0, length - size * len(self.packed))
            self.recent = (self.recent[0][:, :, :kept], self.recent[1][:, :, :kept])

    def shift(self, by: Sequence[int]) -> None:
        """As `KVCache.shift`; numbers keep their values: those that leave the packed part are unpacked."""
        if self.recent is None or not any(by):
            return
        size, blocks = self.config.residual_length, len(self.packed)
        recent = [t.clone() for t in self.recent]
        joined = [PackedNumbers.joined([p[i] for p in self.packed]) for i in (0, 1)] if blocks else []
        for row, places in enumerate(by):
            if not places:
                continue
            for i, fresh in enumerate(recent):
                whole = fresh[row]
                if blocks:
                    begin = max(0, blocks * size - places)
                    whole = torch.cat([joined[i].slots(begin, blocks * size).whole()[row], whole], 1)
                    joined[i].shifted(row, places)
                count = min(fresh.shape[2], whole.shape[1])
                end = whole.shape[1] - places
                first = end - count
                fresh[row, :, max(0, -first) :] = whole[:, max(0, first) : max(0, end)].clone()
        self.recent = (recent[0], recent[1])
        if blocks:
            self._split(joined, 0)

    def forget(self, count: int) -> None:
        """As `KVCache.forget`."""
        dropped = min(count, self.first)
        self.first, count = self.first - dropped, count - dropped
        if self.recent is None or not count:
            return
        packed = self.config.residual_length * len(self.packed)
        if not self.packed or count >= packed:
            self.packed = []
            self.recent = (self.recent[0][:, :, count - packed :], self.recent[1][:, :, count - packed :])
            return
        self._split([PackedNumbers.joined([p[i] for p in self.packed]) for i in (0, 1)], count)

    def _split(self, joined: list[PackedNumbers], begin: int) -> None:
        """Take blocks from what lies behind the first `begin` positions; the rest of it is unpacked."""
        assert self.recent is not None
        size, end = self.config.residual_length, joined[0].shape[-2]
        count = (end - begin) // size
        self.packed = [
            (joined[0].slots(at, at + size), joined[1].slots(at, at + size))
            for at in range(begin, begin + count * size, size)
        ]
        rest = begin + count * size
        if rest < end:
            keys, values = (
                torch.cat([part.slots(rest, end).whole(), recent], 2)
                for part, recent in zip(joined, self.recent, strict=True)
            )
            self.recent = (keys, values)


def read_settings(settings: Any) -> QuantizedCacheConfig:
    """cache_config as an object: a QuantizedCacheConfig, or a dict of its fields."""
    if settings is None:
        return QuantizedCacheConfig()
    if isinstance(settings, QuantizedCacheConfig):
        return settings
    if not isinstance(settings, dict):
        raise GenerationError(
            f"cache_config must be a QuantizedCacheConfig or a dict, but is a {type(settings).__name__}"
        )
    known = list(QuantizedCacheConfig().to_dict())
    for name in settings:
        if name not in known:
            raise UnknownArgumentError(f"QuantizedCacheConfig has no field {name!r}.{nearest(name, known)}")
    return QuantizedCacheConfig(**settings)
