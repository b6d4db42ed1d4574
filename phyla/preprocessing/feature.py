"""What image processors and feature extractors share: the batch they return, settings in and out of files."""

import copy
import json
import os
from collections import UserDict
from pathlib import Path
from typing import Any, ClassVar

from phyla.checkpoints.atomic import atomic_write, prepare_folder
from phyla.checkpoints.configs import RESOLVE
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, MissingFileError, require

from .text.batch import converter, framework_of

FEATURE_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
# Options of `from_pretrained` that say how to look, not what to change.
_IGNORED = (
    "force_download",
    "resume_download",
    "proxies",
    "trust_remote_code",
    "_from_auto",
    "_from_pipeline",
)


def _torch_tensor(value):
    torch = require("torch", "torch", 'return_tensors="pt"')
    if isinstance(value, (list, tuple)) and len(value):
        first = value[0]
        nested = isinstance(first, (list, tuple)) and len(first) and framework_of(first[0]) == "np"
        if framework_of(first) == "np" or nested:
            import numpy

            value = numpy.array(value)
        elif framework_of(first) == "pt":
            return torch.stack(list(value))
    return torch.from_numpy(value) if framework_of(value) == "np" else torch.tensor(value)


class BatchFeature(UserDict):
    """A dictionary of model inputs (`pixel_values`, `input_features`, ...), also readable as attributes.

    With `tensor_type` ("pt", "np", "tf", "jax") every value becomes one array of that library.
    """

    def __init__(self, data: dict | None = None, tensor_type=None):
        super().__init__(data)
        self.convert_to_tensors(tensor_type)

    def __getitem__(self, item):
        if isinstance(item, str):
            return self.data[item]
        raise KeyError(f"a batch is indexed by name, one of {list(self.data)}, but got {item!r}")

    def __getattr__(self, name):
        if name != "data" and name in self.__dict__.get("data", {}):
            return self.data[name]
        names = list(self.__dict__.get("data", {}))
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; its keys are {names}")

    def __getstate__(self):
        return {"data": self.data}

    def __setstate__(self, state):
        self.data = state["data"]

    def keys(self):
        return self.data.keys()

    def values(self):
        return self.data.values()

    def items(self):
        return self.data.items()

    def convert_to_tensors(self, tensor_type=None) -> "BatchFeature":
        """Turn every value into an array of `tensor_type`, in place; ArgumentError for unequal rows."""
        if tensor_type is None:
            return self
        make, kind = converter(tensor_type), getattr(tensor_type, "value", tensor_type)
        if kind == "pt":
            make = _torch_tensor
        for key, value in self.data.items():
            if framework_of(value) == kind:
                continue
            try:
                self.data[key] = make(value)
            except (ValueError, TypeError, RuntimeError, IndexError) as error:
                raise ArgumentError(
                    f"{key!r} cannot be made one array ({error}): all items must have one shape; pad them"
                    " (padding=True, do_pad=True), resize them to one size, or leave return_tensors away"
                ) from error
        return self

    def to(self, *args, **kwargs) -> "BatchFeature":
        """Move every torch tensor to a device and cast the floating ones to a dtype, in place."""
        torch = require("torch", "torch", "moving a batch to a device")
        device = kwargs.get("device")
        if device is None and args and not isinstance(args[0], torch.dtype):
            device = args[0]
            if not isinstance(device, (str, int, torch.device)):
                raise ArgumentError(f"a batch moves to a device or a dtype, but got {device!r}")
        for key, value in self.data.items():
            if not isinstance(value, torch.Tensor):
                continue
            if value.is_floating_point():
                self.data[key] = value.to(*args, **kwargs)
            elif device is not None:
                self.data[key] = value.to(device=device, non_blocking=kwargs.get("non_blocking", False))
        return self


