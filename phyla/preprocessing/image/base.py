"""BaseImageProcessor, and the class of which every row of the table makes one."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from phyla.errors import ArgumentError, UnknownArgumentError, nearest

from ..feature import BatchFeature, ImageProcessingMixin
from . import inputs
from .inputs import check_images, fetched, to_array
from .layout import FIRST, ChannelDimension, with_layout
from .rgb import to_rgb
from .sizes import pair, size_dict
from .table import Row
from .transform import center_crop, normalize, rescale
from .work import Work, layout_for

log = logging.getLogger(__name__)


class BaseImageProcessor(ImageProcessingMixin):
    """Root of all image processors: calling one preprocesses pictures into a BatchFeature."""

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __call__(self, images=None, *args: Any, **options: Any) -> BatchFeature:
        """Preprocess one picture or a batch of them."""
        return self.preprocess(images, *args, **options)

    def preprocess(self, images=None, *args: Any, **options: Any) -> BatchFeature:
        """Preprocess pictures; every image processor has its own."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it preprocesses")

    def rescale(self, image, scale: float, data_format=None, input_data_format=None):
        """The pixels times a factor, as float32."""
        return _arranged(rescale(image, scale), data_format, input_data_format)

    def normalize(self, image, mean, std, data_format=None, input_data_format=None):
        """(pixels - mean) / std by channel."""
        return _arranged(normalize(image, mean, std, input_data_format), data_format, input_data_format)

    def center_crop(self, image, size, data_format=None, input_data_format=None):
        """The middle {"height", "width"} of an array, zeros around it where it is smaller."""
        image = center_crop(image, pair(size_dict(size)), input_data_format)
        return _arranged(image, data_format, input_data_format)


def _arranged(image, data_format, input_data_format):
    return image if data_format is None else with_layout(image, data_format, input_data_format)


