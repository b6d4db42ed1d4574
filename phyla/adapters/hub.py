"""AdapterHub folders: adapters, fusions and setups as the public library `adapters` saves and loads them."""

import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import phyla.adapters.bottleneck as bottleneck
import phyla.adapters.lora as lora
from phyla.adapters.api import _like, adapters_of
from phyla.adapters.composition import Fuse, blocks_of, from_json, names_of, parse_composition, to_json
from phyla.adapters.config import AdapterConfig, ConfigUnion, config_of
from phyla.adapters.dialect import SWAPPED, Dialect
from phyla.adapters.fused import add_missing, read_fused, write_fused
from phyla.adapters.head_setup import names_in
from phyla.adapters.registry import Adapters, Entry, check_name
from phyla.checkpoints.atomic import atomic_write, write_temporary
from phyla.checkpoints.json_file import read_json
from phyla.checkpoints.resolve import resolve
from phyla.checkpoints.save import file_parts
from phyla.checkpoints.weights import open_weight_file
from phyla.errors import AdapterError, MissingFileError, MissingWeightsError, ShapeMismatchError
from phyla.model import PreTrainedModel

VERSION = "adapters.1.3.0"  # the format that is written
ADAPTER = ("adapter_config.json", "pytorch_adapter.bin", "adapter.safetensors")
FUSION = (
    "adapter_fusion_config.json", "pytorch_model_adapter_fusion.bin", "model_adapter_fusion.safetensors",
)  # fmt: skip
PEFT = ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors")
SETUP = "adapter_setup.json"
_OLD_ACTS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_OLD_KEYS = ("text_task_adapters", "text_lang_adapters")


def dialect_of(model: PreTrainedModel) -> Any:
    """The public keys of a model's adapters."""
    if not isinstance(model, PreTrainedModel):
        from phyla.adapters.interface import OuterDialect

        return OuterDialect(model, adapters_of(model).where)
    return Dialect(model, adapters_of(model).where)


def slots(entry: Entry, dialect: Dialect, name: str) -> list[tuple[str, Any, str]]:
    """(public path, part, how its key may vary) of everything that an adapter's file holds."""
    found: list[tuple[str, Any, str]] = []
    seen: set[int] = set()
    for place, part in entry.items():
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, bottleneck.Bottleneck):
            found.append((f"{dialect.branch(place)}.adapters.{name}", part, "exact"))
        elif isinstance(part, lora.Low):
            how = "exact" if dialect.fused(place) is None else "fused"
            found.append((f"{dialect.linear(place)}.loras.{name}", (place, part), how))
        elif place.kind == "keys-values":
            found.append((f"{dialect.attention(place)}.prefix_tuning.prefix_gates.{name}", part, "exact"))
        elif place.kind == "stream":
            found.append((f"{dialect.below[place.layer]}.reft_layer.refts.{name}", part, "exact"))
        elif type(part).__name__ == "Prompt":
            found.append((f"prompt_tuning.prompt_tunings.{name}", part, "tail"))
        else:
            tower = "" if dialect.owners else dialect.tower(place)
            found.append((f"{tower + '.' if tower else ''}invertible_adapters.{name}", part, "tail"))
    for key, module in entry.shared_by_key():
        if "@" in key:
            ahead, group = dialect.pool(key)
            path = f"{ahead}prefix_tuning.prefix_tunings.{name}.{group}"
            found.append((path, module, "exact" if ahead else "tail"))
        else:
            found.append((f"shared_parameters.{name}", module, "tail"))
    return found


