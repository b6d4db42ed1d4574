"""from_pretrained: a checkpoint into a model, built on the meta device and filled by assignment."""

import ctypes
import inspect
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from phyla.checkpoints.ahead import SOURCE as READ_FROM
from phyla.checkpoints.arena import Arena
from phyla.checkpoints.configs import make_config, read_config
from phyla.checkpoints.names import Line, modern
from phyla.checkpoints.ops import Same
from phyla.checkpoints.report import LoadReport
from phyla.checkpoints.resolve import resolve
from phyla.checkpoints.spans import alike, read_parts, readings, spans_of, whole_shapes
from phyla.checkpoints.state import Layout, layout_of, tensors_of
from phyla.checkpoints.weights import Weights, open_weights
from phyla.config import PretrainedConfig
from phyla.errors import (
    ArgumentError,
    DtypeMismatchError,
    MissingWeightsError,
    ShapeMismatchError,
    UnexpectedWeightsError,
    nearest,
)
from phyla.lazy import collection_paused
from phyla.model import PreTrainedModel, assign, init_module, materialise, places_of
from phyla.quantization.plan import QuantizationPlan

# Arguments of from_pretrained that are fields of BitsAndBytesConfig.
_SHORTHAND = ("load_in_4bit", "load_in_8bit", "bnb_4bit_", "llm_int8_")


def from_pretrained(
    cls: type[PreTrainedModel],
    source: str | os.PathLike,
    *,
    config: PretrainedConfig | str | os.PathLike | None = None,
    torch_dtype: torch.dtype | str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    attn_implementation: str | dict[str, Any] | None = None,
    quantized: bool = False,
    quantization_config: Any = None,
    strict: bool = False,
    allow_missing: Sequence[str] = (),
    ignore_mismatched_sizes: bool = False,
    output_loading_info: bool = False,
    allow_pickle: bool = True,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    subfolder: str = "",
    gguf_file: str = "",
    low_cpu_mem_usage: bool | None = None,
    use_safetensors: bool | None = None,
    add_pooling_layer: bool = True,
    tp_plan: Any = None,
    tp_size: int | None = None,
    device_mesh: Any = None,
    **config_changes: Any,
) -> Any:
    """Load a model from a folder, a file (.safetensors, .bin, .gguf), a hub id or a weight package.

    torch_dtype: None for float32, "auto" for the checkpoint's own, or a dtype. device_map: a device, "auto",
    or None for the CPU. quantized: keep a quantised checkpoint (GGUF, GPTQ, bitsandbytes, ...) packed and
    compute on it; without, it is expanded. quantization_config: settings such as BitsAndBytesConfig, by which
    a dense checkpoint is quantised (`load_in_4bit=True` and the like stand for it). strict: tensors without a
    place are an error. allow_missing: patterns (`*` stands for anything) of tensors that may be
    missing. add_pooling_layer: False leaves a pool out. tp_plan: "auto", or site patterns and styles, divides
    the model over the processes that torchrun has started, or over tp_size neighbours, or over device_mesh:
    each reads its part (docs/parallel.md). Other keywords replace config keys, or go to the `__init__` of a
    class of one's own. Returns the model in eval mode, with output_loading_info
    (model, info).

    Raises MissingFileError, CorruptFileError, ConfigError, MissingWeightsError, ShapeMismatchError, ...
    """
    path = resolve(source, revision, cache_dir, local_files_only, token, subfolder, gguf_file)
    shorthand = {k: config_changes.pop(k) for k in list(config_changes) if k.startswith(_SHORTHAND)}
    made_with = _own_arguments(cls, config_changes) if cls.is_own() else {}
    if config is None:
        config = make_config(read_config(path), source, cls.config_class, **config_changes)
    else:
        if not isinstance(config, PretrainedConfig):
            config = cls.config_class.from_pretrained(config)
        config_changes = _apply(config, config_changes)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    named = list(config.architectures or [])
    plan = QuantizationPlan.of(config, source, quantization_config, shorthand, quantized, path)
    config._name_or_path = os.fspath(source)
    divided = _is_divided(tp_plan, tp_size, device_mesh, device_map)
    if divided and (plan.packed or plan.asked is not None):
        raise ArgumentError(
            "packed weights cannot be divided over processes: leave out quantized and quantization_config, "
            "or tp_plan"
        )
    device = choose_device(None if divided else device_map)
    model = cls.__new__(cls)
    if not cls.is_own():
        nn.Module.__init__(model)
        model._pooled = add_pooling_layer
    with collection_paused(), open_weights(path, allow_pickle and use_safetensors is not True) as stored:
        weights = plan.open(stored)
        if weights.config is not None:
            named = []  # a GGUF file leaves out poolers and some heads, whatever class its config names
        if cls.is_own():
            model.__init__(config, **made_with)  # type: ignore[misc]
        else:
            model._assemble(config)
        if divided:
            device = model._divide(tp_plan, tp_size, device_mesh)
        wanted = choose_dtype(dtype if dtype is not None else torch_dtype, config, weights)
        report = LoadReport(os.fspath(source))
        layout = layout_of(model)
        packed = plan.install(model, weights, layout, wanted)
        fill(model, layout, weights, wanted, device, report, ignore_mismatched_sizes, packed)
        if cls.is_own():
            model.to(device, wanted)
        else:
            model.fill_buffers()
        if packed:
            model.to(device)
        model.eval()
        plan.finish(model)
        if config.__dict__.get("adapters") is not None:
            taken = model._adapters_restore(weights, report.unexpected)
            report.unexpected = [n for n in report.unexpected if n not in taken]
    _give_back()
    _judge(model, layout, report, named, strict, allow_missing)
    config.torch_dtype = str(wanted).removeprefix("torch.")
    if not cls.is_own() and cls.family.ahead is not None:
        model.__dict__[READ_FROM] = path  # for the heads that are read when they are needed
    if model.can_generate():
        model._read_generation_config(path if path.is_dir() else path.parent)
    return (model, report.public()) if output_loading_info else model


