"""Log mel spectrograms of music, a few bars at a time, with the times of its beats."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from .mel import mel_filter_bank
from .resample import resample as resampled
from .spectrum import spectrogram, window_function
from .table import TableExtractor
from .waveforms import array_of, is_several

log = logging.getLogger(__name__)

_BEATS_A_BAR = 4
_QUIETEST = 1e-6
# A Kaiser window over 50 samples each side, the "kaiser_best" of resampy's table.
_FINE = {"lowpass_filter_width": 50 * 0.9173473712608761, "rolloff": 0.9173473712608761, "beta": 12.9846}
_TRACKER = "finding the beats of music (pass beat_times where you know them)"


class Beats(TableExtractor):
    """Sound from beat to beat, `num_bars` bars a row (Pop2Piano, arXiv:2211.00895)."""

    def prepare(self) -> None:
        self.mel_filters = mel_filter_bank(
            num_frequency_bins=self.window_size // 2 + 1,
            num_mel_filters=self.feature_size,
            min_frequency=self.min_frequency,
            max_frequency=float(self.sampling_rate // 2),
            sampling_rate=self.sampling_rate,
        )

    def __call__(
        self,
        audio: Any,
        sampling_rate: Any = None,
        steps_per_beat: int = 2,
        resample: bool = True,
        return_attention_mask: bool | None = False,
        return_tensors: Any = None,
        beat_times: Any = None,
    ) -> BatchFeature:
        """`input_features` (rows, frames, mels), `beatsteps` and `extrapolated_beatstep` in seconds.

        `sampling_rate` in Hz is a number, or for a list of recordings a list. `beat_times` in seconds (for a
        list of recordings a list of them) takes the place of the beats that essentia finds. A row of zeros
        ends each recording of a batch, or where masks are asked for.
        """
        several = is_several(audio)
        sounds = [array_of(one) for one in (audio if several else [audio])]
        rates = self._one_each(sampling_rate, several, len(sounds), "sampling_rate")
        beats = [None] * len(sounds)
        if beat_times is not None:
            beats = self._one_each(beat_times, several, len(sounds), "beat_times")
        if return_attention_mask is None:
            return_attention_mask = several
        columns: dict[str, list[np.ndarray]] = {name: [] for name in self.model_input_names}
        for sound, rate, times in zip(sounds, rates, beats):
            found = self._one(sound, rate, times, steps_per_beat, resample)
            for name, value in zip(columns, found):
                columns[name].append(value)
        return self.pad(BatchFeature(columns), several, return_attention_mask, return_tensors)

    @staticmethod
    def _one_each(given: Any, several: bool, count: int, name: str) -> list:
        if given is None:
            raise ArgumentError(f"{name} must be given")
        if not several:
            return [given]
        if not isinstance(given, (list, tuple)) or len(given) != count:
            raise ArgumentError(f"{count} recordings need a list of as many {name}, but it is {given!r:.80}")
        return list(given)

    def _one(self, sound: np.ndarray, rate: int, times: Any, steps_per_beat: int, resample: bool) -> tuple:
        if sound.ndim != 1:
            raise ArgumentError(f"a recording must be mono, (samples,), but its shape is {sound.shape}")
        times = self.extract_rhythm(sound)[1] if times is None else np.asarray(times, np.float64)
        steps = self.interpolate_beat_times(times, steps_per_beat, 1)
        if rate != self.sampling_rate and resample:
            sound = resampled(sound, rate, self.sampling_rate, **_FINE)
        elif rate != self.sampling_rate:
            log.warning("the sound has %s Hz, not %s: leave resample on", rate, self.sampling_rate)
        first, last = (int(steps[i] * self.sampling_rate) for i in (0, -1))
        rows, later = self.preprocess_mel(sound[first:last], steps - steps[0])
        mels = np.log(np.clip(self.mel_spectrogram(rows), _QUIETEST, None))
        return mels.transpose(0, 2, 1), steps, later

    def extract_rhythm(self, audio: np.ndarray) -> tuple:
        """Tempo in beats a minute, beat times, confidence, estimates, intervals, as essentia finds them."""
        essentia = require("essentia.standard", "beats", _TRACKER)
        return essentia.RhythmExtractor2013(method="multifeature")(audio)

    def interpolate_beat_times(
        self, beat_times: np.ndarray, steps_per_beat: int, n_extend: int
    ) -> np.ndarray:
        """Times of `steps_per_beat` steps a beat, gone on straight for `n_extend` steps behind the last."""
        times = np.asarray(beat_times, np.float64)
        if times.ndim != 1 or times.size < 2:
            raise ArgumentError(f"a recording needs two beats or more, but has {times.size}")
        places = np.linspace(0, times.size + n_extend - 1, times.size * steps_per_beat + n_extend)
        after = np.clip(np.ceil(places).astype(np.int64), 1, times.size - 1)
        return np.diff(times)[after - 1] * (places - (after - 1)) + times[after - 1]

    def preprocess_mel(self, audio: np.ndarray, beatstep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `num_bars` bars of sound, padded to the longest, and the beat steps gone on."""
        if audio.ndim != 1:
            raise ArgumentError(f"a recording must be mono, (samples,), but its shape is {audio.shape}")
        if beatstep[0] > 0.0:
            beatstep = beatstep - beatstep[0]
        later = self.interpolate_beat_times(beatstep, 1, (self.num_bars + 1) * _BEATS_A_BAR + 1)
        count, step = len(beatstep), self.num_bars * _BEATS_A_BAR
        edges = [(i, min(i + step, count)) for i in range(0, count, step)]
        ends = [(int(later[a] * self.sampling_rate), int(later[b] * self.sampling_rate)) for a, b in edges]
        rows = np.zeros((len(ends), max(b - a for a, b in ends)), audio.dtype)
        for row, (a, b) in zip(rows, ends):
            part = audio[a:b]
            row[: len(part)] = part
        return rows, later

    def mel_spectrogram(self, sequence: np.ndarray) -> np.ndarray:
        """Mel spectrograms (rows, mels, frames) of sounds (rows, samples)."""
        window = window_function(self.window_size)
        return np.array(
            [
                spectrogram(
                    row, window, self.window_size, self.hop_length, power=2.0, mel_filters=self.mel_filters
                )
                for row in sequence.astype(np.float32)
            ]
        )

    def pad(  # type: ignore[override]
        self, inputs: Any, is_batched: bool, return_attention_mask: bool, return_tensors: Any = None
    ) -> BatchFeature:
        """Recordings of one batch below each other, with masks where asked."""
        padded: dict[str, np.ndarray] = {}
        for name, values in inputs.items():
            ends = name == self.model_input_names[0]
            blocks = values if ends else [np.asarray(value)[None] for value in values]
            size = max(block.shape[1] for block in blocks)
            rows, mask = zip(*(self._padded(block, size, ends) for block in blocks))
            padded[name] = np.concatenate(rows).astype(np.float32)
            if return_attention_mask:
                padded["attention_mask" if ends else f"attention_mask_{name}"] = np.concatenate(mask)
        if not is_batched and not return_attention_mask:
            main = self.model_input_names[0]
            padded[main] = padded[main][:-1]
        return BatchFeature(padded, tensor_type=return_tensors)

    def _padded(self, block: np.ndarray, size: int, ends: bool) -> tuple[np.ndarray, np.ndarray]:
        """A block of rows and its mask, `size` wide, with a row of zeros behind where `ends`."""
        widths = [(0, 0), (0, size - block.shape[1]), *[(0, 0)] * (block.ndim - 2)]
        rows = np.pad(block, widths, constant_values=self.padding_value)
        mask = np.pad(np.ones(block.shape[:2], np.int64), widths[:2])
        if ends:
            rows = np.concatenate([rows, np.zeros_like(rows[:1])])
            mask = np.concatenate([mask, np.zeros_like(mask[:1])])
        return rows, mask
