"""Folders with heads, as the public library `adapters` saves and loads them."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import phyla.adapters.hub as hub
from phyla.adapters.heads.base import PredictionHead
from phyla.adapters.heads.convert import converted
from phyla.adapters.heads.language import CausalLMHead
from phyla.adapters.heads.managing import HeadMethods
from phyla.adapters.heads.module import unscaled
from phyla.adapters.registry import check_name
from phyla.checkpoints.names import Line, NameMap
from phyla.checkpoints.state import tensors_of
from phyla.errors import AdapterError, MissingWeightsError, ShapeMismatchError
from phyla.heads.lm import token_table
from phyla.model import PreTrainedModel

HEAD = ("head_config.json", "pytorch_model_head.bin", "model_head.safetensors")


def save_head(
    self: PreTrainedModel, save_directory: Any, head_name: str | None = None, use_safetensors: bool = True
) -> None:
    """Write a head into a folder, in the public format: a flexible one by name (the active one), or the head
    of a class such as `XForTask`.
    """
    facts: dict[str, Any]
    if isinstance(self, HeadMethods):
        name = head_name if head_name is not None else self.active_head
        if not isinstance(name, str):
            raise AdapterError("pass head_name: there is no single active head that could be saved")
        head = self.heads[name]
        tensors = {f"heads.{name}.{path}": value for path, value in head.state_dict().items()}
        facts = {**hub._header(self, name), "config": head.config}
    else:
        tensors = _static_tensors(self)
        facts = {
            **hub._header(self, ""), "name": None, "config": None, "num_labels": self.config.num_labels,
            "label2id": self.config.label2id,
        }  # fmt: skip
    kept = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    hub._write(Path(save_directory), HEAD, facts, kept, use_safetensors)


def save_all_heads(self: PreTrainedModel, save_directory: Any, use_safetensors: bool = True) -> None:
    """Write every head into a folder of its own."""
    if not isinstance(self, HeadMethods):
        raise AdapterError(f"{type(self).__name__} has one head: save_head writes it")
    for name in self.heads:
        save_head(self, Path(save_directory) / name, name, use_safetensors)


def load_head(
    self: PreTrainedModel, save_directory: Any, load_as: str | None = None,
    id2label: Mapping[int, str] | None = None, use_safetensors: bool | None = None, set_active: bool = True,
) -> str | None:  # fmt: skip
    """Read a head from a folder; its name in the model, None for the head of a class such as `XForTask`.

    The model stays as it is if anything in the folder does not fit.
    """
    found = read_head(self, Path(save_directory), load_as, id2label, None)
    return found.install(self, set_active)


@dataclass
class Read:
    """A head that was read and found to fit, but is not in the model yet."""

    head: PredictionHead | None
    values: list[tuple[Tensor, Tensor]]
    labels: dict[int, str] | None = None

    def install(self, model: Any, set_active: bool) -> str | None:
        """Take it into the model."""
        if self.head is not None:
            model._keep(self.head, set_active)
            return self.head.name
        with torch.no_grad():
            for old, new in self.values:
                old.copy_(new)
        if self.labels:
            model.config.id2label = self.labels
            model.config.label2id = {label: number for number, label in self.labels.items()}
        return None


def save_beside(model: PreTrainedModel, folder: Path, name: str, safe: bool) -> None:
    """Write the head that belongs to an adapter, where there is one."""
    if not isinstance(model, HeadMethods):
        if model.head is not None:
            save_head(model, folder, use_safetensors=safe)
    elif name in model.heads:
        save_head(model, folder, name, safe)


def beside(
    model: PreTrainedModel, folder: Path, name: str | None, load_as: str | None, id2label: Any = None
) -> Read | None:
    """The head beside an adapter, or None; a warning where it is of a kind that the model cannot have."""
    if not (folder / HEAD[0]).exists():
        return None
    try:
        return read_head(model, folder, load_as, id2label, name)
    except AdapterError as error:
        warnings.warn(f"the head in {folder} was left out: {error}", stacklevel=4)
        return None


def read_head(
    model: PreTrainedModel, folder: Path, load_as: str | None, id2label: Any, name: str | None
) -> Read:
    """Read a head and see that it fits; AdapterError where the model cannot have it. `name`: an adapter's."""
    facts, tensors = hub._read(folder, HEAD)
    where, there = str(facts.get("model_class")), str(facts.get("model_type"))
    if not isinstance(model, HeadMethods):
        if where != type(model).__name__:
            raise AdapterError(f"a head of {where} has no place in {type(model).__name__}")
        return _read_static(model, facts, tensors, id2label)
    if there != model.config.model_type:
        raise AdapterError(f"a head of a {there!r} model has no place in {type(model).__name__}")
    if facts.get("config") is None:
        return _read_converted(model, facts, tensors, load_as or name, id2label)
    stored = str(facts["name"])
    config = dict(facts["config"])
    if id2label is not None:
        config["id2label"] = dict(id2label)
    head = model._new(check_name(load_as or stored), config)
    values = {
        key.partition(f"heads.{stored}.")[2]: value
        for key, value in tensors.items()
        if f"heads.{stored}." in key
    }
    _fill(model, head, values)
    return Read(head, [])