def _is_divided(plan: Any, size: int | None, mesh: Any, device_map: Any) -> bool:
    """Whether the model is divided over processes: asked for, or "auto" under torchrun as in the public
    library."""
    if plan is None and size is None and mesh is None:
        return device_map == "auto" and int(os.environ.get("WORLD_SIZE") or 0) > 1
    if device_map is not None:
        raise ArgumentError("from_pretrained takes tp_plan or device_map, but got both")
    return True


def _give_back() -> None:
    """Return to the system what only loading needed: the C library keeps freed memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _apply(config: PretrainedConfig, changes: dict[str, Any]) -> dict[str, Any]:
    unknown = [
        k for k in changes if k not in config.__dict__ and k not in config.ALIASES and k != "num_labels"
    ]
    if unknown:
        raise ArgumentError(f"from_pretrained takes no {unknown[0]!r}.{nearest(unknown[0], config.__dict__)}")
    config.update(changes)
    return {}


def _own_arguments(cls: type[PreTrainedModel], options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the constructor of a class of one's own takes by name."""
    names = list(inspect.signature(cls.__init__).parameters)[2:]
    return {name: options.pop(name) for name in names if name in options}


def choose_device(device_map: Any) -> torch.device:
    """The one device that a device_map names."""
    if isinstance(device_map, dict):
        places = set(device_map.values())
        if len(places) != 1:
            raise ArgumentError(
                f"device_map must put the whole model on one device, but names {sorted(map(str, places))}"
            )
        device_map = places.pop()
    if device_map is None:
        return torch.device("cpu")
    if device_map in ("auto", "balanced", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError):
        raise ArgumentError(
            f'device_map must be a device such as "cpu", "cuda:0" or "auto", but is {device_map!r}'
        ) from None


def choose_dtype(wanted: Any, config: PretrainedConfig, weights: Weights) -> torch.dtype:
    """The floating dtype to load in."""
    if wanted is None:
        return torch.get_default_dtype()
    if wanted == "auto":
        stored = getattr(torch, str(config.torch_dtype), None)
        if isinstance(stored, torch.dtype):
            return stored
        floats = {
            i.dtype for i in weights.infos.values() if i.dtype.is_floating_point and i.dtype.itemsize > 1
        }
        return floats.pop() if len(floats) == 1 else torch.float32
    if isinstance(wanted, str):
        wanted = getattr(torch, wanted.removeprefix("torch."), wanted)
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point:
        raise ArgumentError(f'torch_dtype must be a floating torch dtype or "auto", but is {wanted!r}')
    return wanted


