"""Another sampling rate by band-limited interpolation (windowed sinc)."""

from __future__ import annotations

import math

import numpy as np


def resample(
    waveform: np.ndarray,
    old_rate: int,
    new_rate: int,
    lowpass_filter_width: float = 6,
    rolloff: float = 0.99,
    beta: float | None = None,
) -> np.ndarray:
    """Waveforms (..., samples) at another rate in Hz, float32, (..., ceil(new * samples / old)).

    The sinc has `lowpass_filter_width` zero crossings each side under a Hann window (a Kaiser window where
    `beta` is given) and is cut at `rolloff` of the lower Nyquist frequency (Smith, Digital audio resampling).
    """
    common = math.gcd(int(old_rate), int(new_rate))
    old, new = int(old_rate) // common, int(new_rate) // common
    waveform = np.asarray(waveform, dtype=np.float32)
    if old == new:
        return waveform
    cut = min(old, new) * rolloff
    half = math.ceil(lowpass_filter_width * old / cut)
    time = -np.arange(new)[:, None] / new + np.arange(-half, half + old)[None, :] / old
    time = np.clip(time * cut, -lowpass_filter_width, lowpass_filter_width)
    if beta is None:
        window = np.cos(time * math.pi / lowpass_filter_width / 2) ** 2
    else:
        inside = np.abs(time) < lowpass_filter_width
        window = inside * np.i0(beta * np.sqrt(1 - (time / lowpass_filter_width) ** 2)) / np.i0(beta)
    kernels = (np.sinc(time) * window * cut / old).astype(np.float32)  # (new, taps)
    length = waveform.shape[-1]
    edge = [(0, 0)] * (waveform.ndim - 1)
    padded = np.pad(waveform, [*edge, (half, half + old)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1], axis=-1)[..., ::old, :]
    result = (frames @ kernels.T).reshape(*waveform.shape[:-1], -1)
    return result[..., : math.ceil(new * length / old)]
