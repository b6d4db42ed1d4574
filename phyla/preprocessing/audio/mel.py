"""Filter banks over frequency bins: triangular mel filters in the three public scales, and chroma filters."""

from __future__ import annotations

import logging

import numpy as np

from phyla.errors import ArgumentError

log = logging.getLogger(__name__)
SCALES = ("htk", "slaney", "kaldi")
# The Slaney scale is linear to 1000 Hz (mel 15) and logarithmic above, 27 steps for a factor of 6.4.
_KNEE_HERTZ, _KNEE_MEL, _STEP = 1000.0, 15.0, np.log(6.4) / 27.0


def _check_scale(scale: str) -> None:
    if scale not in SCALES:
        raise ArgumentError(f"mel_scale must be one of {', '.join(map(repr, SCALES))}, but is {scale!r}")


def _as_given(result: np.ndarray, given):
    return result if isinstance(given, np.ndarray) else float(result)


def hertz_to_mel(freq: float | np.ndarray, mel_scale: str = "htk"):
    """Frequencies in Hz on a mel scale: "htk", "slaney" or "kaldi"."""
    _check_scale(mel_scale)
    hertz = np.asarray(freq, dtype=np.float64)
    if mel_scale == "htk":
        return _as_given(2595.0 * np.log10(1.0 + hertz / 700.0), freq)
    if mel_scale == "kaldi":
        return _as_given(1127.0 * np.log(1.0 + hertz / 700.0), freq)
    above = _KNEE_MEL + np.log(np.maximum(hertz, _KNEE_HERTZ) / _KNEE_HERTZ) / _STEP
    return _as_given(np.where(hertz >= _KNEE_HERTZ, above, 3.0 * hertz / 200.0), freq)


def mel_to_hertz(mels: float | np.ndarray, mel_scale: str = "htk"):
    """The inverse of `hertz_to_mel`."""
    _check_scale(mel_scale)
    values = np.asarray(mels, dtype=np.float64)
    if mel_scale == "htk":
        return _as_given(700.0 * (10.0 ** (values / 2595.0) - 1.0), mels)
    if mel_scale == "kaldi":
        return _as_given(700.0 * (np.exp(values / 1127.0) - 1.0), mels)
    above = _KNEE_HERTZ * np.exp(_STEP * (np.maximum(values, _KNEE_MEL) - _KNEE_MEL))
    return _as_given(np.where(values >= _KNEE_MEL, above, 200.0 * values / 3.0), mels)


def mel_filter_bank(
    num_frequency_bins: int,
    num_mel_filters: int,
    min_frequency: float,
    max_frequency: float,
    sampling_rate: int,
    norm: str | None = None,
    mel_scale: str = "htk",
    triangularize_in_mel_space: bool = False,
) -> np.ndarray:
    """Triangular filters, (num_frequency_bins, num_mel_filters), float64.

    norm="slaney" gives every filter the same area. `triangularize_in_mel_space` has the triangles' sides
    straight in mel, as Kaldi does, and the bins spaced for an FFT of twice as many points.
    """
    if norm not in (None, "slaney"):
        raise ArgumentError(f"norm must be None or 'slaney', but is {norm!r}")
    mels = np.linspace(
        hertz_to_mel(min_frequency, mel_scale), hertz_to_mel(max_frequency, mel_scale), num_mel_filters + 2
    )
    edges = mel_to_hertz(mels, mel_scale)
    if triangularize_in_mel_space:
        bins = hertz_to_mel(
            sampling_rate / (num_frequency_bins * 2) * np.arange(num_frequency_bins), mel_scale
        )
        edges = mels
    else:
        bins = np.linspace(0, sampling_rate // 2, num_frequency_bins)
    widths = np.diff(edges)
    distance = edges[None, :] - bins[:, None]  # (bins, filters + 2)
    rising, falling = -distance[:, :-2] / widths[:-1], distance[:, 2:] / widths[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= 2.0 / (edges[2:] - edges[:-2])
    if (filters.max(axis=0) == 0.0).any():
        log.info(
            "a mel filter is all zero: num_mel_filters (%d) is high for num_frequency_bins (%d)",
            num_mel_filters,
            num_frequency_bins,
        )
    return filters


def chroma_filter_bank(
    num_frequency_bins: int,
    num_chroma: int,
    sampling_rate: int,
    tuning: float = 0.0,
    power: float | None = 2.0,
    weighting_parameters: tuple[float, float] | None = (5.0, 2.0),
    start_at_c_chroma: bool = True,
) -> np.ndarray:
    """Gaussian filters around the pitch classes, (num_chroma, num_frequency_bins // 2 + 1), float64.

    `num_frequency_bins` is the FFT's length; `weighting_parameters` are centre and half width in octaves.
    """
    hertz = np.linspace(0, sampling_rate, num_frequency_bins, endpoint=False)[1:]
    lowest = 440.0 * 2.0 ** (tuning / num_chroma) / 16
    pitch = num_chroma * np.log2(hertz / lowest)
    # The bin of 0 Hz is put one and a half octaves below the first.
    pitch = np.concatenate(([pitch[0] - 1.5 * num_chroma], pitch))
    widths = np.concatenate((np.maximum(np.diff(pitch), 1.0), [1.0]))
    half = np.round(num_chroma / 2.0)
    away = pitch[None, :] - np.arange(num_chroma, dtype=np.float64)[:, None]
    away = np.remainder(away + half + 10 * num_chroma, num_chroma) - half
    filters = np.exp(-0.5 * (2 * away / widths) ** 2)
    if power is not None:
        filters = filters / np.sum(filters**power, axis=0, keepdims=True) ** (1.0 / power)
    if weighting_parameters is not None:
        centre, half_width = weighting_parameters
        filters *= np.exp(-0.5 * ((pitch / num_chroma - centre) / half_width) ** 2)
    if start_at_c_chroma:
        filters = np.roll(filters, -3 * (num_chroma // 12), axis=0)
    return np.ascontiguousarray(filters[:, : 1 + num_frequency_bins // 2])
