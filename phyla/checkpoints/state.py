"""The public names of one model's tensors: its lines, the place of the prefix, tied tensors and copies."""

import re
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from phyla.checkpoints.names import Line, NameMap, filled
from phyla.checkpoints.ops import Same
from phyla.checkpoints.spans import spans_of
from phyla.model import PreTrainedModel
from phyla.quantization.experts import PackedExperts
from phyla.quantization.linear import PackedParts, QuantizedLinear

BARE = ("base-model", "backbone")  # tasks of classes that save the backbone's names without a prefix


@dataclass
class Layout:
    """Lines with full paths on our side; names in `backbone` get the prefix where files have it."""

    prefix: str
    backbone: list[Line] = field(default_factory=list)
    head: list[Line] = field(default_factory=list)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    copies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    inside: str = ""

    def lines(self, prefixed: bool) -> list[Line]:
        """All lines as a file with or without the backbone's prefix spells them."""
        ahead = self.prefix + "." if prefixed and self.prefix else ""
        return [Line(li.ours, tuple(ahead + n for n in li.theirs), li.op) for li in self.backbone] + self.head


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and stored buffers by path, tied ones under each of their paths; outlines of packed ones."""
    found: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    seen: set[nn.Module] = set()  # buffers of a module that stands at two paths count once
    for path, module in model.named_modules(remove_duplicate=False):
        ahead = path + "." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found[ahead + name] = parameter
        if module in seen or isinstance(module, PackedParts):
            continue
        seen.add(module)
        if isinstance(module, QuantizedLinear):
            rest[ahead + "weight"] = module.outline
        elif isinstance(module, PackedExperts):
            rest[path] = module.outline
        elif (whole := module._modules.get("packed")) is not None:
            rest[ahead + "weight"] = whole.outline  # blocks of a GGUF file, expanded when they are saved
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                rest[ahead + name] = buffer
    return {**found, **rest}


def layout_of(model: PreTrainedModel) -> Layout:
    """The layout of a model's class and configuration."""
    if model.is_own():
        return _own_layout(model)
    head_spec, where = model.head_spec, type(model).__name__
    parts = ("backbone", "head", *model.more_names())  # and no adapters: there may be hundreds
    tensors = {
        f"{part}.{path}": tensor
        for part, module in model.named_children()
        if part in parts
        for path, tensor in tensors_of(module).items()
    }
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for path, tensor in tensors.items():
        if id(tensor) in first:
            tied[path] = first[id(tensor)]
        else:
            first[id(tensor)] = path
    layout = Layout("", inside=model.family.inside)
    names = head_spec.names
    names = names(model.config) if callable(names) else names
    head_table = names if isinstance(names, NameMap) else NameMap(names)
    tables = {"backbone": model.family.table(model.config, head_spec), "head": head_table}
    for part, table in {**tables, **model.more_names()}.items():
        own = {p.removeprefix(part + "."): t.shape for p, t in tensors.items() if p.startswith(part + ".")}
        bound = table.bind(own, where, {p.removeprefix(part + ".") for p in tied})
        flat = bound.table
        if part == "backbone":
            layout.prefix, layout.ignore = table.prefix, flat.ignore
        ahead = table.prefix + "." if part == "backbone" and table.prefix else ""
        for line in bound.lines:
            ours = tuple(f"{part}.{p}" for p in line.ours)
            if all(p in tied for p in ours):
                for path, name in zip(ours, line.theirs, strict=False):
                    layout.aliases[tied[path]] = (*layout.aliases.get(tied[path], ()), ahead + name)
                continue
            (layout.backbone if part == "backbone" else layout.head).append(Line(ours, line.theirs, line.op))
        for mine, theirs in ((layout.aliases, flat.aliases), (layout.copies, flat.copies)):
            for path, public in theirs.items():
                for leaf, full, holes in _leaves(f"{part}.{path}", tensors):
                    spelled = tuple(ahead + filled(f"{n}.{leaf}" if leaf else n, holes) for n in public)
                    mine[tied.get(full, full)] = (*mine.get(tied.get(full, full), ()), *spelled)
    return layout


