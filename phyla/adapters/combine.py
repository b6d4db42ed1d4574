"""LoRA adapters combined into one: task arithmetic, TIES, DARE, magnitude pruning, concatenation, SVD.

Ilharco et al. 2023 (arXiv:2212.04089);
Yadav et al. 2023 (arXiv:2306.01708); Yu et al. 2024 (arXiv:2311.03099).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from phyla.adapters.config import AdapterConfig
from phyla.errors import AdapterError

# name -> how the tensors of one kind become one; each also as `name_svd`, on the products B A
RULES = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "magnitude_prune")
STRATEGIES = ("cat", "svd", *RULES, *(f"{r}_svd" for r in RULES[1:]))


def factors_of(entry: Any) -> dict[str, Any]:
    """The low-rank parts of an adapter by place; AdapterError where one is no plain LoRA."""
    found: dict[str, Any] = {}
    for place, at in entry.items():
        part = getattr(at, "part", at)
        plain = hasattr(part, "lora_A") and hasattr(part, "lora_B") and part.lora_A.dim() == part.lora_B.dim()
        special = ("m", "gate", "lora_bias", "lora_E", "start_A")
        if not plain or any(getattr(part, name, None) is not None for name in special):
            raise AdapterError(
                f"{entry.name!r} is no plain LoRA at {place.path}: it can only be averaged linearly"
            )
        found.setdefault(getattr(part, "path", place.path), part)
    for overlay in entry.overlays:
        for part in overlay.members:
            if not hasattr(part, "lora_A") or part.kind == "parameter":
                raise AdapterError(f"{entry.name!r} is no plain LoRA at {part.path}")
            found.setdefault(f"{part.path}", part)
    if not found or len(entry.replaced):
        raise AdapterError(f"{entry.name!r} holds more than LoRA: it cannot be combined with others")
    return found


def rank_of(strategy: str, entries: list[dict[str, Any]], svd_rank: int | None) -> int:
    """The rank of the combination; AdapterError where the ranks do not fit the strategy."""
    ranks = [{part.lora_A.shape[0] for part in parts.values()} for parts in entries]
    if any(len(r) > 1 for r in ranks) and strategy not in ("svd",) and not strategy.endswith("_svd"):
        raise AdapterError(f"{strategy} needs one rank for all modules of an adapter, but there are {ranks}")
    most = [max(r) for r in ranks]
    if strategy == "cat":
        return sum(most)
    if strategy == "svd" or strategy.endswith("_svd"):
        return svd_rank or max(most)
    if len(set(most)) > 1:
        raise AdapterError(
            f"{strategy} needs adapters of one rank, but they have {most}; use {strategy}_svd or cat"
        )
    return most[0]


def of_rank(config: AdapterConfig, rank: int) -> AdapterConfig:
    """The configuration with another rank and a scaling of 1."""
    if config.architecture == "peft":
        changes: dict[str, Any] = {"lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}}
        return config.replace(r=rank, use_rslora=False, init_lora_weights=True, **changes)
    return config.replace(r=rank, alpha=rank)


@torch.no_grad()
def combine(
    made: Any, entries: list[Any], weights: list[float], strategy: str, density: float | None,
    majority_sign_method: str,
) -> None:  # fmt: skip
    """Fill the parts of a new adapter of `rank_of` these, whose scaling is 1."""
    pruned = strategy.removesuffix("_svd") in ("ties", "dare_linear", "dare_ties", "magnitude_prune")
    if pruned and (density is None or not 0 <= density <= 1):
        raise AdapterError(f"{strategy} needs a density from 0 to 1, but it is {density}")
    if majority_sign_method not in ("total", "frequency"):
        raise AdapterError(
            f"majority_sign_method must be total or frequency, but is {majority_sign_method!r}"
        )
    all_parts = [factors_of(e) for e in entries]
    for path, part in factors_of(made).items():
        given = [(parts[path], w) for parts, w in zip(all_parts, weights, strict=True) if path in parts]
        if not given:
            raise AdapterError(f"none of the adapters changes {path}")
        low, high = _factors(part, given, strategy, density or 0.0, majority_sign_method)
        part.lora_A.zero_()
        part.lora_B.zero_()
        part.lora_A[: low.shape[0]] = low.view(-1, *part.lora_A.shape[1:])
        part.lora_B[:, : high.shape[1]] = high.view(len(high), -1, *part.lora_B.shape[2:])


def _factors(
    part: Any, given: list[tuple[Any, float]], strategy: str, density: float, method: str
) -> tuple[Tensor, Tensor]:
    if strategy == "cat":
        low = torch.cat([p.lora_A.flatten(1) * (w * p.scaling) for p, w in given])
        return low, torch.cat([p.lora_B.flatten(1) for p, _ in given], 1)
    if strategy == "svd" or strategy.endswith("_svd"):
        deltas = [p.lora_B.flatten(1) @ p.lora_A.flatten(1) * p.scaling for p, _ in given]
        rule = strategy.removesuffix("_svd") if strategy != "svd" else "task_arithmetic"
        whole = mixed(deltas, [w for _, w in given], rule, density, method)
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
        rank = min(part.lora_A.shape[0], len(s))
        return vh[:rank], u[:, :rank] * s[:rank]
    # A weight goes half to A and half to B; its sign to A alone.
    sizes = [w * p.scaling for p, w in given]
    roots = [abs(size) ** 0.5 for size in sizes]
    signed = [root if size >= 0 else -root for root, size in zip(roots, sizes, strict=True)]
    return (
        mixed([p.lora_A for p, _ in given], signed, strategy, density, method),
        mixed([p.lora_B for p, _ in given], roots, strategy, density, method),
    )


def mixed(tensors: list[Tensor], weights: list[float], rule: str, density: float, method: str) -> Tensor:
    """One tensor from several of one shape."""
    if rule in ("ties", "magnitude_prune"):
        tensors = list(_largest(tensors, density))
    elif rule in ("dare_linear", "dare_ties"):
        tensors = [_random(t, density) for t in tensors]
    whole = torch.stack(tensors)
    scales = torch.tensor(weights, dtype=whole.dtype, device=whole.device)
    weighted = whole * scales.view(-1, *[1] * (whole.dim() - 1))
    if rule not in ("ties", "dare_ties"):
        return weighted.sum(0)
    # Elect a sign for each entry, and average what agrees with it.
    votes = whole.sum(0) if method == "total" else whole.sign().sum(0)
    agreeing = whole.sign() == torch.where(votes >= 0, 1.0, -1.0)
    return (weighted * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def _largest(tensors: list[Tensor], density: float) -> Iterator[Tensor]:
    for tensor in tensors:
        count = int(density * tensor.numel())
        if density >= 1:
            yield tensor
            continue
        kept = torch.zeros_like(tensor).flatten()
        place = tensor.abs().flatten().topk(count).indices
        kept[place] = tensor.flatten()[place]
        yield kept.view_as(tensor)


def _random(tensor: Tensor, density: float) -> Tensor:
    if density >= 1:
        return tensor
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / max(density, 1e-30)