class _File:
    """The tensors of a file, by key without the backbone's prefix."""

    def __init__(self, tensors: dict[str, Tensor], dialect: Dialect) -> None:
        self.tensors = tensors
        self.used: set[str] = set()
        self.keys = {}
        prefix = _prefix_of(list(tensors), dialect)
        for key in tensors:
            bare = key
            for old in _OLD_KEYS:
                bare = bare.replace(f"_{old}.", ".adapters.").replace(f"{old}.", "adapters.")
            bare = bare.replace("invertible_lang_adapters", "invertible_adapters")
            if prefix and bare.startswith(prefix + "."):
                bare = bare[len(prefix) + 1 :]
            self.keys[bare] = key

    def below(self, path: str, how: str) -> dict[str, Tensor]:
        """The tensors below a path; "tail": wherever that path stands."""
        ahead = path + "."
        found: dict[str, Any] = {}
        for bare, key in self.keys.items():
            at = 0 if bare.startswith(ahead) else bare.find("." + ahead) + 1 if how == "tail" else -1
            if (at == 0 and not bare.startswith(ahead)) or at < 0:
                continue
            found.setdefault(bare[at + len(ahead) :], self.tensors[key])
            self.used.add(key)
        return found


def _prefix_of(keys: list[str], dialect: Dialect) -> str:
    """What stands before the backbone's names in a file: its prefix, another class's, or nothing."""
    below = tuple({f"{path}." for path in dialect.below.values()})
    found = {"": sum(k.startswith(below) for k in keys)}
    for first in dict.fromkeys(k.partition(".")[0] for k in keys):
        found[first] = sum(k.startswith(tuple(f"{first}.{b}" for b in below)) for k in keys)
    best = max(found, key=lambda p: found[p])
    return best if found[best] else dialect.prefix


def read_entry(entry: Entry, tensors: dict[str, Tensor], dialect: Dialect, name: str) -> list[str]:
    """Fill an adapter from a file's tensors, which call it `name`; the keys that were not needed."""
    file = _File(tensors, dialect)
    fused: dict[str, list[tuple[Any, Any]]] = {}
    for path, part, how in slots(entry, dialect, name):
        if how == "fused":
            fused.setdefault(path, []).append(part)
            continue
        target = part[1] if isinstance(part, tuple) else part
        values = file.below(path, how)
        wanted = set(target.to_file() if hasattr(target, "to_file") else target.state_dict())
        missing = sorted(wanted - set(values))
        if missing and path.startswith("shared_parameters."):
            warnings.warn(
                f"the adapter file has no tensor {path}.{missing[0]}: the library that wrote it forgets "
                "shared tensors of bare models; the adapter will not compute what it was trained to",
                stacklevel=3,
            )
            continue
        if missing:
            raise MissingWeightsError(f"the adapter file has no tensor {path}.{missing[0]}")
        try:
            if hasattr(target, "from_file"):
                target.from_file({k: v for k, v in values.items() if k in wanted})
            else:
                _copy(target, values, wanted)
        except RuntimeError as error:
            raise ShapeMismatchError(f"{path}: {str(error).splitlines()[-1].strip()}") from None
    for path, members in fused.items():
        read_fused(path, members, file.below(path, "exact"), dialect, entry)
    return [k for k in tensors if k not in file.used and f".{name}." in k and ".pool." not in k]


def _copy(module: Any, values: dict[str, Tensor], wanted: set[str]) -> None:
    """Take over shared tensors; those of another size than expected keep the file's."""
    for key in wanted:
        old = getattr(module, key)
        fresh = torch.nn.Parameter(values[key].to(old.device, old.dtype), requires_grad=old.requires_grad)
        setattr(module, key, fresh)


def tensors_of_entry(entry: Entry, dialect: Dialect, pools: bool = True) -> dict[str, Tensor]:
    """An adapter's tensors by public key; pools: with the copies of prefixes that adapter files hold."""
    found: dict[str, Tensor] = {}
    fused: dict[str, list[tuple[Any, Any]]] = {}
    for path, part, how in slots(entry, dialect, entry.name):
        if how == "fused":
            fused.setdefault(path, []).append(part)
            continue
        target = part[1] if isinstance(part, tuple) else part
        values = target.to_file() if hasattr(target, "to_file") else target.state_dict()
        found |= {f"{path}.{leaf}": value for leaf, value in values.items()}
        if how == "tail":  # models of two whole models have it in both
            for owner in dialect.owners:
                found |= {f"{owner}.{path}.{leaf}": value for leaf, value in values.items()}
    for path, members in fused.items():
        found |= {f"{path}.{leaf}": v for leaf, v in write_fused(path, members, dialect).items()}
    # Public files repeat the prefixes at every attention, also at those that do without them.
    groups = [(key, module) for key, module in entry.shared_by_key() if "@" in key]
    for place in (p for layer in dialect.where.layers for p in layer.keys_values if groups and pools):
        for key, module in groups:
            pool = f"{dialect.attention(place)}.prefix_tuning.pool"
            ahead, group = dialect.pool(key)
            at = f"{pool}.prefix_tunings.{entry.name}.{group}"
            if not dialect.attention(place).startswith(ahead):
                continue
            found |= {f"{at}.{leaf}": value for leaf, value in module.state_dict().items()}
    return {dialect.ahead + key: value.detach().clone() for key, value in found.items()}


