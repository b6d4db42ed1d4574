"""What one row of the table of feature extractors says, and the constructor that all of them share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from phyla.errors import ArgumentError

from .mel import mel_filter_bank
from .sequence import SequenceFeatureExtractor


@dataclass(frozen=True)
class Row:
    """One public feature extractor.

    kind: the class that takes the call. settings: constructor arguments with their defaults, in order.
    inputs: names of the model's inputs. unsaved: computed attributes that the saved file does not have.
    quiet: settings that the public files lack, saved only where they are not the defaults. fixed: what the
    kind reads besides the settings.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    unsaved: tuple[str, ...] = ("mel_filters", "window")
    quiet: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)


class TableExtractor(SequenceFeatureExtractor):
    """A feature extractor of the table: settings in the row's order, then what the kind computes of them."""

    row: ClassVar[Row]

    def __init__(self, *values: Any, **settings: Any):
        names = list(type(self).row.settings)
        if len(values) > len(names):
            raise ArgumentError(f"{type(self).__name__} takes the settings {', '.join(names)}, in this order")
        given = {**dict(zip(names, values)), **settings}
        super().__init__(**{**type(self).row.settings, **given})
        self.prepare()

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        if "row" in cls.__dict__:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            arguments = [inspect.Parameter(n, kind, default=v) for n, v in cls.row.settings.items()]
            rest = inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)
            cls.__signature__ = inspect.Signature([*arguments, rest])  # type: ignore[attr-defined]

    def prepare(self) -> None:
        """Hook: compute lengths, windows and filters of the settings."""

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the class name under the key that the public files use."""
        kept = super().to_dict()
        row = type(self).row
        return {k: v for k, v in kept.items() if k not in row.quiet or v != row.settings[k]}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no setting {name!r}")


def kaldi_filters(num_mel_bins: int, sampling_rate: int) -> np.ndarray:
    """Kaldi's filters from 20 Hz on for an FFT of 512 points; the Nyquist frequency counts nothing."""
    filters = mel_filter_bank(
        num_frequency_bins=256,
        num_mel_filters=num_mel_bins,
        min_frequency=20,
        max_frequency=sampling_rate // 2,
        sampling_rate=sampling_rate,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return np.pad(filters, ((0, 1), (0, 0)))
