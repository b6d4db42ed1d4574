"""Model configurations: the public config.json keys as attributes, with public defaults and strict values."""

import copy
import json
import math
import os
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Union, get_args, get_origin

from phyla.errors import ConfigError, UnknownArgumentError, nearest

MAX_SIZE = 2**31
MAX_LAYERS = 10_000

# Keys that every public config.json may carry, with their defaults; written only where they differ from them.
COMMON: dict[str, Any] = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "torch_dtype": None,
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "architectures": None,
    "finetuning_task": None,
    "problem_type": None,
    "tokenizer_class": None,
    "prefix": None,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
    "task_specific_params": None,
}
_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto", "float8_e4m3fn", "float8_e5m2")


# Kinds of layers in `rope_parameters`, and the keys that say the same in older files.
_ROPE_FULL, _ROPE_LOCAL = "full_attention", "sliding_attention"
_ROPE_BASES = ("rope_theta", "rotary_emb_base", "global_rope_theta")
_ROPE_LOCAL_BASES = ("rope_local_base_freq", "local_rope_theta")
_ROPE_SHARES = ("partial_rotary_factor", "rotary_pct")


class PretrainedConfig:
    """Base of all configurations. A family lists its keys as annotated class attributes with public defaults.

    Keys that a family does not know are kept as they are and written back. Values of known keys are checked:
    type, positive sizes, and sizes below 2**31 (ConfigError). `ALIASES` gives other names for a key
    (`hidden_size` for `n_embd`); `LABELS` is the default number of labels; `PARTS` names nested
    configurations and their default model_type, `PART_DEFAULTS` the keys of those that a file leaves out.
    """

    model_type: ClassVar[str] = ""
    ALIASES: ClassVar[dict[str, str]] = {}
    PARTS: ClassVar[dict[str, str]] = {}
    PART_DEFAULTS: ClassVar[dict[str, dict[str, Any]]] = {}
    DEFAULTS: ClassVar[dict[str, Any]] = {}
    LABELS: ClassVar[int] = 2
    _fields: ClassVar[dict[str, Any]] = {}
    # The name asked for, set on instances and never in files; without annotation, for it is no key.
    _attn_implementation = typing.cast(Any, None)

    def __init_subclass__(cls) -> None:
        hints = typing.get_type_hints(cls)
        cls._fields = {
            name: hints[name] for name in cls.__annotations__ if get_origin(hints[name]) is not ClassVar
        }

    def __init__(self, *args: Any, **keys: Any) -> None:
        names = list(self._fields)
        if len(args) > len(names):
            raise UnknownArgumentError(
                f"{type(self).__name__} takes at most {len(names)} positional values: {names}"
            )
        keys = {**dict(zip(names, args, strict=False)), **keys}
        for alias, name in self.ALIASES.items():
            if alias in keys:
                value = keys.pop(alias)
                keys.setdefault(name, value)
        values = self.__dict__
        _take_rope(keys, names)
        for name in names:
            value = keys.pop(name) if name in keys else copy.deepcopy(getattr(type(self), name))
            values[name] = self._checked(name, value)
        defaults = {**COMMON, **self.DEFAULTS}
        for name, default in defaults.items():
            if name not in values:
                values[name] = keys.pop(name) if name in keys else copy.deepcopy(default)
        self._set_labels(keys)
        self._check_common()
        for name in list(keys):
            value = keys.pop(name)
            if name == "attn_implementation":
                values["_attn_implementation"] = value
            elif name == "dtype" and values["torch_dtype"] is None:
                values["torch_dtype"] = value
            elif name not in ("model_type", "transformers_version") and not name.startswith("_"):
                if callable(getattr(type(self), name, None)):
                    continue  # a file cannot replace a method
                values[name] = value
        for name, model_type in self.PARTS.items():
            values[name] = self._part(name, values.get(name), model_type)
        self.finish()

    def finish(self) -> None:
        """Fill keys that follow from others, refuse impossible combinations (families override this)."""

    def _part(self, name: str, value: Any, model_type: str) -> "PretrainedConfig":
        from phyla.registry import config_class

        if isinstance(value, PretrainedConfig):
            return value
        if value is None:
            return config_class(model_type)(**self.PART_DEFAULTS.get(name, {}))
        if not isinstance(value, dict):
            raise ConfigError(f"{name} must be an object, but is {value!r} (in a {self.model_type} config)")
        return config_class(value.get("model_type", model_type))(**value)

    def take_backbone(self, default: dict[str, Any] | None, model_type: str) -> None:
        """Make `backbone_config` a configuration; ConfigError for a backbone that is only named.

        default: the object in place of a missing one; model_type: that of an object without one.
        """
        values = self.__dict__
        given, name = values.get("backbone_config"), values.get("backbone")
        if given is not None and (name is not None or values.get("use_timm_backbone")):
            raise ConfigError(
                "backbone_config stands alone, but backbone or use_timm_backbone is set too "
                f"({name!r}, in a {self.model_type} config)"
            )
        if given is not None and values.get("backbone_kwargs"):
            raise ConfigError(
                f"backbone_kwargs change a named backbone, but there is a backbone_config ({self.model_type})"
            )
        if name is None and given is None and values.get("use_timm_backbone"):
            raise ConfigError(
                f"use_timm_backbone needs the name of a network in backbone (in a {self.model_type} config); "
                "give a backbone_config in place of both"
            )
        if name is not None:
            raise ConfigError(
                f"backbone names {name!r} (in a {self.model_type} config); networks are built from a "
                "configuration: give backbone_config, such as that of AutoConfig.from_pretrained(name)"
            )
        given = default if given is None else given
        made = None if given is None else self._part("backbone_config", given, model_type)
        values["backbone_config"] = made

    def _set_labels(self, keys: dict[str, Any]) -> None:
        names, count = keys.pop("id2label", None), keys.pop("num_labels", None)
        ids = keys.pop("label2id", None)
        if isinstance(names, dict):
            try:
                names = {int(k): v for k, v in names.items()}
            except (TypeError, ValueError):
                raise ConfigError(
                    f"id2label must have whole numbers as keys, but has {list(names)[:3]}"
                ) from None
        elif names is not None:
            raise ConfigError(f"id2label must be an object, but is {names!r}")
        if count is not None and (names is None or len(names) != count):
            if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < MAX_LAYERS * 100:
                raise ConfigError(f"num_labels must be a positive whole number, but is {count!r}")
            names, ids = _plain_labels(count), None
        self.__dict__["id2label"] = names or _plain_labels(self.LABELS)
        self.__dict__["label2id"] = ids or {v: k for k, v in self.__dict__["id2label"].items()}

    def _check_common(self) -> None:
        values = self.__dict__
        if values["problem_type"] not in (None, *_PROBLEMS):
            raise ConfigError(
                f"problem_type must be one of {_PROBLEMS}, but is {values['problem_type']!r}."
                + nearest(str(values["problem_type"]), _PROBLEMS)
            )
        dtype = values["torch_dtype"]
        if dtype is not None:
            name = str(dtype).removeprefix("torch.")
            if name not in _DTYPES:
                raise ConfigError(
                    f"torch_dtype must be one of {_DTYPES}, but is {dtype!r}.{nearest(name, _DTYPES)}"
                )
            values["torch_dtype"] = name
        vocabulary, padding = values.get("vocab_size"), values.get("pad_token_id")
        if isinstance(vocabulary, int) and isinstance(padding, int) and padding >= vocabulary:
            raise ConfigError(f"pad_token_id must be below vocab_size ({vocabulary}), but is {padding}")

    def _checked(self, name: str, value: Any) -> Any:
        hint = self._fields[name]
        kinds = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
        kinds = {get_origin(kind) or kind for kind in kinds}
        where = f"(config key of {self.model_type or type(self).__name__})"
        if value is None:
            if type(None) in kinds or Any in kinds or getattr(type(self), name) is None:
                return None
            return copy.deepcopy(getattr(type(self), name))
        if Any in kinds:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            if float in kinds and int not in kinds:
                if abs(value) > 2**1000:
                    raise ConfigError(f"{name} is too large a number {where}")
                return float(value)
        kind_names = "/".join(sorted(k.__name__ for k in kinds if k is not type(None)))
        if isinstance(value, bool):
            if bool not in kinds:
                raise ConfigError(f"{name} must be {kind_names}, but is {value!r} {where}")
        elif isinstance(value, tuple) and list in kinds:
            value = list(value)
        elif not isinstance(value, tuple(k for k in kinds if k is not bool)):
            integral = isinstance(value, float) and value.is_integer() and int in kinds
            if not integral and not (isinstance(value, PretrainedConfig) and dict in kinds):
                raise ConfigError(f"{name} must be {kind_names}, but is {value!r} {where}")
            value = int(value) if integral else value
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= MAX_SIZE:
            raise ConfigError(f"{name} must be below 2**31, but is {value} {where}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, but is {value} {where}")
        if isinstance(value, int) and not isinstance(value, bool):
            self._check_size(name, value, where)
        return value

    @staticmethod
    def _check_size(name: str, value: int, where: str) -> None:
        counts = name.startswith("num_") or name.endswith(
            ("_size", "_layers", "_heads", "_dim", "_positions")
        )
        counts = counts or name in (
            "n_embd",
            "n_layer",
            "n_head",
            "d_model",
            "d_ff",
            "d_kv",
            "n_inner",
            "dim",
            "ffn_dim",
        )
        if not counts:
            return
        if value < 0 or (
            value == 0
            and not name.endswith(("_layers", "_features", "_to_freeze", "n_layer"))
            and name not in _MAY_BE_ZERO
        ):
            raise ConfigError(f"{name} must be positive, but is {value} {where}")
        if ("layers" in name or name == "n_layer") and value > MAX_LAYERS:
            raise ConfigError(f"{name} must be at most {MAX_LAYERS}, but is {value} {where}")

    def __getattr__(self, name: str) -> Any:
        aliases = type(self).ALIASES
        if name in aliases:
            return getattr(self, aliases[name])
        if name == "num_labels":
            return len(self.__dict__["id2label"])
        if name == "use_return_dict":
            return self.__dict__.get("return_dict", True)
        raise _NoKey(type(self).__name__, name, self.__dict__)

    def __setattr__(self, name: str, value: Any) -> None:
        name = type(self).ALIASES.get(name, name)
        if name == "num_labels":
            if self.num_labels != value:
                self._set_labels({"num_labels": value})
            return
        if name in self._fields:
            value = self._checked(name, value)
        self.__dict__[name] = value

    def to_dict(self) -> dict[str, Any]:
        """All keys as plain data, as config.json holds them."""
        result: dict[str, Any] = {}
        for name, value in self.__dict__.items():
            if name.startswith("_") and name not in self._fields:
                continue
            if name in COMMON and name not in self._fields and value == {**COMMON, **self.DEFAULTS}[name]:
                if name not in self.DEFAULTS:
                    continue
            if callable(getattr(value, "to_dict", None)):
                value = value.to_dict()
            result[name] = copy.deepcopy(value)
        if result.get("id2label") == _plain_labels(2) == _plain_labels(self.LABELS):
            del result["id2label"]
            result.pop("label2id", None)
        if self.model_type:
            result["model_type"] = self.model_type
        return result

    def to_diff_dict(self) -> dict[str, Any]:
        """The keys whose value differs from the family's default, and the model_type."""
        default = type(self)().to_dict()
        return {
            k: v
            for k, v in self.to_dict().items()
            if k == "model_type" or k not in default or default[k] != v
        }

    def to_json_string(self, use_diff: bool = False) -> str:
        """config.json as text."""
        data = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **changes: Any) -> "PretrainedConfig":
        """A configuration from config.json's object, with some keys replaced."""
        return cls(**{**data, **changes})

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **options: Any) -> "PretrainedConfig":
        """Read config.json of a folder, hub id, weight package or GGUF file; other options replace keys."""
        from phyla.checkpoints.configs import load_config

        return load_config(source, cls, **options)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json into `folder`, atomically."""
        from phyla.checkpoints.save import atomic_write

        Path(folder).mkdir(parents=True, exist_ok=True)
        atomic_write(Path(folder) / "config.json", self.to_json_string().encode())

    def update(self, changes: dict[str, Any]) -> None:
        """Set several keys."""
        for name, value in changes.items():
            setattr(self, name, value)

    def get_text_config(self, decoder: bool = False) -> "PretrainedConfig":
        """The part that describes the text model, or the whole."""
        for name in ("text_config", "decoder", "generator") if decoder else ("text_config",):
            part = self.__dict__.get(name)
            if isinstance(part, PretrainedConfig):
                return part
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __deepcopy__(self, memo: dict) -> "PretrainedConfig":
        new = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


_CHOSEN = ("out_features", "out_indices")


class StagedConfig(PretrainedConfig):
    """Configuration of a model that can give feature maps of its stages, chosen by name or by number.

    A family annotates `out_features` and `out_indices` and calls `name_stages` in `finish`. The two keys
    follow each other; without either it is the last stage. Negative numbers count from the end.
    """

    def name_stages(self, count: int) -> None:
        """Name the stem and `count` stages; align the choice, ConfigError where it does not fit."""
        self.__dict__["stage_names"] = ["stem", *(f"stage{i}" for i in range(1, count + 1))]
        self._choose(self.__dict__["out_features"], self.__dict__["out_indices"])

    def _choose(self, names: Any, numbers: Any) -> None:
        stages = self.__dict__["stage_names"]
        if names is None and numbers is None:
            names, numbers = [stages[-1]], [len(stages) - 1]
        for key, given in zip(_CHOSEN, (names, numbers), strict=True):
            if given is not None and not isinstance(given, list | tuple):
                raise ConfigError(f"{key} must be a list, but is {given!r} (in a {self.model_type} config)")
        names, numbers = (None if v is None else list(v) for v in (names, numbers))
        if names is not None:
            known = [stages.index(n) if n in stages else None for n in names]
            self._check_order("out_features", names, known)
        if numbers is not None:
            places = [i + len(stages) if isinstance(i, int) and i < 0 else i for i in numbers]
            known = [i if i in range(len(stages)) else None for i in places]
            self._check_order("out_indices", numbers, known)
            at = [stages[i] for i in places]
            if names is not None and names != at:
                raise ConfigError(
                    f"out_features and out_indices must mean the same stages, but are {names} and {numbers} "
                    f"(of {stages}); give one of them"
                )
            names = at
        elif names is not None:
            numbers = [stages.index(n) for n in names]
        self.__dict__["out_features"], self.__dict__["out_indices"] = names, numbers

    def _check_order(self, key: str, given: list[Any], places: list[int | None]) -> None:
        stages = self.__dict__["stage_names"]
        if None in places:
            wrong = given[places.index(None)]
            raise ConfigError(
                f"{key} must name stages of {stages} (by number 0 to {len(stages) - 1}), but has {wrong!r}."
                + nearest(str(wrong), stages)
            )
        if places != sorted(set(places)):  # type: ignore[type-var]
            raise ConfigError(f"{key} must be in the order of {stages}, each once, but is {given}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CHOSEN and "stage_names" in self.__dict__:
            value = self._checked(name, value)
            self._choose(*((value, None) if name == "out_features" else (None, value)))
        else:
            super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **changes: Any) -> "StagedConfig":
        """As for any configuration; a changed choice counts alone, and a changed depth drops a stored one."""
        chosen = {k: changes.pop(k) for k in _CHOSEN if changes.get(k) is not None}
        config = cls(**{k: v for k, v in {**data, **changes}.items() if k not in _CHOSEN})
        if not chosen and (not changes or data.get("stage_names") == config.stage_names):
            chosen = {k: data[k] for k in _CHOSEN if data.get(k) is not None}
        if chosen:
            checked = (config._checked(k, chosen.get(k)) for k in _CHOSEN)
            config._choose(*checked)
        return config


class _NoKey(AttributeError):
    """A key that a configuration lacks; the message is made when read, as such keys are asked for often."""

    def __str__(self) -> str:
        owner, key, keys = self.args
        return f"{owner} has no key {key!r}.{nearest(key, keys)}"


def _take_rope(keys: dict[str, Any], names: list[str]) -> None:
    """Put what newer public files say of rotary positions, `rope_parameters`, where older ones have it."""
    given = keys.get("rope_parameters")
    base = next((name for name in _ROPE_BASES if name in names), None)
    if base is None or not isinstance(given, dict):
        return
    for kind in (_ROPE_FULL, _ROPE_LOCAL):
        if not isinstance(given.get(kind) or {}, dict):
            raise ConfigError(f"{kind} of rope_parameters must be an object, but is {given[kind]!r}")
    del keys["rope_parameters"]
    whole = dict(given.get(_ROPE_FULL) or ({} if _ROPE_LOCAL in given else given))
    local = dict(given.get(_ROPE_LOCAL) or {})
    for found, places in ((whole, (base,)), (local, _ROPE_LOCAL_BASES)):
        _put(keys, names, places, found.pop("rope_theta", None))
    if whole.get("rope_type") != "proportional":  # whose share is of the angles, not of the head
        _put(keys, names, _ROPE_SHARES, whole.pop("partial_rotary_factor", None))
    if whole.get("rope_type", "default") != "default":
        _put(keys, names, ("rope_scaling",), whole)


def _put(keys: dict[str, Any], names: list[str], places: tuple[str, ...], value: Any) -> None:
    """Set the first of the places that the configuration has, unless it is set or there is no value."""
    place = next((name for name in places if name in names), None)
    if place is not None and value is not None:
        keys.setdefault(place, value)


def _plain_labels(count: int) -> dict[int, str]:
    return {i: f"LABEL_{i}" for i in range(count)}


_MAY_BE_ZERO = (
    "chunk_size_feed_forward", "num_aggregation_labels", "num_beam_groups", "num_labels",
    "speaker_embedding_size", "type_vocab_size",
)  # fmt: skip