def fill(
    model: PreTrainedModel,
    layout: Layout,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    report: LoadReport,
    ignore_mismatched: bool = False,
    done: set[str] | frozenset[str] = frozenset(),
) -> None:
    """Assign every tensor of the model from the file; what the file lacks starts afresh and is reported."""
    spelled = {modern(name): name for name in weights.infos}
    lines = choose_lines(layout, spelled)
    tensors = tensors_of(model)
    places = places_of(model)
    reads: dict[str, Line] = {}
    fresh: list[str] = []
    for line in lines:
        if set(line.ours) <= done:
            continue
        names = _stored_names(line, layout, spelled)
        if names is None:
            if not all(_is_computed(model, path) for path in line.ours):
                report.missing += [n for n in line.theirs if n not in spelled]
            fresh += line.ours
            continue
        for name in names:
            reads[name] = Line(line.ours, names, line.op)
    _find_unexpected(weights, layout, lines, reads, report, done)
    report.names = [n for line in lines for n in line.theirs]
    waiting: dict[tuple[str, ...], dict[str, Tensor]] = {}
    # Tensors that a module keeps in float32 whatever the dtype of the model.
    exact = {f"{path}.{n}" for path, module in model.named_modules() for n in getattr(module, "exact", ())}
    arena = _arena({p: t for p, t in tensors.items() if p not in exact}, reads, dtype, device)
    plain = {
        name: arena.places[id(tensors[line.ours[0]])]
        for name, line in reads.items()
        if type(line.op) is Same and len(line.ours) == 1 and id(tensors[line.ours[0]]) in arena.places
    }
    spans = spans_of(model)
    parts = readings(reads, spans, tensors, weights.infos)
    for name, value in read_parts(weights, reads, parts, plain):
        line, part = reads[name], parts.get(name)
        got = waiting.setdefault(line.ours, {})
        got[name] = value
        if len(got) < len(line.theirs):
            continue
        del waiting[line.ours]
        shapes = whole_shapes(line, spans, tensors) if part is None else [tensors[p].shape for p in line.ours]
        try:
            values = (line if part is None else part).op.load([got[n] for n in line.theirs], shapes)
        except ShapeMismatchError as error:
            raise ShapeMismatchError(f"{line.theirs[0]}: {error} ({report.source})") from None
        for path, new, due in zip(line.ours, values, shapes, strict=True):
            old = tensors[path]
            if new.shape != due:
                if not ignore_mismatched:
                    raise ShapeMismatchError(
                        f"{line.theirs[0]} must have shape {tuple(due)} by config.json, but has "
                        f"{tuple(new.shape)} ({report.source}); change the config key that sets it, or pass "
                        "ignore_mismatched_sizes=True to start that tensor afresh"
                    )
                report.mismatched.append((line.theirs[0], tuple(new.shape), tuple(due)))
                fresh.append(path)
                continue
            if old.is_floating_point() and not new.is_floating_point():
                raise DtypeMismatchError(
                    f"{line.theirs[0]} must hold floating numbers, but holds {new.dtype} ({report.source})"
                )
            if part is None and path in spans:
                new = spans[path].cut(new).clone()
            place = arena.take(id(old))
            if place is None:
                wide = torch.float32 if path in exact else dtype
                new = new.to(device=device, dtype=wide if old.is_floating_point() else new.dtype).contiguous()
            elif place.data_ptr() != new.data_ptr():
                new = place.copy_(new)
            assign(places, old, new)
            report.loaded += 1
    # What a class of one's own has made with values keeps them.
    with alike(model, fresh):
        _fill_rest(model, [path for path in fresh if tensors_of(model)[path].is_meta], dtype, device)


def _arena(
    tensors: dict[str, Tensor], reads: dict[str, Line], dtype: torch.dtype, device: torch.device
) -> Arena:
    """Places on the CPU for the floating tensors that the file holds, in the order of the model."""
    wanted = {path for line in reads.values() for path in line.ours}
    # What one module joins (q, k, v; gate, up) is two names above its weight.
    floating = {
        id(t): (t, path.rsplit(".", 2)[0])
        for path, t in tensors.items() if path in wanted and t.is_floating_point()
    }  # fmt: skip
    return Arena((k, tuple(t.shape), dtype, o) for k, (t, o) in floating.items() if device.type == "cpu")