def _fill(model: Any, head: PredictionHead, values: dict[str, Tensor]) -> None:
    wanted = head.state_dict()
    missing = sorted(set(wanted) - set(values))
    out = head.get_output_embeddings()
    if isinstance(head, CausalLMHead) and missing == [f"{len(head) - 1}.weight"]:
        missing = []  # a tied matrix that the file leaves out
        table: Any = token_table(model.backbone)
        values = {**values, f"{len(head) - 1}.weight": table.weight.detach()}
    if missing:
        raise MissingWeightsError(f"the head's file has no tensor {head.name}.{missing[0]}")
    for key, old in wanted.items():
        if values[key].shape != old.shape:
            raise ShapeMismatchError(
                f"{key} of the head {head.name!r} must have shape {tuple(old.shape)}, but has "
                f"{tuple(values[key].shape)}"
            )
    head.load_state_dict({key: values[key] for key in wanted})
    if isinstance(head, CausalLMHead) and out is not None:
        weight: Any = out.weight
        table = token_table(model.backbone)
        same = table.weight.shape == weight.shape and torch.equal(table.weight, weight)
        head.untied = not same


def _read_converted(
    model: Any, facts: dict, tensors: dict[str, Tensor], name: str | None, id2label: Any
) -> Read:
    """The head of a public class as a flexible one."""
    where = str(facts.get("model_class"))
    if name is None:
        raise AdapterError(f"the head of {where} has no name: pass load_as")
    config = copy.deepcopy(model.config)
    labels = id2label or {number: label for label, number in (facts.get("label2id") or {}).items()}
    count = facts.get("num_labels")
    if not labels and count:
        labels = {i: f"LABEL_{i}" for i in range(count)}
    if labels:
        config.id2label = {int(k): v for k, v in labels.items()}
        config.label2id = {v: int(k) for k, v in labels.items()}
    spec = model.flexible.spec.heads.get(where)
    made = None
    if spec is not None and spec.build is model.flexible.spec.base.build:
        made = converted(spec, config)
    if made is None:
        raise AdapterError(f"no flexible head computes what the head of {where} does")
    head = model._new(check_name(name), made.config)
    shapes = {path: value.shape for path, value in head.state_dict().items()}
    values: dict[str, Tensor] = {}
    for line in made.names.bind(shapes, where).lines:
        if all(theirs in tensors for theirs in line.theirs):
            loaded = line.op.load([tensors[t] for t in line.theirs], [shapes[o] for o in line.ours])
            values.update(zip(line.ours, loaded, strict=True))
    _fill(model, head, values)
    if model.is_encoder_decoder:
        unscaled(head, model.flexible.scale)
    return Read(head, [])


def _static_lines(model: PreTrainedModel) -> tuple[list[Line], dict[str, Tensor]]:
    """The public names of a class's head, also of what is tied, and its tensors."""
    if model.head is None:
        raise AdapterError(f"{type(model).__name__} has no head")
    names: Any = model.head_spec.names
    names = names(model.config) if callable(names) else names
    table = names if isinstance(names, NameMap) else NameMap(names)
    own = tensors_of(model.head)
    below = {id(t) for t in tensors_of(model.backbone).values()}
    tied = {path for path, tensor in own.items() if id(tensor) in below}
    bound = table.bind({path: t.shape for path, t in own.items()}, type(model).__name__, tied)
    return bound.lines, own


def _static_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    lines, own = _static_lines(model)
    found: dict[str, Tensor] = {}
    for line in lines:
        found.update(zip(line.theirs, line.op.save([own[p].detach() for p in line.ours]), strict=True))
    return found


def _read_static(
    model: PreTrainedModel, facts: dict[str, Any], tensors: dict[str, Tensor], id2label: Any
) -> Read:
    lines, own = _static_lines(model)
    below = {id(t) for t in tensors_of(model.backbone).values()}
    values: list[tuple[Tensor, Tensor]] = []
    for line in lines:
        if all(id(own[p]) in below for p in line.ours):
            continue
        lacking = [n for n in line.theirs if n not in tensors]
        if lacking:
            raise MissingWeightsError(f"the head's file has no tensor {lacking[0]}")
        shapes = [own[p].shape for p in line.ours]
        for path, new in zip(line.ours, line.op.load([tensors[n] for n in line.theirs], shapes), strict=True):
            if new.shape != own[path].shape:
                raise ShapeMismatchError(
                    f"{line.theirs[0]} must have shape {tuple(own[path].shape)}, but has {tuple(new.shape)}; "
                    "load the model with the num_labels of the head"
                )
            values.append((own[path], new))
    labels = id2label or {number: label for label, number in (facts.get("label2id") or {}).items()}
    return Read(None, values, {int(k): v for k, v in labels.items()} if labels else None)
