"""Kinds of feature extractors for speech models: waveforms, filter banks with cepstral normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from ..text.strategy import PaddingStrategy
from .mel import mel_filter_bank
from .sequence import cepstral, standardized
from .spectrum import optimal_fft_length, spectrogram, window_function
from .table import TableExtractor, kaldi_filters
from .waveforms import check_rate, tell_unused, waveforms

KALDI_FLOOR = 1.192092955078125e-07
# Kaldi reads 16-bit samples: sound in [-1, 1] is brought to their range.
SAMPLE_RANGE = 2**15


def kaldi_features(waveform: np.ndarray, window: np.ndarray, filters: np.ndarray, dither: float = 0.0):
    """Log mel energies (frames, mels) as Kaldi computes them: 25 ms frames each 10 ms at 16 kHz."""
    return spectrogram(
        waveform,
        window,
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        dither=dither,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=KALDI_FLOOR,
        remove_dc_offset=True,
    ).T


def _int_masks(batch: BatchFeature) -> Any:
    """Make the attention masks a list of int32 arrays, and return them."""
    mask = batch.get("attention_mask")
    if mask is not None:
        batch["attention_mask"] = mask = [np.asarray(row, dtype=np.int32) for row in mask]
    return mask


class Waves(TableExtractor):
    """The waveform itself, each of zero mean and unit variance where `do_normalize`."""

    def __call__(
        self,
        raw_speech: Any,
        padding: Any = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
        **unused: Any,
    ) -> BatchFeature:
        """`input_values` (batch, samples) and, where asked, `attention_mask`."""
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        batch = self.pad(
            {"input_values": waveforms(raw_speech)},
            padding,
            max_length,
            truncation,
            pad_to_multiple_of,
            return_attention_mask,
        )
        return self._normalized(batch, padding, max_length).convert_to_tensors(return_tensors)

    def _normalized(self, batch: BatchFeature, padding: Any, max_length: int | None) -> BatchFeature:
        mask = _int_masks(batch)
        if self.do_normalize:
            padded = self.strategy(padding, max_length) is not PaddingStrategy.DO_NOT_PAD
            lengths = [int(row.sum()) for row in mask] if mask is not None and padded else None
            batch["input_values"] = standardized(batch["input_values"], lengths, self.padding_value)
        return batch

    zero_mean_unit_var_norm = staticmethod(standardized)


class WavesOrMels(Waves):
    """Waveforms for the encoder, log mel spectrograms as targets of the decoder."""

    def prepare(self) -> None:
        self.sample_size = self.win_length * self.sampling_rate // 1000
        self.sample_stride = self.hop_length * self.sampling_rate // 1000
        self.n_fft = optimal_fft_length(self.sample_size)
        self.n_freqs = self.n_fft // 2 + 1
        self.window = window_function(self.sample_size, self.win_function)
        self.mel_filters = mel_filter_bank(
            self.n_freqs, self.num_mel_bins, self.fmin, self.fmax, self.sampling_rate, "slaney", "slaney"
        )

    def __call__(  # type: ignore[override]
        self,
        audio: Any = None,
        audio_target: Any = None,
        padding: Any = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
        **unused: Any,
    ) -> BatchFeature:
        """`input_values` of `audio`; `labels` (frames, mels) of `audio_target` (alone: `input_values`)."""
        if audio is None and audio_target is None:
            raise ArgumentError("give audio, audio_target or both")
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        options = (padding, max_length, truncation, pad_to_multiple_of, return_attention_mask)
        inputs = targets = None
        if audio is not None:
            inputs = self.pad({"input_values": waveforms(audio)}, *options)
            inputs = self._normalized(inputs, padding, max_length).convert_to_tensors(return_tensors)
        if audio_target is not None:
            mels = [self._mels(one) for one in waveforms(audio_target)]
            targets = self.pad({"input_values": mels}, *options)
            _int_masks(targets)
            targets.convert_to_tensors(return_tensors)
        if inputs is None or targets is None:
            return targets if inputs is None else inputs  # type: ignore[return-value]
        inputs["labels"] = targets["input_values"]
        if "attention_mask" in targets:
            inputs["decoder_attention_mask"] = targets["attention_mask"]
        return inputs

    def _mels(self, waveform: np.ndarray) -> np.ndarray:
        return spectrogram(
            waveform,
            self.window,
            self.sample_size,
            self.sample_stride,
            self.n_fft,
            mel_filters=self.mel_filters,
            mel_floor=self.mel_floor,
            log_mel="log10",
        ).T


class FilterBanks(TableExtractor):
    """Filter banks of frames, normalised over time; a kind says how one waveform becomes features."""

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """The features (frames, mels) of one waveform."""
        raise NotImplementedError(f"{type(self).__name__} must define features(waveform): (frames, mels)")

    def normalizes(self) -> bool:
        """Whether features are normalised."""
        return True

    def __call__(
        self,
        raw_speech: Any,
        padding: Any = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
        **unused: Any,
    ) -> BatchFeature:
        """`input_features` (batch, frames, mels) and `attention_mask`."""
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        batch = self.pad(
            {"input_features": [self.features(one) for one in waveforms(raw_speech)]},
            padding,
            max_length,
            truncation,
            pad_to_multiple_of,
            True,
        )
        mask = _int_masks(batch)
        if self.normalizes():
            padded = self.strategy(padding, max_length) is not PaddingStrategy.DO_NOT_PAD
            lengths = [int(row.sum()) for row in mask] if padded and mask is not None else None
            batch["input_features"] = cepstral(
                batch["input_features"],
                lengths,
                self.normalize_means,
                self.normalize_vars,
                self.padding_value,
            )
        if not self.masked(return_attention_mask):
            del batch["attention_mask"]
        return batch.convert_to_tensors(return_tensors)

    def masked(self, asked: bool | None) -> bool:
        """Whether the mask is returned."""
        return self.return_attention_mask if asked is None else asked


class KaldiBanks(FilterBanks):
    """Kaldi's log mel energies."""

    def prepare(self) -> None:
        self.return_attention_mask = True
        self.mel_filters = kaldi_filters(self.num_mel_bins, self.sampling_rate)
        self.window = window_function(400, "povey", periodic=False)

    def features(self, waveform: np.ndarray) -> np.ndarray:
        return kaldi_features(waveform * SAMPLE_RANGE, self.window, self.mel_filters, self.dither)

    def normalizes(self) -> bool:
        return self.do_ceptral_normalize


