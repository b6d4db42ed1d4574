"""Kinds of processors that put as many image tokens into a text as the vision model gives features."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from ..image.inputs import as_flat_list, as_nested_list
from ..image.sizes import best_resolution
from .base import ProcessorMixin, texts_of
from .options import Options
from .pairs import as_numpy


def replaced(texts: list[str], token: str, parts: Iterator[str], what: str = "images") -> list[str]:
    """Texts with each occurrence of a token replaced by the next of the parts."""

    def take(_: re.Match) -> str:
        part = next(parts, None)
        if part is None:
            raise ArgumentError(f"the texts have more {token!r} than there are {what}")
        return part

    return [re.sub(re.escape(token), take, text) for text in texts]


def own_token(tokenizer: Any, name: str, default: str) -> str:
    """A token that the tokenizer names (`image_token`, ...), or the default."""
    return getattr(tokenizer, name, None) or default


def height_and_width(image: Any) -> tuple[int, int]:
    """The size of an array (C, H, W) or (H, W, C)."""
    shape = np.shape(image)[-3:]
    return (shape[1], shape[2]) if shape[0] in (1, 3) else (shape[0], shape[1])


def plain_sizes(sizes: Any) -> list[tuple[int, int]]:
    """(height, width) pairs of an array or nested lists."""
    return [tuple(int(v) for v in as_numpy(one).reshape(-1)[:2]) for one in sizes]  # type: ignore[misc]


class Expanding(ProcessorMixin):
    """Texts whose image tokens are multiplied; a kind says by what."""

    def prepare(self) -> None:
        for name in ("image_token", "video_token"):
            if hasattr(self, name):
                setattr(self, name, own_token(self.tokenizer, name, getattr(self, name)))

    def process(
        self, options: Options, text: Any = None, images: Any = None, videos: Any = None, **more: Any
    ) -> BatchFeature:
        features: dict[str, Any] = {}
        if images is not None:
            features.update(self.seen(images, options))
        if videos is not None:
            features.update(self.watched(videos, options))
        if text is None:
            return BatchFeature(features)
        texts = self.expand(texts_of(text), features)
        return BatchFeature({**self.tokenizer(texts, **options.text), **features})

    def seen(self, images: Any, options: Options) -> Any:
        """The features of pictures."""
        return self.image_processor(images, **options.images)

    def watched(self, videos: Any, options: Options) -> Any:
        """The features of videos."""
        return self.video_processor(videos, **options.videos)

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        """Hook: the texts with their image tokens multiplied."""
        raise NotImplementedError(f"{type(self).__name__} must define expand(texts, features)")


class Uniform(Expanding):
    """Every picture has as many tokens as patches, and those of the class token."""

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        if features.get("pixel_values") is None:
            return texts
        count = self._patches(features["pixel_values"][0]) + self.num_additional_image_tokens
        count -= self.vision_feature_select_strategy == "default"
        return [text.replace(self.image_token, self.image_token * count) for text in texts]

    def _patches(self, image: Any) -> int:
        if self.patch_size is None:
            raise ArgumentError("patch_size is needed to count image tokens: set processor.patch_size")
        height, width = height_and_width(image)
        return (height // self.patch_size) * (width // self.patch_size)


class WithFrames(Uniform):
    """Pictures and videos of one size; a video has the tokens of each of its frames."""

    def seen(self, images: Any, options: Options) -> Any:
        return self.image_processor(images=images, **options.images)

    def watched(self, videos: Any, options: Options) -> Any:
        return self.image_processor(images=None, videos=videos, **options.images)

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        pictures, videos = features.get("pixel_values_images"), features.get("pixel_values_videos")
        if pictures is None and videos is None:
            return texts
        frames = 1 if videos is None else len(videos[0])
        image = pictures[0] if videos is None else videos[0][0]  # type: ignore[index]
        count = self._patches(image) + self.num_additional_image_tokens
        texts = [text.replace(self.video_token, self.video_token * (count * frames)) for text in texts]
        count -= self.vision_feature_select_strategy == "default"
        return [text.replace(self.image_token, self.image_token * count) for text in texts]


def unpadded(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of features that are left of a grid once the padding of a picture is cut off."""
    (height, width), (rows, columns) = size, grid
    if width / height > columns / rows:
        new = int(round(height * (columns / width), 7))
        rows -= (rows - new) // 2 * 2
    else:
        new = int(round(width * (rows / height), 7))
        columns -= (columns - new) // 2 * 2
    return rows, columns


