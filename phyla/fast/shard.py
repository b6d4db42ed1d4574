"""Tensor parallelism: the ranks of a group of torch.distributed hold one model together.

shares.py: what modules become. division.py: which of a model's parts can be divided, and how one is.
shard_plan.py: plans of patterns and styles. shard_adapters.py: adapters that come later.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from phyla.blocks.shares import Ranks
from phyla.checkpoints.spans import spans_of
from phyla.errors import ArgumentError
from phyla.fast.division import Cutter, find_parts
from phyla.fast.shard_adapters import adding, saving, whole_head
from phyla.fast.shard_plan import Plan, divide_by

_ADDING = ("add_adapter", "load_adapter", "_adapters_restore")
_SAVING = (
    "save_adapter", "save_all_adapters", "save_adapter_fusion", "save_all_adapter_fusions",
    "save_adapter_setup", "save_head", "save_all_heads",
)  # fmt: skip
# Methods that draw random numbers, which must be the same on all ranks; an engine packs its model first.
_DRAWING = (*_ADDING, "add_adapter_fusion", "generate", "generate_batch", "pack")
# Methods that need whole weights.
_WHOLE = (
    "merge_adapter", "reset_adapter", "resize_token_embeddings", "set_input_embeddings",
    "set_output_embeddings", "add_embeddings", "load_embeddings", "to_jax",
)  # fmt: skip


def shard(model: nn.Module, group: Any = None, plan: Plan | str | None = None) -> nn.Module:
    """Divide a built model over the ranks of a group, in place; every rank has built the same one.

    group: of torch.distributed, a DeviceMesh, or None for all processes. plan: "auto" or None for all parts
    that can be divided, or site patterns and styles ({"layers.*.attn.q": "colwise", ...}), public names too.
    Every rank then makes the same calls with the same inputs, and gets the whole model's results. Raises
    ArgumentError for plans, sizes and weights that do not go together.
    """
    if "ranks" in vars(model):
        raise ArgumentError(f"{type(model).__name__} is divided already: load it anew to divide it otherwise")
    ranks = Ranks(_group_of(group))
    _check_alike(model, ranks)
    _divide(model, ranks, plan)
    return model


@torch.no_grad()
def clip_grad_norm_(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale the gradients so that their norm over all ranks is at most max_norm; the norm from before.

    As `torch.nn.utils.clip_grad_norm_` for a model that is not divided; all ranks call it.
    """
    ranks, spans = vars(model)["ranks"], spans_of(model)
    held = {path: p.grad for path, p in model.named_parameters() if p.grad is not None}
    norms = {path: torch.linalg.vector_norm(g.float()).square() for path, g in held.items()}
    zero = torch.zeros((), device=next(model.parameters()).device)
    norm = ranks.total(sum((n for path, n in norms.items() if path in spans), zero.clone()))
    norm = sum((n for path, n in norms.items() if path not in spans), norm).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in held.values():
        gradient.mul_(scale.to(gradient.dtype))
    return norm


def divide_for_loading(self: Any, plan: Any, size: int | None, mesh: Any) -> torch.device:
    """Divide a model on the meta device that is about to be filled; the device of this rank's part."""
    _start()
    ranks = Ranks(_group_of(mesh) if mesh is not None else _group_of_size(size))
    if mesh is not None and size not in (None, ranks.size):
        raise ArgumentError(f"tp_size must be that of device_mesh ({ranks.size}), but is {size}")
    _divide(self, ranks, plan)
    if dist.get_backend(ranks.group) != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def supports_tp_plan(self: nn.Module) -> bool:
    """Whether `tp_plan="auto"` divides some of this model's layers (over two ranks)."""
    if "ranks" in vars(self):
        return True
    return any(part.obstacle is None and part.rows and part.columns for part in find_parts(self, 2))


def tp_size(self: nn.Module) -> int | None:
    """Over how many ranks the model is divided; None where it is not."""
    ranks = vars(self).get("ranks")
    return None if ranks is None else ranks.size


