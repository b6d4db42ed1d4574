"""Short-time spectra of waveforms: windows, frames, power, mel and decibel scales; numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError

# Frames are transformed so many at a time, which bounds the memory that long recordings need.
_FRAMES_AT_ONCE = 2048
_WINDOWS: dict[str, Any] = {
    "boxcar": np.ones,
    "hamming": np.hamming,
    "hamming_window": np.hamming,
    "hann": np.hanning,
    "hann_window": np.hanning,
    "povey": lambda length: np.hanning(length) ** 0.85,
}


def optimal_fft_length(window_length: int) -> int:
    """The smallest power of two that holds a window."""
    return 2 ** int(np.ceil(np.log2(window_length)))


def window_function(
    window_length: int,
    name: str = "hann",
    periodic: bool = True,
    frame_length: int | None = None,
    center: bool = True,
) -> np.ndarray:
    """A window, (window_length,) or, padded with zeros, (frame_length,); float64."""
    if name not in _WINDOWS:
        raise ArgumentError(f"a window is one of {', '.join(_WINDOWS)}, but is {name!r}")
    window = _WINDOWS[name](window_length + 1)[:-1] if periodic else _WINDOWS[name](window_length)
    if frame_length is None:
        return window
    if window_length > frame_length:
        raise ArgumentError(f"a window of {window_length} samples does not fit a frame of {frame_length}")
    before = (frame_length - window_length) // 2 if center else 0
    return np.pad(window, (before, frame_length - window_length - before))


def _decibel(values, factor: float, reference: float, min_value: float, db_range: float | None):
    for name, value in (("reference", reference), ("min_value", min_value), ("db_range", db_range)):
        if value is not None and value <= 0.0:
            raise ArgumentError(f"{name} must be greater than zero, but is {value}")
    level = np.log10(np.clip(values, min_value, None)) - np.log10(max(min_value, reference))
    level = factor * level
    return level if db_range is None else np.clip(level, level.max() - db_range, None)


def power_to_db(spectrogram, reference=1.0, min_value=1e-10, db_range=None) -> np.ndarray:
    """Powers as decibels over `reference`, at most `db_range` below the loudest."""
    return _decibel(spectrogram, 10.0, reference, min_value, db_range)


def amplitude_to_db(spectrogram, reference=1.0, min_value=1e-5, db_range=None) -> np.ndarray:
    """Amplitudes as decibels over `reference`, at most `db_range` below the loudest."""
    return _decibel(spectrogram, 20.0, reference, min_value, db_range)


def _transformed(
    frames: np.ndarray,
    window: np.ndarray,
    fft_length: int,
    onesided: bool,
    dither: float,
    remove_dc_offset: bool | None,
    preemphasis: float | None,
) -> np.ndarray:
    """Spectra of frames, (frames, bins), rounded to complex64."""
    frames = frames.copy()
    if dither != 0.0:
        frames += dither * np.random.randn(*frames.shape)
    if remove_dc_offset:
        frames -= frames.mean(axis=1, keepdims=True)
    if preemphasis is not None:
        frames[:, 1:] -= preemphasis * frames[:, :-1]
        frames[:, 0] *= 1 - preemphasis
    frames *= window
    return (np.fft.rfft if onesided else np.fft.fft)(frames, n=fft_length).astype(np.complex64)


def spectrogram(
    waveform: np.ndarray,
    window: np.ndarray,
    frame_length: int,
    hop_length: int,
    fft_length: int | None = None,
    power: float | None = 1.0,
    center: bool = True,
    pad_mode: str = "reflect",
    onesided: bool = True,
    dither: float = 0.0,
    preemphasis: float | None = None,
    mel_filters: np.ndarray | None = None,
    mel_floor: float = 1e-10,
    log_mel: str | None = None,
    reference: float = 1.0,
    min_value: float = 1e-10,
    db_range: float | None = None,
    remove_dc_offset: bool | None = None,
    dtype: Any = np.float32,
) -> np.ndarray:
    """The spectrogram of a waveform (samples,), as (bins or mel filters, frames).

    `power` None gives complex numbers, 1 amplitudes, 2 powers. `log_mel` ("log", "log10" or "dB") takes the
    logarithm and rounds to `dtype`; otherwise the result is float64.
    """
    fft_length = frame_length if fft_length is None else fft_length
    waveform = np.asarray(waveform)
    if frame_length > fft_length:
        raise ArgumentError(f"frame_length ({frame_length}) must not exceed fft_length ({fft_length})")
    if len(window) != frame_length:
        raise ArgumentError(f"the window has {len(window)} samples, but frame_length is {frame_length}")
    if hop_length <= 0:
        raise ArgumentError(f"hop_length must be greater than zero, but is {hop_length}")
    if waveform.ndim != 1 or np.iscomplexobj(waveform):
        raise ArgumentError(
            f"a waveform is real and (samples,), but is {waveform.dtype} of shape {waveform.shape}"
        )
    if power is None and mel_filters is not None:
        raise ArgumentError("mel filters need real spectra: give `power`")
    if center:
        waveform = np.pad(waveform, frame_length // 2, mode=pad_mode)  # type: ignore[call-overload]
    if waveform.size < frame_length:
        raise ArgumentError(
            f"a waveform of {waveform.size} samples is shorter than one frame ({frame_length}): pad it"
        )
    waveform, window = waveform.astype(np.float64), window.astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, frame_length)[::hop_length]
    parts = [
        _transformed(
            frames[start : start + _FRAMES_AT_ONCE],
            window,
            fft_length,
            onesided,
            dither,
            remove_dc_offset,
            preemphasis,
        )
        for start in range(0, len(frames), _FRAMES_AT_ONCE)
    ]
    result = np.concatenate(parts).T
    if power is None:
        return result
    result = np.abs(result, dtype=np.float64) ** power
    if mel_filters is not None:
        result = np.maximum(mel_floor, np.dot(mel_filters.T, result))
    if log_mel is None:
        return result
    if log_mel == "log":
        result = np.log(result)
    elif log_mel == "log10":
        result = np.log10(result)
    elif log_mel == "dB" and power in (1.0, 2.0):
        scale = amplitude_to_db if power == 1.0 else power_to_db
        result = scale(result, reference, min_value, db_range)
    else:
        raise ArgumentError(
            f"log_mel is 'log', 'log10' or (power 1 or 2) 'dB', but is {log_mel!r} with {power}"
        )
    return np.asarray(result, dtype)