class Tiles(Uniform):
    """A picture has the tokens of its whole, of its tiles without their padding, and a line end per row."""

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        if features.get("pixel_values") is not None:
            tile = height_and_width(features["pixel_values"][0][0])
            sizes = plain_sizes(features["image_sizes"])
            less = self.vision_feature_select_strategy == "default"
            parts = (self.image_token * (self.tokens_of(size, tile) - less) for size in sizes)
            texts = replaced(texts, self.image_token, parts)
        if features.get("pixel_values_videos") is not None:
            video = features["pixel_values_videos"][0]
            count = self.tokens_of_video(len(video), height_and_width(video[0]))
            texts = [text.replace(self.video_token, self.video_token * count) for text in texts]
        return texts

    def tokens_of(self, size: tuple[int, int], tile: tuple[int, int]) -> int:
        """How many tokens a picture of a size has, cut into tiles."""
        rows, columns = tile[0] // self.patch_size, tile[1] // self.patch_size
        grid = self._unpadded(size, tile, rows, columns)
        return grid[0] * grid[1] + grid[0] + rows * columns + self.num_additional_image_tokens

    def _unpadded(self, size: tuple[int, int], tile: tuple[int, int], rows: int, columns: int):
        best = best_resolution(size, self.image_processor.image_grid_pinpoints)
        return unpadded(size, (rows * (best[0] // tile[0]), columns * (best[1] // tile[1])))

    def tokens_of_video(self, frames: int, tile: tuple[int, int]) -> int:
        """How many tokens a video has: a quarter of those of its frames."""
        return (tile[0] // self.patch_size) * (tile[1] // self.patch_size) // 4 * frames


class PooledTiles(Tiles):
    """Tiles with a fixed number of tokens, of large pictures fewer by interpolation."""

    def tokens_of(self, size: tuple[int, int], tile: tuple[int, int]) -> int:
        side = int(math.sqrt(self.num_image_tokens))
        rows, columns = self._unpadded(size, tile, side, side)
        ratio = math.sqrt(rows * columns / (9 * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return rows * columns + rows + self.num_image_tokens

    def tokens_of_video(self, frames: int, tile: tuple[int, int]) -> int:
        """Frames are pooled to half the side; one token ends the video."""
        return frames * math.ceil(int(math.sqrt(self.num_image_tokens)) / 2) ** 2 + 1


class SizedCrops(Expanding):
    """Every crop has the tokens that `size_conversion` gives for its side."""

    size_conversion: Any

    def prepare(self) -> None:
        sizes = self.size_conversion or type(self).row.fixed["size_conversion"]  # type: ignore[union-attr]
        self.size_conversion = {int(side): count for side, count in sizes.items()}
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.unk_token

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        if "num_crops" not in features:
            return texts
        each = self.size_conversion[features["pixel_values"].shape[2]]
        count, token = int(features.pop("num_crops")) * each, self.tokenizer.image_token
        return [text.replace(token, token * count) for text in texts]


class TaggedTiles(Expanding):
    """Tiles with a numbered tag before each, and one for the whole picture."""

    patch_size: Any

    def prepare(self) -> None:
        self.patch_size = self.patch_size * self.downsample_factor

    def to_dict(self) -> dict[str, Any]:
        """The settings, the side of a patch as it works: the factor is in it."""
        kept = super().to_dict()
        kept.pop("downsample_factor", None)
        return kept

    def seen(self, images: Any, options: Options) -> Any:
        flat = as_flat_list(images)
        features = self.image_processor(flat, **options.images)
        self._count = len(flat)
        return features

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        if "num_patches" not in features:
            return texts
        counts = features.pop("num_patches")
        if sum(text.count(self.image_token) for text in texts) != self._count:
            raise ArgumentError(
                f"the texts must have one {self.image_token!r} for each of the {self._count} images"
            )
        return replaced(texts, self.image_token, (self._tiles(int(count)) for count in counts))

    def _tiles(self, count: int) -> str:
        patches = self.img_patch_token * (self.img_size // self.patch_size) ** 2
        tiles = "".join(f"{self.tile_token}_{i}{patches}" for i in range(1, count))
        whole = f"{self.tile_global_token}{patches}"
        return f"{self.start_of_img_token}{tiles}{whole}{self.end_of_img_token}"


class Fixed(Expanding):
    """A fixed number of tokens for each picture between a start and an end; a separator ends the text."""

    image_token: Any

    def prepare(self) -> None:
        self.image_token = own_token(self.tokenizer, "image_token", self.image_token)
        self.image_start_token = own_token(self.tokenizer, "boi_token", "<racm3:break>")
        self.image_end_token = own_token(self.tokenizer, "eoi_token", "<eoss>")

    def process(  # type: ignore[override]
        self, options: Options, text: Any = None, images: Any = None, **more: Any
    ) -> BatchFeature:
        completes = options.text.pop("return_for_text_completion", False)
        whole = self.image_start_token + self.image_token * self.image_seq_length + self.image_end_token
        end = "" if completes else self.tokenizer.sep_token
        texts = [one.replace(self.image_token, whole) + end for one in texts_of(text)]
        batch = BatchFeature(dict(self.tokenizer(texts, **options.text)))
        if images is not None:
            batch["pixel_values"] = self.image_processor(images, **options.images)["pixel_values"]
        return batch


class PannedCrops(Expanding):
    """A fixed number of tokens for each picture; crops of a picture are announced in words."""

    def prepare(self) -> None:
        self.image_token_id = self.tokenizer.image_token_id
        self.boi_token = self.image_token = self.tokenizer.boi_token
        inside = self.tokenizer.image_token * self.image_seq_length
        self.full_image_sequence = f"\n\n{self.tokenizer.boi_token}{inside}{self.tokenizer.eoi_token}\n\n"

    def process(  # type: ignore[override]
        self, options: Options, text: Any = None, images: Any = None, **more: Any
    ) -> BatchFeature:
        features: Any = {}
        texts = [] if text is None else texts_of(text)
        if images is not None:
            groups = as_nested_list(images)
            features = self.image_processor(groups, **options.images)
            texts = texts or [" ".join([self.boi_token] * len(group)) for group in groups]
            texts = self._announced(texts, groups, features.pop("num_crops"))
        return_tensors = options.text.pop("return_tensors", None)
        batch = self.tokenizer(texts, **options.text)
        batch["token_type_ids"] = [
            [int(token == self.image_token_id) for token in row] for row in batch["input_ids"]
        ]
        return BatchFeature({**batch, **features}, return_tensors)

    def _announced(self, texts: list[str], groups: list, crops: Any) -> list[str]:
        if len(groups) != len(texts):
            raise ArgumentError(f"there are {len(texts)} texts, but images of {len(groups)} samples")
        for text, group in zip(texts, groups):
            if text.count(self.boi_token) != len(group):
                found = text.count(self.boi_token)
                raise ArgumentError(
                    f"a text has {found} {self.boi_token!r}, but there are {len(group)} images for it"
                )

        def told(count: int) -> str:
            more = " ".join([self.boi_token] * count)
            start = (
                f"Here is the original image {self.boi_token} and here are some crops to help you see better "
            )
            return start + more if count else self.boi_token

        texts = replaced(texts, self.boi_token, (told(int(count)) for count in crops))
        return [text.replace(self.boi_token, self.full_image_sequence) for text in texts]


class Judged(PannedCrops):
    """Each picture once for every policy, which its text states; the template makes the prompt."""

    policy_definitions: Any

    def prepare(self) -> None:
        super().prepare()
        if self.policy_definitions is None:
            self.policy_definitions = dict(type(self).row.fixed["policies"])  # type: ignore[union-attr]

    def to_dict(self) -> dict[str, Any]:
        """The settings without policies that are the defaults."""
        kept = super().to_dict()
        if kept.get("policy_definitions") == dict(type(self).row.fixed["policies"]):  # type: ignore[union-attr]
            del kept["policy_definitions"]
        return kept

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        policies: Any = None,
        custom_policies: Any = None,
        **options: Any,
    ) -> BatchFeature:
        """The inputs of every pair of picture and policy, by names of known and custom ones."""
        if images is None or not self.chat_template:
            raise ArgumentError("images are needed, and a chat template: set processor.chat_template")
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        known = {**self.policy_definitions, **(custom_policies or {})}
        names = list(known) if policies is None else list(policies)
        if not set(names) <= set(known):
            raise ArgumentError(f"policies must be of {sorted(known)}, but are {names}")
        messages, shown = [], []
        for image in images:
            for name in names:
                content = [{"type": "image"}, {"type": "text", "text": known[name]}]
                messages.append([{"role": "user", "content": content}])
                shown.append([image])
        prompts = self.apply_chat_template(messages, tokenize=False)
        return super().__call__(images=shown, text=prompts, **options)
