"""Public tensor names of a family: a table from our module paths to theirs, total and invertible."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from phyla.checkpoints.ops import Same, Split, Stack
from phyla.errors import NameMapError, nearest

_HOLE = re.compile(r"\{(\w+)\}")
_LEGACY = {"gamma": "weight", "beta": "bias"}
_LAYER = "layers.{i}."
_AHEAD = {"embed_norm": "enorm", "state_norm": "hnorm", "join": "eh_proj", "norm": "shared_head.norm"}


@dataclass(frozen=True)
class To:
    """The right side of a line when it is more than a name: public paths, and what happens on the way.

    Use the makers `split`, `stack`, `transposed`, `reshaped` of this module.
    """

    path: str
    op: Same
    count: str | int = ""
    joint: str = "."  # between the path and a leaf (`in_proj_weight`)


@dataclass(frozen=True)
class Line:
    """Our parameters (several for a split) and the public tensors (several for a stack) that hold them."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    op: Same


@dataclass(frozen=True)
class NameMap:
    """Module path -> public path. Leaves ride along: a line for `norm` covers `norm.weight` and `norm.bias`.

    lines: `{i}` is a layer number on both sides; a left side may name parts: `layers.{i}.attn.q|k|v`.
    prefix: what stands before the backbone's names in files of models with a head, not of the bare backbone.
    aliases: public names that are only read, ours -> theirs (other copies of a tied tensor).
    copies: public names that are written as well, ours -> theirs (a tied tensor that files hold twice).
    ignore: patterns of public tensors that hold nothing we need.
    parts: module path -> (public prefix, map of that part).
    """

    lines: Mapping[str, str | To]
    prefix: str = ""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, "NameMap"]] = field(default_factory=dict)

    def but(self, **changes: Any) -> "NameMap":
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def flat(self) -> "NameMap":
        """This map with the maps of its parts written out."""
        lines, aliases, copies, ignore = (
            dict(self.lines),
            dict(self.aliases),
            dict(self.copies),
            list(self.ignore),
        )
        for path, (public, part) in self.parts.items():
            part = part.flat()
            ahead = public + (part.prefix + "." if part.prefix else "")
            for ours, theirs in part.lines.items():
                lines[f"{path}.{ours}"] = _prefixed(theirs, ahead)
            for table, extra in ((aliases, part.aliases), (copies, part.copies)):
                for ours, names in extra.items():
                    table[f"{path}.{ours}"] = tuple(ahead + n for n in names)
            ignore += [re.escape(ahead) + pattern for pattern in part.ignore]
        return NameMap(lines, self.prefix, aliases, copies, tuple(ignore))

    def bind(
        self, shapes: Mapping[str, torch.Size], where: str = "this model", tied: Collection[str] = ()
    ) -> "Bound":
        """The lines of a model with these parameters; NameMapError unless the table is total and one-to-one.

        `tied` are parameters that have a name already, at another path; they may be without a line.
        """
        flat = self.flat()
        index = _Index(flat.lines)
        lines: dict[tuple[str, ...], Line] = {}
        for ours in shapes:
            found = index.find(ours)
            if found is None and ours in tied:
                continue
            if found is None:
                raise NameMapError(f"{where}: {ours} has no public name.{nearest(ours, flat.lines)}")
            parts, right, holes, leaf = found
            group = tuple(f"{p}.{leaf}" if leaf else p for p in parts)
            if group in lines:
                continue
            lines[group] = Line(group, _public(right, holes, leaf, shapes[ours]), _operation(right))
        stale = index.unused()
        taken: dict[str, tuple[str, ...]] = {}
        for group, line in lines.items():
            for name in line.theirs:
                if name in taken:
                    raise NameMapError(f"{where}: {group} and {taken[name]} have the same public name {name}")
                taken[name] = group
        return Bound(list(lines.values()), flat, stale)


@dataclass
class Bound:
    """A name map applied to one model: its lines, and the table's lines that this model has no use for."""

    lines: list[Line]
    table: NameMap
    unused: list[str]

    def public(self) -> list[str]:
        """All public names, without the prefix."""
        return [name for line in self.lines for name in line.theirs]

    def ignored(self, name: str) -> bool:
        """Whether a public tensor is known to hold nothing we need."""
        return any(re.fullmatch(pattern, name) for pattern in self.table.ignore)


