"""Kinds of processors for sound: with text as labels, as a prompt, or instead of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from .base import ProcessorMixin
from .options import Options
from .pairs import as_numpy, joined


class Spoken(ProcessorMixin):
    """Sound for the feature extractor, text for the tokenizer; the row says how they join."""

    def __call__(self, *values: Any, raw_speech: Any = None, **options: Any) -> Any:
        """The inputs of the model; `raw_speech` is a former name of `audio`."""
        if raw_speech is not None:
            options["raw_speech" if self._named("raw_speech") else "audio"] = raw_speech
        return super().__call__(*values, **options)

    def _named(self, name: str) -> bool:
        row = type(self).row
        return row is not None and name in row.order

    def process(
        self,
        options: Options,
        audio: Any = None,
        text: Any = None,
        audios: Any = None,
        raw_speech: Any = None,
        **more: Any,
    ) -> Any:
        sound = next((one for one in (audio, audios, raw_speech) if one is not None), None)
        self.check(sound, text)
        features = None if sound is None else self.feature_extractor(sound, **options.audio)
        encoding = None if text is None else self.tokenizer(text, **options.text)
        if features is None or encoding is None:
            return joined(features, encoding)
        return self.join(features, encoding)

    def check(self, sound: Any, text: Any) -> None:
        """Hook: refuse inputs that do not go together."""

    def join(self, features: Any, encoding: Any) -> Any:
        """Both results as the row says."""
        row = type(self).row
        assert row is not None
        if row.join == "labels":
            features["labels"] = encoding["input_ids"]
            return features
        if row.join == "ids":
            for name in ("input_ids", "attention_mask"):
                features[name] = encoding[name]
            return features
        if row.join == "prompt":
            for name in row.fixed["takes"]:
                if name in features:
                    encoding[name] = features[name]
            return encoding
        return joined(encoding, features)

    def pad(self, *values: Any, input_features: Any = None, labels: Any = None, **options: Any) -> Any:
        """A padded batch of features, of labels, or of features with labels."""
        if self._target is not None:
            return self._target.pad(*values, **options)
        input_features = values[0] if values else input_features
        if input_features is None and labels is None:
            raise ArgumentError("pad needs input_features or labels")
        batch = None if input_features is None else self.feature_extractor.pad(input_features, **options)
        targets = None if labels is None else self.tokenizer.pad(labels, **options)
        if batch is None or targets is None:
            return joined(batch, targets)
        batch["labels"] = targets["input_ids"]
        return batch

    def get_decoder_prompt_ids(self, task=None, language=None, no_timestamps: bool = True) -> Any:
        """The ids that begin a decoder's output, with their places."""
        return self.tokenizer.get_decoder_prompt_ids(
            task=task, language=language, no_timestamps=no_timestamps
        )

    def get_prompt_ids(self, text: str, return_tensors: Any = "np") -> Any:
        """The ids of a prompt before the decoder's own."""
        return self.tokenizer.get_prompt_ids(text, return_tensors=return_tensors)


class Either(Spoken):
    """Sound or text of a language, never both."""

    def __call__(self, *values: Any, src_lang=None, tgt_lang=None, **options: Any) -> Any:
        """The inputs of the model; the languages are set on the tokenizer."""
        if options.get("text") is not None or (values and values[0] is not None):
            if tgt_lang is not None:
                self.tokenizer.tgt_lang = tgt_lang
            if src_lang is not None:
                self.tokenizer.src_lang = src_lang
        return super().__call__(*values, **options)

    def check(self, sound: Any, text: Any) -> None:
        if sound is not None and text is not None:
            raise ArgumentError("text and audios exclude each other: give one of them")


class Converted(ProcessorMixin):
    """Sound or text in, sound or text as the target."""

    def process(
        self, options: Options, audio=None, text=None, audio_target=None, text_target=None, **more: Any
    ) -> Any:
        for names, pair in (("audio and text", (audio, text)), ("targets", (audio_target, text_target))):
            if pair[0] is not None and pair[1] is not None:
                raise ArgumentError(f"{names} of both kinds exclude each other: give one of them")
        inputs = targets = labels = None
        if audio is not None:
            inputs = self.feature_extractor(audio, **options.audio)
        elif text is not None:
            inputs = self.tokenizer(text, **options.text)
        if audio_target is not None:
            targets = self.feature_extractor(audio_target=audio_target, **options.audio)
            labels = targets["input_values"]
        elif text_target is not None:
            targets = self.tokenizer(text_target, **options.text)
            labels = targets["input_ids"]
        return self._with_labels(inputs, targets, labels)

    @staticmethod
    def _with_labels(inputs: Any, targets: Any, labels: Any) -> Any:
        if inputs is None or targets is None:
            return joined(inputs, targets)
        inputs["labels"] = labels
        if targets.get("attention_mask") is not None:
            inputs["decoder_attention_mask"] = targets["attention_mask"]
        return inputs

    def pad(self, input_values: Any = None, input_ids: Any = None, labels: Any = None, **options: Any) -> Any:
        """A padded batch of sounds or ids, with labels that are ids or spectrograms."""
        if input_values is not None and input_ids is not None:
            raise ArgumentError("input_values and input_ids exclude each other")
        if input_values is None and input_ids is None and labels is None:
            raise ArgumentError("pad needs input_values, input_ids or labels")
        inputs = targets = padded = None
        if input_values is not None:
            inputs = self.feature_extractor.pad(input_values, **options)
        elif input_ids is not None:
            inputs = self.tokenizer.pad(input_ids, **options)
        if labels is not None:
            first = labels[0] if isinstance(labels, list) else labels
            if "input_ids" in first:
                targets = self.tokenizer.pad(labels, **options)
                padded = targets["input_ids"]
            else:
                targets = self.feature_extractor.pad(labels, **options)
                padded = targets["input_values"]
        return self._with_labels(inputs, targets, padded)


class Composing(Spoken):
    """Text that describes music, with sound to continue or a melody to follow."""

    def batch_decode(self, *values: Any, **options: Any) -> Any:
        """Texts of token ids; of `audio` (batch, channels, samples) the waveforms without padding."""
        mask = options.pop("padding_mask", options.pop("attention_mask", None))
        audio = options.pop("audio", None)
        if values and getattr(values[0], "ndim", 0) == 3:
            audio, values = values[0], values[1:]
        if audio is None:
            return super().batch_decode(*values, **options)
        sounds = as_numpy(audio)
        if mask is None:
            return list(sounds)
        kept = self.feature_extractor.padding_value
        mask = as_numpy(mask)
        more = ((0, 0), (0, sounds.shape[-1] - mask.shape[-1]))
        mask = np.pad(mask, more, constant_values=1 - kept)
        return [one[:, row != kept] for one, row in zip(sounds, mask)]

    def get_unconditional_inputs(self, num_samples: int = 1, return_tensors: Any = "pt") -> Any:
        """Inputs of empty texts that no one attends to."""
        inputs = self.tokenizer([""] * num_samples, return_tensors=return_tensors, return_attention_mask=True)
        inputs["attention_mask"][:] = 0
        return inputs
