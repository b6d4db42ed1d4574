"""The settings of one `generate` call, with the public field names, defaults and file format."""

import copy
import difflib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phyla.errors import ArgumentError, UnknownArgumentError, nearest
from phyla.generation.checks import check_field, check_relations, plain_number

if TYPE_CHECKING:
    from phyla.generation.modes import GenerationMode

FILE_NAME = "generation_config.json"
FORMAT_VERSION = "4.50.3"  # the release of the reference whose file format and defaults these are

DEFAULTS: dict[str, Any] = {
    # length
    "max_length": 20, "max_new_tokens": None, "min_length": 0, "min_new_tokens": None,
    "early_stopping": False, "max_time": None, "stop_strings": None,
    # strategy
    "do_sample": False, "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None, "dola_layers": None,
    # cache
    "use_cache": True, "cache_implementation": None, "cache_config": None, "return_legacy_cache": None,
    "prefill_chunk_size": None,
    # scores of the next token
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "diversity_penalty": 0.0,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "force_words_ids": None, "constraints": None, "renormalize_logits": False,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "forced_decoder_ids": None,
    "remove_invalid_values": False, "exponential_decay_length_penalty": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None,
    "token_healing": False, "guidance_scale": None, "low_memory": None, "watermarking_config": None,
    # what comes back
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False,
    "output_scores": False, "output_logits": None, "return_dict_in_generate": False,
    # special ids
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": None,
    # assisted decoding
    "is_assistant": False, "num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4, "prompt_lookup_num_tokens": None,
    "max_matching_ngram_size": None, "assistant_early_exit": None,
    "assistant_lookbehind": 10, "target_lookbehind": 10,
    # what the reference lacks
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0, "dry_base": 1.75,
    "dry_allowed_length": 2, "dry_sequence_breakers": None, "dry_range": 0, "xtc_probability": 0.0,
    "xtc_threshold": 0.1, "top_n_sigma": None, "mirostat_tau": None, "mirostat_eta": 0.1,
    "top_h": None, "assistant_ensemble_weight": None, "max_cache_len": None, "use_mtp": None,
    "speculation_type": None,
    # performance, and what the reference keeps beside
    "compile_config": None, "disable_compile": False, "generation_kwargs": {},
}  # fmt: skip

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_METADATA = ("_from_model_config", "_commit_hash", "transformers_version")
_NOT_SAVED = ("_commit_hash", "compile_config")
_OF_THE_CALL = (
    "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model",
    "streamer", "negative_prompt_ids", "negative_prompt_attention_mask",
)  # fmt: skip
_EXTRA_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")


@dataclass
class CompileConfig:
    """How decode steps are compiled where a static cache is asked for (`compile_config`); see
    phyla/generation/compiled.py.
    """

    fullgraph: bool = True
    dynamic: bool | None = None
    backend: str = "inductor"
    mode: str = "reduce-overhead"
    options: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


