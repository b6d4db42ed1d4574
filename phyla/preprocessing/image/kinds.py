"""The ways a call takes its inputs: pictures alone, with segmentation maps, with prompts, videos, or both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from phyla.errors import ArgumentError

from .base import TableProcessor
from .inputs import as_list, as_videos, check_images, fetched, fetched_videos, to_array
from .layout import FIRST, LAST, infer_layout, with_layout
from .transform import longer, rescale, stacked
from .work import Work


class WithMaps(TableProcessor):
    """Pictures with segmentation maps, which go through the same steps and come back as `labels`."""

    positional = ("segmentation_maps",)

    def __call__(self, images=None, segmentation_maps=None, **options):
        """Preprocess pictures and, where given, their segmentation maps."""
        return self.preprocess(images, segmentation_maps=segmentation_maps, **options)

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        data = super()._run(images, o)
        if o.segmentation_maps is not None:
            maps = as_list(o.segmentation_maps, ndim=2)
            check_images(maps, "segmentation_maps")
            data["labels"] = [self._map(to_array(one), o) for one in maps]
        return data

    def _map(self, labels: np.ndarray, o: SimpleNamespace) -> np.ndarray:
        """A (height, width) map of class numbers after the geometric steps, int64."""
        flat = labels.ndim == 2
        labels = labels[None] if flat else labels
        layout = FIRST if flat else infer_layout(labels, (1,))
        if getattr(o, "do_reduce_labels", None):
            labels = reduced(labels)
        o = SimpleNamespace(**vars(o))
        if o.map_resample is not None:
            o.resample = o.map_resample
        for name, other in getattr(o, "map_options", {}).items():
            setattr(o, name, getattr(o, other))
        work = Work([labels], layout, o).run(o.map_steps)
        found = work.images[0]
        return (found[0] if flat else found).astype(np.int64)


def reduced(labels: np.ndarray) -> np.ndarray:
    """Class numbers less one; the background 0 becomes 255, to be ignored."""
    labels = np.where(labels == 0, 255, labels).astype(labels.dtype) - 1
    labels[labels == 254] = 255
    return labels


class Videos(TableProcessor):
    """Videos as lists of frames; every frame goes through the pipeline."""

    def preprocess(self, images=None, *args: Any, **options: Any):
        """Preprocess one video (a list of frames or a (T, H, W, C) array) or a batch of them."""
        if options.get("videos") is not None:
            images = options.pop("videos")
        options.pop("videos", None)
        return super().preprocess(images, *args, **options)

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        key = type(self).row.inputs[0]
        return {key: self._videos(images, o)}

    def _videos(self, videos, o: SimpleNamespace) -> list:
        videos = as_videos(fetched_videos(videos))
        frames = self._work([frame for video in videos for frame in video], o)
        done = iter(frames.run(type(self).row.steps).arrange())
        groups = [[next(done) for _ in video] for video in videos]
        return [np.array(group) for group in groups] if getattr(o, "stacked", False) else groups


class PicturesAndVideos(Videos):
    """Pictures, videos or both in one call."""

    positional = ("videos",)

    def preprocess(self, images=None, *args: Any, **options: Any):
        """Preprocess pictures and videos; either may be None."""
        return TableProcessor.preprocess(self, images, *args, **options)

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        data: dict[str, Any] = {}
        if o.videos is not None:
            data["pixel_values_videos"] = self._videos(o.videos, o)
        if images is not None:
            work = self._work(as_list(fetched(images)), o)
            data["pixel_values_images"] = work.run(type(self).row.steps).arrange()
        if not data:
            raise ArgumentError("give images, videos or both")
        return data


class WithDepth(TableProcessor):
    """Pictures with the measured depth that prompts the model."""

    positional = ("prompt_depth",)

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        data = super()._run(images, o)
        if o.prompt_depth is None:
            return data
        depths = as_list(o.prompt_depth, ndim=2)
        count = len(data["pixel_values"])
        if len(depths) != count:
            raise ArgumentError(
                f"prompt_depth must hold one map a picture ({count}), but holds {len(depths)}"
            )
        data["prompt_depth"] = [self._depth(to_array(depth), o) for depth in depths]
        return data

    def _depth(self, depth: np.ndarray, o: SimpleNamespace) -> np.ndarray:
        """(height, width) in the sensor's unit to metres, with a channel axis; never constant."""
        depth = depth * o.prompt_scale_to_meter
        if depth.min() == depth.max():
            depth[0, 0] += 1e-6
        depth = depth[..., None].astype(np.float32)
        return depth if o.data_format is None else with_layout(depth, o.data_format, LAST)


