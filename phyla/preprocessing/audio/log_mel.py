"""Kinds of feature extractors that give log mel spectrograms of recordings of a fixed length."""

from __future__ import annotations

import importlib.util
from math import ceil
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from .mel import mel_filter_bank
from .sequence import standardized
from .spectrum import spectrogram, window_function
from .table import TableExtractor
from .waveforms import check_rate, tell_unused, waveforms


class Recording(TableExtractor):
    """Mels of recordings padded or cut to one length."""

    def prepare(self) -> None:
        self.n_samples = self.chunk_length * self.sampling_rate
        self.nb_max_frames = self.n_samples // self.hop_length
        self.mel_filters = mel_filter_bank(
            1 + self.n_fft // 2,
            self.feature_size,
            0.0,
            8000.0,
            self.sampling_rate,
            "slaney",
            type(self).row.fixed["scale"],
        )

    def _padded(
        self, sounds: list[np.ndarray], padding, max_length, truncation, multiple, masked
    ) -> BatchFeature:
        columns = [one[:, None] for one in sounds]
        batch = self.pad({"input_features": columns}, padding, max_length, truncation, multiple, masked)
        if batch["input_features"].ndim != 3:
            raise ArgumentError("sounds of different lengths need padding ('max_length' or 'longest')")
        batch["input_features"] = batch["input_features"][:, :, 0]
        return batch

    def _powers(self, waveform: np.ndarray, log_mel: str | None, dither: float = 0.0) -> np.ndarray:
        return spectrogram(
            waveform,
            window_function(self.n_fft, "hann"),
            self.n_fft,
            self.hop_length,
            power=2.0,
            dither=dither,
            mel_filters=self.mel_filters,
            log_mel=log_mel,
        )


class Chunked(Recording):
    """Log10 mels of 30 second chunks, eight decades below the loudest cut off, about [-1, 1]."""

    def __call__(
        self,
        raw_speech: Any,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        padding: Any = "max_length",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        do_normalize: bool | None = None,
        device: str = "cpu",
        return_token_timestamps: bool | None = None,
        **unused: Any,
    ) -> BatchFeature:
        """`input_features` (batch, mels, frames); `attention_mask` (batch, frames), `num_frames` on request.

        With torch the spectra are computed in float32 on `device`, as the public checkpoints were trained.
        """
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        sounds = waveforms(raw_speech)
        masked = return_attention_mask or do_normalize
        batch = self._padded(
            sounds, padding, max_length or self.n_samples, truncation, pad_to_multiple_of, masked
        )
        if do_normalize:
            lengths = np.asarray(batch["attention_mask"]).sum(-1)
            batch["input_features"] = np.stack(
                standardized(batch["input_features"], lengths, self.padding_value)
            )
        batch["input_features"] = self._mels(batch["input_features"], device)
        if return_attention_mask:
            batch["attention_mask"] = batch["attention_mask"][:, :: self.hop_length]
        if return_token_timestamps is not None:
            batch["num_frames"] = [len(one) // self.hop_length for one in sounds]
        return batch.convert_to_tensors(return_tensors)

    def _mels(self, batch: np.ndarray, device: str) -> np.ndarray:
        if importlib.util.find_spec("torch") is not None:
            return self._mels_on(batch, device)
        if device != "cpu":
            raise ArgumentError(f"device {device!r} needs torch: pip install torch, or use device='cpu'")
        levels = [self._powers(one, "log10", self.dither)[:, :-1] for one in batch]
        return np.stack([(np.maximum(one, one.max() - 8.0) + 4.0) / 4.0 for one in levels])

    def _mels_on(self, batch: np.ndarray, device: str) -> np.ndarray:
        torch = require("torch", "torch", "the spectrogram")
        waves = torch.tensor(batch, dtype=torch.float32, device=device)
        if self.dither != 0.0:
            waves = waves + self.dither * torch.randn(waves.shape, device=device)
        window = torch.hann_window(self.n_fft, device=device)
        spectra = torch.stft(waves, self.n_fft, self.hop_length, window=window, return_complex=True)
        filters = torch.tensor(self.mel_filters, dtype=torch.float32, device=device)
        mels = filters.T @ spectra[..., :-1].abs() ** 2
        levels = mels.clamp(min=1e-10).log10()
        levels = torch.maximum(levels, levels.amax(dim=(1, 2), keepdim=True) - 8.0)
        return ((levels + 4.0) / 4.0).cpu().numpy()


class Clip(Recording):
    """Natural log mels of clips of `default_audio_length` seconds, each mel divided by its norm."""

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = True,
        padding: Any = "max_length",
        max_length: int | None = None,
        **unused: Any,
    ) -> BatchFeature:
        """`input_features` (batch, mels, frames) and `attention_mask` (batch, samples)."""
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        limit = self.default_audio_length * self.sampling_rate if max_length is None else max_length
        batch = self._padded(
            waveforms(raw_speech), padding, limit, truncation, pad_to_multiple_of, return_attention_mask
        )
        batch["input_features"] = [self._mels(one) for one in batch["input_features"]]
        return batch.convert_to_tensors(return_tensors)

    def _mels(self, waveform: np.ndarray) -> np.ndarray:
        levels = np.log(np.clip(self._powers(waveform, None), 1e-5, None))
        if self.mel_norms is not None:
            levels = levels / np.array(self.mel_norms)[:, None]
        return levels.astype(np.float32)