class CepstralBanks(FilterBanks):
    """Log mel amplitudes with the frame sizes in milliseconds as settings; a mask is always returned."""

    def prepare(self) -> None:
        self.sample_size = self.win_length * self.sampling_rate // 1000
        self.sample_stride = self.hop_length * self.sampling_rate // 1000
        self.n_fft = optimal_fft_length(self.sample_size)
        self.n_freqs = self.n_fft // 2 + 1

    def features(self, waveform: np.ndarray) -> np.ndarray:
        return spectrogram(
            waveform * self.frame_signal_scale,
            window_function(
                self.sample_size, self.win_function, periodic=self.win_function != "hamming_window"
            ),
            self.sample_size,
            self.sample_stride,
            self.n_fft,
            center=False,
            preemphasis=self.preemphasis_coeff,
            mel_filters=mel_filter_bank(
                self.n_freqs, self.feature_size, 0.0, self.sampling_rate / 2.0, self.sampling_rate
            ),
            mel_floor=self.mel_floor,
            log_mel="log",
        ).T

    def normalizes(self) -> bool:
        return self.normalize_means or self.normalize_vars

    def masked(self, asked: bool | None) -> bool:
        return True


class StridedBanks(TableExtractor):
    """Kaldi's features, `stride` neighbouring frames put beside each other."""

    def prepare(self) -> None:
        self.mel_filters = kaldi_filters(self.num_mel_bins, self.sampling_rate)
        self.window = window_function(400, "povey", periodic=False)

    def __call__(
        self,
        raw_speech: Any,
        padding: Any = True,
        pad_to_multiple_of: int | None = 2,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
        do_normalize_per_mel_bins: bool = True,
        **unused: Any,
    ) -> BatchFeature:
        """`input_features` (batch, frames / stride, mels * stride) and `attention_mask`."""
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        masked = self.return_attention_mask if return_attention_mask is None else return_attention_mask
        features = []
        for one in waveforms(raw_speech, most=3):
            one = one[0] if one.ndim == 2 else one  # of several channels the first
            one = kaldi_features(one * SAMPLE_RANGE, self.window, self.mel_filters)
            if do_normalize_per_mel_bins:
                one = (one - one.mean(0)) / np.sqrt(one.var(0, ddof=1) + 1e-7)
            features.append(one)
        batch = self.pad(
            {"input_features": features}, padding, max_length, truncation, pad_to_multiple_of, True, "np"
        )
        values, mask = batch["input_features"], batch.pop("attention_mask")
        if values.ndim != 3:
            raise ArgumentError("sounds of different lengths need padding=True")
        whole = values.shape[1] - values.shape[1] % self.stride
        values = values[:, :whole].reshape(len(values), whole // self.stride, -1)
        batch["input_features"] = values
        if masked:
            batch["attention_mask"] = mask[:, :whole][:, np.arange(whole) % self.stride == 1]
        return batch.convert_to_tensors(return_tensors)


class FixedBanks(TableExtractor):
    """Kaldi's features under a Hann window, cut or zero-padded to `max_length` frames."""

    def prepare(self) -> None:
        self.mel_filters = kaldi_filters(self.num_mel_bins, self.sampling_rate)
        self.window = window_function(400, "hann", periodic=False)

    def normalize(self, input_values: np.ndarray) -> np.ndarray:
        """Features with the data set's mean and twice its deviation taken out."""
        return (input_values - self.mean) / (self.std * 2)

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: Any = None, **unused: Any
    ) -> BatchFeature:
        """`input_values` (batch, max_length, mels)."""
        check_rate(self, sampling_rate)
        tell_unused(self, unused)
        features = []
        for one in waveforms(raw_speech):
            one = kaldi_features(one, self.window, self.mel_filters)[: self.max_length]
            one = np.pad(one, ((0, self.max_length - len(one)), (0, 0)))
            features.append(self.normalize(one) if self.do_normalize else one)
        return BatchFeature({"input_values": features}, return_tensors)