class WithTrimaps(TableProcessor):
    """Pictures with trimaps, which become a fourth channel."""

    positional = ("trimaps",)

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        work = self._work(as_list(fetched(images)), o).run(("rescale", "normalize"))
        maps = [to_array(one) for one in as_list(o.trimaps, ndim=2)]
        if len(maps) != len(work.images):
            raise ArgumentError(
                f"trimaps must hold one map a picture ({len(work.images)}), but holds {len(maps)}"
            )
        maps = [rescale(one, o.rescale_factor) for one in maps] if o.do_rescale else maps
        joined = [
            np.concatenate([with_layout(image, LAST, work.layout), one[..., None]], -1)
            for image, one in zip(work.images, maps)
        ]
        work = Work(joined, LAST, o)
        if o.do_pad:
            step = o.size_divisibility

            def change(image: np.ndarray) -> np.ndarray:
                height, width = image.shape[:2]
                return np.pad(image, ((0, -height % step), (0, -width % step), (0, 0)))

            work.each(change)
        return {"pixel_values": work.arrange()}


class Lists(TableProcessor):
    """Pictures whose result is the array itself, and which may go through a transform of the caller's."""

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        if o.transform is not None:
            from phyla.errors import require

            torch = require("torch", "torch", "a transform of the caller's")
            return {"pixel_values": torch.stack([o.transform(image) for image in as_list(fetched(images))])}
        o.do_resize = o.do_rescale = o.do_normalize = True
        o.size = {"height": o.image_size, "width": o.image_size}
        return super()._run(images, o)

    def preprocess(self, images=None, *args: Any, **options: Any):
        """The pixel values of pictures: a tensor, or a list of arrays where return_tensors=None."""
        if isinstance(images, (list, tuple)) and not images:
            return []
        options.setdefault("return_tensors", "pt")
        return super().preprocess(images, *args, **options)["pixel_values"]


class Groups(TableProcessor):
    """Several pictures of each given one, stacked; stacks are padded to the longest where do_pad is on."""

    def _collect(self, images: list, work: Work) -> Any:
        done = iter(images)
        stacks = [stacked([next(done) for _ in range(count)]) for count in work.out.pop("_groups")]
        if not work.o.do_pad:
            return stacks
        most = max(len(stack) for stack in stacks)
        return [longer(stack, most - len(stack)) for stack in stacks]


class Pairs(TableProcessor):
    """Pictures by two, to be matched."""

    def _collect(self, images: list, work: Work) -> Any:
        return [images[i : i + 2] for i in range(0, len(images), 2)]


class Headed(TableProcessor):
    """Pictures that may carry a line of text above them."""

    positional = ("header_text",)

    def _arrays(self, images: list, o: SimpleNamespace) -> list:
        arrays = super()._arrays(images, o)
        if not o.is_vqa:
            return arrays
        if o.header_text is None:
            raise ArgumentError("header_text must be given (one text, or one a picture) where is_vqa=True")
        texts = [o.header_text] * len(arrays) if isinstance(o.header_text, str) else o.header_text
        font = o.font_path if o.font_path is not None else o.font_bytes
        return [with_header(image, text, font) for image, text in zip(arrays, texts)]


def with_header(image: np.ndarray, text: str, font: Any = None) -> np.ndarray:
    """A picture with text drawn above it in black on white, both as wide as the wider; (H, W, 3) uint8."""
    import io
    import textwrap

    from phyla.errors import require

    from .transform import pillow, to_picture

    fonts = require("PIL.ImageFont", "vision", "drawing text")
    draw = require("PIL.ImageDraw", "vision", "drawing text")
    wrapped = "\n".join(textwrap.TextWrapper(width=80).wrap(text))
    if font is None:
        face = fonts.load_default(36)
    else:
        source = io.BytesIO(font) if isinstance(font, bytes) else font
        face = fonts.truetype(source, encoding="UTF-8", size=36)
    ink = draw.Draw(pillow().new("RGB", (1, 1), "white"))
    _, _, width, height = ink.textbbox((0, 0), wrapped, face)
    header = pillow().new("RGB", (int(width) + 10, int(height) + 10), "white")
    draw.Draw(header).text(xy=(5, 5), text=wrapped, fill="black", font=face)
    picture = to_picture(image)
    wide = max(header.width, picture.width)
    tall, top = int(picture.height * (wide / picture.width)), int(header.height * (wide / header.width))
    joined = pillow().new("RGB", (wide, tall + top), "white")
    joined.paste(header.resize((wide, top)), (0, 0))
    joined.paste(picture.resize((wide, tall)), (0, top))
    return np.array(joined)