class Fused(TableExtractor):
    """Decibel mels of ten seconds: short sounds repeat, long ones are cut or fused."""

    def prepare(self) -> None:
        self.nb_frequency_bins = (self.fft_window_size >> 1) + 1
        self.nb_max_samples = self.max_length_s * self.sampling_rate
        bank = (
            self.nb_frequency_bins,
            self.feature_size,
            self.frequency_min,
            self.frequency_max,
            self.sampling_rate,
        )
        self.mel_filters = mel_filter_bank(*bank, None, "htk")
        self.mel_filters_slaney = mel_filter_bank(*bank, "slaney", "slaney")

    def _mels(self, waveform: np.ndarray, filters: np.ndarray) -> np.ndarray:
        return spectrogram(
            waveform,
            window_function(self.fft_window_size, "hann"),
            self.fft_window_size,
            self.hop_length,
            power=2.0,
            mel_filters=filters,
            log_mel="dB",
        ).T

    def _fusion(self, mels: np.ndarray, frames: int) -> np.ndarray:
        """The whole shrunk to `frames`, and a chunk of each of its thirds, (4, frames, mels)."""
        torch = require("torch", "torch", "fusing long sounds")
        thirds = np.array_split(np.arange(len(mels) - frames + 1), 3)
        starts = [np.random.choice(third if len(third) else [0]) for third in thirds]
        small = torch.nn.functional.interpolate(
            torch.tensor(mels)[None, None], size=[frames, 64], mode="bilinear", align_corners=False
        )
        return np.stack([small[0, 0].numpy(), *(mels[s : s + frames] for s in starts)])

    def _long(self, waveform: np.ndarray, length: int, truncation: str) -> tuple[np.ndarray, bool]:
        if truncation == "rand_trunc":
            start = np.random.randint(0, len(waveform) - length + 1)
            return self._mels(waveform[start : start + length], self.mel_filters_slaney)[None], True
        if truncation != "fusion":
            raise ArgumentError(f"truncation must be 'rand_trunc' or 'fusion', but is {truncation!r}")
        mels, frames = self._mels(waveform, self.mel_filters), length // self.hop_length + 1
        if frames == len(mels):
            return np.stack([mels] * 4), False
        return self._fusion(mels, frames), True

    def _short(self, waveform: np.ndarray, length: int, truncation: str, padding: str) -> np.ndarray:
        if len(waveform) < length:
            times = length // len(waveform)
            if padding == "repeat":
                waveform = np.tile(waveform, times + 1)[:length]
            elif padding == "repeatpad":
                waveform = np.tile(waveform, times)
            waveform = np.pad(waveform, (0, length - len(waveform)))
        if truncation == "fusion":
            return np.stack([self._mels(waveform, self.mel_filters)] * 4)
        return self._mels(waveform, self.mel_filters_slaney)[None]

    def __call__(
        self,
        raw_speech: Any,
        truncation: str | None = None,
        padding: str | None = None,
        max_length: int | None = None,
        sampling_rate: int | None = None,
        return_tensors: Any = None,
        **unused: Any,
    ) -> BatchFeature:
        """`input_features` (batch, 1 or 4, frames, mels) and `is_longer` (batch, 1)."""
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        truncation, padding = truncation or self.truncation, padding or self.padding
        length = max_length or self.nb_max_samples
        mels, longer = [], []
        for one in waveforms(raw_speech, np.float64):
            is_longer = len(one) > length
            if is_longer:
                features, is_longer = self._long(one, length, truncation)
            else:
                features = self._short(one, length, truncation, padding)
            mels.append(features)
            longer.append(is_longer)
        # The fusing layer must see some long sound: one is called so where there is none.
        if truncation == "fusion" and not any(longer):
            longer[np.random.randint(0, len(mels))] = True
        return BatchFeature(
            {"input_features": mels, "is_longer": [[flag] for flag in longer]}, return_tensors
        )


class Patches(TableExtractor):
    """Decibel mels of whole patches, with a mask over the patches."""

    def prepare(self) -> None:
        self.freq_len = self.feature_size // self.patch_size[1]
        self.hop_length = self.sampling_rate // self.hop_length_to_sampling_rate
        self.mel_filters = mel_filter_bank(
            1 + self.n_fft // 2, self.feature_size, 0.0, 22050.0, self.sampling_rate, "slaney", "slaney"
        )

    def _mels(self, waveform: np.ndarray) -> np.ndarray:
        levels = spectrogram(
            waveform,
            window_function(self.n_fft, "hann"),
            self.n_fft,
            self.hop_length,
            power=2.0,
            mel_filters=self.mel_filters,
            log_mel="dB",
            db_range=80.0,
        )[:, :-1]
        return (np.clip((levels - 20.0) / 40.0, -2.0, 0.0) + 1.0).T[: self.spectrogram_length]

    def __call__(
        self,
        raw_speech: Any,
        return_tensors: Any = None,
        return_attention_mask: bool = True,
        sampling_rate: int | None = None,
        resample: bool = False,
        mask_audio: bool = False,
        **unused: Any,
    ) -> BatchFeature:
        """`audio_values` (batch, 1, frames, mels) and `audio_mask` (batch, patches)."""
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        features = [self._mels(one) for one in waveforms(raw_speech)]
        counts = [ceil(len(one) / self.patch_size[0]) for one in features]
        shape = (len(features), 1, max(counts) * self.patch_size[0], self.feature_size)
        values = np.full(shape, self.padding_value, dtype=np.float32)
        for row, one in zip(values, features):
            row[:, : len(one)] = one
        batch = {"audio_values": values}
        if return_attention_mask:
            patches = np.array(counts)[:, None] * self.freq_len
            batch["audio_mask"] = (np.arange(max(counts) * self.freq_len) < patches).astype(np.float32)
        return BatchFeature(batch, return_tensors)
