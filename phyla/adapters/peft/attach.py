"""From a PEFT configuration to the parts of an adapter and the places where they stand."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from phyla.adapters.peft.configs import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PromptLearningConfig,
    TrainableTokensConfig,
    TunerConfig,
    VeraConfig,
)
from phyla.adapters.peft.experts import parts_of
from phyla.adapters.peft.low import Adaptive, LowRank, Pair, Vector
from phyla.adapters.peft.matrices import Hadamard, Kronecker, Spectrum
from phyla.adapters.peft.part import At, Overlay, Part
from phyla.adapters.peft.targets import HEADS, Piece, Target, Targets, all_linear, targets_of, usual
from phyla.adapters.peft.tokens import Rows
from phyla.adapters.peft.turns import Blocks, Butterfly, Reflections, Scale
from phyla.adapters.places import Place, Survey
from phyla.errors import AdapterError

# configuration -> the part that it makes of a module; the first class that fits
PARTS: dict[type[PeftConfig], Callable[[Any, Target], Part]] = {
    AdaLoraConfig: Adaptive,
    LoraConfig: LowRank,
    IA3Config: Scale,
    LoHaConfig: Hadamard,
    LoKrConfig: Kronecker,
    OFTConfig: Blocks,
    BOFTConfig: Butterfly,
    HRAConfig: Reflections,
    FourierFTConfig: Spectrum,
}
WHOLE = ("linear", "conv", "expert")


def attach(config: PeftConfig, where: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """The parts of one adapter with their places; the entry gets what has no place of its own."""
    model = where.model
    targets = targets_of(model)
    if isinstance(config, PromptLearningConfig):
        from phyla.adapters.peft.prompts import attach_prompt

        yield from attach_prompt(config, model, where, entry)
    elif isinstance(config, LNTuningConfig):
        for path in chosen(config, targets, where):
            replace_tensors(entry, targets, path, ("weight", "bias"))
    elif isinstance(config, TunerConfig):
        yield from _parts(config, targets, where, entry)
    for name in saved_modules(config, targets):
        replace_tensors(entry, targets, name, None)
    _biases(config, targets, entry)


def _parts(
    config: TunerConfig, targets: Targets, where: Survey, entry: Any
) -> Iterator[tuple[Place, nn.Module]]:
    make = PARTS.get(type(config))
    parameters = isinstance(config, LoraConfig) and config.target_parameters
    alone = parameters and isinstance(config.target_modules, list | tuple) and not config.target_modules
    found = [] if alone else [targets.modules[path] for path in chosen(config, targets, where)]
    parts: list[tuple[Part, Target]] = []
    if isinstance(config, TrainableTokensConfig):
        parts = [
            (part, target)
            for first in found
            for part, target in rows_of(config.token_indices, targets, first, not config.init_weights)
        ]
    elif isinstance(config, VeraConfig):
        pair = Pair(config, found)
        entry.share("vera", pair)
        parts = [(Vector(config, target, pair), target) for target in found]
    elif make is not None:
        parts = [(make(config, target), target) for target in found]
    else:
        raise AdapterError(f"{type(config).__name__} is not implemented")
    tokens = getattr(config, "trainable_token_indices", None)
    if tokens:
        given = tokens if isinstance(tokens, dict) else {_table(targets): tokens}
        for name, indices in given.items():
            for path in [p for p in targets.modules if p == name or p.endswith(f".{name}")]:
                parts += rows_of(indices, targets, targets.modules[path])
    if isinstance(config, LoraConfig) and parameters:
        more = list(parts_of(config, targets))
        twice = {t.path for _, t in more} & {t.path for _, t in parts}
        if twice:
            raise AdapterError(f"{min(twice)} is meant by target_modules and by target_parameters")
        parts += more
    yield from place(parts, where, entry)


def place(parts: list[tuple[Part, Target]], where: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """Parts at the sites of projections and tables; before the parameters of everything else."""
    known = {p.path: p for layer in where.layers for p in layer.linears}
    overlays: dict[tuple[str, str], list[tuple[Part, Piece]]] = {}
    for part, target in parts:
        if target.idle:
            entry.share(f"idle:{target.path}", part)
            continue
        for piece in target.pieces:
            if target.kind in ("linear", "table"):
                spot = known.get(piece.path) or Place(piece.path, piece.module, target.kind)
                yield spot, At(part, piece.rows)
            else:
                overlays.setdefault((piece.path, piece.leaf), []).append((part, piece))
    for members in overlays.values():
        entry.overlays.append(Overlay(members))


def chosen(config: TunerConfig, targets: Targets, where: Survey) -> list[str]:
    """The public paths of the modules that a configuration means; AdapterError if there are none."""
    names = config.target_modules
    if isinstance(names, str) and names.lower() == "all-linear":
        names = all_linear(targets, config.task_type)
    elif names is None:
        names = _usual(config, targets, where)
    settled = replace(config, target_modules=names)
    found = [path for path in targets.modules if settled.wants(path)]
    if isinstance(config, TrainableTokensConfig):
        found = sorted(found, key=lambda p: not targets.modules[p].idle)[:1]
    if not found:
        raise AdapterError(
            f"target_modules {config.target_modules!r} fit no module of this model; its modules end "
            f"in {sorted({p.rpartition('.')[2] for p, t in targets.modules.items() if t.kind in WHOLE})[:9]}"
        )
    # What was meant is written down, so that files say it too.
    if config.target_modules is None or names is not config.target_modules:
        config.target_modules = sorted(names)
    return found


def _usual(config: TunerConfig, targets: Targets, where: Survey) -> list[str]:
    model = where.model
    if isinstance(config, LNTuningConfig):
        return [p for p, t in targets.modules.items() if t.kind == "other" and len(t.shape) == 1]
    if isinstance(config, TrainableTokensConfig):
        return [_table(targets)]
    if isinstance(config, IA3Config):
        ahead = usual(model, targets, where, ("down",))
        config.feedforward_modules = ahead
        return [*usual(model, targets, where, ("k", "v")), *ahead]
    return usual(model, targets, where)


def _table(targets: Targets) -> str:
    found = [p for p, t in targets.modules.items() if t.kind == "table"]
    if not found:
        raise AdapterError("this model has no table of tokens")
    return found[0]


def rows_of(
    indices: Any, targets: Targets, table: Target, fresh: bool = False
) -> Iterator[tuple[Rows, Target]]:
    """One part for a token table and the modules that are tied to it."""
    if len(table.shape) != 2:
        raise AdapterError(f"{table.path} is no table of tokens")
    rows = Rows(list(indices), table, fresh)
    weight = table.pieces[0].module.weight
    for target in targets.modules.values():
        if target.kind in ("table", "linear") and len(target.pieces) == 1:
            if target.path == table.path:
                yield rows, target
            elif target.pieces[0].module.weight is weight:
                rows.also.append(target.path)
                yield rows, target


def saved_modules(config: PeftConfig, targets: Targets) -> list[str]:
    """The public modules that are trained whole: `modules_to_save`, and the head of a classifier."""
    names = list(config.modules_to_save or ())
    if config.task_type in ("SEQ_CLS", "TOKEN_CLS") and not isinstance(config, TrainableTokensConfig):
        names += [h for h in HEADS if h not in names]
    if names:
        config.modules_to_save = names
    paths = dict.fromkeys(name.rpartition(".")[0] for name in targets.lines)
    return [path for path in paths if any(f".{path}.".find(f".{name}.") >= 0 for name in names)]


def _biases(config: PeftConfig, targets: Targets, entry: Any) -> None:
    wanted = getattr(config, "bias", "none")
    if wanted not in ("none", "all", config.bias_key):
        raise AdapterError(f"bias must be none, all or {config.bias_key}, but is {wanted!r}")
    changed = {part.path for part in entry_parts(entry)}
    for path in targets.bias:
        if wanted == "all" or (wanted == config.bias_key and path in changed):
            replace_tensors(entry, targets, path, ("bias",))


def replace_tensors(entry: Any, targets: Targets, path: str, leaves: tuple[str, ...] | None) -> None:
    """Copies of a public module's parameters that stand in for them while the adapter is active."""
    for name, line in targets.lines.items():
        owner, _, leaf = name.rpartition(".")
        if owner != path or (leaves is not None and leaf not in leaves):
            continue
        for ours in line.ours:
            where, _, last = ours.rpartition(".")
            target = (targets.model.get_submodule(where), last)
            if last in target[0]._buffers:
                continue
            if not isinstance(target[0]._parameters.get(last), nn.Parameter):
                raise AdapterError(
                    f"{name} is quantised and cannot be trained whole: leave {path} out of modules_to_save"
                )
            if not any(t[0] is target[0] and t[1] == last for t in entry.targets):
                entry.targets.append(target)
                entry.replaced.append(nn.Parameter(targets.tensors[ours].detach().clone()))
                entry.meta.setdefault("replaced", []).append(ours)


def entry_parts(entry: Any) -> list[Part]:
    """Every part of an adapter once."""
    found: dict[int, Part] = {}
    for at in entry.parts:
        if isinstance(at, At):
            found.setdefault(id(at.part), at.part)
    for key, part in entry.shared_by_key():
        if key.startswith("idle:"):
            found.setdefault(id(part), part)
    for overlay in entry.overlays:
        for part in overlay.members:
            found.setdefault(id(part), part)
    return list(found.values())
