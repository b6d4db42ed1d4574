"""Kinds of processors whose parts work side by side: text and pictures, text and sound."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from ..text.batch import framework_of
from .base import ProcessorMixin
from .options import Options


def joined(first: Any, second: Any) -> Any:
    """One batch of two, either of which may be None."""
    if first is None or second is None:
        return second if first is None else first
    first.update(second)
    return first


class Pair(ProcessorMixin):
    """Text for the tokenizer, pictures (or videos) for the image processor; the row says how they join."""

    def process(
        self, options: Options, text: Any = None, images: Any = None, videos: Any = None, **more: Any
    ) -> Any:
        images = videos if images is None else images
        encoding = None if text is None else self.tokenizer(text, **self.text_options(options, images))
        features = None if images is None else self.image_processor(images, **options.images)
        return self.join(encoding, features)

    def text_options(self, options: Options, images: Any) -> dict[str, Any]:
        """Hook: the options of the tokenizer."""
        return options.text

    def join(self, encoding: Any, features: Any) -> Any:
        """The two results as the row says."""
        if encoding is None or features is None:
            return joined(encoding, features)
        row = type(self).row
        assert row is not None
        if row.join == "pixels":
            encoding["pixel_values"] = features["pixel_values"]
            return encoding
        if row.join == "labels":
            features["labels"] = encoding["input_ids"]
            return features
        return joined(encoding, features)


class TextOnly(ProcessorMixin):
    """A tokenizer alone."""

    def process(self, options: Options, text: Any = None, **more: Any) -> Any:
        return self.tokenizer(text, **options.text)


class Generative(Pair):
    """Text and pictures of a captioning model; `legacy=False` leaves the last token away beside pictures."""

    def __call__(self, *values: Any, legacy: bool = True, **options: Any) -> BatchFeature:
        """`input_ids`, `attention_mask`, `pixel_values`."""
        batch = BatchFeature(dict(super().__call__(*values, **options)))
        if not legacy and "pixel_values" in batch and "input_ids" in batch:
            for name in ("input_ids", "attention_mask"):
                batch[name] = batch[name][:, :-1]
        return batch


class Reading(Pair):
    """Pictures of pages, and their texts as labels; `token2json` reads the tags of generated text."""

    def __call__(self, *values: Any, legacy: bool = True, **options: Any) -> Any:
        """`pixel_values` and, of a text beside them, `labels` and `input_ids`."""
        row = type(self).row
        assert row is not None
        names = {**dict(zip(row.order, values)), **options}
        if not legacy and names.get("images") is not None and names.get("text") is not None:
            options.setdefault("add_special_tokens", False)
        batch = super().__call__(*values, **options)
        if "labels" in batch:
            batch["input_ids"] = batch["labels"]
        return batch

    def token2json(self, tokens: str, is_inner_value: bool = False, added_vocab: Any = None) -> Any:
        """Text with tags <s_key>...</s_key> and <sep/> as nested dictionaries and lists."""
        from .tags import tagged

        return tagged(tokens, self.tokenizer.get_added_vocab() if added_vocab is None else added_vocab)


class Transcribing(Pair):
    """Pictures of pages, and their texts as labels."""

    def post_process_generation(self, *values: Any, **options: Any) -> Any:
        """Generated text mended, as the tokenizer does it."""
        return self.tokenizer.post_process_generation(*values, **options)


class Grounding(Pair):
    """A question to a video: texts have a fixed length, and the answer is a span of time."""

    def process(self, options: Options, text: Any = None, videos: Any = None, **more: Any) -> BatchFeature:  # type: ignore[override]
        batch = BatchFeature()
        if text is not None:
            length = more.get("max_text_length")
            texts = [text] if isinstance(text, str) else text
            asked = {**options.text, "truncation": True, "padding": "max_length", "max_length": length}
            batch.update(self.tokenizer(texts, **{**asked, "return_token_type_ids": False}))
        if videos is not None:
            batch.update(self.image_processor(videos, **options.images))
        return batch

    def post_process_video_grounding(self, logits: Any, video_durations: float) -> tuple[float, float]:
        """The start and end in seconds that logits (batch, 2) say."""
        first, last = logits.tolist()[0][:2]
        return round(first * video_durations, 1), round(last * video_durations, 1)


class Prompted(Pair):
    """Pictures with a text or another picture as the prompt of a segmentation."""

    def process(  # type: ignore[override]
        self, options: Options, text: Any = None, images: Any = None, visual_prompt: Any = None, **more: Any
    ) -> Any:
        if visual_prompt is None:
            return super().process(options, text=text, images=images)
        if text is not None:
            raise ArgumentError("the prompt is either text or visual_prompt, but both are given")
        batch = BatchFeature()
        if images is not None:
            batch["pixel_values"] = self.image_processor(images, **options.images)["pixel_values"]
        prompt = self.image_processor(visual_prompt, **options.images)["pixel_values"]
        batch["conditional_pixel_values"] = prompt
        return batch


class Drawn(Pair):
    """Pictures of patches with the text as decoder inputs, or drawn above the picture as its header."""

    def __call__(self, *values: Any, legacy: bool = True, **options: Any) -> Any:
        """`flattened_patches`, `attention_mask`, `decoder_input_ids`, `decoder_attention_mask`."""
        row = type(self).row
        assert row is not None
        names = {**dict(zip(row.order, values)), **options}
        if names.get("images") is not None and not legacy:
            options.setdefault("add_special_tokens", False)
        return super().__call__(*values, **options)

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> Any:  # type: ignore[override]
        header = self.image_processor.is_vqa
        if images is None and not header:
            return self.tokenizer(text, **options.text)
        if header:
            options.images.setdefault("header_text", text)
        features = self.image_processor(images, **options.images)
        if text is not None and not header:
            for name, value in self.tokenizer(text, **options.text).items():
                features[f"decoder_{name}" if name in ("input_ids", "attention_mask") else name] = value
        return features


class Recognition(Pair):
    """Pictures of words; three tokenizers vote on what was read."""

    def prepare(self) -> None:
        self._readers: dict[str, Any] = {}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of characters."""
        return self.char_tokenizer

    def _reader(self, name: str) -> Any:
        from ..text.auto import AutoTokenizer

        row = type(self).row
        assert row is not None
        if name not in self._readers:
            self._readers[name] = AutoTokenizer.from_pretrained(row.fixed[name])
        return self._readers[name]

    @property
    def bpe_tokenizer(self) -> Any:
        """The byte-level tokenizer."""
        return self._reader("bpe")

    @property
    def wp_tokenizer(self) -> Any:
        """The tokenizer of word pieces."""
        return self._reader("wp")

    def char_decode(self, sequences: Any) -> list[str]:
        """The texts of ids of characters."""
        return [text.replace(" ", "") for text in self.char_tokenizer.batch_decode(sequences)]

    def bpe_decode(self, sequences: Any) -> list[str]:
        """The texts of ids of the byte-level vocabulary."""
        return self.bpe_tokenizer.batch_decode(sequences)

    def wp_decode(self, sequences: Any) -> list[str]:
        """The texts of ids of word pieces."""
        return [text.replace(" ", "") for text in self.wp_tokenizer.batch_decode(sequences)]

    def batch_decode(self, sequences: Any) -> dict[str, list]:
        """The texts of logits of characters, BPE and word pieces, each (batch, tokens, vocabulary).

        `generated_text` and `scores` are those of the surest of the three.
        """
        read = [
            self._read(sequences[0], self.char_decode, 1, "[s]"),
            self._read(sequences[1], self.bpe_decode, 2, "#"),
            self._read(sequences[2], self.wp_decode, 102, "[SEP]"),
        ]
        best = [max(range(3), key=lambda i: read[i][1][row]) for row in range(len(read[0][0]))]
        return {
            "generated_text": [read[i][0][row] for row, i in enumerate(best)],
            "scores": [read[i][1][row] for row, i in enumerate(best)],
            "char_preds": read[0][0],
            "bpe_preds": read[1][0],
            "wp_preds": read[2][0],
        }

    @staticmethod
    def _read(logits: Any, decode: Any, stop: int, mark: str) -> tuple[list[str], list]:
        ids = logits.argmax(dim=-1)[:, 1:]
        sure = logits.softmax(dim=2).amax(dim=2)[:, 1:]
        texts, scores = [], []
        for row, text in enumerate(decode(ids)):
            texts.append(text[: text.find(mark)])
            places = ids[row].tolist()
            real = sure[row][: places.index(stop) + 1 if stop in places else 0]
            scores.append(real.cumprod(dim=0)[-1] if real.nelement() else 0.0)
        return texts, scores