def _is_computed(model: nn.Module, path: str) -> bool:
    """Whether a stored table can be made without a file: its module says so of all or of that one."""
    holder, _, leaf = path.rpartition(".")
    computed = getattr(model.get_submodule(holder), "computed", ())
    return computed is True or (isinstance(computed, tuple) and leaf in computed)


def choose_lines(layout: Layout, spelled: dict[str, str]) -> list[Line]:
    """The lines as the file has them: with the backbone's prefix, without it, or inside a larger model."""
    candidates = [layout.lines(True), layout.lines(False)] if layout.prefix else [layout.lines(True)]
    if layout.inside:
        ahead = layout.inside + "."
        candidates += [
            [Line(li.ours, tuple(ahead + n for n in li.theirs), li.op) for li in lines]
            for lines in candidates
        ]
    return max(candidates, key=lambda lines: sum(n in spelled for line in lines for n in line.theirs))


def _stored_names(line: Line, layout: Layout, spelled: dict[str, str]) -> tuple[str, ...] | None:
    if all(n in spelled for n in line.theirs):
        return tuple(spelled[n] for n in line.theirs)
    if 1 in (len(line.ours), len(line.theirs)):
        others = (*layout.aliases.get(line.ours[0], ()), *layout.copies.get(line.ours[0], ()))
        for name in others:
            for candidate in (name, name.removeprefix(layout.prefix + ".")):
                if candidate in spelled:
                    return (spelled[candidate],)
    return None


def _find_unexpected(
    weights: Weights,
    layout: Layout,
    lines: list[Line],
    reads: dict[str, Line],
    report: LoadReport,
    done: set[str] | frozenset[str],
) -> None:
    known = {name for names in (*layout.aliases.values(), *layout.copies.values()) for name in names}
    known |= {name.removeprefix(layout.prefix + ".") for name in known if layout.prefix}
    known |= {name for line in lines if set(line.ours) <= done for name in line.theirs}
    patterns = [re.compile(p) for p in layout.ignore]
    for name in weights.infos:
        if name in reads or modern(name) in known or any(p.fullmatch(name) for p in patterns):
            continue
        report.unexpected.append(name)


def _fill_rest(model: PreTrainedModel, fresh: list[str], dtype: torch.dtype, device: torch.device) -> None:
    """Fresh values for what the file lacks, and memory for the tables that are computed."""
    holders = {path.rpartition(".")[0] for path in fresh}
    kept = {
        path: tensor.detach().clone()
        for path, tensor in tensors_of(model).items()
        if path.rpartition(".")[0] in holders and not tensor.is_meta
    }
    materialise(model, device, dtype)
    std = float(getattr(model.config, "initializer_range", None) or 0.02)
    for path in holders:
        init_module(model.get_submodule(path), std)
    tensors = tensors_of(model)
    with torch.no_grad():
        for path, value in kept.items():
            if path not in fresh:
                tensors[path].copy_(value)


def _judge(
    model: PreTrainedModel,
    layout: Layout,
    report: LoadReport,
    named: list[str],
    strict: bool,
    allow_missing: Sequence[str],
) -> None:
    """Raise for what must not be passed over, warn for the rest."""
    name = type(model).__name__
    hard = [n for n in report.missing if not any(fnmatchcase(n, p) for p in allow_missing)]
    if name not in named:
        own = [line.theirs for line in layout.head] if type(model).is_own() else []
        new = {n for line in (*_optional_lines(layout), *own) for n in line}
        hard = [n for n in hard if n not in new]
    if hard:
        others = LoadReport(report.source, missing=hard, unexpected=report.unexpected)
        raise MissingWeightsError(
            f"{name} needs {len(hard)} tensors that {report.source} does not hold:\n"
            f"{others.describe_missing()}\n"
            "Pass allow_missing=[patterns] to start them with random values"
        )
    if strict and report.unexpected:
        raise UnexpectedWeightsError(
            f"{len(report.unexpected)} tensors of {report.source} have no place in {name}:\n"
            f"{report.describe_unexpected()}\nLoad without strict=True to leave them out"
        )
    report.warn(name)


def _optional_lines(layout: Layout) -> list[tuple[str, ...]]:
    """Public names that a file of another class may lack: those of the head, the pool and cross-attention."""
    lines = [*layout.lines(True), *layout.lines(False)]
    optional = ("head.", "flexible.", "backbone.pool.", "backbone.maps.")
    return [li.theirs for li in lines if li.ours[0].startswith(optional) or ".cross." in li.ours[0]]