def split(path: str, groups: int = 1, transpose: bool = False, joint: str = ".") -> To:
    """One public tensor holds all parts that the left side names, in order; see ops.Split."""
    return To(path, Split(groups, transpose), joint=joint)


def stack(path: str) -> To:
    """One of ours is stored as one public tensor for each `{e}` of the path; see ops.Stack."""
    return To(path, Stack())


def names_ahead(table: NameMap, first: int, count: int) -> NameMap:
    """Names of `count` heads ahead (blocks/ahead.py) that files hold as layers from number `first` on.

    Their layers are named as the model's own; beside them stand the norms and the projection of DeepSeek-V3.
    """
    lines: dict[str, str | To] = {}
    for depth in range(count):
        number = {"i": first + depth}
        for ours, theirs in table.lines.items():
            if not ours.startswith(_LAYER):
                continue
            path = filled(theirs if isinstance(theirs, str) else theirs.path, number)
            mine = f"{depth}.layer.{ours.removeprefix(_LAYER)}"
            lines[mine] = path if isinstance(theirs, str) else replace(theirs, path=path)
        for mine, public in _AHEAD.items():
            lines[f"{depth}.{mine}"] = f"layers.{first + depth}.{public}"
    return NameMap(lines, prefix=table.prefix)


def modern(name: str) -> str:
    """The name without the oldest spellings of norm weights (`gamma`, `beta`)."""
    head, _, leaf = name.rpartition(".")
    return f"{head}.{_LEGACY[leaf]}" if leaf in _LEGACY and head else name


def _prefixed(right: str | To, ahead: str) -> str | To:
    return ahead + right if isinstance(right, str) else replace(right, path=ahead + right.path)


def _operation(right: str | To) -> Same:
    return Same() if isinstance(right, str) else right.op


def _public(right: str | To, holes: Mapping[str, int], leaf: str, shape: torch.Size) -> tuple[str, ...]:
    path = right if isinstance(right, str) else right.path
    if leaf:
        path = f"{path}{right.joint if isinstance(right, To) else '.'}{leaf}"
    path = filled(path, holes)
    if isinstance(right, To) and isinstance(right.op, Stack):
        return tuple(_HOLE.sub(str(e), path) for e in range(shape[0]))
    return (path,)


def filled(path: str, holes: Mapping[str, int]) -> str:
    """The path with its holes filled, those without a number left open."""
    return _HOLE.sub(lambda m: str(holes[m[1]]) if m[1] in holes else m[0], path)


class _Index:
    """Left sides by shape (numbers replaced by a mark), so that a parameter finds its line at once."""

    def __init__(self, lines: Mapping[str, str | To]) -> None:
        self.entries: dict[str, tuple[list[str], str, str | To, list[str]]] = {}
        self.used: set[str] = set()
        for left, right in lines.items():
            stem, _, last = left.rpartition(".")
            for part in last.split("|"):
                path = f"{stem}.{part}" if stem else part
                key = _HOLE.sub("#", path)
                if key in self.entries:
                    raise NameMapError(f"two lines of the name map mean {path}")
                siblings = [f"{stem}.{p}" if stem else p for p in last.split("|")]
                self.entries[key] = (siblings, left, right, _HOLE.findall(path))

    def find(self, parameter: str) -> tuple[list[str], str | To, dict[str, int], str] | None:
        path, leaf = parameter, ""
        while True:
            pieces = path.split(".")
            numbers = [int(p) for p in pieces if p.isdigit()]
            entry = self.entries.get(".".join("#" if p.isdigit() else p for p in pieces))
            if entry is None:
                entry = self.entries.get(path)
                numbers = [] if entry is not None else numbers
            if entry is not None:
                siblings, left, right, names = entry
                holes = dict(zip(names, numbers, strict=True))
                self.used.add(left)
                return [filled(path, holes) for path in siblings], right, holes, leaf
            if leaf or "." not in path:
                return None
            path, _, leaf = path.rpartition(".")

    def unused(self) -> list[str]:
        return sorted({left for _, left, _, _ in self.entries.values()} - self.used)
