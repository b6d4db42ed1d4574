"""A model as a tree: every part with its site, shape and public name. Works on the meta device."""

from typing import Any

from torch import nn

from phyla.checkpoints.state import layout_of
from phyla.model import PreTrainedModel


def describe(source: Any, repeat: bool = False, **options: Any) -> str:
    """The tree of a model, a configuration, a model_type, or a checkpoint (whose weights are not read).

    repeat=True prints every layer; otherwise layers of one shape are printed once with their range.
    """
    from phyla.auto import AutoConfig
    from phyla.config import PretrainedConfig
    from phyla.registry import model_class, row, table

    if isinstance(source, PreTrainedModel):
        return tree(source, repeat)
    if isinstance(source, PretrainedConfig):
        config = source
    elif source in table():
        config = AutoConfig.for_model(source)
    else:
        config = AutoConfig.from_pretrained(source, **options)
    entry = row(config.model_type)
    named = next((n for n in config.architectures or [] if n in entry.classes), None)
    tasks = list(entry.classes.values())
    task = entry.classes[named] if named else "base-model" if "base-model" in tasks else tasks[0]
    return tree(meta_model(model_class(config.model_type, task, config.architectures), config), repeat)


def meta_model(cls: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model without memory: all its parameters are on the meta device."""
    model = cls.__new__(cls)
    nn.Module.__init__(model)
    model._assemble(config)
    return model


def describe_model(self: PreTrainedModel, repeat: bool = False) -> str:
    """This model as a tree of parts, shapes, public names and sites."""
    return tree(self, repeat)


def tree(model: PreTrainedModel, repeat: bool) -> str:
    """Lines of `path  part  shape  public name`, indented by depth."""
    public = public_names(model)
    count = model.num_parameters()
    lines = [f"{type(model).__name__} ({model.config.model_type}, {count / 1e6:.1f} M parameters)"]
    _walk(model, "", 1, public, lines, repeat)
    width = max(len(left) for left in (line.split("\t")[0] for line in lines))
    return "\n".join(
        "  ".join([p.ljust(width) if i == 0 else p for i, p in enumerate(line.split("\t"))]).rstrip()
        for line in lines
    )


def public_names(model: PreTrainedModel) -> dict[str, str]:
    """Public name of each parameter path; parts of a fused tensor name it with their place."""
    layout = layout_of(model)
    names: dict[str, str] = {}
    prefixed = model.head_spec.task != "base-model" or model.head_spec.prefix is not None
    for line in layout.lines(prefixed):
        for index, path in enumerate(line.ours):
            part = f"[{index + 1}/{len(line.ours)}]" if len(line.ours) > 1 else ""
            more = f" (+{len(line.theirs) - 1})" if len(line.theirs) > 1 else ""
            names[path] = line.theirs[0] + part + more
    return names


def _walk(
    module: nn.Module, path: str, depth: int, public: dict[str, str], lines: list[str], repeat: bool
) -> None:
    pad = "  " * depth
    for name, tensor in module.named_parameters(recurse=False):
        full = f"{path}.{name}" if path else name
        lines.append(f"{pad}{name}\t{tuple(tensor.shape)}\t{public.get(full, 'tied')}")
    children = list(module.named_children())
    index = 0
    while index < len(children):
        name, child = children[index]
        full = f"{path}.{name}" if path else name
        last = index
        if name.isdigit() and not repeat:
            while last + 1 < len(children) and _shape(children[last + 1][1]) == _shape(child):
                last += 1
        label = f"{name}..{children[last][0]}" if last > index else name
        site = getattr(child, "site", None)
        mark = f"\t[{type(site).__name__}]" if site is not None else ""
        leaf = list(child.named_parameters(recurse=False)) and not list(child.children())
        if leaf:
            shown = [f"{n} {tuple(t.shape)}" for n, t in child.named_parameters(recurse=False)]
            first = next(iter(child.named_parameters(recurse=False)))[0]
            name_there = public.get(f"{full}.{first}", "tied").removesuffix(f".{first}")
            lines.append(f"{pad}{label}\t{type(child).__name__}\t{', '.join(shown)}\t{name_there}{mark}")
        else:
            lines.append(f"{pad}{label}\t{type(child).__name__}{mark}")
            _walk(child, full, depth + 1, public, lines, repeat)
        index = last + 1


def _shape(module: nn.Module) -> tuple:
    """What makes two layers look the same."""
    spec = getattr(module, "spec", None)
    return (
        spec
        if spec is not None
        else (type(module), tuple((n, tuple(p.shape)) for n, p in module.named_parameters()))
    )
