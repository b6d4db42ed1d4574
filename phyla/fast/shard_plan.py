"""Plans of tensor parallelism: which parts of a model are divided, from patterns of sites or public names."""

import re
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from phyla.blocks.embed import Tokens
from phyla.blocks.linear import Linear
from phyla.checkpoints.state import layout_of
from phyla.errors import ArgumentError, nearest
from phyla.fast.division import Cutter, Part, bias_groups, find_parts
from phyla.model import PreTrainedModel

# Public styles -> whether outputs ("column") or inputs ("row") are divided, alone (states around it are
# whole) or together with the other maps of its part. None: nothing is.
STYLES: dict[str, tuple[str, bool] | None] = {
    "colwise": ("column", False), "local_colwise": ("column", False), "packed_colwise": ("column", False),
    "rowwise": ("row", False), "local_rowwise": ("row", False), "local_packed_rowwise": ("row", False),
    "packed_rowwise": ("row", False), "embedding_rowwise": ("row", False),
    "colwise_rep": ("column", True), "colwise_gather_output": ("column", True),
    "rowwise_rep": ("row", True), "rowwise_split_input": ("row", True),
    "gather": None, "local": None, "replicate": None, "replicated_with_grad_allreduce": None,
}  # fmt: skip

Plan = Mapping[str, str]


def divide_by(model: nn.Module, plan: Plan | str | None, cutter: Cutter) -> dict[str, str]:
    """Divide a model's parts as a plan says; what was done, by site.

    "auto" or None: all that can be, or what the configuration's `base_model_tp_plan` names. Raises
    ArgumentError for styles, sites and sizes that do not go.
    """
    parts = find_parts(model, cutter.ranks.size)
    if isinstance(plan, str) and plan != "auto":
        raise ArgumentError(f'tp_plan must be "auto" or a table of site patterns and styles, but is {plan!r}')
    if isinstance(plan, Mapping):
        chosen, alone = chosen_parts(parts, read_styles(model, parts, plan, strict=True), strict=True)
    elif public := getattr(getattr(model, "config", None), "base_model_tp_plan", None):
        chosen, alone = chosen_parts(parts, read_styles(model, parts, public, strict=False), strict=False)
        chosen += [p for p in parts if p.columns == ("",) and p not in chosen and p.obstacle is None]
    else:
        chosen, alone = [p for p in parts if p.obstacle is None], {}
        if cutter.ranks.rank == 0:
            _tell(model, parts)
    chosen = _with_tied(chosen, parts)
    tables: list[Any] = []
    for table, members in bias_groups(model, parts):
        there = [p for p in members if p in chosen]
        if there and len(there) < len(members):
            raise ArgumentError(
                f"{there[0].path} and {next(p.path for p in members if p not in there)} have one bias and "
                "must be divided together: name both in tp_plan, or neither"
            )
        tables += [table] if there else []
    done = {site: "column" if i < len(p.columns) else "row" for p in chosen for i, site in enumerate(p.sites)}
    for part in chosen:
        cutter.divide(part)
    for table in tables:
        cutter.bias(table)
    for site, side in alone.items():
        linear = model.get_submodule(site)
        (cutter.columns(linear, gathers=True) if side == "column" else cutter.rows(linear, splits=True))
    return done | alone


def _with_tied(chosen: list[Part], parts: list[Part]) -> list[Part]:
    """With the output matrices and tables that share a weight with a chosen one."""
    held = {id(w) for p in chosen if (w := p.module._parameters.get("weight")) is not None}
    tied = [p for p in parts if p not in chosen and id(p.module._parameters.get("weight")) in held]
    return chosen + tied


def read_styles(model: nn.Module, parts: list[Part], plan: Plan, strict: bool) -> dict[str, tuple[str, bool]]:
    """The style of each site that a plan names, by our paths or public names."""
    names = site_names(model, parts)
    found: dict[str, tuple[str, bool]] = {}
    for pattern, style in plan.items():
        if style not in STYLES:
            raise ArgumentError(
                f"the style of {pattern!r} in tp_plan must be one of {sorted(STYLES)}, but is {style!r}."
                f"{nearest(style, STYLES)}"
            )
        hits = [site for site, spelled in names.items() if any(_fits(s, pattern) for s in spelled)]
        if not hits and strict and STYLES[style] is not None:
            known = sorted({re.sub(r"\d+", "*", s) for spelled in names.values() for s in spelled})
            raise ArgumentError(f"tp_plan names {pattern!r}, which is no site.{nearest(pattern, known)}")
        kind = STYLES[style]
        if kind is not None:
            found |= dict.fromkeys(hits, kind)
    return found


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.removesuffix(".weight"))


def site_names(model: nn.Module, parts: list[Part]) -> dict[str, list[str]]:
    """Every site that a plan may name -> its spellings: path, the path in the backbone, public names."""
    sites = [site for part in parts for site in part.sites]
    sites += [path for path, m in model.named_modules() if isinstance(m, Linear) and path not in sites]
    names = {site: [site, site.removeprefix("backbone.")] for site in sites}
    if isinstance(model, PreTrainedModel):
        layout = layout_of(model)
        for lines in (layout.lines(True), layout.lines(False)):
            for line in lines:
                for ours in line.ours:
                    known = names.get(ours.removesuffix(".weight"))
                    if known is not None:
                        known += [theirs.removesuffix(".weight") for theirs in line.theirs]
    return names


def chosen_parts(
    parts: list[Part], styles: dict[str, tuple[str, bool]], strict: bool
) -> tuple[list[Part], dict[str, str]]:
    """The parts that a plan divides, and single maps that it divides between whole states.

    strict: a part that cannot be divided is an error, not left whole.
    """
    chosen: list[Part] = []
    alone: dict[str, str] = {}
    inside = {site for part in parts for site in part.sites}
    for part in parts:
        wanted = {site: styles.get(site) for site in part.sites}
        sides = ["column"] * len(part.columns) + ["row"] * len(part.rows)
        given = [w[0] if w is not None else None for w in wanted.values()]
        if not any(given):
            continue
        single = len(part.sites) == 1
        apart = all(w is None or w[1] for w in wanted.values())
        if apart and not single:
            alone |= {site: w[0] for site, w in wanted.items() if w is not None}
            continue
        if given != sides:
            shown = ", ".join(f"{s}: {g or 'whole'}" for s, g in zip(part.sites, given, strict=True))
            raise ArgumentError(
                f"tp_plan must divide {part.path} as a whole ({', '.join(sides)}), but has {shown}; "
                'use "colwise_rep" and "rowwise_rep" for single maps'
            )
        if part.obstacle is None:
            chosen.append(part)
        elif strict:
            raise ArgumentError(f"tp_plan divides {part.path}, which cannot be divided: {part.obstacle}")
    alone |= {site: w[0] for site, w in styles.items() if site not in inside}
    return chosen, {site: side for site, side in alone.items() if not site.endswith("router")}


def _tell(model: nn.Module, parts: list[Part]) -> None:
    """Warn of attentions, feed-forwards and experts that every rank holds whole."""
    whole = [p for p in parts if p.obstacle is not None and not isinstance(p.module, Linear | Tokens)]
    if whole:
        warnings.warn(
            f"{len(whole)} parts of {type(model).__name__} stay whole on every rank, the first "
            f"{whole[0].path}: {whole[0].obstacle}",
            stacklevel=5,
        )
