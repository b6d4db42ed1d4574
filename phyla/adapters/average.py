"""A new adapter from the weighted average of others (Chronopoulou et al. 2023, arXiv:2302.07027)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import phyla.adapters.combine as combine
from phyla.adapters.api import _like, adapters_of
from phyla.adapters.lora import Low
from phyla.adapters.registry import Entry
from phyla.errors import AdapterError
from phyla.model import PreTrainedModel

STRATEGIES = ("linear", "lora_linear_only_negate_b", "lora_delta_w_svd")


@torch.no_grad()
def average_adapter(
    self: PreTrainedModel, adapter_name: str, adapter_list: Any, weights: list[float] | None = None,
    combine_strategy: str = "linear", normalize_weights: bool = True, overwrite_ok: bool = False,
    set_active: bool = False, svd_rank: int | None = None, density: float | None = None,
    majority_sign_method: str = "total",
) -> None:  # fmt: skip
    """Add an adapter whose parameters are the weighted average of others' (a list, or {name: weight}).

    combine_strategy: "linear"; "lora_linear_only_negate_b" (A by |weight|, B by weight); "lora_delta_w_svd"
    (the product B A, cut to svd_rank). Of LoRA alone, as PEFT combines them: "cat", "svd", "task_arithmetic",
    "magnitude_prune", "ties", "dare_linear", "dare_ties", and with `_svd` the last four on the products;
    density: the share of entries that pruning keeps. A negative weight takes an adapter off.
    """
    if isinstance(adapter_list, Mapping):
        adapter_list, weights = list(adapter_list), list(adapter_list.values())
    if combine_strategy not in (*STRATEGIES, *combine.STRATEGIES):
        known = [*STRATEGIES, *combine.STRATEGIES]
        raise AdapterError(f"combine_strategy must be one of {known}, but is {combine_strategy!r}")
    adapters = adapters_of(self)
    entries = [adapters.get(name) for name in adapter_list]
    values = [1 / len(entries)] * len(entries) if weights is None else [float(w) for w in weights]
    if len(values) != len(entries):
        raise AdapterError(
            f"there must be a weight for each of {len(entries)} adapters, but there are {len(values)}"
        )
    if normalize_weights:
        if not sum(values):
            raise AdapterError("weights that are normalised must not sum to 0")
        values = [v / sum(values) for v in values]
    config = entries[0].config
    if combine_strategy in combine.STRATEGIES:
        rank = combine.rank_of(combine_strategy, [combine.factors_of(e) for e in entries], svd_rank)
        made = adapters.make(adapter_name, combine.of_rank(config, rank), _like(self))
        combine.combine(made, entries, values, combine_strategy, density, majority_sign_method)
        adapters.add(made, overwrite_ok)
        if set_active:
            adapters.activate(adapter_name)
        return
    if combine_strategy == "lora_delta_w_svd":
        config = config.replace(r=svd_rank or config["r"])
    elif any(e.config.to_dict() != config.to_dict() for e in entries):
        raise AdapterError("adapters must have equal configurations to be averaged, but have not")
    made = adapters.make(adapter_name, config, _like(self))
    if combine_strategy != "linear":
        _low(made, entries, values, combine_strategy)
    else:
        owned = [dict(e.named_parameters()) for e in entries]
        for name, parameter in made.named_parameters():
            if any(o[name].shape != parameter.shape for o in owned):
                raise AdapterError(f"{name} has not the same shape in all adapters")
            total: Any = sum(o[name] * v for o, v in zip(owned, values, strict=True))
            parameter.copy_(total)
        bases = [dict(e.named_buffers()) for e in entries]
        for name, buffer in made.named_buffers():
            buffer.copy_(bases[0][name])
        _orthogonal(made, entries, values)
    adapters.add(made, overwrite_ok)
    if set_active:
        adapters.activate(adapter_name)


def _orthogonal(made: Entry, entries: list[Entry], values: list[float]) -> None:
    """Matrices kept orthonormal by a parametrisation: average what they are, not how they are stored."""
    for index, part in enumerate(made.parts):
        for path, module in part.named_modules():
            if nn.utils.parametrize.is_parametrized(module, "weight"):
                others: list[Any] = [e.parts[index].get_submodule(path).weight for e in entries]
                total = sum(w * v for w, v in zip(others, values, strict=True))
                module.weight = torch.linalg.qr(total.T)[0].T


def _low(made: Entry, entries: list[Entry], values: list[float], strategy: str) -> None:
    for index, part in enumerate(made.parts):
        others: list[Any] = [e.parts[index] for e in entries]
        if not isinstance(part, Low) or part.scales or part.pair is not None or part.lora_B.dim() == 3:
            raise AdapterError(f"{strategy} is for LoRA alone")
        if strategy == "lora_linear_only_negate_b":
            part.lora_A.copy_(sum(o.lora_A * abs(v) for o, v in zip(others, values, strict=True)))
            part.lora_B.copy_(sum(o.lora_B * v for o, v in zip(others, values, strict=True)))
            continue
        delta: Any = sum(o.lora_B @ o.lora_A * v for o, v in zip(others, values, strict=True))
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        rank = part.lora_A.shape[0]
        part.lora_A.copy_(vh[:rank])
        part.lora_B.copy_(u[:, :rank] * s[:rank])