def _own_layout(model: PreTrainedModel) -> Layout:
    """That of a class of one's own: its layers under their paths, its models under theirs.

    A bare model that stands where its family's classes have it (`bert`) may be in the file alone, too.
    """
    layout, taken = Layout(""), set()
    for path, inner in model.parts().items():
        own, prefixed = layout_of(inner), saves_prefix(inner)
        based = own.prefix == path and not prefixed
        ahead = "" if based else path + "."
        lines = [
            Line(tuple(f"{path}.{p}" for p in li.ours), tuple(ahead + n for n in li.theirs), li.op)
            for li in own.lines(prefixed)
        ]
        if based:
            layout.prefix, layout.backbone, layout.ignore = path, lines, own.ignore
        else:
            layout.head += lines
        cut = "" if based or prefixed or not own.prefix else own.prefix + "."
        for mine, theirs in ((layout.aliases, own.aliases), (layout.copies, own.copies)):
            for ours, names in theirs.items():
                mine[f"{path}.{ours}"] = tuple(ahead + n.removeprefix(cut) for n in names)
        taken |= {id(t) for t in tensors_of(inner).values()}
    for path, tensor in tensors_of(model).items():
        if id(tensor) not in taken:
            taken.add(id(tensor))
            layout.head.append(Line((path,), (path,), Same()))
    return layout


def saves_prefix(model: PreTrainedModel) -> bool:
    """Whether the model's own files have the backbone's names behind its prefix."""
    return model.is_own() or model.head_spec.task not in BARE or model.head_spec.prefix is not None


def _leaves(path: str, tensors: dict[str, Tensor]) -> list[tuple[str, str, dict[str, int]]]:
    """(leaf, full path, numbers in its holes) of the tensors that a table's path means: itself, or all leaves
    of that module.
    """
    if "{" in path:
        pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(path)))
        found = ((p, pattern.fullmatch(p)) for p in tensors)
        return [("", p, {k: int(v) for k, v in m.groupdict().items()}) for p, m in found if m]
    if path in tensors:
        return [("", path, {})]
    return [(p.rpartition(".")[2], p, {}) for p in tensors if p.rpartition(".")[0] == path]


def public_tensors(model: PreTrainedModel, on_first: bool = False) -> dict[str, Tensor]:
    """Every tensor of the model under its public name, as files hold it.

    on_first: of a model that is divided over ranks, parts are put together on the first alone, in the main
    memory; others get what they hold whole.
    """
    layout = layout_of(model)
    tensors = tensors_of(model)
    spans = spans_of(model)
    result: dict[str, Tensor] = {}
    for line in layout.lines(saves_prefix(model)):
        owner = model.get_submodule(line.ours[0].rpartition(".")[0])
        if isinstance(owner, QuantizedLinear) and line.ours[0].endswith(".weight"):
            stem = line.theirs[0].removesuffix("weight")
            result.update({stem + leaf: part for leaf, part in owner.packed.parts.items()})
            continue
        experts = owner._modules.get(line.ours[0].rpartition(".")[2])
        if isinstance(experts, PackedExperts) and experts.held:
            for name, held in zip(line.theirs, experts.held, strict=True):
                stem = name.removesuffix("weight")
                result.update({stem + leaf: part for leaf, part in held.parts.items()})
            continue
        ours = [_expanded(model, p, tensors[p], spans.get(p)) for p in line.ours]
        if on_first and any(p in spans for p in line.ours):
            if spans[next(p for p in line.ours if p in spans)].ranks.rank:
                continue
            ours = [t.cpu() for t in ours]
        values = line.op.save(ours)
        result.update(zip(line.theirs, values, strict=True))
        for path, value in zip(line.ours, values, strict=False):
            for name in layout.copies.get(path, ()):
                result[name] = value
    return result


def _expanded(model: PreTrainedModel, path: str, tensor: Tensor, span: Any) -> Tensor:
    """A tensor of the model, put together where ranks hold parts; for an outline of packed blocks, their
    values."""
    if not tensor.is_meta:
        return tensor.detach() if span is None else span.joined(tensor.detach())
    owner, _, leaf = path.rpartition(".")
    found = getattr(model.get_submodule(owner), leaf)
    return found.dense() if isinstance(found, PackedExperts) else found.detach()
