"""Kinds of feature extractors for codecs, vocoders and music: raw channels, chroma, mels with noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from ..text.batch import framework_of
from .mel import chroma_filter_bank, mel_filter_bank
from .resample import resample
from .spectrum import optimal_fft_length, spectrogram, window_function
from .table import TableExtractor
from .waveforms import array_of, check_rate, is_several, waveforms


def _channels_last(raw: Any) -> list[np.ndarray]:
    """Sounds (samples,) or (channels, samples) as (samples,) or (samples, channels)."""
    return [array_of(one).T for one in (raw if is_several(raw) else [raw])]


class Hops(TableExtractor):
    """The waveform, padded to whole hops of the codec."""

    def __call__(
        self,
        raw_audio: Any,
        padding: Any = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """`input_values` (batch, channels, samples)."""
        check_rate(self, sampling_rate)
        padding = self._padding(padding, truncation)
        sounds = _channels_last(raw_audio)
        self._check_channels(sounds)
        batch = self.pad({"input_values": sounds}, padding, max_length, truncation, self.hop_length, False)
        return self._channels_first(batch).convert_to_tensors(return_tensors)

    def _padding(self, padding: Any, truncation: bool) -> Any:
        if padding and truncation:
            raise ArgumentError("padding and truncation exclude each other here: set one of them")
        return True if padding is None else padding

    def _check_channels(self, sounds: list[np.ndarray]) -> None:
        for one in sounds:
            if one.ndim > 2:
                raise ArgumentError(f"a sound is (channels, samples), but its shape is {one.T.shape}")
            if self.feature_size == 1 and one.ndim != 1:
                raise ArgumentError(
                    f"mono sound (samples,) is needed, but there are {one.shape[-1]} channels"
                )
            if self.feature_size == 2:
                raise ArgumentError("stereo sound cannot be used by this codec")

    def _channels_first(self, batch: BatchFeature) -> BatchFeature:
        rows = batch.pop("input_values")
        batch["input_values"] = [(row[..., None] if row.ndim == 1 else row).T for row in rows]
        return batch


class Chunks(Hops):
    """The waveform, padded or cut to whole overlapping chunks where `chunk_length_s` is set."""

    @property
    def chunk_length(self) -> int | None:
        """Samples of a chunk."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples between the starts of chunks."""
        if self.chunk_length_s is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    def _check_channels(self, sounds: list[np.ndarray]) -> None:
        for one in sounds:
            if one.ndim > 2:
                raise ArgumentError(f"a sound is (channels, samples), but its shape is {one.T.shape}")
            if self.feature_size == 1 and one.ndim != 1:
                raise ArgumentError(
                    f"mono sound (samples,) is needed, but there are {one.shape[-1]} channels"
                )
            if self.feature_size == 2 and one.shape[-1] != 2:
                raise ArgumentError(f"stereo sound is needed, but there are {one.shape[-1]} channels")

    def __call__(
        self,
        raw_audio: Any,
        padding: Any = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """`input_values` (batch, channels, samples) and, where padded, `padding_mask` (batch, samples)."""
        check_rate(self, sampling_rate)
        padding = self._padding(padding, truncation)
        sounds = _channels_last(raw_audio)
        self._check_channels(sounds)
        batch = BatchFeature({"input_values": sounds})
        stride, chunk = self.chunk_stride, self.chunk_length
        chunked = stride is not None and chunk is not None and max_length is None
        if stride is not None and chunk is not None and chunked and (truncation or padding):
            lengths = [len(one) for one in sounds]
            steps = min(lengths) // stride if truncation else -(-max(lengths) // stride)
            max_length = (steps - 1) * stride + chunk
            padding = padding and "max_length"
        if not chunked or truncation or padding:
            batch = self.pad(batch, padding, max_length, truncation, None, bool(padding))
            if padding:
                batch["padding_mask"] = batch.pop("attention_mask")
        return self._channels_first(batch).convert_to_tensors(return_tensors)


class Vocoder(TableExtractor):
    """Log mel spectrograms for a vocoder, and the noise it starts from."""

    fmax: Any

    def prepare(self) -> None:
        if self.fmax is None:
            self.fmax = self.sampling_rate / 2
        self.num_max_samples = self.max_length_s * self.sampling_rate
        self.n_fft = optimal_fft_length(self.win_length) if self.filter_length is None else self.filter_length
        self.n_freqs = self.n_fft // 2 + 1
        self.window = window_function(self.win_length, self.win_function)
        self.mel_filters = mel_filter_bank(
            self.n_freqs, self.num_mel_bins, self.fmin, self.fmax, self.sampling_rate, "slaney", "slaney"
        )

    def normalize(self, spectrogram: np.ndarray) -> np.ndarray:
        """A log mel spectrogram from [normalize_min, normalize_max] to [-1, 1]."""
        return 2 * (spectrogram - self.normalize_min) / (self.normalize_max - self.normalize_min) - 1

    def denormalize(self, spectrogram: np.ndarray) -> np.ndarray:
        """The inverse of `normalize`."""
        return self.normalize_min + (self.normalize_max - self.normalize_min) * (spectrogram + 1) / 2

    def mel_spectrogram(self, waveform: np.ndarray) -> np.ndarray:
        """The log mel spectrogram of one waveform, (frames, mels)."""
        spectrum = spectrogram(
            np.pad(waveform, (self.n_fft - self.hop_length) // 2, mode="reflect"),
            self.window,
            self.n_fft,
            self.hop_length,
            self.n_fft,
            power=None,
            center=self.center,
        )
        amplitude = np.sqrt(np.real(spectrum) ** 2 + np.imag(spectrum) ** 2 + self.mel_floor)
        mels = np.clip(self.mel_filters.T @ amplitude, self.compression_clip_val, None)
        return np.log(mels * self.compression_factor).T

    def generate_noise(self, noise_length: int, generator: np.random.Generator | None = None) -> np.ndarray:
        """Standard normal noise (noise_length, model_in_channels), float32."""
        generator = np.random.default_rng() if generator is None else generator
        return generator.standard_normal((noise_length, self.model_in_channels), dtype=np.float32)

    def batch_decode(self, waveforms: Any, waveform_lengths: Any = None) -> list[np.ndarray]:
        """The model's waveforms as numpy arrays, cut to their lengths."""
        arrays = [one.detach().cpu().numpy().copy() for one in waveforms]
        if waveform_lengths is None:
            return arrays
        return [one[: int(length)] for one, length in zip(arrays, waveform_lengths)]

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: Any = True,
        max_length: int | None = None,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_noise: bool = True,
        generator: np.random.Generator | None = None,
        pad_end: bool = False,
        pad_length: int | None = None,
        do_normalize: bool | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
    ) -> BatchFeature:
        """`input_features` (batch, frames, mels), `noise_sequence` and `padding_mask` (batch, samples)."""
        check_rate(self, sampling_rate)
        sounds = waveforms(raw_speech)
        if pad_end:
            frames = self.pad_end_length if pad_length is None else pad_length
            more = (0, frames * self.hop_length)
            sounds = [np.pad(one, more, constant_values=self.padding_value) for one in sounds]
        limit = self.num_max_samples if max_length is None else max_length
        padded = self.pad(
            {"input_features": sounds},
            padding,
            limit,
            truncation,
            pad_to_multiple_of,
            return_attention_mask,
        )
        mels = [self.mel_spectrogram(one).astype(np.float32) for one in padded["input_features"]]
        batch = BatchFeature({"input_features": mels})
        if "attention_mask" in padded:
            batch["padding_mask"] = [np.asarray(row, dtype=np.int32) for row in padded["attention_mask"]]
        if return_noise:
            batch["noise_sequence"] = [self.generate_noise(len(one), generator) for one in mels]
        if self.do_normalize if do_normalize is None else do_normalize:
            batch["input_features"] = [self.normalize(one) for one in mels]
        return batch.convert_to_tensors(return_tensors)


class Chroma(TableExtractor):
    """The loudest pitch class of each frame, one-hot; stems of a separated song are mixed first."""

    def prepare(self) -> None:
        self.n_samples = self.chunk_length * self.sampling_rate
        self.chroma_filters = chroma_filter_bank(self.n_fft, self.num_chroma, self.sampling_rate).astype(
            np.float32
        )

    def _mixed(self, audio: Any, rate: int | None) -> Any:
        """Sound at this extractor's rate; of (batch, stems, channels, samples) the chosen stems as mono."""
        old = rate
        if framework_of(audio) == "pt" and audio.ndim == 4:
            old = 44000 if rate is None else rate
            audio = array_of(audio)[:, list(self.stem_indices)].sum(1).mean(axis=1)
        if old is None or old == self.sampling_rate:
            return audio
        several = is_several(audio)
        moved = [
            resample(array_of(one), old, self.sampling_rate, lowpass_filter_width=24, rolloff=0.945)
            for one in (audio if several else [audio])
        ]
        return moved if several else moved[0]

    def __call__(
        self,
        audio: Any,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        padding: Any = True,
        max_length: int | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """`input_features` (batch, frames, num_chroma), as a torch tensor unless another kind is asked."""
        if sampling_rate is None:
            check_rate(self, None)
        sounds = waveforms(self._mixed(audio, sampling_rate), most=3)
        # Channels come first: (channels, samples) are averaged.
        sounds = [one.mean(axis=0) if one.ndim == 2 else one for one in sounds]
        limit = max_length or self.n_samples
        batch = self.pad(
            {"input_features": [one[:, None] for one in sounds]},
            padding,
            limit,
            truncation,
            pad_to_multiple_of,
            return_attention_mask,
            "np",
        )
        batch["input_features"] = np.stack([self._chroma(one[:, 0]) for one in batch["input_features"]])
        if return_attention_mask:
            batch["attention_mask"] = batch["attention_mask"][:, :: self.hop_length]
        return batch.convert_to_tensors("pt" if return_tensors is None else return_tensors)

    def _chroma(self, waveform: np.ndarray) -> np.ndarray:
        lacking = max(0, self.n_fft - len(waveform))
        waveform = np.pad(waveform, (lacking // 2, lacking - lacking // 2))
        power = spectrogram(
            waveform, window_function(self.n_fft), self.n_fft, self.hop_length, power=2.0
        ).astype(np.float32)
        winner = (self.chroma_filters @ power).argmax(axis=0)
        return np.eye(self.num_chroma, dtype=np.float32)[winner]
