"""The options of a call to a joint processor, sorted by the part that takes them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from phyla.errors import ArgumentError

log = logging.getLogger(__name__)
TEXT = frozenset(
    [
        "text_pair",
        "text_target",
        "text_pair_target",
        "add_special_tokens",
        "padding",
        "truncation",
        "max_length",
        "stride",
        "is_split_into_words",
        "pad_to_multiple_of",
        "return_token_type_ids",
        "return_attention_mask",
        "return_overflowing_tokens",
        "return_special_tokens_mask",
        "return_offsets_mapping",
        "return_length",
        "verbose",
        "padding_side",
    ]
)
IMAGES = frozenset(
    [
        "do_resize",
        "size",
        "size_divisor",
        "crop_size",
        "resample",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "do_pad",
        "pad_size",
        "do_center_crop",
        "data_format",
        "input_data_format",
        "device",
    ]
)
VIDEOS = IMAGES - {"crop_size", "pad_size", "device"}
AUDIO = frozenset(
    [
        "sampling_rate",
        "raw_speech",
        "padding",
        "max_length",
        "truncation",
        "pad_to_multiple_of",
        "return_attention_mask",
    ]
)
NAMES: dict[str, frozenset[str]] = {"text": TEXT, "images": IMAGES, "videos": VIDEOS, "audio": AUDIO}
SUFFIX = "_kwargs"


@dataclass
class Options:
    """Options by part; `common` ones (return_tensors) are in every part too."""

    text: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    videos: dict[str, Any] = field(default_factory=dict)
    audio: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)

    @property
    def return_tensors(self) -> Any:
        """The kind of arrays asked for, or None."""
        return self.common.get("return_tensors")


def call_names(part: Any) -> frozenset[str]:
    """The names of the options that calling a tokenizer, image processor or feature extractor takes."""
    row = getattr(type(part), "row", None)
    if hasattr(part, "preprocess") and row is not None:
        names = {*row.settings, *row.call, *row.old, "data_format", "input_data_format"}
        return frozenset(names - set(row.inputs))
    names = set(getattr(part, "call_options", ()))
    for parameter in inspect.signature(type(part).__call__).parameters.values():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            names.add(parameter.name)
    return frozenset(names - {"self", "text", "audio", "raw_speech", "raw_audio", "images", "return_tensors"})


def sort_options(
    given: dict[str, Any],
    defaults: Mapping[str, Mapping[str, Any]],
    extra: Mapping[str, tuple[str, ...]],
    parts: Mapping[str, Any],
) -> Options:
    """Sort the options of a call.

    `text_kwargs={...}` and its like go to one part; others to each part that knows the name. `defaults` and
    `extra` names are the row's; `parts` maps a group to the object behind it. The tokenizer's own saved
    settings (padding_side, max_length, ...) go before the defaults.
    """
    given = dict(given)
    known = {group: names | set(extra.get(group, ())) for group, names in NAMES.items()}
    found: dict[str, dict[str, Any]] = {group: dict(defaults.get(group, {})) for group in (*NAMES, "common")}
    tokenizer = parts.get("text")
    saved = getattr(tokenizer, "init_kwargs", {})
    for group, names in known.items():
        for name in names & set(saved):
            found[group][name] = getattr(tokenizer, name, saved[name])
    for group, part in parts.items():
        if part is not None:
            known[group] = known[group] | call_names(part)
    nested = {group: dict(given.pop(group + SUFFIX, None) or {}) for group in (*NAMES, "common")}
    for name, value in given.items():
        groups = [group for group, names in known.items() if name in names]
        if name == "return_tensors":
            groups = ["common"]
        if not groups:
            log.warning("no part of this processor takes the option %r: it is ignored", name)
        for group in groups:
            if name in nested[group]:
                raise ArgumentError(f"{name!r} is given twice: in {group}{SUFFIX} and by itself")
            found[group][name] = value
    for group, values in nested.items():
        found[group].update(values)
    for group in NAMES:
        found[group].update(found["common"])
    return Options(**found)
