"""Holds adapters against recorded cases: files of public libraries with the inputs and outputs they gave.

A case is a folder (or part of a pack) with meta.json, io.safetensors and the saved files; `_base` beside the
cases describes the checkpoint that several share. `check(case, phyla)` returns the faults.
"""

import ast
import functools
import io
import json
import lzma
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import phyla.adapters as adapters
import phyla.adapters.composition as composition
from phyla.testing.goldens import DTYPES
from phyla.testing.parity import follow
from phyla.testing.seeded import seeded_input, seeded_weight

RELATIVE, ABSOLUTE = 1e-4, 2e-5
LOSS_RELATIVE = 1e-4


@dataclass(frozen=True)
class Case:
    """One recorded case: its facts, tensors, the folder of its files, and the checkpoint it stands on."""

    folder: Path
    facts: dict[str, Any]
    base: dict[str, Any]
    stored: dict[str, torch.Tensor]

    @property
    def label(self) -> str:
        """`model_type/case`."""
        return self.facts["id"]

    def recorded(self) -> dict[str, torch.Tensor]:
        """Inputs and outputs."""
        return safetensors.torch.load_file(self.folder / "io.safetensors")


def read_case(folder: Path) -> Case:
    """The case in a folder."""
    facts = json.loads((folder / "meta.json").read_text())
    path = folder.parent / facts["base"]
    stored = path.with_suffix(".safetensors")
    tensors = safetensors.torch.load_file(stored) if stored.exists() else {}
    return Case(folder, facts, json.loads(path.read_text()), tensors)


def check(case: Case, library: Any, saving: bool = True) -> list[str]:
    """Faults of the library on a case; an empty list means that it holds."""
    with torch.no_grad():
        model = load_base(case, library)
        recorded = case.recorded()
        replay(case, model, recorded)
        faults = list(output_faults(case, model, recorded))
        faults += list(loss_faults(case, model, recorded))
        faults += list(generation_faults(case, model, recorded))
        if saving:
            faults += list(saving_faults(case, model))
            faults += list(head_faults(case, model))
    return faults


def load_base(case: Case, library: Any) -> Any:
    """The model without adapters, from a checkpoint in the public format."""
    base = case.base
    cls = getattr(library, case.facts["cls"], None) or getattr(adapters, case.facts["cls"], None)
    cls = cls or getattr(library, base["base_cls"])
    with tempfile.TemporaryDirectory() as folder:
        weights = {
            tensor: case.stored[tensor]
            if tensor in case.stored
            else torch.from_numpy(seeded_weight(tensor, shape, base.get("salt", 0))).to(DTYPES[dtype])
            for tensor, shape, dtype in base["tensors"]
        }
        safetensors.torch.save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(base["config"]))
        if base.get("generation_config"):
            (Path(folder) / "generation_config.json").write_text(json.dumps(base["generation_config"]))
        return cls.from_pretrained(folder, attn_implementation="eager").eval()


def replay(case: Case, model: Any, recorded: dict[str, torch.Tensor]) -> None:
    """Load what was saved, and do to it what was done when the case was recorded."""
    steps = case.facts["reload"]
    made = [s for s in case.facts["steps"] if "average_adapter" in s]
    if steps is None or made:
        _rebuild(case, model, recorded)
        return
    for step in steps:
        ((name, arguments),) = step.items()
        if name == "active":
            put_unsaved(model, recorded)
            activate(model, arguments)
        elif name == "load_adapter_setup":
            setup, heads = model.load_adapter_setup(case.folder / arguments[0])
            put_unsaved(model, recorded)
            model.set_active_adapters(setup)
            if heads:
                model.active_head = heads
        elif name == "active_head":
            model.active_head = arguments
        elif name in ("load_adapter", "load_adapter_fusion", "load_head"):
            getattr(model, name)(case.folder / arguments[0])
        elif name == "PeftModel.from_pretrained":
            model.load_adapter(case.folder / arguments, set_active=True)
        elif name in ("merge_adapter", "eject_prefix_tuning"):
            getattr(model, name)(*([arguments] if isinstance(arguments, str) else arguments))
        else:
            raise NotImplementedError(f"step {name}")


def _rebuild(case: Case, model: Any, recorded: dict[str, torch.Tensor]) -> None:
    """Where the files alone are not enough: make the adapters as the steps say, with the files' weights."""
    for step in case.facts["steps"]:
        ((name, arguments),) = step.items()
        if name == "add_adapter":
            config = arguments[1]
            folder = case.folder / arguments[0]
            direft = isinstance(config, str) and config.startswith("direft")
            model.load_adapter(folder, config=config if direft else None)
        elif name == "active":
            put_unsaved(model, recorded)
            activate(model, arguments)
        elif name == "average_adapter":
            model.average_adapter(arguments[0], arguments[1], **arguments[2])
        elif name != "randomise":
            raise NotImplementedError(f"step {name}")


