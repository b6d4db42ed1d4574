"""Kinds of processors for several pictures a text, given as lists of lists or matched by their tokens."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from ..image.inputs import as_nested_list, as_videos, fetched, is_image
from ..text.tokens import AddedToken
from .base import ProcessorMixin, texts_of
from .expansion import replaced
from .options import Options


def matched(images: Any, counts: list[int] | None) -> list[list]:
    """Pictures as one list for each text; a flat list is shared out by the texts' image tokens."""
    images = fetched(images)
    if is_image(images):
        groups = [[images]]
    elif isinstance(images, (list, tuple)) and images and is_image(images[0]):
        if counts is None:
            groups = [list(images)]
        elif sum(counts) != len(images):
            raise ArgumentError(
                f"the texts have {sum(counts)} image tokens, but there are {len(images)} images"
            )
        else:
            left = iter(images)
            groups = [[next(left) for _ in range(count)] for count in counts]
    else:
        groups = [list(group) for group in images]
    if counts is not None and [len(group) for group in groups] != counts:
        sizes = [len(group) for group in groups]
        raise ArgumentError(f"the texts have {counts} image tokens, but {sizes} images")
    return groups


def _marked(text: str) -> AddedToken:
    return AddedToken(text, normalized=False, special=True)


class Resampled(ProcessorMixin):
    """Every picture is a fixed number of tokens between two others; split ones have five times as many."""

    def prepare(self) -> None:
        tokenizer = self.tokenizer
        if getattr(tokenizer, "image_token", None) is None:
            self.fake_image_token = _marked("<fake_token_around_image>")
            self.image_token = _marked("<image>")
            self._add([self.fake_image_token, self.image_token])
        else:
            self.fake_image_token = tokenizer.image_boundary_token
            self.image_token = tokenizer.image_token
        self.end_of_utterance_token = _marked("<end_of_utterance>")
        self._add([self.end_of_utterance_token])

    def _add(self, tokens: list) -> None:
        self.tokenizer.add_special_tokens({"additional_special_tokens": tokens})

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> BatchFeature:
        given = options.images.pop("image_seq_len", None)
        length = self.image_seq_len if given is None else given
        fake, token = str(self.fake_image_token), str(self.image_token)
        batch, counts = BatchFeature(), None
        if text is not None:
            texts = texts_of(text)
            counts = [one.count(token) for one in texts]
            whole = f"{fake}{token * length}{fake}" * (5 if self.image_processor.do_image_splitting else 1)
            texts = [one.replace(token, whole).replace(fake + fake, fake) for one in texts]
            batch.update(self.tokenizer(texts, **options.text))
        if images is not None:
            batch.update(self.image_processor(matched(images, counts), **options.images))
        return batch


def _tiled(rows: int, columns: int, length: int, image: str, fake: str, whole: str) -> str:
    """The text of a picture cut into rows and columns of tiles, and of its whole."""
    tiles = "".join(
        "".join(f"{fake}<row_{r}_col_{c}>{image * length}" for c in range(1, columns + 1)) + "\n"
        for r in range(1, rows + 1)
    )
    return f"{tiles}{chr(10) if rows or columns else ''}{fake}{whole}{image * length}{fake}"


class SplitRows(ProcessorMixin):
    """Pictures cut into rows and columns of tiles, each with its place in words."""

    def prepare(self) -> None:
        self.fake_image_token = _marked("<fake_token_around_image>")
        self.image_token = _marked("<image>")
        self.end_of_utterance_token = _marked("<end_of_utterance>")
        self.global_image_tag = "<global-img>"
        tokens = [self.fake_image_token, self.image_token, self.end_of_utterance_token]
        self.tokenizer.add_special_tokens({"additional_special_tokens": tokens})

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> BatchFeature:
        texts = None if text is None else texts_of(text)
        token = str(self.image_token)
        counts = None if texts is None else [one.count(token) for one in texts]
        batch = BatchFeature()
        if images is None and more.get("videos") is None and counts and any(counts):
            raise ArgumentError(f"the texts have {sum(counts)} {token!r}, but there are no images")
        if images is not None or more.get("videos") is not None:
            groups, sizes = self._groups_of(images, more.get("videos"), counts)
            features = self.image_processor(groups, **{**options.images, **sizes})
            batch.update(features)
            if texts is not None:
                none = [[0] * len(group) for group in groups]
                rows, columns = batch.pop("rows", none), batch.pop("cols", none)
                given = more.get("image_seq_len")
                length = self.image_seq_len if given is None else given
                fake, whole = str(self.fake_image_token), self._whole()
                parts = (
                    _tiled(int(r), int(c), length, token, fake, whole)
                    for i in range(len(texts))
                    for r, c in zip(rows[i], columns[i])
                )
                texts = replaced(texts, token, parts)
        if texts is not None:
            batch.update(self.tokenizer(texts, **options.text))
        return batch

    def _whole(self) -> str:
        return self.global_image_tag

    def _groups_of(self, images: Any, videos: Any, counts: list[int] | None) -> tuple[list, dict[str, Any]]:
        """Pictures for each text, and the options that depend on what they are."""
        return matched(images, counts), {}