class Universal(ProcessorMixin):
    """Pictures with the name of a task, which becomes text (semantic, instance or panoptic segmentation)."""

    TASKS = ("semantic", "instance", "panoptic")

    def __call__(
        self, images: Any = None, task_inputs: Any = None, segmentation_maps: Any = None, **options: Any
    ) -> Any:
        """`pixel_values`, `pixel_mask`, `task_inputs` (batch, tokens) and, of maps, labels and texts."""
        return self._encoded(self.image_processor, images, task_inputs, segmentation_maps, options)

    def encode_inputs(
        self, images: Any = None, task_inputs: Any = None, segmentation_maps: Any = None, **options: Any
    ) -> Any:
        """Pictures that are arrays of their final size already, padded, with the task."""
        encode = self.image_processor.encode_inputs
        return self._encoded(encode, images, task_inputs, segmentation_maps, options)

    def _encoded(self, encode: Any, images: Any, tasks: Any, maps: Any, options: dict[str, Any]) -> Any:
        tasks = [tasks] if isinstance(tasks, str) else tasks
        if images is None or not tasks:
            raise ArgumentError("images and task_inputs are needed")
        if not all(task in self.TASKS for task in tasks):
            raise ArgumentError(f"task_inputs must be of {', '.join(self.TASKS)}, but are {tasks}")
        batch = encode(images, tasks, maps, **self.options(options).images)
        batch["task_inputs"] = self._ids([f"the task is {task}" for task in tasks], self.task_seq_length)
        if "text_inputs" in batch:
            torch = require("torch", "torch", "preparing texts")
            rows = [self._ids(texts, self.max_seq_length) for texts in batch["text_inputs"]]
            batch["text_inputs"] = torch.stack(rows)
        return batch

    def _ids(self, texts: list[str], length: int) -> Any:
        """Token ids of a fixed length, 0 where padded, (texts, length)."""
        torch = require("torch", "torch", "preparing texts")
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True)
        return torch.tensor(tokens["attention_mask"]) * torch.tensor(tokens["input_ids"])

    def post_process_semantic_segmentation(self, *values: Any, **options: Any) -> Any:
        """As the image processor does it."""
        return self.image_processor.post_process_semantic_segmentation(*values, **options)

    def post_process_instance_segmentation(self, *values: Any, **options: Any) -> Any:
        """As the image processor does it."""
        return self.image_processor.post_process_instance_segmentation(*values, **options)

    def post_process_panoptic_segmentation(self, *values: Any, **options: Any) -> Any:
        """As the image processor does it."""
        return self.image_processor.post_process_panoptic_segmentation(*values, **options)


class SoundAndPictures(ProcessorMixin):
    """Sound and the frames of a video, without text."""

    def process(
        self, options: Options, images: Any = None, audio: Any = None, images_mixed: Any = None, **more: Any
    ) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        options.audio["mask_audio"] = bool(more.get("mask_audio"))
        if audio is not None:
            batch.update(self.feature_extractor(audio, **options.audio))
        if images is not None:
            batch.update(self.image_processor(images, **options.images))
        if images_mixed is not None:
            batch.update(self.image_processor(images_mixed, is_mixed=True, **options.images))
        return batch


def as_numpy(value: Any) -> np.ndarray:
    """A numpy array of an array of any library."""
    return value.detach().cpu().numpy() if framework_of(value) == "pt" else np.asarray(value)