def _divide(model: nn.Module, ranks: Ranks, plan: Any) -> None:
    ranks.align()
    cutter = Cutter(ranks)
    sites = divide_by(model, plan, cutter) if ranks.size > 1 else {}
    model.__dict__.update(ranks=ranks, tp_sites=sites)
    for names, way in ((_DRAWING, _aligned), (_SAVING, _saved), (("load_head",), _loaded)):
        for name in names:
            if _has(model, name):
                model.__dict__[name] = functools.partial(way, model, name)
    for name in _WHOLE:
        if _has(model, name):
            model.__dict__[name] = functools.partial(_refuse, name, ranks.size)


def _has(model: nn.Module, name: str) -> bool:
    """Whether the class has a method, which need not be imported to tell."""
    return inspect.getattr_static(type(model), name, None) is not None


def _aligned(model: Any, name: str, *given: Any, **named: Any) -> Any:
    """A method of the model's class, with random numbers that are the same on all ranks."""
    if name.startswith("generate"):
        _refuse_clocks(model, named)
    model.ranks.align()
    method = _method(model, name)
    return adding(model, method, given, named) if name in _ADDING else method(*given, **named)


def _refuse_clocks(model: Any, named: dict[str, Any]) -> None:
    """ArgumentError for a limit of time: ranks would stop at different tokens."""
    config = named.get("generation_config") or model.generation_config
    if named.get("max_time", config.max_time) is not None:
        raise ArgumentError(
            "max_time ends a text by a clock, and every rank has its own: limit max_new_tokens instead"
        )


def _saved(model: Any, name: str, *given: Any, **named: Any) -> None:
    saving(model, _method(model, name), given, named)


def _loaded(model: Any, name: str, *given: Any, **named: Any) -> Any:
    with whole_head(model):
        return _method(model, name)(*given, **named)


def _method(model: Any, name: str) -> Callable[..., Any]:
    return getattr(type(model), name).__get__(model)


def _refuse(name: str, size: int, *given: Any, **named: Any) -> Any:
    raise ArgumentError(
        f"{name} needs whole weights, but the model is divided over {size} ranks: call it before, or save "
        "the model and load it whole"
    )


def _check_alike(model: nn.Module, ranks: Ranks) -> None:
    """Raise ArgumentError unless all ranks have built the same model."""
    sums = {}
    for name, p in model.named_parameters():
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[p.element_size()]
        sums[name] = (tuple(p.shape), 0 if p.is_meta else int(p.detach().view(kind).sum()))
    for rank, other in enumerate(ranks.every(sums)):
        if other != sums:
            name = next((n for n in sums if other.get(n) != sums[n]), "its parameters")
            raise ArgumentError(
                f"all ranks must hold the same model before it is divided, but {name} differs between ranks "
                f"{ranks.rank} and {rank}: load one checkpoint on all, or draw fresh weights by one seed"
            )


def _start() -> None:
    """Join the processes that torchrun has started, unless the program has."""
    if not dist.is_available():
        raise ArgumentError("tp_plan needs torch.distributed, which this build of torch leaves out")
    if dist.is_initialized():
        return
    missing = [n for n in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise ArgumentError(
            f"tp_plan divides a model over processes, but there is one ({missing[0]} is not set): start the "
            "program with torchrun --nproc-per-node=N, or call torch.distributed.init_process_group first"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _group_of_size(size: int | None) -> Any:
    """The group of this process where `size` neighbours hold a model together; None for all."""
    world = dist.get_world_size()
    if size in (None, world):
        return None
    if not isinstance(size, int) or size < 1 or world % size:
        raise ArgumentError(f"tp_size must divide the number of processes ({world}), but is {size!r}")
    every = [dist.new_group(list(range(at, at + size))) for at in range(0, world, size)]
    return every[dist.get_rank() // size]


def _group_of(given: Any) -> Any:
    """The process group that a group, a mesh of devices or None stands for."""
    if not dist.is_available() or not dist.is_initialized():
        raise ArgumentError("shard needs torch.distributed: call torch.distributed.init_process_group first")
    if not hasattr(given, "mesh_dim_names"):
        return given
    names = given.mesh_dim_names or ()
    if "tp" in names:
        return given["tp"].get_group()
    if given.ndim != 1:
        raise ArgumentError(f'device_mesh must have one dimension or one named "tp", but has {list(names)}')
    return given.get_group()