class GenerationConfig:
    """The settings of `generate`, as public fields with public defaults (see `DEFAULTS`).

    A value out of range is a GenerationError and a misspelt field an UnknownArgumentError. Fields that only
    some checkpoints have are kept as attributes and written back. Values read from a file are checked when
    they take effect, so that a checkpoint with an odd setting nobody uses still loads.
    """

    def __init__(self, **fields: Any):
        self._given: set[str] = set()
        self._fill(fields, checked=True)

    def _set_out(self, defaults: dict[str, Any], fields: dict[str, Any]) -> None:
        """Every field at its default, and what is said of the file."""
        for name, default in defaults.items():
            object.__setattr__(self, name, copy.copy(default))
        self._from_model_config = bool(fields.get("_from_model_config", False))
        self._commit_hash = fields.get("_commit_hash")
        self.transformers_version = fields.get("transformers_version", FORMAT_VERSION)

    def _fill(self, fields: dict[str, Any], checked: bool) -> None:
        self._set_out(DEFAULTS, fields)
        for name, value in fields.items():
            if name in _METADATA:
                continue
            if checked:
                if name in DEFAULTS:
                    check_field(name, plain_number(value))
                else:
                    _refuse_misspelt(name)
            # settings that a model's own config carries are taken only where generation knows them
            if name in DEFAULTS or not self._from_model_config:
                setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in DEFAULTS:
            self._given.add(name)
            value = plain_number(value)
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GenerationConfig):
            return NotImplemented
        return self.to_json_string(False, True) == other.to_json_string(False, True)

    def __hash__(self) -> int:
        return hash(self.to_json_string(ignore_metadata=True))

    def __repr__(self) -> str:
        return f"GenerationConfig {self.to_json_string(ignore_metadata=True)}"

    if TYPE_CHECKING:  # fields are made from DEFAULTS; files may bring more

        def __getattr__(self, name: str) -> Any: ...

    def given(self, name: str) -> bool:
        """Whether a field was set on purpose, be it to its default value."""
        return name in self._given

    def knows(self, name: str) -> bool:
        """Whether a name is a field, of all configurations or of this one."""
        return name in DEFAULTS or (name in self.__dict__ and not name.startswith("_"))

    def get_generation_mode(self, assistant_model: Any = None) -> "GenerationMode":
        """The strategy that the fields select; a GenerationError where they contradict each other."""
        from phyla.generation.modes import generation_mode

        return generation_mode(self, assistant_model)

    def validate(self) -> None:
        """Check every field and how they go together; raises GenerationError."""
        for name in DEFAULTS:
            check_field(name, getattr(self, name))
        check_relations(self)

    def update(self, **fields: Any) -> dict[str, Any]:
        """Set the fields that exist, check the result, and return the arguments that are no fields."""
        known = {name: value for name, value in fields.items() if self.knows(name)}
        for name, value in known.items():
            if name in DEFAULTS:
                check_field(name, plain_number(value))
            setattr(self, name, value)
        check_relations(self)
        return {name: value for name, value in fields.items() if name not in known}

    def copy(self) -> "GenerationConfig":
        """An independent copy that remembers which fields were given."""
        return copy.deepcopy(self)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], *, return_unused_kwargs: bool = False,
                  **changes: Any) -> Any:  # fmt: skip
        """A configuration from the content of a file; unknown fields are kept, `changes` override it and are
        checked. With return_unused_kwargs a pair: it, and a dict of what it has no use for, which is empty.
        """
        config = cls.__new__(cls)
        object.__setattr__(config, "_given", set())
        config._fill(config_dict, checked=False)
        for name, value in changes.items():
            if name in DEFAULTS:
                check_field(name, plain_number(value))
            else:
                _refuse_misspelt(name)
            setattr(config, name, value)
        return (config, {}) if return_unused_kwargs else config

    @classmethod
    def from_model_config(cls, config: Any) -> "GenerationConfig":
        """The generation settings that a model's config.json carries (older checkpoints have no file of their
        own).
        """
        fields = {k: v for k, v in _as_dict(config).items() if v is not None and k not in _METADATA}
        result = cls.from_dict({**fields, "_from_model_config": True})
        get_text_config = getattr(config, "get_text_config", None)
        text = get_text_config(decoder=True) if get_text_config else config
        if text is not config:
            for name, value in _as_dict(text).items():
                if name in DEFAULTS and getattr(result, name) == DEFAULTS[name]:
                    setattr(result, name, value)
        if any(getattr(result, name) for name in _EXTRA_OUTPUTS):
            result.return_dict_in_generate = True
        return result

    @classmethod
    def from_pretrained(cls, pretrained_model_name: str | os.PathLike, config_file_name: str | None = None, *,
                        cache_dir: str | os.PathLike | None = None, local_files_only: bool = False,
                        token: str | bool | None = None, revision: str | None = None, subfolder: str = "",
                        return_unused_kwargs: bool = False, **changes: Any) -> Any:  # fmt: skip
        """Read `generation_config.json` of a folder, hub id or weight package; `changes` are fields to
        override.
        """
        from phyla.checkpoints.json_file import read_json
        from phyla.checkpoints.resolve import resolve

        folder = resolve(pretrained_model_name, revision=revision, cache_dir=cache_dir, weights=False,
                         local_files_only=local_files_only, token=token, subfolder=subfolder)  # fmt: skip
        fields = read_json(Path(folder) / (config_file_name or FILE_NAME))
        made = cls.from_dict(fields, **changes)
        return (made, {}) if return_unused_kwargs else made

    def save_pretrained(self, save_directory: str | os.PathLike, config_file_name: str | None = None) -> None:
        """Write the fields that differ from the defaults, as the reference writes and reads them."""
        from phyla.checkpoints.atomic import atomic_write

        folder = Path(save_directory)
        if folder.is_file():
            raise ArgumentError(f"save_directory must be a folder, but {str(folder)!r} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / (config_file_name or FILE_NAME), self.to_json_string().encode())

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Write `to_json_string`."""
        from phyla.checkpoints.atomic import atomic_write

        atomic_write(Path(json_file_path), self.to_json_string(use_diff).encode())

    def to_dict(self) -> dict[str, Any]:
        """All fields, the unknown ones too."""
        own = {k: v for k, v in self.__dict__.items() if k not in (*_NOT_SAVED, "_given")}
        return copy.deepcopy(own)

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that differ from the public defaults: the content of the saved file."""
        plain = {**DEFAULTS, "_from_model_config": False}
        return {k: v for k, v in self.to_dict().items()
                if k == "transformers_version" or k not in plain or v != plain[k]}  # fmt: skip

    def to_json_string(self, use_diff: bool = True, ignore_metadata: bool = False) -> str:
        """The saved form: sorted keys, two spaces, a newline at the end."""
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        if ignore_metadata:
            fields = {k: v for k, v in fields.items() if k not in _METADATA}
        return json.dumps(_plain(fields), indent=2, sort_keys=True) + "\n"


def of_model(model: Any) -> GenerationConfig | None:
    """The generation settings of a model that were not set yet: those its config.json carries; None if it has
    no use for them.
    """
    if not model.can_generate():
        return None
    model.generation_config = kind_for(model).from_model_config(model.config)
    return model.generation_config


def kind_for(model: Any) -> type[GenerationConfig]:
    """The class of a model's settings: one of their own for text that is written from noise."""
    if getattr(getattr(model, "head_spec", None), "denoising", None) is None:
        return GenerationConfig
    from phyla.generation.denoising_config import DiffusionGemmaGenerationConfig

    return DiffusionGemmaGenerationConfig


def read_for_model(model: Any, folder: Path) -> None:
    """Give a model the generation_config.json of its checkpoint, where there is one."""
    if os.path.lexists(folder / FILE_NAME):
        model.generation_config = kind_for(model).from_pretrained(folder)


def _refuse_misspelt(name: str) -> None:
    if name in _OF_THE_CALL:
        raise UnknownArgumentError(f"{name!r} is no field of GenerationConfig: pass it to generate")
    # fields of single checkpoints are welcome, unless one is so near a known name that it is a slip
    if difflib.get_close_matches(name, DEFAULTS, n=1, cutoff=0.82):
        raise UnknownArgumentError(f"GenerationConfig has no field {name!r}.{nearest(name, DEFAULTS)}")


def _as_dict(config: Any) -> dict[str, Any]:
    return config.to_dict() if hasattr(config, "to_dict") else dict(vars(config))


def _plain(value: Any) -> Any:
    """`value` with only what JSON can hold: string keys, numbers, lists."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if hasattr(value, "tolist"):
        return value.tolist()
    return value
