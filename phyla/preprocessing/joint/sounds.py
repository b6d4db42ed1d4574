"""Kinds of processors for sound inside a text, and for voices that are read from files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from phyla.checkpoints.atomic import atomic_write, prepare_folder
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, MissingFileError

from ..feature import BatchFeature
from .base import ProcessorMixin, texts_of
from .expansion import own_token
from .options import Options, call_names

_TOKENS = ("audio_token", "audio_bos_token", "audio_eos_token")
TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if 'audio' in content or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "Audio {{ audio_count.value }}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Heard(ProcessorMixin):
    """Sounds where the text has their token, which is multiplied by the frames that the encoder keeps."""

    def prepare(self) -> None:
        for name in _TOKENS:
            setattr(self, name, own_token(self.tokenizer, name, getattr(self, name)))
        if self.chat_template is None:
            self.chat_template = TEMPLATE

    @property
    def default_chat_template(self) -> str:
        """The template that is used where the checkpoint has none."""
        return TEMPLATE

    def process(
        self, options: Options, text: Any = None, audios: Any = None, audio: Any = None, **more: Any
    ) -> BatchFeature:
        if text is None:
            raise ArgumentError(f"{type(self).__name__} needs text")
        texts, sounds = texts_of(text), audio if audios is None else audios
        count = sum(one.count(self.audio_token) for one in texts)
        given = 0 if sounds is None else 1 if getattr(sounds, "ndim", 0) == 1 else len(sounds)
        if count != given:
            raise ArgumentError(f"the texts have {count} {self.audio_token}, but there are {given} sounds")
        features: Any = {}
        if sounds is not None:
            asked = {**options.audio, "return_attention_mask": True, "padding": "max_length"}
            features = self.feature_extractor(sounds, **asked)
            features["feature_attention_mask"] = mask = features.pop("attention_mask")
            lengths = iter(mask.sum(-1).tolist())
            texts = [self._expanded(one, lengths) for one in texts]
        return BatchFeature({**self.tokenizer(texts, **options.text), **features})

    def _expanded(self, text: str, lengths: Any) -> str:
        """A text with each sound's token multiplied, between a start and an end (where it has neither)."""
        start, end = re.escape(self.audio_bos_token), re.escape(self.audio_eos_token)

        def sound(match: re.Match) -> str:
            length = next(lengths)
            tokens = self.audio_token * (((length - 1) // 2 + 1 - 2) // 2 + 1)
            before, after = match.group(1) or "", match.group(2) or ""
            if before or after:
                return before + tokens + after
            return f"{self.audio_bos_token}{tokens}{self.audio_eos_token}"

        return re.sub(f"({start})?{re.escape(self.audio_token)}({end})?", sound, text)

    @property
    def model_input_names(self) -> list[str]:
        """The names of the inputs, the mask of the sounds among them."""
        return list(dict.fromkeys([*super().model_input_names, "feature_attention_mask"]))


class Voiced(ProcessorMixin):
    """Text of a fixed length with the voice that is to speak it, three arrays from files."""

    preset_shape = {"semantic_prompt": 1, "coarse_prompt": 2, "fine_prompt": 2}
    INDEX = "speaker_embeddings_path.json"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        speaker_embeddings_dict_path: str | None = INDEX,
        **options: Any,
    ):
        """The processor of a folder or hub id, with the index of its voices where there is one."""
        made = super().from_pretrained(pretrained_model_name_or_path, **options)
        source = resolve(pretrained_model_name_or_path, weights=False)
        folder = source if source.is_dir() else source.parent
        if speaker_embeddings_dict_path is not None and (folder / speaker_embeddings_dict_path).is_file():
            made.speaker_embeddings = read_json(folder / speaker_embeddings_dict_path)
            made.speaker_embeddings.setdefault("repo_or_path", str(folder))
        return made

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        speaker_embeddings_dict_path: str = INDEX,
        speaker_embeddings_directory: str = "speaker_embeddings",
        **options: Any,
    ) -> list[str]:
        """Write the tokenizer's files, the voices and their index."""
        import json

        folder = Path(save_directory)
        if self.speaker_embeddings is not None:
            prepare_folder(folder)
            index: dict[str, Any] = {"repo_or_path": str(folder)}
            for voice in self.speaker_embeddings:
                if voice == "repo_or_path":
                    continue
                index[voice] = {}
                for name, array in self._voice(voice).items():
                    file = Path(speaker_embeddings_directory) / f"{voice}_{name}.npy"
                    prepare_folder((folder / file).parent)
                    np.save(folder / file, array, allow_pickle=False)
                    index[voice][name] = str(file)
            atomic_write(folder / speaker_embeddings_dict_path, json.dumps(index).encode())
        return super().save_pretrained(folder, **options)

    def _voice(self, name: str) -> dict[str, np.ndarray]:
        paths = self.speaker_embeddings[name]
        root = Path(self.speaker_embeddings.get("repo_or_path", "/"))
        voice = {}
        for part in self.preset_shape:
            if part not in paths:
                raise ArgumentError(f"the voice {name!r} has no {part}, but {sorted(paths)}")
            file = root / paths[part]
            if not file.is_file():
                raise MissingFileError(f"{file} is not there: the voice {name!r} needs it")
            voice[part] = np.load(file, allow_pickle=False)
        return voice

    def process(self, options: Options, text: Any = None, voice_preset: Any = None, **more: Any) -> Any:
        voice = voice_preset
        if isinstance(voice, str):
            if self.speaker_embeddings is not None and voice in self.speaker_embeddings:
                voice = self._voice(voice)
            else:
                file = Path(voice if voice.endswith(".npz") else f"{voice}.npz")
                if not file.is_file():
                    raise MissingFileError(f"{voice!r} is no voice of this processor and no file {file}")
                voice = dict(np.load(file, allow_pickle=False))
        if voice is not None:
            for name, ndim in self.preset_shape.items():
                if np.ndim(voice.get(name)) != ndim:
                    raise ArgumentError(f"a voice needs {name} with {ndim} axes")
        batch = self.tokenizer(text, **{**options.text, "padding": "max_length"})
        if voice is not None:
            batch["history_prompt"] = BatchFeature(dict(voice), options.return_tensors)
        return batch


class Played(ProcessorMixin):
    """Music for the feature extractor, notes for the tokenizer."""

    def process(  # type: ignore[override]
        self,
        options: Options,
        audio: Any = None,
        sampling_rate: Any = None,
        steps_per_beat: int | None = None,
        resample: bool | None = None,
        notes: Any = None,
    ) -> Any:
        features = tokens = None
        if audio is not None:
            own = {"sampling_rate": sampling_rate, "steps_per_beat": steps_per_beat, "resample": resample}
            asked = {**options.audio, **{name: value for name, value in own.items() if value is not None}}
            takes = call_names(self.feature_extractor) | {"return_tensors"}
            features = self.feature_extractor(audio, **{k: v for k, v in asked.items() if k in takes})
        if notes is not None:
            takes = (call_names(self.tokenizer) | {"return_tensors"}) - {"notes"}
            tokens = self.tokenizer(notes, **{k: v for k, v in options.text.items() if k in takes})
        if features is None or tokens is None:
            return tokens if features is None else features
        features["token_ids"] = tokens["token_ids"]
        return features
