"""PEFT folders: adapter_config.json and adapter_model.safetensors or .bin, in both directions."""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.adapters.api import _like, adapters_of
from phyla.adapters.hub import dialect_of
from phyla.adapters.lora import Low
from phyla.adapters.peft.attach import entry_parts
from phyla.adapters.peft.configs import (
    AdaLoraConfig,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PromptLearningConfig,
    VeraConfig,
)
from phyla.adapters.peft.low import Adaptive, LowRank
from phyla.adapters.peft.part import Part
from phyla.adapters.peft.prompts import KEY
from phyla.adapters.peft.targets import Targets, targets_of
from phyla.adapters.peft.tokens import Rows
from phyla.adapters.placement import settle
from phyla.adapters.registry import Entry
from phyla.errors import AdapterError, ShapeMismatchError
from phyla.model import PreTrainedModel

AHEAD = "base_model.model."
VERSION = "0.21.2"  # the version of the format that is written
# Settings that not all of PEFT's configurations have: where they are not used they are not written.
_NOT_EVERYWHERE = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")


def read_peft(model: PreTrainedModel, facts: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Entry:
    """An adapter from the contents of a PEFT folder; AdapterError names the key that does not fit."""
    config = PeftConfig.from_dict(facts)
    adapters = adapters_of(model)
    entry = adapters.make(name, config, _like(model))
    for holder in _prompts(entry):
        holder.from_file(tensors)
    rest = {k: v for k, v in tensors.items() if k != KEY or not isinstance(config, PromptLearningConfig)}
    _fill(entry, rest, targets_of(model), config)
    return _ready(entry, model)


def _ready(entry: Entry, model: PreTrainedModel) -> Entry:
    settle(entry, _like(model))
    return entry.train(model.training)


def _prompts(entry: Entry) -> list[Any]:
    return [*entry.around, *(m for key, m in entry.shared_by_key() if key == "keys")]


def _fill(entry: Entry, tensors: dict[str, Tensor], targets: Targets, config: PeftConfig) -> None:
    parts = {part.path: part for part in entry_parts(entry)}
    files: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key in ("base_model.vera_A", "base_model.vera_B"):
            _take_pair(entry, key.removeprefix("base_model."), value)
            continue
        if ".original_module." in key:
            continue
        owner, leaf = _of_parameter(key, parts, targets)
        if owner is not None:
            files.setdefault(owner, {})[leaf] = value
            continue
        plain = _plain_key(key)
        if plain in targets.lines:
            whole[plain] = value
            continue
        path, leaf = targets.find(plain)
        if leaf in ("weight", "bias", "ln_tuning_layers.weight", "ln_tuning_layers.bias"):
            whole[f"{path}.{leaf.rpartition('.')[2]}"] = value
        elif path in targets.tied:
            continue  # a copy of what another name holds
        else:
            files.setdefault(path, {})[leaf.removeprefix("token_adapter.")] = value
    tied = {p: part for part in parts.values() if isinstance(part, Rows) for p in part.also}
    for path, values in files.items():
        part = parts.get(path) or tied.get(path)
        if part is None:
            raise AdapterError(
                f"the PEFT file holds {path}.{next(iter(values))}, but adapter_config.json (target_modules "
                f"{getattr(config, 'target_modules', None)!r}) does not mean {path}"
            )
        if part.path == path:
            part.from_file(values)
    for path, part in parts.items():
        if path not in files and not isinstance(part, Rows):
            part.from_file({})
    _fill_whole(entry, whole, targets)


def _of_parameter(key: str, parts: dict[str, Part], targets: Targets) -> tuple[str | None, str]:
    """(the part that a key is of, the rest) where its path is no module's: see experts.parts_of."""
    for name in targets.spellings(key.removeprefix(AHEAD)):
        path, _, leaf = name.rpartition(".lora_")
        if path in parts and path not in targets.modules:
            return path, f"lora_{leaf}"
    return None, ""


def _plain_key(key: str) -> str:
    """A file's key without the wrappers of older versions."""
    for wrapper in (".modules_to_save.default.", ".modules_to_save.", ".base_layer."):
        key = key.replace(wrapper, ".")
    # Files of virtual tokens have no wrapper of a tuner in their names.
    return key.removeprefix(AHEAD) if key.startswith(AHEAD) else key.removeprefix("base_model.")


def _take_pair(entry: Entry, name: str, value: Tensor) -> None:
    for key, module in entry.shared_by_key():
        if key == "vera":
            own = getattr(module, name)
            if own.shape != value.shape:
                raise ShapeMismatchError(
                    f"base_model.{name} must have shape {tuple(own.shape)}, but has {tuple(value.shape)}"
                )
            own.copy_(value)


def _fill_whole(entry: Entry, whole: dict[str, Tensor], targets: Targets) -> None:
    """Values of parameters that stand in for the base's; those that no setting names are added."""
    due = dict(zip(entry.meta.get("replaced", []), entry.replaced, strict=True))
    for key, value in whole.items():
        line = targets.lines.get(key)
        if line is None:
            raise AdapterError(f"the PEFT file holds {key}, which is no parameter of this model")
        parts = line.op.load([value], [targets.tensors[p].shape for p in line.ours])
        for ours, part in zip(line.ours, parts, strict=True):
            own = targets.tensors[ours]
            if part.shape != own.shape:
                raise ShapeMismatchError(
                    f"{key} must have shape {tuple(own.shape)}, but has {tuple(part.shape)}"
                )
            if ours in due:
                with torch.no_grad():
                    due[ours].copy_(part)
            elif not torch.equal(part.to(own), own):
                path, _, leaf = ours.rpartition(".")
                entry.targets.append((targets.model.get_submodule(path), leaf))
                entry.replaced.append(nn.Parameter(part.clone()))
                entry.meta.setdefault("replaced", []).append(ours)


def write_peft(model: PreTrainedModel, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """adapter_config.json and tensors of a PEFT folder; AdapterError for what PEFT has no words for."""
    adapters = adapters_of(model)
    entry = adapters.get(name)
    config = entry.config
    if not isinstance(config, PeftConfig):
        return _as_lora(model, entry)
    facts = {k: v for k, v in config.to_dict().items() if v is not None or k not in _NOT_EVERYWHERE}
    del facts["architecture"]
    facts |= {"inference_mode": True, "peft_version": VERSION}
    facts["base_model_name_or_path"] = getattr(model.config, "_name_or_path", "") or None
    targets = targets_of(model)
    found = {k: v for holder in _prompts(entry) for k, v in _copied(holder.to_file()).items()}
    ahead_of_base = "base_model." if isinstance(config, PromptLearningConfig) else AHEAD
    for part in entry_parts(entry):
        ahead = "token_adapter." if isinstance(part, Rows) and isinstance(config, LoraConfig) else ""
        values = _copied(_shortened(part, config))
        found |= {f"{AHEAD}{part.path}.{ahead}{leaf}": v for leaf, v in values.items()}
        if isinstance(part, Rows):
            found |= {f"{AHEAD}{p}.{ahead}{n}": v.clone() for p in part.also for n, v in values.items()}
    for key, module in entry.shared_by_key():
        if key == "vera" and isinstance(config, VeraConfig) and config.save_projection:
            found |= {f"base_model.{n}": b.clone() for n, b in module.named_buffers()}
    norms = config if isinstance(config, LNTuningConfig) else None
    adapted = {part.path for part in entry_parts(entry)}
    for key, value in _whole(entry, targets).items():
        path, _, leaf = key.rpartition(".")
        inside = "ln_tuning_layers." if norms and norms.wants(path) else ""
        inside = "base_layer." if path in adapted else inside
        found[f"{ahead_of_base}{path}.{inside}{leaf}"] = value
    return _settled(facts, entry), found


def changed_by_files(entry: Entry) -> bool:
    """Whether a PEFT folder would hold something else than the adapter: what a network makes of its vectors,
    or twice the rank where it started from the base's own parts.
    """
    made = any(getattr(holder, "encoder", None) is not None for holder in _prompts(entry))
    return made or any(isinstance(p, LowRank) and p.start_A is not None for p in entry_parts(entry))


def _settled(facts: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """Ranks as they are written: started from the base's own parts, twice as large (see LowRank.to_file)."""
    started = [p for p in entry_parts(entry) if isinstance(p, LowRank) and p.start_A is not None]
    if started:
        root = 2**0.5 if facts["use_rslora"] else 2
        facts |= {"r": 2 * facts["r"], "lora_alpha": facts["lora_alpha"] * root, "init_lora_weights": True}
        facts["rank_pattern"] = {k: 2 * v for k, v in facts["rank_pattern"].items()}
        facts["alpha_pattern"] = {k: v * root for k, v in facts["alpha_pattern"].items()}
    return facts


def _shortened(part: Part, config: PeftConfig) -> dict[str, Tensor]:
    """A part's tensors without the directions that AdaLoRA has given up."""
    values = part.to_file()
    if not isinstance(part, Adaptive) or not isinstance(config, AdaLoraConfig):
        return values
    pattern = (config.rank_pattern or {}).get(f"{part.path}.lora_E")
    if not pattern or len(pattern) != part.rank or all(pattern):
        return values
    kept = torch.tensor(pattern).nonzero().flatten().to(values["lora_A"].device)
    return {k: v.index_select(1 if k == "lora_B" else 0, kept) for k, v in values.items()}


def _copied(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().clone().contiguous() for k, v in values.items()}


def _whole(entry: Entry, targets: Targets) -> dict[str, Tensor]:
    """The parameters that stand in for the base's, by public name."""
    own = dict(zip(entry.meta.get("replaced", []), entry.replaced, strict=True))
    found: dict[str, Tensor] = {}
    for name, line in targets.lines.items():
        if any(p in own for p in line.ours):
            values = [own.get(p, targets.tensors[p]).detach() for p in line.ours]
            found[name] = line.op.save(values)[0].clone().contiguous()
    return found


def _as_lora(model: PreTrainedModel, entry: Entry) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A LoRA adapter of AdapterHub's kind in PEFT's format."""
    config, dialect = entry.config, dialect_of(model)
    plain = config.architecture == "lora" and all(
        isinstance(p, Low) and p.pair is None and not p.scales and p.gate is None and p.m is None
        for p in entry.parts
    )
    if not plain or any(dialect.fused(place) is not None for place in entry.places):
        raise AdapterError(
            f"{entry.name!r} cannot be written in PEFT's format: of AdapterHub's methods only plain LoRA on "
            "projections that files hold apart can"
        )
    modules = {piece.path: path for path, t in targets_of(model).modules.items() for piece in t.pieces}
    found: dict[str, Tensor] = {}
    for place, low in entry.items():
        path = AHEAD + modules[place.path]
        found |= {f"{path}.{leaf}.weight": v for leaf, v in _copied(dict(low.named_parameters())).items()}
    names = sorted({modules[place.path] for place in entry.places})
    facts = LoraConfig(
        r=config["r"], lora_alpha=config["alpha"], lora_dropout=config["dropout"], target_modules=names,
        inference_mode=True, peft_version=VERSION,
    ).to_dict()  # fmt: skip
    del facts["architecture"]
    return facts, found
