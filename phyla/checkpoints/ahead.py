"""Heads that guess further tokens: files hold them beside the model, which has no use for them itself.

They are read from the model's own checkpoint when they are first needed, and written with the model.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.cache import number_slots
from phyla.blocks.spec import Block
from phyla.checkpoints.configs import make_config, read_config
from phyla.checkpoints.names import NameMap
from phyla.checkpoints.state import Layout, saves_prefix, tensors_of
from phyla.checkpoints.weights import Weights, open_weights
from phyla.errors import ArgumentError, CheckpointError, MissingWeightsError

logger = logging.getLogger("phyla")

# In a model's own dictionary, because they are no part of it: where it was read from, and its heads.
SOURCE, KEPT = "_read_from", "_heads_ahead"


def heads_ahead(model: Any) -> nn.ModuleList:
    """The heads (blocks/ahead.py) of a model, one a depth, in its dtype and on its device; read once.

    Raises ArgumentError for models without such heads, MissingWeightsError where the file has none.
    """
    described = _described(model)
    if described is None:
        raise ArgumentError(
            f"{type(model).__name__} must have heads that guess further tokens, but its family, or its "
            "configuration (num_nextn_predict_layers), has none"
        )
    kept = model.__dict__.get(KEPT)
    if kept is None:
        path = model.__dict__.get(SOURCE)
        if path is None:
            raise MissingWeightsError(
                f"the heads that guess further tokens are read from a model's checkpoint, but this "
                f"{type(model).__name__} was not: use from_pretrained"
            )
        kept = model.__dict__[KEPT] = _read(model, described, Path(path))
    if _kind(kept) != (model.device, model.dtype):
        kept.to(model.device, model.dtype)
    return kept


def public_ahead(model: Any) -> dict[str, Tensor]:
    """The heads' tensors by public name: those in use, else those of the file the model was read from."""
    described, kept, path = _described(model), model.__dict__.get(KEPT), model.__dict__.get(SOURCE)
    if described is None or (kept is None and path is None):
        return {}
    if kept is None:
        try:
            with open_weights(path) as stored:
                if not _held(described.names, len(described.depths), stored):
                    return {}
            kept = _read(model, described, Path(path))
        except (CheckpointError, OSError) as error:
            logger.warning(
                "%s is saved without the heads that guess further tokens: %s", type(model).__name__, error
            )
            return {}
    layout, tensors = _layout(described.names, kept), tensors_of(kept)
    found: dict[str, Tensor] = {}
    for line in layout.lines(saves_prefix(model)):
        values = line.op.save([tensors[path].detach() for path in line.ours])
        found.update(zip(line.theirs, values, strict=True))
    ahead = f"{layout.prefix}." if saves_prefix(model) and layout.prefix else ""
    tables = {"embed_tokens": model.get_input_embeddings(), "shared_head.head": model.get_output_embeddings()}
    for name in kept.__dict__["copies"]:
        value = getattr(
            next(t for end, t in tables.items() if name.endswith(f".{end}.weight")), "weight", None
        )
        if isinstance(value, Tensor):
            found[ahead + name] = value.detach()
    return found


def _described(model: Any) -> Any:
    family = getattr(type(model), "family", None)
    found = None if family is None or family.ahead is None else family.ahead(model.config)
    return found if found is not None and found.depths else None


def _kind(heads: nn.ModuleList) -> tuple[torch.device, torch.dtype]:
    first = next(heads.parameters())
    return first.device, first.dtype


def _layout(names: NameMap, heads: nn.ModuleList) -> Layout:
    bound = names.bind({path: t.shape for path, t in tensors_of(heads).items()}, "heads ahead")
    return Layout(names.prefix, backbone=bound.lines)


def _held(names: NameMap, depths: int, weights: Weights) -> bool:
    """Whether a file has something of each head."""
    ahead = tuple(f"{names.prefix}." if prefixed else "" for prefixed in (True, False))
    return all(
        any(a + str(names.lines[f"{depth}.join"]) + ".weight" in weights.infos for a in ahead)
        for depth in range(depths)
    )


def _copies(names: NameMap, depths: int, weights: Weights) -> list[str]:
    """Names, without a prefix, under which a file repeats the model's token table and output matrix."""
    stems = [str(names.lines[f"{depth}.join"]).rpartition(".")[0] for depth in range(depths)]
    due = [f"{stem}.{table}.weight" for stem in stems for table in ("embed_tokens", "shared_head.head")]
    return [name for name in due if name in weights.infos or f"{names.prefix}.{name}" in weights.infos]


def _read(model: Any, described: Any, path: Path) -> nn.ModuleList:
    from phyla.checkpoints.load import choose_lines, fill
    from phyla.checkpoints.report import LoadReport
    from phyla.quantization.plan import QuantizationPlan

    with torch.device("meta"):
        heads = nn.ModuleList(spec.make() for spec in described.depths)
    number_slots(heads)
    heads.__dict__["config"] = model.config
    layout, source = _layout(described.names, heads), str(path)
    config = make_config(read_config(path), source, type(model.config))
    plan = QuantizationPlan.of(config, source, None, {}, False, path)
    with open_weights(path) as stored:
        weights = plan.open(stored)
        plan.install(heads, weights, layout, model.dtype)
        lines = choose_lines(layout, {name: name for name in weights.infos})
        missing = [name for line in lines for name in line.theirs if name not in weights.infos]
        if missing:
            raise MissingWeightsError(
                f"{source} must hold the heads that guess further tokens, but lacks {len(missing)} of their "
                f"tensors: {', '.join(missing[:3])}, ..."
            )
        fill(heads, layout, weights, model.dtype, model.device, LoadReport(source))  # type: ignore[arg-type]
        heads.__dict__["copies"] = _copies(described.names, len(heads), weights)
    for module in heads.modules():
        if isinstance(module, Block):
            module.fill_buffers()
    return heads.eval()
