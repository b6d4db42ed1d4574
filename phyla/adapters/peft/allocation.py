"""AdaLoRA's ranks: what matters least is set to zero, step by step (Zhang et al. 2023, arXiv:2303.10512)."""

from typing import Any

import torch
from torch import Tensor

from phyla.adapters.api import adapters_of
from phyla.adapters.peft.attach import entry_parts
from phyla.adapters.peft.configs import AdaLoraConfig, required
from phyla.adapters.peft.low import Adaptive
from phyla.errors import AdapterError
from phyla.model import PreTrainedModel


def orthogonality_loss(model: PreTrainedModel, name: str = "default") -> Tensor:
    """What A and B lack to orthogonality, times orth_reg_weight: to be added to the loss (equation 4)."""
    config, parts = _parts(model, name)
    terms = []
    for part in parts:
        for gram in (part.lora_A @ part.lora_A.T, part.lora_B.T @ part.lora_B):
            terms.append((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm())
    return config.orth_reg_weight * torch.stack(terms).mean()


def budget(config: AdaLoraConfig, count: int, step: int) -> tuple[int, bool]:
    """(ranks of all `count` modules together, whether to cut) at a step: a cubic from init_r to target_r."""
    total = required(config, "total_step")
    first, last = config.init_r * count, config.target_r * count
    if step <= config.tinit:
        return first, False
    if step > total - config.tfinal:
        return last, True
    left = 1 - (step - config.tinit) / (total - config.tfinal - config.tinit)
    return int((first - last) * left**3 + last), step % config.deltaT == 0


@torch.no_grad()
def update_and_allocate(model: PreTrainedModel, global_step: int, name: str = "default") -> None:
    """Follow the importance of every direction, and set the least ones to zero; after each optimiser step.

    The gradients of the step must still be there. From step total_step - tfinal on, the ranks stay.
    """
    config, parts = _parts(model, name)
    last = required(config, "total_step") - config.tfinal
    memory = adapters_of(model).get(name).meta.setdefault("importance", {})
    if global_step < last:
        _follow(config, parts, memory)
        ranks, cut = budget(config, len(parts), global_step)
        if cut:
            config.rank_pattern = _cut(parts, memory, ranks)
    elif global_step == last:
        _follow(config, parts, memory)
        config.rank_pattern = _cut(parts, memory, config.target_r * len(parts))
    else:
        for part in parts:
            kept = (config.rank_pattern or {}).get(f"{part.path}.lora_E")
            if kept is not None:
                part.lora_E.mul_(torch.tensor(kept, device=part.lora_E.device)[:, None])


def _follow(config: AdaLoraConfig, parts: list[Adaptive], memory: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Smooth the sensitivity |p grad p| and how it varies (equations 9 to 11)."""
    for part in parts:
        for leaf in ("lora_A", "lora_B", "lora_E"):
            parameter = getattr(part, leaf)
            if parameter.grad is None:
                raise AdapterError(
                    "update_and_allocate needs the gradients of the step: call it before zero_grad"
                )
            now = (parameter * parameter.grad).abs()
            mean, spread = memory.get(f"{part.path}.{leaf}", (torch.zeros_like(now), torch.zeros_like(now)))
            mean = config.beta1 * mean + (1 - config.beta1) * now
            spread = config.beta2 * spread + (1 - config.beta2) * (now - mean).abs()
            memory[f"{part.path}.{leaf}"] = (mean, spread)


def _cut(parts: list[Adaptive], memory: dict[str, Any], ranks: int) -> dict[str, list[bool]]:
    """Keep the `ranks` most important directions of all modules; the rest of E becomes zero."""
    scores = []
    for part in parts:
        a, b, e = (torch.mul(*memory[f"{part.path}.{leaf}"]) for leaf in ("lora_A", "lora_B", "lora_E"))
        scores.append(e[:, 0] + a.mean(1) + b.mean(0))
    whole = torch.cat(scores)
    kept = len(whole) - ranks
    floor = whole.kthvalue(kept).values if kept > 0 else whole.new_tensor(-1.0)
    found = {}
    for part, score in zip(parts, scores, strict=True):
        stays = score > floor
        part.lora_E.mul_(stays[:, None])
        found[f"{part.path}.lora_E"] = stays.tolist()
    return found


def _parts(model: PreTrainedModel, name: str) -> tuple[AdaLoraConfig, list[Adaptive]]:
    entry = adapters_of(model).get(name)
    if not isinstance(entry.config, AdaLoraConfig):
        raise AdapterError(f"{name!r} is no AdaLoRA adapter")
    return entry.config, [part for part in entry_parts(entry) if isinstance(part, Adaptive)]
