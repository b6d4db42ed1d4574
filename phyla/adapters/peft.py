"""PEFT folders: reading LoRA (rank and alpha patterns, rsLoRA, DoRA) into adapters of this library.

Trained biases and `modules_to_save` stand in for the base's parameters while the adapter is active. The other
types of PEFT, embeddings, experts and convolutions are typed errors.
"""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.adapters.api import _like, adapters_of
from phyla.adapters.config import AdapterConfig
from phyla.adapters.dialect import Dialect
from phyla.adapters.lora import LoRAConfig, Low
from phyla.adapters.registry import Entry
from phyla.checkpoints.state import layout_of, tensors_of
from phyla.errors import AdapterError, ShapeMismatchError
from phyla.model import PreTrainedModel

_LEAVES = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B", "lora_magnitude_vector": "m"}


@dataclass
class PeftConfig(AdapterConfig):
    """What a PEFT folder's adapter_config.json holds."""

    architecture: ClassVar[str | None] = "peft"
    facts: dict[str, Any] = field(default_factory=dict)
    __hash__ = AdapterConfig.__hash__


def read_peft(model: PreTrainedModel, facts: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Entry:
    """An adapter from the contents of a PEFT folder; AdapterError for what it cannot express."""
    kind = facts.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"PEFT folders of type {kind} are not implemented: only LORA is")
    where = adapters_of(model).where
    dialect = Dialect(model, where)
    owners: dict[str, list[str]] = {}
    for ours, (public, _) in dialect.lines.items():
        owners.setdefault(public, []).append(ours)
    places = {p.path: p for layer in where.layers for p in layer.linears}
    found: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in tensors.items():
        path = key.removeprefix("base_model.model.")
        leaf = next((f for f in _LEAVES if path.endswith("." + f)), None)
        if leaf is None:
            whole[path] = value
            continue
        path = path.removesuffix("." + leaf)
        bare = path.removeprefix(dialect.prefix + ".") if dialect.prefix else path
        if bare not in owners and path in owners:
            bare = path
        if not all(p in places for p in owners.get(bare, ["-"])):
            raise AdapterError(
                f"the PEFT file changes {path}, which is no projection of {type(model).__name__}"
            )
        found.setdefault(bare, {})[_LEAVES[leaf]] = value
    entry, like = Entry(name, PeftConfig(facts)), _like(model)
    _take_whole(entry, whole, model)
    for path, values in found.items():
        if set(values) < {"lora_A", "lora_B"}:
            raise AdapterError(f"the PEFT file needs lora_A and lora_B for {path}, but has {sorted(values)}")
        rank = values["lora_A"].shape[0]
        rows = _rows(owners[path], values["lora_B"], dialect, places)
        for ours in owners[path]:
            linear = places[ours].module
            config = LoRAConfig(
                r=rank, alpha=rank, use_dora="m" in values, dropout=facts.get("lora_dropout") or 0.0
            )
            part = Low(config, linear)
            part.scaling = _scaling(facts, path, rank)
            part.scaled_norm = True
            given = {"lora_A": values["lora_A"], "lora_B": rows[ours]}
            if "m" in values:
                if len(owners[path]) > 1:
                    raise AdapterError(f"{path} is one matrix in public files: DoRA on it is not implemented")
                given["m.weight"] = values["m"].reshape(-1, 1)
            try:
                part.load_state_dict(given)
            except RuntimeError as error:
                raise ShapeMismatchError(f"{path}: {str(error).splitlines()[-1].strip()}") from None
            entry.places.append(places[ours])
            entry.parts.append(part)
    if not entry.places:
        raise AdapterError("the PEFT file holds nothing")
    entry.to(device=like.device, dtype=like.dtype)
    return entry.train(model.training)


def _take_whole(entry: Entry, tensors: dict[str, Tensor], model: PreTrainedModel) -> None:
    """Parameters that stand in for those of the base: trained biases and saved modules."""
    layout, own = layout_of(model), tensors_of(model)
    lines = {line.theirs[0]: line for line in layout.lines(True) if len(line.theirs) == 1}
    for key, value in tensors.items():
        if ".original_module." in key:
            continue
        line = lines.get(key.replace(".modules_to_save.", ".").replace(".base_layer.", "."))
        if line is None or "lora" in key:
            raise AdapterError(
                f"the PEFT file holds {key}, which is neither LoRA of a projection nor a parameter"
            )
        parts = line.op.load([value], [own[p].shape for p in line.ours])
        for ours, part in zip(line.ours, parts, strict=True):
            path, _, leaf = ours.rpartition(".")
            if part.shape != own[ours].shape:
                raise ShapeMismatchError(
                    f"{key} has shape {tuple(part.shape)}, due is {tuple(own[ours].shape)}"
                )
            target = (model.get_submodule(path), leaf)
            if target not in entry.targets:
                entry.targets.append(target)
                entry.replaced.append(torch.nn.Parameter(part.clone()))


def _rows(paths: list[str], high: Tensor, dialect: Dialect, places: dict[str, Any]) -> dict[str, Tensor]:
    """lora_B of each of our projections, given that of the public matrix."""
    line = dialect.lines[paths[0]][1]
    if len(line.ours) == 1:
        return {paths[0]: high}
    order = [ours.rpartition(".")[0] for ours in line.ours]
    shapes = [torch.Size((places[p].module.out_features, high.shape[1])) for p in order]
    whole = high.T if getattr(line.op, "transpose", False) else high
    return dict(zip(order, (t.contiguous() for t in line.op.load([whole], shapes)), strict=True))


def _scaling(facts: dict[str, Any], path: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) (rsLoRA), with the alpha that the patterns give this module."""
    alpha = facts.get("lora_alpha", 8)
    for pattern, value in (facts.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = value
            break
    return alpha / rank**0.5 if facts.get("use_rslora") else alpha / rank
