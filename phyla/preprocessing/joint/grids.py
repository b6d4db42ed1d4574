"""Kinds of processors whose pictures keep their shape: the text tells rows and columns of tokens."""

from __future__ import annotations

from typing import Any

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from ..image.inputs import as_flat_list, is_image
from .base import texts_of
from .expansion import Expanding, own_token, plain_sizes, replaced
from .options import Options
from .pairs import as_numpy


class MergedGrid(Expanding):
    """Pictures and videos as grids of patches, of which a square of merge_size is one token."""

    def prepare(self) -> None:
        row = type(self).row
        assert row is not None
        for name, default in row.fixed["tokens"].items():
            setattr(self, name, own_token(self.tokenizer, name, default))

    def seen(self, images: Any, options: Options) -> Any:
        return self.image_processor(images=images, videos=None, **options.images)

    def watched(self, videos: Any, options: Options) -> Any:
        return self.image_processor(images=None, videos=videos, **options.videos)

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        square = self.image_processor.merge_size**2
        for kind, token in (("image", self.image_token), ("video", self.video_token)):
            grid = features.get(f"{kind}_grid_thw")
            if grid is not None:
                parts = (token * (int(as_numpy(one).prod()) // square) for one in grid)
                texts = replaced(texts, token, parts, f"{kind}s")
        return texts


class TimedGrid(MergedGrid):
    """Grids of patches; of videos also the seconds that a step of the grid lasts."""

    def watched(self, videos: Any, options: Options) -> Any:
        fps = options.videos.pop("fps", 2.0)
        features = self.image_processor(images=None, videos=videos, **options.images)
        count, step = len(features["video_grid_thw"]), self.image_processor.temporal_patch_size
        rates = [fps] * count if isinstance(fps, (int, float)) else list(fps)
        if len(rates) != count:
            raise ArgumentError(f"fps must be one number or one for each of the {count} videos, but is {fps}")
        features["second_per_grid_ts"] = [step / rate for rate in rates]
        return features


class BrokenRows(Expanding):
    """A token for each patch, one at the end of each row of them, another at the end of the picture."""

    def prepare(self) -> None:
        """The tokens are settings, whatever the tokenizer names."""

    def seen(self, images: Any, options: Options) -> Any:
        flat = [images] if is_image(images) or isinstance(images, str) else as_flat_list(images)
        side = self.patch_size * self.spatial_merge_size
        return self.image_processor(flat, **{**options.images, "patch_size": side})

    def process(self, options: Options, **inputs: Any) -> BatchFeature:  # type: ignore[override]
        return super().process(options, **inputs).convert_to_tensors(options.return_tensors)

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        if features.get("pixel_values") is None:
            return texts
        parts = (self._rows(*size) for size in plain_sizes(features["image_sizes"]))
        return replaced(texts, self.image_token, parts)

    def _rows(self, height: int, width: int) -> str:
        side = self.patch_size * self.spatial_merge_size
        row = self.image_token * (width // side)
        return self.image_break_token.join([row] * (height // side)) + self.image_end_token


class Written(Expanding):
    """The size of each picture in words before its tokens, or of one to generate."""

    def prepare(self) -> None:
        t = self.tokenizer
        self.image_token, self.bos_token, self.eof_token = t.image_token, t.bos_token, t.eof_token
        self.image_start_token, self.image_end_token = t.boi_token, t.eoi_token
        self.fake_token_around_image = t.image_wrapper_token
        self.downsample_ratio = 8

    def process(  # type: ignore[override]
        self, options: Options, text: Any = None, images: Any = None, **more: Any
    ) -> BatchFeature:
        generates = options.text.pop("return_for_image_generation", False)
        ratio, area = options.images.pop("ratio", None), options.images.pop("image_area", None)
        texts = texts_of(text)
        if generates and images is not None:
            raise ArgumentError("return_for_image_generation=True takes no images")
        features: dict[str, Any] = {}
        if generates:
            height, width = self.calculate_generate_size(ratio, area, self.downsample_ratio)
            start = f"{self.image_start_token}{height}*{width}{self.fake_token_around_image}"
            texts = [f"{self.bos_token}{one}{start}" for one in texts]
            features["image_sizes"] = [[height, width]] * len(texts)
        elif images is not None:
            features = dict(self.image_processor(images, **options.images))
            texts = self.expand(texts, features)
        batch = {**self.tokenizer(texts, **options.text), **features}
        return BatchFeature(batch, options.return_tensors)

    def expand(self, texts: list[str], features: dict[str, Any]) -> list[str]:
        counts = [text.count(self.image_token) for text in texts]
        parts = (self._written(*size) for size in plain_sizes(features["image_sizes"]))
        # One beginning of text is put before for each picture, as the public checkpoints were trained.
        return [
            self.bos_token * count + text
            for count, text in zip(counts, replaced(texts, self.image_token, parts))
        ]

    def _written(self, height: int, width: int) -> str:
        rows, columns = height // self.downsample_ratio, width // self.downsample_ratio
        tokens = self.image_token * (rows * (columns + 1))
        size = f"{rows}*{columns}{self.fake_token_around_image}"
        return f"{self.image_start_token}{size}{tokens}{self.eof_token}{self.image_end_token}"

    @staticmethod
    def calculate_generate_size(ratio: str, image_area: int, spatial_factor: int) -> tuple[int, int]:
        """Rows and columns of tokens of a picture of an area and a ratio such as "16:9"."""
        width, height = map(int, ratio.split(":"))
        scale = (image_area / (width * height)) ** 0.5 / spatial_factor
        return round(height * scale), round(width * scale)

    def postprocess(self, images: Any, **options: Any) -> Any:
        """Generated pixels as pictures, as the image processor does it."""
        return self.image_processor.postprocess(images, **options)


class Pages(Expanding):
    """Pictures of pages with a prompt made for them: what to read, in which format and where."""

    SYSTEM = "system\nYou should follow the instructions carefully and explain your answers in detail."

    def prepare(self) -> None:
        self.message_start_token, self.message_end_token = "<|im_start|>", "<|im_end|>"
        self.img_start_token, self.img_end_token, self.img_pad_token = "<img>", "</img>", "<imgpad>"
        self.system_query = self.SYSTEM

    def process(  # type: ignore[override]
        self, options: Options, text: Any = None, images: Any = None, **more: Any
    ) -> BatchFeature:
        from ..image.load import load_image

        o, formatted = options.images, options.text.pop("format")
        count, pages = o.pop("num_image_tokens"), o.pop("multi_page")
        box, color = o.pop("box", None), o.pop("color", None)
        groups = images if isinstance(images, (list, tuple)) else [images]
        nested = isinstance(groups[0], (list, tuple))
        if nested and not pages:
            raise ArgumentError("lists of lists of images need multi_page=True")
        groups = groups if nested else [groups] if pages else [[image] for image in groups]
        flat = [load_image(image) if isinstance(image, str) else image for group in groups for image in group]
        features = self.image_processor(flat, **o)
        patches = [int(n) for n in features.pop("num_patches")]
        if text is None:
            boxes = box if box is not None and isinstance(box[0], (list, tuple)) else [box] * len(groups)
            colors = color if isinstance(color, (list, tuple)) else [color] * len(groups)
            texts, start = [], 0
            for number, (group, one, tint) in enumerate(zip(groups, boxes, colors)):
                place = None if one is None else self._thousandths(one, flat[number].size)
                query = self._query(place, tint, formatted, pages, o.get("crop_to_patches"))
                texts.append(self._prompt(query, count * sum(patches[start : start + len(group)])))
                start += len(group)
        else:
            texts = texts_of(text)
        return BatchFeature({**self.tokenizer(texts, **options.text), **features})

    @staticmethod
    def _thousandths(box: Any, size: tuple[int, int]) -> list[int]:
        if len(box) != 4:
            raise ArgumentError(f"a box is [x1, y1, x2, y2], but is {box}")
        return [int(value / size[i % 2] * 1000) for i, value in enumerate(box)]

    @staticmethod
    def _query(box, color, formatted: bool, pages: bool, patches: bool | None) -> str:
        return (
            f"{f'[{color}] ' if color is not None else ''}{box if box is not None else ''} OCR"
            f"{' with format' if formatted else ''}{' across multi pages' if pages else ''}"
            f"{' upon the patch reference' if patches else ''}: "
        )

    def _prompt(self, query: str, count: int) -> str:
        start, end = self.message_start_token, self.message_end_token
        picture = f"{self.img_start_token}{self.img_pad_token * count}{self.img_end_token}"
        return f"{start}{self.system_query}{end}{start}user\n{picture}\n{query}{end}{start}assistant\n"
