"""ProcessorMixin: the parts of a joint processor, their files, and what it passes on to them."""

from __future__ import annotations

import copy
import json
import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from phyla.checkpoints.atomic import atomic_write, prepare_folder
from phyla.checkpoints.configs import RESOLVE
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, MissingFileError, UnknownArgumentError, nearest

from ..feature import FEATURE_FILE, PROCESSOR_FILE
from .chat import ChatParts
from .finding import part_class
from .options import Options, sort_options
from .table import Row

log = logging.getLogger(__name__)
TEMPLATE_JSON, TEMPLATE_FILE = "chat_template.json", "chat_template.jinja"
_LOOKING = (*RESOLVE, "force_download", "trust_remote_code", "_from_auto", "_from_pipeline")


class ProcessorMixin(ChatParts):
    """Root of all joint processors: calling one gives the inputs of a model.

    A class of the table has a `row`; classes from outside set `attributes` and `<attribute>_class`.
    """

    row: ClassVar[Row | None] = None
    attributes: ClassVar[list[str]] = ["feature_extractor", "tokenizer"]
    _auto_class: ClassVar[str | None] = None
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, *values: Any, **given: Any):
        cls = type(self)
        settings = dict(cls.row.settings) if cls.row is not None else {}
        names = [*cls.attributes, *settings]
        if len(values) > len(names):
            raise ArgumentError(f"{cls.__name__} takes {', '.join(names)}, but got {len(values)} arguments")
        given = {**dict(zip(names, values)), **given}
        if "feature_extractor" not in names and "image_processor" in names and "feature_extractor" in given:
            given.setdefault("image_processor", given.pop("feature_extractor"))
        self.chat_template = given.pop("chat_template", None)
        self._check_parts(given)
        for name in cls.attributes:
            setattr(self, name, given.pop(name))
        for name in list(given):
            if cls.row is not None and name not in settings:
                hint = nearest(name, names)
                raise UnknownArgumentError(f"{cls.__name__} takes no setting {name!r}.{hint}")
        for name, default in settings.items():
            setattr(self, name, given.pop(name, copy.deepcopy(default)))
        self._target: Any = None
        self.prepare()

    def _check_parts(self, given: dict[str, Any]) -> None:
        for name in type(self).attributes:
            part = given.get(name)
            if part is None:
                raise ArgumentError(f"{type(self).__name__} needs a part `{name}`, but there is none")
            if not hasattr(part, "save_pretrained"):
                raise ArgumentError(f"{name} must be a tokenizer or preprocessor, but is {part!r}")

    def prepare(self) -> None:
        """Hook: what the kind computes of its parts and settings."""

    # ------------------------------------------------------------------ calls

    def __call__(self, *values: Any, **options: Any) -> Any:
        """The inputs of the model; the row says which inputs there are and in which order."""
        if self._target is not None:
            return self._target(*values, **options)
        row = type(self).row
        if row is None:
            raise NotImplementedError(
                f"{type(self).__name__} must define __call__ (or have a row of the table)"
            )
        if len(values) > len(row.order):
            raise ArgumentError(f"{type(self).__name__} takes {', '.join(row.order)}, but got more arguments")
        options = {**dict(zip(row.order, values)), **options}
        inputs = {name: options.pop(name, None) for name in row.order if name != "return_tensors"}
        for name in ("images", "text", "audio", "videos"):
            # Every public call takes these names, used or not.
            if name not in inputs and options.get(name, "") is None:
                options.pop(name)
        if row.needs and all(inputs[name] is None for name in row.needs):
            raise ArgumentError(f"{type(self).__name__} needs {' or '.join(row.needs)}")
        if row.swaps:
            inputs["images"], inputs["text"] = in_order(inputs["images"], inputs["text"])
        return self.process(self.options(options), **inputs)

    def process(self, options: Options, **inputs: Any) -> Any:
        """Hook: the inputs of the model."""
        names = ", ".join(inputs)
        raise NotImplementedError(f"{type(self).__name__} must define process(options, {names})")

    def options(self, given: dict[str, Any]) -> Options:
        """The options of a call, by part."""
        row = type(self).row
        defaults, names = (row.defaults, row.names) if row is not None else ({}, {})
        return sort_options(given, defaults, names, self._groups())

    def _groups(self) -> dict[str, Any]:
        """The part that takes each group of options."""
        image = getattr(self, "image_processor", None)
        return {
            "text": getattr(self, "tokenizer", None),
            "images": image,
            "videos": getattr(self, "video_processor", image),
            "audio": getattr(self, "feature_extractor", None),
        }

    @contextmanager
    def as_target_processor(self):
        """A context in which calls encode target texts (an older form of `text=` and `text_target=`)."""
        self._target = self.tokenizer
        try:
            yield
        finally:
            self._target = None

    @property
    def current_processor(self) -> Any:
        """The part that calls go to inside and outside `as_target_processor`."""
        return getattr(self, type(self).attributes[0]) if self._target is None else self._target

    @property
    def model_input_names(self) -> list[str]:
        """The names of the inputs of all parts."""
        names: list[str] = []
        for name in sorted(type(self).attributes, key=lambda name: name != "tokenizer"):
            names += getattr(getattr(self, name), "model_input_names", [])
        return list(dict.fromkeys(names))

    def batch_decode(self, *values: Any, **options: Any) -> Any:
        """The texts of lists of token ids."""
        return self.tokenizer.batch_decode(*values, **options)

    def decode(self, *values: Any, **options: Any) -> Any:
        """The text of token ids."""
        return self.tokenizer.decode(*values, **options)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """The texts that a model generated."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **options)

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **options: Any):
        """The processor of a folder or hub id, with all its parts.

        Options that say where to look do that; settings (patch_size, chat_template, ...) replace those of the
        files; `use_fast` chooses the class of parts that have two; others go to the parts.
        """
        where = {name: options.pop(name) for name in RESOLVE if name in options}
        for name in _LOOKING:
            options.pop(name, None)
        source = resolve(pretrained_model_name_or_path, **where, weights=False)
        folder = source if source.is_dir() else source.parent
        settings = cls._read_settings(folder)
        names = set(cls.row.settings) if cls.row is not None else set(settings)
        unused = options.pop("return_unused_kwargs", False)
        for name in [name for name in options if name in names or name == "chat_template"]:
            settings[name] = options.pop(name)
        for name in [name for name in settings if name not in names and name != "chat_template"]:
            log.warning("%s of %s has no effect on %s", name, folder / PROCESSOR_FILE, cls.__name__)
            del settings[name]
        parts = {name: cls._load_part(name, folder, options) for name in cls.attributes}
        made = cls(**parts, **settings)
        return (made, options) if unused else made

    @classmethod
    def _load_part(cls, name: str, folder: Path, options: dict[str, Any]) -> Any:
        own = cls.row is not None and name in cls.row.folders and (folder / name).is_dir()
        place = folder / name if own else folder
        options = dict(options)
        fast = options.pop("use_fast", None)
        public = cls.row.parts[name] if cls.row is not None else getattr(cls, f"{name}_class")
        found = part_class(public, place / FEATURE_FILE, name, fast)
        return found.from_pretrained(str(place), **options)

    @classmethod
    def _read_settings(cls, folder: Path) -> dict[str, Any]:
        """What processor_config.json and the template files say."""
        own = folder / PROCESSOR_FILE
        settings = read_json(own) if os.path.lexists(own) else {}
        for name in ("processor_class", "auto_map", *cls.attributes):
            settings.pop(name, None)
        if os.path.lexists(folder / TEMPLATE_FILE):
            settings["chat_template"] = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        elif os.path.lexists(folder / TEMPLATE_JSON):
            try:
                settings["chat_template"] = read_json(folder / TEMPLATE_JSON)["chat_template"]
            except KeyError as error:
                raise MissingFileError(f"{folder / TEMPLATE_JSON} has no entry 'chat_template'") from error
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The settings that processor_config.json holds."""
        row = type(self).row
        names = row.settings if row is not None else ()
        kept = {name: copy.deepcopy(getattr(self, name)) for name in names}
        return {**kept, "processor_class": type(self).__name__}

    def to_json_string(self) -> str:
        """The settings as the text of a processor_config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings to a JSON file, whole or not at all."""
        atomic_write(json_file_path, self.to_json_string().encode())

    def save_pretrained(
        self, save_directory: str | os.PathLike, save_raw_chat_template: bool = False
    ) -> list[str]:
        """Write the files of all parts, chat_template.json and processor_config.json; returns its path.

        `save_raw_chat_template` writes chat_template.jinja instead.
        """
        folder = Path(save_directory)
        prepare_folder(folder)
        row = type(self).row
        for name in type(self).attributes:
            part = getattr(self, name)
            if hasattr(part, "_set_processor_class"):
                part._set_processor_class(type(self).__name__)
            own = row is not None and name in row.folders
            part.save_pretrained(str(folder / name if own else folder))
        if self.chat_template is not None and save_raw_chat_template:
            atomic_write(folder / TEMPLATE_FILE, self.chat_template.encode())
        elif self.chat_template is not None:
            text = json.dumps({"chat_template": self.chat_template}, indent=2, sort_keys=True) + "\n"
            atomic_write(folder / TEMPLATE_JSON, text.encode())
        if set(self.to_dict()) == {"processor_class"}:
            return []
        self.to_json_file(folder / PROCESSOR_FILE)
        return [str(folder / PROCESSOR_FILE)]

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoProcessor") -> None:
        """Name the Auto class that a class from outside belongs to."""
        cls._auto_class = auto_class if isinstance(auto_class, str) else auto_class.__name__

    def __repr__(self) -> str:
        parts = "\n".join(f"- {name}: {getattr(self, name)!r}" for name in type(self).attributes)
        return f"{type(self).__name__}:\n{parts}\n\n{self.to_json_string()}"


def _is_text(value: Any) -> bool:
    """Whether a value is text, or lists of it, and not where pictures are."""
    if isinstance(value, str):
        return not value.startswith(("http://", "https://", "data:")) and not os.path.isfile(value)
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_text, value))


def _is_pictures(value: Any) -> bool:
    from ..image.inputs import is_image

    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_pictures, value))
    return is_image(value)


def in_order(images: Any, text: Any) -> tuple[Any, Any]:
    """Pictures and text, put right where they were exchanged; ArgumentError where either is neither."""
    exchanged = _is_pictures(text) or (text is None and _is_text(images))
    if exchanged and (images is None or _is_text(images)):
        log.warning("images come before text here: the two are exchanged")
        return text, images
    if _is_pictures(text) or _is_text(images):
        raise ArgumentError("images must be pictures and text must be a string or a list of strings")
    return images, text


def texts_of(text: Any) -> list[str]:
    """A text or list of texts as a list; ArgumentError for anything else."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
        raise ArgumentError(f"text must be a string or a list of strings, but is {text!r:.80}")
    return list(texts)
