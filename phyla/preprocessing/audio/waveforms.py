"""What a call may give as sound, brought to a list of numpy arrays."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..text.batch import framework_of

log = logging.getLogger(__name__)
_told: set[str] = set()


def is_several(raw: Any) -> bool:
    """Whether sounds were given as a list of arrays, lists or tensors."""
    if not isinstance(raw, (list, tuple)):
        return False
    if not raw:
        raise ArgumentError("at least one sound is needed, but the list is empty")
    return isinstance(raw[0], (list, tuple)) or (framework_of(raw[0]) is not None and np.ndim(raw[0]) > 0)


def array_of(one: Any, dtype: Any = np.float32) -> np.ndarray:
    """One sound as a numpy array of a dtype."""
    if framework_of(one) == "pt":
        one = one.detach().cpu().numpy()
    try:
        return np.asarray(one, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"a sound is an array or a list of numbers, but is {type(one).__name__}"
        ) from error


def waveforms(raw: Any, dtype: Any = np.float32, most: int = 2) -> list[np.ndarray]:
    """A waveform (samples,), an array of them (batch, samples) or a list of either, as a list of arrays.

    `most` is how many dimensions an array of several may have.
    """
    if is_several(raw):
        return [array_of(one, dtype) for one in raw]
    array = array_of(raw, dtype)
    if array.ndim > most:
        raise ArgumentError(
            f"only mono sound can be used, (samples,) or (batch, samples), but the shape is {array.shape}"
        )
    return list(array) if array.ndim > 1 else [array]


def check_rate(owner: Any, given: int | None) -> None:
    """ArgumentError where the given sampling rate is not the extractor's; a warning where none is given."""
    name = type(owner).__name__
    if given is None:
        if name not in _told:
            _told.add(name)
            log.warning("pass sampling_rate to %s: a wrong rate goes unnoticed otherwise", name)
    elif given != owner.sampling_rate:
        raise ArgumentError(
            f"{name} needs sound at {owner.sampling_rate} Hz, but sampling_rate is {given}: resample it"
        )


def tell_unused(owner: Any, unused: dict[str, Any]) -> None:
    """A warning for options of a call that the extractor does not take."""
    if unused:
        log.warning("%s does not use %s", type(owner).__name__, ", ".join(sorted(unused)))