def _plain(value):
    """What JSON cannot write: arrays as lists, enumerations as their value, sets in order."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "value"):
        return value.value
    raise ArgumentError(f"a setting must be plain data to be saved, but is {value!r}")


class Preprocessor:
    """Settings as attributes, read from and written to preprocessor_config.json.

    A subclass says in `TYPE_KEY` which key of the file names its class, in `PARTS` where a
    processor_config.json would nest it, and in `UNSAVED` which attributes are computed and not written.
    """

    FILE: ClassVar[str] = FEATURE_FILE
    TYPE_KEY: ClassVar[str]
    PARTS: ClassVar[tuple[str, ...]] = ()
    UNSAVED: ClassVar[tuple[str, ...]] = ()
    _auto_class: ClassVar[str | None] = None

    def __init__(self, **settings: Any):
        settings.pop("feature_extractor_type", None)
        settings.pop("image_processor_type", None)
        self._processor_class = settings.pop("processor_class", None)
        for key, value in settings.items():
            setattr(self, key, value)

    def _set_processor_class(self, processor_class: str) -> None:
        """Remember the joint processor that this is a part of."""
        self._processor_class = processor_class

    @classmethod
    def read_settings(cls, source: str | os.PathLike | dict, **where: Any) -> dict[str, Any]:
        """The settings that a folder, JSON file, hub id or dictionary holds for this kind of preprocessor."""
        if isinstance(source, dict):
            return dict(source)
        path = resolve(source, **where, weights=False)
        if path.is_file() and path.suffix == ".json":
            return read_json(path)
        folder = path if path.is_dir() else path.parent
        own, joint = folder / cls.FILE, folder / PROCESSOR_FILE
        if os.path.lexists(own):
            return read_json(own)
        parts = read_json(joint) if os.path.lexists(joint) else {}
        for name in cls.PARTS:
            if isinstance(parts.get(name), dict):
                return parts[name]
        raise MissingFileError(
            f"{folder} has no {cls.FILE}"
            + (f", nor a {PROCESSOR_FILE} with one of {', '.join(cls.PARTS)}" if cls.PARTS else "")
            + f": {cls.__name__} reads its settings there; save one with `save_pretrained`"
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | dict, **options: Any):
        """The preprocessor of a folder, preprocessor_config.json, hub id or dictionary.

        Options that say where to look (revision, cache_dir, local_files_only, token, subfolder) do that; all
        others replace settings. With return_unused_kwargs=True: (preprocessor, options that nothing took).
        """
        where = {key: options.pop(key) for key in RESOLVE if key in options}
        for key in _IGNORED:
            options.pop(key, None)
        return cls.from_dict(cls.read_settings(pretrained_model_name_or_path, **where), **options)

    @classmethod
    def from_dict(cls, settings: dict[str, Any], **options: Any):
        """The preprocessor of a dictionary of settings; options replace those that it has."""
        unused = options.pop("return_unused_kwargs", False)
        settings = dict(settings)
        # Sizes go through the constructor, which brings them into their dictionary form.
        for key in ("size", "crop_size"):
            if key in options and key in settings:
                settings[key] = options.pop(key)
        made = cls(**copy.deepcopy(settings))
        for key in [key for key in options if hasattr(made, key)]:
            setattr(made, key, options.pop(key))
        return (made, options) if unused else made

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike):
        """The preprocessor of a JSON file of settings."""
        return cls(**read_json(Path(json_file)))

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the class name under the key that the public files use."""
        kept = {k: v for k, v in self.__dict__.items() if k not in self.UNSAVED}
        return {**copy.deepcopy(kept), self.TYPE_KEY: type(self).__name__}

    def to_json_string(self) -> str:
        """The settings as the text of a preprocessor_config.json."""
        settings = self.to_dict()
        processor_class = settings.pop("_processor_class", None)
        if processor_class is not None:
            settings["processor_class"] = processor_class
        return json.dumps(settings, indent=2, sort_keys=True, default=_plain) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings to a JSON file, whole or not at all."""
        atomic_write(json_file_path, self.to_json_string().encode())

    def save_pretrained(self, save_directory: str | os.PathLike) -> list[str]:
        """Write preprocessor_config.json to a folder (made if need be); returns the paths written."""
        folder = Path(save_directory)
        prepare_folder(folder)
        self.to_json_file(folder / self.FILE)
        return [str(folder / self.FILE)]

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type | None = None) -> None:
        """Name the Auto class that a class from outside belongs to."""
        cls._auto_class = auto_class.__name__ if isinstance(auto_class, type) else auto_class

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class ImageProcessingMixin(Preprocessor):
    """The file side of an image processor; PIL pictures are brought from URLs by `fetch_images`."""

    TYPE_KEY = "image_processor_type"
    PARTS = ("image_processor", "video_processor", "feature_extractor")

    @classmethod
    def get_image_processor_dict(cls, source, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings that a source holds, and the options that do not say where to look."""
        where = {key: options.pop(key) for key in RESOLVE if key in options}
        return cls.read_settings(source, **where), options

    def fetch_images(self, image_url_or_urls):
        """The PIL picture behind a URL or path, or a list of them."""
        from .image.load import load_image

        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(one) for one in image_url_or_urls]
        return load_image(image_url_or_urls)


class FeatureExtractionMixin(Preprocessor):
    """The file side of a feature extractor; options replace settings before it is made."""

    TYPE_KEY = "feature_extractor_type"
    PARTS = ("feature_extractor",)
    UNSAVED = ("mel_filters", "window")

    @classmethod
    def get_feature_extractor_dict(cls, source, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings that a source holds, and the options that do not say where to look."""
        where = {key: options.pop(key) for key in RESOLVE if key in options}
        return cls.read_settings(source, **where), options

    @classmethod
    def from_dict(cls, settings: dict[str, Any], **options: Any):
        """The feature extractor of a dictionary of settings; options replace those that it has."""
        unused = options.pop("return_unused_kwargs", False)
        settings = copy.deepcopy(settings)
        for key in [key for key in options if key in settings]:
            settings[key] = options.pop(key)
        made = cls(**settings)
        return (made, options) if unused else made
