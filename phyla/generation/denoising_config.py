"""The settings of a `generate` call that writes text from noise, with the public field names and files."""

import copy
from typing import Any

from phyla.errors import GenerationError, UnknownArgumentError, nearest
from phyla.generation.caches import IMPLEMENTATIONS
from phyla.generation.config import DEFAULTS, GenerationConfig
from phyla.generation.samplers import (
    SAMPLER_CONFIGS,
    EntropyBoundSamplerConfig,
    LowConfidenceSamplerConfig,
    SamplerConfig,
)

FIELDS: dict[str, Any] = {
    "max_new_tokens": None, "max_length": None, "return_dict_in_generate": True,
    "max_denoising_steps": None, "sampler_config": None, "t_min": None, "t_max": None,
    "stability_threshold": None, "confidence_threshold": None,
    "cache_implementation": None, "cache_config": None, "disable_compile": None,
    "bos_token_id": None, "pad_token_id": None, "eos_token_id": None,
    # what the reference lacks
    "block_length": None,
}  # fmt: skip
_METADATA = ("_from_model_config", "_commit_hash", "transformers_version")


class DiffusionGemmaGenerationConfig(GenerationConfig):
    """The settings of `generate` for text that is written from noise; None means the default.

    max_new_tokens counts whole blocks, rounded up. sampler_config says which tokens are kept at each of
    max_denoising_steps steps; t_min and t_max are the temperatures of the last and the first; a block is done
    early by stability_threshold and confidence_threshold. block_length: tokens of a block, by default the
    model's. Other names are an UnknownArgumentError, values out of range a GenerationError.
    """

    sampler_config: Any

    def _fill(self, fields: dict[str, Any], checked: bool) -> None:
        self._set_out(FIELDS, fields)
        for name, value in fields.items():
            if name in _METADATA:
                continue
            if name not in FIELDS and checked:
                raise UnknownArgumentError(
                    f"{type(self).__name__} has no field {name!r}.{nearest(name, FIELDS)}"
                )
            if name in FIELDS or not self._from_model_config:
                setattr(self, name, value)
        self.sampler_config = read_sampler(self.sampler_config)
        if checked:
            self.validate()

    def validate(self) -> None:
        """Check every field; raises GenerationError."""
        for name in ("max_denoising_steps", "max_length", "max_new_tokens", "block_length"):
            _need(name, getattr(self, name), lambda v: _whole(v) and v > 0, "a whole number above 0")
        for name in ("t_min", "t_max"):
            _need(name, getattr(self, name), lambda v: _number(v) and v >= 0, "a number of at least 0")
        _need("stability_threshold", self.stability_threshold, lambda v: _whole(v) and v >= 0,
              "a whole number of at least 0")  # fmt: skip
        _need("confidence_threshold", self.confidence_threshold, lambda v: isinstance(v, float) and v > 0,
              "a float above 0")  # fmt: skip
        _need("sampler_config", self.sampler_config, lambda v: isinstance(v, SamplerConfig),
              f"one of {sorted(SAMPLER_CONFIGS)}")  # fmt: skip
        _need("cache_implementation", self.cache_implementation, lambda v: v in IMPLEMENTATIONS,
              f"one of {IMPLEMENTATIONS}")  # fmt: skip
        if self.t_min is not None and self.t_max is not None and self.t_max <= self.t_min:
            raise GenerationError(f"t_max must be above t_min ({self.t_min}), but is {self.t_max}")

    def get_generation_mode(self, assistant_model: Any = None) -> Any:
        """A GenerationError: the strategies of text that goes on token by token are no choice here."""
        raise GenerationError("text that is written from noise has one strategy, and samplers to choose from")

    def update(self, **fields: Any) -> dict[str, Any]:
        """Set the fields that exist, check the result, and return the arguments that are no fields."""
        known = {name: value for name, value in fields.items() if name in FIELDS}
        for name, value in known.items():
            setattr(self, name, read_sampler(value) if name == "sampler_config" else value)
        self.validate()
        return {name: value for name, value in fields.items() if name not in known}

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], *, return_unused_kwargs: bool = False, **changes: Any
    ) -> Any:
        """As for any settings: unknown fields of a file are kept, `changes` are checked."""
        config = cls.__new__(cls)
        object.__setattr__(config, "_given", set())
        config._fill(config_dict, checked=False)
        unknown = config.update(**changes) if changes else {}
        if unknown:
            name = next(iter(unknown))
            raise UnknownArgumentError(f"{cls.__name__} has no field {name!r}.{nearest(name, FIELDS)}")
        return (config, {}) if return_unused_kwargs else config

    @classmethod
    def from_model_config(cls, config: Any) -> "DiffusionGemmaGenerationConfig":
        """The special ids of a model's config.json."""
        text = config.get_text_config()
        ids = {name: getattr(text, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return cls.from_dict({**ids, "_from_model_config": True})

    @classmethod
    def of(cls, settings: GenerationConfig) -> "DiffusionGemmaGenerationConfig":
        """A copy of settings of any kind: of a plain GenerationConfig what was given and is a field here."""
        if isinstance(settings, cls):
            return copy.deepcopy(settings)
        kept = {n: v for n, v in vars(settings).items() if n in FIELDS}
        return cls(**{n: v for n, v in kept.items() if n not in DEFAULTS or settings.given(n)})

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that differ from the public defaults: the content of the saved file."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name == "transformers_version"
            or ((name not in FIELDS or value != FIELDS[name]) and (name != "_from_model_config" or value))
        }

    def fill(self, other: "DiffusionGemmaGenerationConfig | dict[str, Any]") -> None:
        """Set what is open from other settings."""
        values = other if isinstance(other, dict) else vars(other)
        for name in FIELDS:
            if getattr(self, name) is None and values.get(name) is not None:
                setattr(self, name, values[name])


def defaults(masked: bool, length: int | None) -> dict[str, Any]:
    """What is used where nobody says otherwise, for unknown tokens that are masks, or random ones."""
    if masked:
        return {
            "max_new_tokens": 256,
            "max_denoising_steps": length,
            "sampler_config": LowConfidenceSamplerConfig(),
        }
    return {
        "max_new_tokens": 256, "max_denoising_steps": 48, "t_min": 0.4, "t_max": 0.8,
        "sampler_config": EntropyBoundSamplerConfig(0.1), "stability_threshold": 1,
        "confidence_threshold": 0.005,
    }  # fmt: skip


def read_sampler(value: Any) -> Any:
    """A sampler's settings as an object; files have its fields and the name of its class."""
    if not isinstance(value, dict):
        return value
    fields = dict(value)
    name = fields.pop("_cls_name", None)
    if name not in SAMPLER_CONFIGS:
        raise GenerationError(
            f"sampler_config must name one of {sorted(SAMPLER_CONFIGS)} as _cls_name, but is {value!r}"
        )
    return SAMPLER_CONFIGS[name](**fields)


def _need(name: str, value: Any, holds: Any, what: str) -> None:
    if value is not None and not holds(value):
        raise GenerationError(f"{name} must be {what}, but is {value!r}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