class TableProcessor(BaseImageProcessor):
    """An image processor of the table: settings, steps and inputs come from its row."""

    row: ClassVar[Row]
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    # Further positional arguments of the call, after the pictures.
    positional: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **settings: Any):
        row = type(self).row
        if len(args) > len(row.settings):
            raise ArgumentError(f"{type(self).__name__} takes at most {len(row.settings)} settings")
        settings = {**dict(zip(row.settings, args)), **settings}
        for old, new in row.old.items():
            if old in settings:
                settings[new] = settings.pop(old)
        given = set(settings)
        values = {name: settings.pop(name, None) for name in row.settings}
        for name, default in row.settings.items():
            if values[name] is None and not (name in given and name in row.optional):
                values[name] = copy.deepcopy(default)
            if name not in row.late:
                values[name] = row.sized(name, values[name])
        self._settle(values, settings)
        super().__init__(**settings)
        for name, value in values.items():
            setattr(self, name, value)

    def _settle(self, values: dict[str, Any], more: dict[str, Any]) -> None:
        """Hook: complete the settings; `more` holds those that the row does not name."""

    def _options(self, given: dict[str, Any]) -> SimpleNamespace:
        """The settings with what the call says over them."""
        row = type(self).row
        known = {*row.settings, *row.call}
        given = {row.old.get(name, name): value for name, value in given.items()}
        for name in [name for name in given if name in _SHARED and name not in known]:
            # Code for many models passes the common options to all of them.
            log.warning("%s has no option %r: it is ignored", type(self).__name__, name)
            del given[name]
        unknown = [name for name in given if name not in known]
        if unknown:
            hint = nearest(unknown[0], known)
            raise UnknownArgumentError(f"{type(self).__name__} takes no option {unknown[0]!r}.{hint}")
        over = {name: row.sized(name, value) for name, value in given.items() if value is not None}
        none = dict.fromkeys(row.call)
        settings = {k: v for k, v in self.__dict__.items() if not k.startswith("_")}
        settings.update({name: row.sized(name, settings.get(name)) for name in row.late})
        own_mean = settings.get("image_mean")
        return SimpleNamespace(
            resize=row.resize,
            **{**none, **settings, **row.fixed, **over, "own_mean": own_mean, "called": over},
        )

    def preprocess(self, images=None, *args: Any, **options: Any) -> BatchFeature:
        """Preprocess pictures (PIL, arrays, tensors, paths, URLs, lists of them) into the inputs of a model.

        Every setting can be given again for this call. data_format, input_data_format: "channels_first" or
        "channels_last"; return_tensors: "pt", "np", "tf", "jax" or None (lists of arrays).
        """
        options = {**dict(zip(type(self).positional, args)), **options}
        return_tensors = options.pop("return_tensors", None)
        data_format = options.pop("data_format", FIRST)
        input_data_format = options.pop("input_data_format", None)
        o = self._options(
            {name: value for name, value in options.items() if name != "videos" or value is not None}
        )
        o.data_format = None if data_format is None else ChannelDimension(data_format)
        o.input_data_format = None if input_data_format is None else ChannelDimension(input_data_format)
        o.return_tensors = return_tensors
        self._check(o)
        return self._pack(self._run(images, o), return_tensors)

    def resize(self, image, size=None, resample=None, data_format=None, input_data_format=None, **options):
        """An array resized by the rule of this class, to `size` or the size of the settings."""
        o = self._options({"size": size, "resample": resample, **options})
        work = Work([to_array(image)], layout_for(image, input_data_format), o)
        return _arranged(work.resize(work.images[0]), data_format, work.layout)

    def _pack(self, data: dict[str, Any], return_tensors) -> BatchFeature:
        """Hook: the batch of what a run gave."""
        return BatchFeature(data, return_tensors)

    def _check(self, o: SimpleNamespace) -> None:
        """Raise ArgumentError where a step is on and what it needs is missing."""
        for switch, needs in _NEEDS.items():
            if getattr(o, switch, None):
                for name in needs:
                    if name in type(self).row.optional:
                        continue
                    if hasattr(o, name) and getattr(o, name) is None:
                        raise ArgumentError(f"{name} must be given if {switch}=True, but is None")

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        """The outputs by name for the call's pictures."""
        work = self._work(self._take(images), o)
        work.run(type(self).row.steps)
        images = work.arrange()
        return {type(self).row.inputs[0]: self._collect(images, work), **work.out}

    def _take(self, images) -> list:
        """The call's pictures as one list."""
        return getattr(inputs, TAKES[type(self).row.take])(fetched(images))

    def _collect(self, images: list, work: Work) -> Any:
        """Hook: the main output of the pictures at the end of the pipeline."""
        if getattr(work.o, "stacked", False):
            import numpy as np

            return np.stack(images)
        return images

    def _arrays(self, images: list, o: SimpleNamespace) -> list:
        """Numpy arrays of pictures, made RGB where the options say."""
        check_images(images)
        way = type(self).row.rgb
        if way is not None and getattr(o, "do_convert_rgb", True):
            images = [to_rgb(image, way) for image in images]
        return [to_array(image) for image in images]

    def _work(self, images: list, o: SimpleNamespace) -> Work:
        """A list of pictures at the start of the pipeline."""
        arrays = self._arrays(images, o)
        if not arrays:
            raise ArgumentError("images must hold at least one picture, but the list is empty")
        return Work(arrays, layout_for(arrays[0], o.input_data_format), o)


TAKES = {"list": "as_list", "flat": "as_flat_list", "nested": "as_nested_list", "pairs": "as_pairs"}
# Options that joint processors hand to any image processor.
_SHARED = {
    "do_convert_rgb", "do_resize", "size", "size_divisor", "crop_size", "resample", "do_rescale",
    "rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad", "do_center_crop", "device",
}  # fmt: skip
_NEEDS = {
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
    "do_center_crop": ("crop_size",),
    "do_resize": ("size", "resample"),
}