class SplitRowsAndFrames(SplitRows):
    """Pictures in tiles, or the frames of a video, each with its time in words."""

    def prepare(self) -> None:
        tokenizer, processor = self.tokenizer, self.image_processor
        names = {
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        }
        for name, default in names.items():
            setattr(self, name, getattr(tokenizer, name, None) or default)
        sampling = processor.video_sampling
        self.video_size, self.image_size = sampling["video_size"], processor.size
        self.do_image_splitting = processor.do_image_splitting
        self.do_video_splitting = sampling.get("do_image_splitting", False)
        self.default_max_frames, self.default_fps = sampling["max_frames"], sampling["fps"]

    def _whole(self) -> str:
        return self.global_image_token

    def _groups_of(self, images: Any, videos: Any, counts: list[int] | None) -> tuple[list, dict[str, Any]]:
        sizes = {"do_image_splitting": self.do_image_splitting}
        if images is not None:
            groups, size = as_nested_list(fetched(images)), self.image_size
        else:
            groups, size = as_videos(videos), self.video_size
        if counts is not None and [len(group) for group in groups] != counts:
            found = [len(group) for group in groups]
            raise ArgumentError(f"the texts have {counts} image tokens, but {found} images")
        return groups, {**sizes, "size": size}


class CrossAttended(ProcessorMixin):
    """Pictures that tokens attend to from where they stand in the text on, as a mask over tiles."""

    def prepare(self) -> None:
        tokenizer = self.tokenizer
        self.image_token = getattr(tokenizer, "image_token", None) or "<|image|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.python_token = "<|python_tag|>"
        self.python_token_id = tokenizer.convert_tokens_to_ids(self.python_token)
        self.bos_token = tokenizer.bos_token

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> BatchFeature:
        data: dict[str, Any] = {}
        groups = None if images is None else as_nested_list(fetched(images))
        if text is not None:
            texts = texts_of(text)
            self._check([one.count(self.image_token) for one in texts], groups)
            options.text.pop("padding_side", None)
            data.update(self.tokenizer([self._begun(one) for one in texts], **options.text))
        if groups is not None:
            features = self.image_processor(groups, **options.images)
            tiles = features.pop("num_tiles")
            data.update(features)
            if text is not None:
                data["cross_attention_mask"] = self._mask(data["input_ids"], tiles)
        return BatchFeature(data, options.return_tensors)

    @staticmethod
    def _check(counts: list[int], groups: list | None) -> None:
        if any(counts) and not all(counts):
            raise ArgumentError(
                f"either all texts of a batch have image tokens or none, but they have {counts}"
            )
        sizes = [0] if groups is None else [len(group) for group in groups]
        if any(counts) and sizes != counts:
            raise ArgumentError(f"the texts have {counts} image tokens, but there are {sizes} images")

    def _begun(self, text: str) -> str:
        """A text with the beginning-of-text token after the pictures it starts with."""
        if self.bos_token in text:
            return text
        pictures = re.match(f"(?:{re.escape(self.image_token)})*", text)
        start = pictures.end() if pictures else 0
        return f"{text[:start]}{self.bos_token}{text[start:]}"

    def _mask(self, rows: Any, tiles: Any) -> np.ndarray:
        """(batch, tokens, images, tiles): from each picture to the next; neighbours share what follows."""
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        places = [[i for i, token in enumerate(row) if token == self.image_token_id] for row in rows]
        length = max(map(len, rows))
        most = max(map(len, places))
        mask = np.zeros((len(rows), length, most, self.image_processor.max_image_tiles), dtype=np.int64)
        for i, starts in enumerate(places):
            ends = [*starts[1:], length if len(starts) == 1 else len(rows[i])]
            for j in range(len(starts) - 2, -1, -1):
                if ends[j] == starts[j] + 1:
                    ends[j] = ends[j + 1]
            for j, (start, end) in enumerate(zip(starts, ends)):
                mask[i, start:end, j, : int(tiles[i][j])] = 1
        return mask