def swapped(config: AdapterConfig, model_type: str) -> AdapterConfig:
    """The configuration with the two feed-forward projections of LoRA swapped where files swap them."""
    if model_type not in SWAPPED:
        return config
    if config.architecture == "union":
        return ConfigUnion(*(swapped(c, model_type) for c in config["configs"]))
    if config.architecture in ("lora", "mtl_lora"):
        return config.replace(
            intermediate_lora=config["output_lora"], output_lora=config["intermediate_lora"]
        )
    return config


def _header(model: PreTrainedModel, name: str) -> dict[str, Any]:
    if not isinstance(model, PreTrainedModel):
        layer = adapters_of(model).where.layers[0]
        return {
            "hidden_size": layer.width, "model_class": type(model).__name__, "model_name": None,
            "model_type": layer.model_type, "name": name, "version": VERSION,
        }  # fmt: skip
    config = model.config
    hidden = getattr(config.get_text_config(), "hidden_size", None) or model.width
    return {
        "hidden_size": hidden, "model_class": type(model).__name__,
        "model_name": getattr(config, "_name_or_path", "") or None, "model_type": config.model_type,
        "name": name, "version": VERSION,
    }  # fmt: skip


def _write(
    folder: Path, names: tuple[str, str, str], facts: dict, tensors: dict[str, Tensor], safe: bool
) -> None:
    text = (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    if safe:
        temporary = write_temporary(folder / names[2], file_parts(tensors, {"format": "pt"}))
        os.replace(temporary, folder / names[2])
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        atomic_write(folder / names[1], buffer.getvalue())
    atomic_write(folder / names[0], text)


def _read(folder: Path, names: tuple[str, str, str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = read_json(folder / names[0], AdapterError)
    for file in (folder / names[2], folder / names[1]):
        if file.exists():
            with open_weight_file(file) as weights:
                return facts, dict(weights.read_many())
    raise MissingFileError(f"{folder} must hold {names[2]} or {names[1]}, but holds neither")


def folder_of(path: Any, version: str | None = None) -> Path:
    """A folder with adapters: one here, or what a repository of the hub holds of them (version: revision)."""
    return resolve(path, revision=version, choose=chosen)


def chosen(names: list[str]) -> list[str]:
    """The files of a repository that belong to adapters, fusions and heads; safetensors before .bin."""
    kinds = (ADAPTER, FUSION, PEFT, _heads().HEAD)
    found = []
    for name in names:
        folder, _, leaf = name.rpartition("/")
        beside = next((safe for _, plain, safe in kinds if leaf == plain), None)
        alone = beside is not None and (f"{folder}/{beside}" if folder else beside) not in names
        if alone or leaf.endswith(".json") or any(leaf == kind[2] for kind in kinds):
            found.append(name)
    return found


def save_adapter(
    self: PreTrainedModel, save_directory: Any, adapter_name: str, with_head: bool = True,
    meta_dict: dict | None = None, use_safetensors: bool = True, format: str | None = None,
) -> None:  # fmt: skip
    """Write an adapter into a folder, in the public format; use_safetensors=False writes a .bin.

    format: "adapterhub", "peft", or None: that of the adapter's configuration.
    """
    entry, dialect = adapters_of(self).get(adapter_name), dialect_of(self)
    if (format or entry.config.architecture) == "peft":
        from phyla.adapters.peft import write_peft

        _write(Path(save_directory), PEFT, *write_peft(self, adapter_name), use_safetensors)
        return
    if format not in (None, "adapterhub") or entry.config.architecture == "peft":
        raise AdapterError(
            f"format must be adapterhub or peft, and peft for PEFT's configurations, but is {format!r} for "
            f"{adapter_name!r}"
        )
    facts = {**_header(self, adapter_name), "config": swapped(entry.config, dialect.model_type).to_dict()}
    facts |= meta_dict or {}
    tensors = tensors_of_entry(entry, dialect)
    _write(Path(save_directory), ADAPTER, facts, tensors, use_safetensors)
    if not isinstance(self, PreTrainedModel):
        self.adapter_interface.save(save_directory, dialect.model_type)
    elif with_head:
        _heads().save_beside(self, Path(save_directory), adapter_name, use_safetensors)


def _heads() -> Any:
    """Files of heads; they stand on this module."""
    import phyla.adapters.heads.files as files

    return files


def load_adapter(
    self: PreTrainedModel, adapter_name_or_path: Any, config: Any = None, version: str | None = None,
    model_name: str | None = None, load_as: str | None = None, leave_out: list[int] | None = None,
    id2label: Any = None, set_active: bool = False, with_head: bool = True,
    use_safetensors: bool | None = None,
) -> str:  # fmt: skip
    """Read an adapter from a folder (AdapterHub's or PEFT's, by its contents); its name in the model.

    The model stays as it is if anything in the folder does not fit.
    """
    folder = folder_of(adapter_name_or_path, version)
    facts, tensors = _read_any(folder)
    head = None
    if with_head and isinstance(self, PreTrainedModel):
        head = _heads().beside(self, folder, load_as or facts.get("name"), load_as, id2label)
    if "peft_type" in facts:
        from phyla.adapters.peft import read_peft

        entry = read_peft(self, facts, tensors, check_name(load_as or "default"))
        adapters_of(self).add(entry)
    else:
        entry = _load_hub(self, facts, tensors, config, load_as, leave_out)
    if head is not None:
        head.install(self, False)
    if set_active:
        self.set_active_adapters(entry.name)
    return entry.name


def _read_any(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = read_json(folder / ADAPTER[0], AdapterError)
    if "peft_type" in facts:
        return _read(folder, PEFT)
    return _read(folder, ADAPTER)


def _load_hub(
    model: PreTrainedModel, facts: dict, tensors: dict[str, Tensor], config: Any, load_as: str | None,
    leave_out: list[int] | None,
) -> Entry:  # fmt: skip
    if "config" not in facts:
        raise AdapterError("adapter_config.json must hold `config` (AdapterHub) or `peft_type` (PEFT)")
    stored = facts["name"]
    found = config_of(config) if config is not None else config_of(modern(facts["config"]))
    found = _old_scaling(found, facts)
    if facts.get("subtract_projection") is False:  # files of phyla have had it here
        found = found.replace(subtract_projection=False)
    if leave_out:
        found = found.replace(leave_out=sorted({*found["leave_out"], *leave_out}))
    name = check_name(load_as or stored)
    entry, extra = entry_of(model, dialect_of(model), found, tensors, name, stored)
    if extra and not leave_out and config is None:
        raise AdapterError(
            f"the adapter file holds {len(extra)} tensors that have no place in {type(model).__name__}, the "
            f"first is {extra[0]}; was it trained on another model?"
        )
    adapters_of(model).add(entry, overwrite=True)
    return entry


def entry_of(
    model: PreTrainedModel, dialect: Dialect, config: Any, tensors: dict[str, Tensor], name: str, stored: str
) -> tuple[Entry, list[str]]:
    """An adapter from public tensors, which call it `stored`, not yet part of the model; the tensors left."""
    adapters: Adapters = adapters_of(model)
    outside = adapters.where.allowed is not None
    model_type = adapters.where.layers[0].model_type if outside else model.config.model_type
    entry = adapters.make(name, swapped(config_of(config), model_type), _like(model), reading=True)
    add_missing(entry, dialect, stored)
    return entry, read_entry(entry, tensors, dialect, stored)


def modern(config: Any) -> Any:
    """A configuration of any version in the words of the newest."""
    if not isinstance(config, Mapping):
        return config
    data = dict(config)
    if "configs" in data:
        return {"architecture": "union", "configs": [modern(c) for c in data["configs"]]}
    inner = data.pop("invertible_adapter", None)
    if isinstance(inner, dict):
        data["inv_adapter"] = inner.get("block_type")
        data["inv_adapter_reduction_factor"] = inner.get("reduction_factor")
        data["non_linearity"] = _OLD_ACTS.get(data.get("non_linearity", ""), data.get("non_linearity"))
    for gone in ("adapter_fusion", "new_attention_norm", "attention_type", "use_adapter_fusion", "type"):
        data.pop(gone, None)
    return data


def _old_scaling(config: AdapterConfig, facts: dict[str, Any]) -> AdapterConfig:
    """LoRA files before version 1.1.0 were trained without the factor alpha / r."""
    version = str(facts.get("version", "")).removeprefix("adapters.")
    numbers = [int(n) for n in version.split(".")[:2] if n.isdigit()]
    if config.architecture != "lora" or not str(facts.get("version", "")).startswith("adapters."):
        return config
    return config.replace(alpha=config["r"]) if numbers and numbers < [1, 1] else config


def save_adapter_fusion(
    self: PreTrainedModel, save_directory: Any, adapter_names: Any, meta_dict: dict | None = None,
    with_head: bool | str | None = None, use_safetensors: bool = True,
) -> None:  # fmt: skip
    """Write a fusion's layers (not its adapters) into a folder; with_head=True: and the head so named."""
    adapters = adapters_of(self)
    name = adapter_names if isinstance(adapter_names, str) else (
        adapter_names.name if isinstance(adapter_names, Fuse) else ",".join(adapter_names)
    )  # fmt: skip
    if name not in adapters.fusion_configs:
        raise AdapterError(f"the model has no fusion {name!r}; it has {list(adapters.fusion_configs)}")
    tensors = fusion_tensors(self, dialect_of(self), name)
    facts = {**_header(self, name), "config": adapters.fusion_configs[name].to_dict()}
    facts |= {"adapter_names": adapters.fused[name]} | (meta_dict or {})
    _write(Path(save_directory), FUSION, facts, tensors, use_safetensors)
    if with_head:
        self.save_head(save_directory, name if with_head is True else with_head, use_safetensors)


def fusion_tensors(model: PreTrainedModel, dialect: Dialect, name: str) -> dict[str, Tensor]:
    """A fusion's tensors by public key."""
    return {
        f"{dialect.ahead}{path}.{leaf}": value.detach().clone()
        for path, layer in _fusion_layers(adapters_of(model), dialect, name)
        for leaf, value in layer.state_dict().items()
    }


def _fusion_layers(adapters: Adapters, dialect: Dialect, name: str) -> list[tuple[str, Any]]:
    found = []
    for layer in adapters.where.layers:
        for _, place in layer.branches():
            fusion = adapters.fusion_at(name, place.path)
            if fusion is not None:
                found.append((f"{dialect.branch(place)}.adapter_fusion_layer.{name}", fusion))
    return found


def load_adapter_fusion(
    self: PreTrainedModel, adapter_fusion_name_or_path: Any, load_as: str | None = None,
    set_active: bool = False,
    with_head: bool = True, use_safetensors: bool | None = None,
) -> str:  # fmt: skip
    """Read the layers of a fusion, whose adapters must be there; its name."""
    folder = folder_of(adapter_fusion_name_or_path)
    facts, tensors = _read(folder, FUSION)
    with_head = with_head and isinstance(self, PreTrainedModel)
    head = _heads().beside(self, folder, load_as or facts["name"], load_as) if with_head else None
    stored = facts["name"]
    names = facts.get("adapter_names") or stored.split(",")
    key = read_fusion(self, dialect_of(self), load_as or stored, stored, names, facts["config"], tensors)
    if head is not None:
        head.install(self, set_active)
    if set_active:
        self.set_active_adapters(Fuse(*names, name=None if key == ",".join(names) else key))
    return key


def read_fusion(
    model: PreTrainedModel, dialect: Dialect, name: str, stored: str, members: list[str], config: Any,
    tensors: dict[str, Tensor],
) -> str:  # fmt: skip
    """Add a fusion from public tensors, which call it `stored`; its name. Nothing of a misfit is added."""
    adapters = adapters_of(model)
    key, path = adapters.fuse(members, config, _like(model), name), stored
    file = _File(tensors, dialect)
    try:
        for path, layer in _fusion_layers(adapters, dialect, key):
            layer.load_state_dict(file.below(path.removesuffix(key) + stored, "exact"))
    except RuntimeError as error:
        adapters.unfuse(key)
        raise ShapeMismatchError(f"{path}: {str(error).splitlines()[-1].strip()}") from None
    return key


def save_adapter_setup(
    self: PreTrainedModel, save_directory: Any, adapter_setup: Any, head_setup: Any = None,
    meta_dict: dict | None = None, use_safetensors: bool = True,
) -> None:  # fmt: skip
    """Write a composition with its adapters and fusions, each in a folder of its own.

    head_setup: the heads to write as well: a name, a list or a BatchSplit of names, or True for the head of a
    class such as `XForTask`.
    """
    folder, setup = Path(save_directory), parse_composition(adapter_setup)
    for name in dict.fromkeys(names_of(setup)):
        save_adapter(self, folder / name, name, meta_dict=meta_dict, use_safetensors=use_safetensors)
    for block in blocks_of(setup):
        if isinstance(block, Fuse):
            save_adapter_fusion(self, folder / block.name, block, use_safetensors=use_safetensors)
    if head_setup is True:
        self.save_head(folder, use_safetensors=use_safetensors)
    else:
        for name in names_in(head_setup):
            self.save_head(folder / check_name(name), name, use_safetensors)
    plain = head_setup is None or isinstance(head_setup, bool | str | list)
    facts = {
        "adapter_setup": to_json(setup), "head_setup": head_setup if plain else to_json(head_setup),
        "version": VERSION,
    }  # fmt: skip
    atomic_write(folder / SETUP, (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())


def load_adapter_setup(
    self: PreTrainedModel, adapter_setup_name_or_path: Any, version: str | None = None,
    set_active: bool = False,
    use_safetensors: bool | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """Read a composition with its adapters, fusions and heads; (setup, setup of the heads or None)."""
    folder = folder_of(adapter_setup_name_or_path, version)
    facts = read_json(folder / SETUP, AdapterError)
    setup, heads = from_json(facts["adapter_setup"]), facts.get("head_setup")
    heads = from_json(heads) if isinstance(heads, dict) else heads
    for name in dict.fromkeys(names_of(setup)):
        load_adapter(self, folder / check_name(name))
    for block in blocks_of(setup):
        if isinstance(block, Fuse):
            load_adapter_fusion(self, folder / block.name)
    if heads is True:
        self.load_head(folder)
    else:
        for name in names_in(heads):
            self.load_head(folder / check_name(name), set_active=False)
    if set_active:
        self.set_active_adapters(setup)
    if names_in(None if heads is True else heads):
        self.active_head = heads
    return setup, heads


def save_all_adapters(
    self: PreTrainedModel, save_directory: Any, with_head: bool = True, meta_dict: dict | None = None,
    use_safetensors: bool = True,
) -> None:  # fmt: skip
    """Write every adapter into a folder of its own."""
    for name in adapters_of(self).names():
        save_adapter(self, Path(save_directory) / name, name, with_head, meta_dict, use_safetensors)


def save_all_adapter_fusions(
    self: PreTrainedModel, save_directory: Any, use_safetensors: bool = True
) -> None:
    """Write every fusion into a folder of its own."""
    for name in adapters_of(self).fusion_configs:
        save_adapter_fusion(self, Path(save_directory) / name, name, use_safetensors=use_safetensors)