def put_unsaved(model: Any, recorded: dict[str, torch.Tensor]) -> None:
    """Shared tensors that the public library forgot to save."""
    for key, value in recorded.items():
        if not key.startswith("unsaved."):
            continue
        path, _, leaf = key.partition("shared_parameters.")[2].rpartition(".")
        for _, module in model.adapters.get(path.split(".")[0]).shared_by_key():
            if hasattr(module, leaf):
                setattr(module, leaf, torch.nn.Parameter(value))


def activate(model: Any, arguments: Any) -> None:
    """Activate what a step says: a text such as `Stack('a', 'b')`, perhaps with keyword arguments."""
    named = {}
    if isinstance(arguments, list):
        arguments, named = arguments
    model.set_active_adapters(setup_of(arguments), **named)


def setup_of(text: str) -> Any:
    """The composition that a text means; nothing in it is run."""
    if "(" not in text:
        return text
    return _node(ast.parse(text, mode="eval").body)


def _node(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        block = composition.BLOCKS[node.func.id]
        named = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
        return block(*(_node(a) for a in node.args), **named)
    return ast.literal_eval(node)


def inputs_of(case: Case, recorded: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Arguments of the recorded call."""
    made: dict[str, Any] = {}
    for name, value in case.facts["inputs"].items():
        if f"in.{name}" in recorded:
            made[name] = recorded[f"in.{name}"]
        elif name in case.facts["seeded_inputs"]:
            made[name] = torch.from_numpy(seeded_input(name, value))
        else:
            made[name] = value
    return made


def output_faults(case: Case, model: Any, recorded: dict[str, torch.Tensor]) -> Iterator[str]:
    """Faults of the outputs: missing, of another shape, or with other values."""
    inputs = inputs_of(case, recorded)
    outputs = model(**inputs, **case.facts["call"])
    for path, facts in case.facts["outputs"].items():
        try:
            value = follow(outputs, path)
        except LookupError as error:
            yield f"{path} is missing: {error}"
            continue
        if list(value.shape) != facts["shape"]:
            yield f"{path} has shape {list(value.shape)}, the reference {facts['shape']}"
            continue
        wanted = recorded[f"out.{path}"].flatten()
        flat = value.detach().float().contiguous().flatten()
        found = flat[torch.linspace(0, flat.numel() - 1, wanted.numel()).long()]
        fault = _difference(found, wanted.float())
        if fault:
            yield f"{path} {fault}"


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> str:
    allowed = RELATIVE * wanted.abs() + ABSOLUTE * wanted.abs().max()
    off = (found - wanted).abs()
    if bool((off <= allowed).all()):
        return ""
    return f"departs by {float(off.max()):.3g} (largest value {float(wanted.abs().max()):.3g})"


def loss_faults(case: Case, model: Any, recorded: dict[str, torch.Tensor]) -> Iterator[str]:
    """Faults of the loss."""
    if case.facts["loss"] is None:
        return
    labels = {k.removeprefix("label."): v for k, v in recorded.items() if k.startswith("label.")}
    inputs = {k: v for k, v in inputs_of(case, recorded).items() if k != "decoder_input_ids"}
    loss = float(model(**inputs, **case.facts["call"], **labels).loss)
    if abs(loss - case.facts["loss"]) > LOSS_RELATIVE * max(1.0, abs(case.facts["loss"])):
        yield f"loss is {loss}, the reference {case.facts['loss']}"


def generation_faults(case: Case, model: Any, recorded: dict[str, torch.Tensor]) -> Iterator[str]:
    """Faults of greedy tokens."""
    settings = case.facts.get("generate")
    if not settings or "generated" not in recorded:
        return
    left_out = ("decoder_input_ids", "attention_mask")
    inputs = {k: v for k, v in inputs_of(case, recorded).items() if k not in left_out}
    found = model.generate(**inputs, **settings)
    if not torch.equal(found, recorded["generated"]):
        yield f"generates {found.tolist()}, the reference {recorded['generated'].tolist()}"


def saving_faults(case: Case, model: Any) -> Iterator[str]:
    """Faults of the files that the library saves: other keys, shapes or values than those it read."""
    if case.facts["kind"] == "peft":
        yield from peft_saving_faults(case, model)
        return
    if case.facts["reload"] is None:
        return
    if any("average_adapter" in s for s in case.facts["steps"]):
        return
    names = [s for s in case.facts["reload"] if "load_adapter" in s]
    if any(k in s for s in case.facts["reload"] for k in ("merge_adapter", "eject_prefix_tuning")):
        return
    for step in names:
        folder = case.folder / step["load_adapter"][0]
        name = json.loads((folder / "adapter_config.json").read_text())["name"]
        safe = (folder / "adapter.safetensors").exists()
        if name not in model.adapters.names():
            continue
        with tempfile.TemporaryDirectory() as target:
            model.save_adapter(target, name, use_safetensors=safe)
            before, after = _tensors(folder), _tensors(Path(target))
            prefix = model.family.table(model.config, model.head_spec).prefix + "."
            before = {k.removeprefix(prefix): v for k, v in before.items()}
            after = {k.removeprefix(prefix): v for k, v in after.items()}
            lacking, added = sorted(set(before) - set(after)), sorted(set(after) - set(before))
            if lacking or [k for k in added if "shared_parameters" not in k]:
                yield f"saves {name} without {lacking[:2]} and with {added[:2]}"
                continue
            for key, value in before.items():
                if value.shape != after[key].shape or not torch.equal(value, after[key]):
                    yield f"saves another value of {key}"
                    break
            old = json.loads((folder / "adapter_config.json").read_text())["config"]
            new = json.loads((Path(target) / "adapter_config.json").read_text())["config"]
            if old != new:
                yield f"saves another config: {_first_difference(old, new)}"


def head_faults(case: Case, model: Any) -> Iterator[str]:
    """Faults of the heads' files that the library saves."""
    for folder in sorted(p.parent for p in case.folder.rglob("head_config.json")):
        old = json.loads((folder / "head_config.json").read_text())
        if not hasattr(model, "heads") or old["name"] not in model.heads:
            yield f"has no head {old['name']}"
            continue
        with tempfile.TemporaryDirectory() as target:
            model.save_head(target, old["name"], (folder / "model_head.safetensors").exists())
            new = json.loads((Path(target) / "head_config.json").read_text())
            before, after = _tensors(folder, "model_head"), _tensors(Path(target), "model_head")
            wrong = [k for k in before if k not in after or not torch.equal(before[k], after[k])]
            if wrong or set(after) - set(before):
                yield f"saves the head {old['name']} with other tensors: {wrong[:2]}"
            for key in ("config", "name", "model_type", "model_class", "hidden_size"):
                if old[key] != new[key]:
                    yield f"saves the head {old['name']} with {key} {new[key]!r} for {old[key]!r}"


def peft_saving_faults(case: Case, model: Any) -> Iterator[str]:
    """As `saving_faults` for a PEFT folder; copies of one tensor under several names count once."""
    names = [s["PeftModel.from_pretrained"] for s in case.facts["reload"] if "PeftModel.from_pretrained" in s]
    with tempfile.TemporaryDirectory() as target:
        model.save_adapter(target, model.adapters.names()[0], format="peft")
        before, after = (
            safetensors.torch.load_file(Path(folder) / "adapter_model.safetensors")
            for folder in (case.folder / names[0], target)
        )
        facts = json.loads((Path(target) / "adapter_config.json").read_text())
    copies = (".original_module.", ".modules_to_save.")
    for key, value in before.items():
        plain = key.replace(".base_layer.", ".")
        if any(c in key for c in copies) or key.endswith("embed_tokens.base_layer.weight"):
            continue
        if key not in after and plain not in after and not key.endswith("base_layer.weight"):
            yield f"saves no {key}"
        elif key in after and not torch.equal(value, after[key]):
            yield f"saves another value of {key}"
    known = {k.replace(".base_layer.", ".") for k in before}
    added = [k for k in after if k.replace(".base_layer.", ".") not in known]
    if added:
        yield f"saves {added[0]}, which the file had not"
    old = json.loads((case.folder / names[0] / "adapter_config.json").read_text())
    for key in ("peft_type", "r", "rank_pattern", "alpha_pattern", "num_virtual_tokens", "bias"):
        if old.get(key) != facts.get(key):
            yield f"saves {key}: {facts.get(key)!r} in the place of {old.get(key)!r}"


def _first_difference(old: dict, new: dict) -> str:
    keys = [k for k in sorted({*old, *new}) if old.get(k, "-") != new.get(k, "-")]
    return ", ".join(f"{k}: {old.get(k, '-')!r} / {new.get(k, '-')!r}" for k in keys[:3])


def _tensors(folder: Path, name: str = "adapter") -> dict[str, torch.Tensor]:
    safe = folder / f"{name}.safetensors"
    if safe.exists():
        return safetensors.torch.load_file(safe)
    return torch.load(folder / f"pytorch_{name}.bin", weights_only=True)


def write_pack(folders: list[Path], path: Path) -> None:
    """Pack cases of one model_type with the checkpoints they stand on; equal inputs give equal bytes."""
    files: dict[str, Path] = {}
    for folder in folders:
        base = folder.parent / json.loads((folder / "meta.json").read_text())["base"]
        for file in (*sorted(folder.rglob("*")), base, base.with_suffix(".safetensors")):
            if file.is_file():
                files[file.relative_to(folder.parent).as_posix()] = file
    plain = io.BytesIO()
    order = sorted(files, key=lambda name: (Path(name).suffix, Path(name).name, name))
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in order:
            content = files[name].read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def read_names(path: Path) -> list[str]:
    """The cases that a pack holds."""
    with tarfile.open(path, "r:xz") as archive:
        return sorted(n.split("/")[0] for n in archive.getnames() if n.endswith("/meta.json"))


def unpack(path: Path, folder: Path) -> None:
    """Write a pack's files into a folder."""
    with tarfile.open(path, "r:xz") as archive:
        archive.extractall(folder, filter="data")


_unpacked: list[tempfile.TemporaryDirectory] = []  # they live as long as the process


@functools.cache
def unpacked(path: Path) -> Path:
    """A folder with a pack's files."""
    _unpacked.append(tempfile.TemporaryDirectory())
    unpack(path, Path(_unpacked[-1].name))
    return Path(_unpacked[-1].name)
