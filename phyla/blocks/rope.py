"""Frequencies of rotary positions for every public kind of `rope_scaling`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from phyla.errors import ConfigError, nearest


@dataclass(frozen=True)
class RopeTable:
    """Angles and a gain: `frequencies(total)` gives (width / 2) radians a token for `total` tokens."""

    frequencies: Callable[[int], Tensor]
    factor: float = 1.0
    depends_on_length: bool = False


def rope_table(
    width: int, base: float, scaling: Any, max_positions: int, original_positions: int | None = None
) -> RopeTable:
    """The table of a public `rope_scaling` object (None: plain).

    Kinds: default (and mrope), linear (Chen et al. 2023, arXiv:2306.15595), dynamic (NTK-aware), yarn (Peng
    et al. 2023, arXiv:2309.00071), longrope and su (Ding et al. 2024, arXiv:2402.13753), llama3;
    proportional (the fastest `partial_rotary_factor` of the pairs turn).
    Raises ConfigError for unknown kinds and for missing or impossible fields.
    """
    if width <= 0 or width % 2:
        raise ConfigError(f"the rotary width must be positive and even, but is {width}")
    if scaling is None:
        scaling = {"rope_type": "default"}
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_scaling must be an object or null, but is {scaling!r}")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _KINDS:
        raise ConfigError(
            f"rope_scaling's rope_type must be one of {sorted(_KINDS)}, but is {kind!r}."
            + nearest(str(kind), _KINDS)
        )
    with torch.device("cpu"):  # models are described on the meta device, but a table is numbers
        return _KINDS[kind](width, float(base), dict(scaling), max_positions, original_positions)


def _plain(width: int, base: float) -> Tensor:
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)


def _number(scaling: dict[str, Any], key: str, default: float | None = None) -> float:
    value = scaling.get(key)
    value = default if value is None else value
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ConfigError(f"rope_scaling needs a positive number {key!r}, but has {value!r} (in {scaling!r})")
    return float(value)


# Module functions with their numbers bound, so that models can be pickled.
def _fixed(table: Tensor, total: int) -> Tensor:
    return table


def _grown(width: int, base: float, factor: float, max_positions: int, total: int) -> Tensor:
    total = max(total, max_positions)
    return _plain(width, base * ((factor * total / max_positions) - (factor - 1)) ** (width / (width - 2)))


def _short_or_long(short: Tensor, long: Tensor, trained: int, total: int) -> Tensor:
    return long if total > trained else short


def _default(width: int, base: float, scaling: dict, max_positions: int, original: int | None) -> RopeTable:
    table = _plain(width, base)
    return RopeTable(partial(_fixed, table))


def _linear(width: int, base: float, scaling: dict, max_positions: int, original: int | None) -> RopeTable:
    table = _plain(width, base) / _number(scaling, "factor")
    return RopeTable(partial(_fixed, table))


def _dynamic(width: int, base: float, scaling: dict, max_positions: int, original: int | None) -> RopeTable:
    factor = _number(scaling, "factor")
    return RopeTable(partial(_grown, width, base, factor, max_positions), depends_on_length=True)


def _yarn(width: int, base: float, scaling: dict, max_positions: int, original: int | None) -> RopeTable:
    factor = _number(scaling, "factor")
    trained = scaling.get("original_max_position_embeddings") or max_positions
    gain = scaling.get("attention_factor")
    if gain is None:
        mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if mscale and mscale_all:
            gain = _yarn_gain(factor, mscale) / _yarn_gain(factor, mscale_all)
        else:
            gain = _yarn_gain(factor, 1.0)
    fast, slow = _number(scaling, "beta_fast", 32.0), _number(scaling, "beta_slow", 1.0)

    def dimension(rotations: float) -> float:
        return width * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    keep = 1 - ramp.clamp(0, 1)
    plain = _plain(width, base)
    table = plain / factor * (1 - keep) + plain * keep
    return RopeTable(partial(_fixed, table), float(gain))


def _yarn_gain(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(width: int, base: float, scaling: dict, max_positions: int, original: int | None) -> RopeTable:
    trained = original or scaling.get("original_max_position_embeddings") or max_positions
    factor = max_positions / trained if original else scaling.get("factor") or max_positions / trained
    gain = scaling.get("attention_factor")
    if gain is None:
        gain = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    tables = []
    for key in ("short_factor", "long_factor"):
        values = scaling.get(key)
        if not isinstance(values, list | tuple) or len(values) != width // 2:
            found = len(values) if isinstance(values, list | tuple) else values
            raise ConfigError(f"rope_scaling's {key} must list {width // 2} numbers, but has {found!r}")
        tables.append(_plain(width, base) / torch.tensor(values, dtype=torch.float32))
    short, long = tables
    return RopeTable(partial(_short_or_long, short, long, trained), float(gain), depends_on_length=True)


def _llama3(width: int, base: float, scaling: dict, max_positions: int, original: int | None) -> RopeTable:
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    trained = _number(scaling, "original_max_position_embeddings")
    plain = _plain(width, base)
    wavelength = 2 * math.pi / plain
    smooth = (trained / wavelength - low) / (high - low)
    blend = (1 - smooth) * plain / factor + smooth * plain
    table = torch.where(wavelength > trained / low, plain / factor, plain)
    middle = (wavelength >= trained / high) & (wavelength <= trained / low)
    table = torch.where(middle, blend, table)
    return RopeTable(partial(_fixed, table))


def _proportional(
    width: int, base: float, scaling: dict, max_positions: int, original: int | None
) -> RopeTable:
    share = _number(scaling, "partial_rotary_factor", 1.0)
    table = _plain(width, base) / _number(scaling, "factor", 1.0)
    table[int(share * width // 2) :] = 0.0
    return RopeTable(partial(_fixed, table))


_KINDS: dict[str, Callable[[int, float, dict, int, int | None], RopeTable]] = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "mrope": _default,
    "proportional": _proportional,
    "su": _longrope,
    "yarn": _yarn,
}
