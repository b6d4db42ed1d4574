"""Losses of the public heads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.gradient import losses_in_training
from phyla.errors import ArgumentError

IGNORED = -100


def cross_entropy(logits: Tensor, labels: Tensor, total: int | Tensor | None = None) -> Tensor:
    """Mean over labels other than -100, in float32; `total` replaces the count (gradient accumulation).

    logits (..., V), labels (...).
    """
    logits, labels = logits.float().flatten(0, -2), labels.flatten().to(logits.device)
    losses = losses_in_training(logits, labels, IGNORED)
    if losses is not None:
        return losses.sum() / ((labels != IGNORED).sum() if total is None else total)
    if total is None:
        return F.cross_entropy(logits, labels, ignore_index=IGNORED)
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / total


def next_token_loss(logits: Tensor, labels: Tensor, total: int | Tensor | None = None) -> Tensor:
    """Each position scores the next label: logits (B, S, V), labels (B, S)."""
    check_labels(logits.shape[:2], labels)
    # The labels move, not the scores: a slice of the scores would be copied, and so would its gradient.
    return cross_entropy(logits, F.pad(labels[:, 1:], (0, 1), value=IGNORED), total)


def check_labels(shape: torch.Size | tuple[int, ...], labels: Tensor) -> None:
    """Raise ArgumentError unless labels have the shape that the logits call for."""
    if tuple(labels.shape) != tuple(shape):
        raise ArgumentError(f"labels must have the shape {tuple(shape)}, but have {tuple(labels.shape)}")


def label_loss(logits: Tensor, labels: Tensor, config) -> Tensor:
    """Loss by the public `problem_type` (regression, single or multi-label); None is guessed and then kept.

    logits (B, labels); labels (B) class numbers, or (B, labels) floats.
    """
    count = logits.shape[-1]
    if config.problem_type is None:
        if count == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "regression":
        return (
            F.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
            if count == 1
            else F.mse_loss(logits, labels)
        )
    if config.problem_type == "single_label_classification":
        return cross_entropy(logits.view(-1, count), labels.view(-1).long())
    check_labels(logits.shape, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def graded_loss(logits: Tensor, labels: Tensor, config) -> Tensor:
    """As `label_loss`, but without a problem_type negative labels are left out, and labels (B, labels) are
    shares of a distribution (DeBERTa).
    """
    count = logits.shape[-1]
    if config.problem_type is not None:
        return label_loss(logits, labels, config)
    if count == 1:
        return F.mse_loss(logits.view(-1).to(labels.dtype), labels.view(-1))
    if labels.dim() == 1 or labels.shape[-1] == 1:
        labels = labels.reshape(-1).long()
        return cross_entropy(logits, labels.masked_fill(labels < 0, IGNORED))
    return -(logits.log_softmax(-1) * labels).sum(-1).mean()


def span_loss(start: Tensor, end: Tensor, start_positions: Tensor, end_positions: Tensor) -> Tensor:
    """Mean of the losses of start and end (B, S); positions outside the row do not count."""
    length = start.shape[1]
    losses = []
    for logits, positions in ((start, start_positions), (end, end_positions)):
        positions = positions.squeeze(-1) if positions.dim() > 1 else positions
        losses.append(F.cross_entropy(logits, positions.clamp(0, length), ignore_index=length))
    return (losses[0] + losses[1]) / 2


def balance_loss(router_logits: tuple[Tensor, ...], chosen: int, attention_mask: Tensor | None) -> Tensor:
    """How unevenly experts are used (Fedus et al. 2021, arXiv:2101.03961, eq. 4-6), over all layers together.

    router_logits: one (B * S, X) a layer; attention_mask (B, S) leaves padding out.
    """
    logits = torch.cat([layer.to(router_logits[0].device) for layer in router_logits])
    weights = torch.softmax(logits, -1)
    experts = logits.shape[-1]
    used = F.one_hot(weights.topk(chosen, -1).indices, experts).float()  # (N, chosen, X)
    if attention_mask is None:
        share, mean = used.mean(0), weights.mean(0)
    else:
        real = attention_mask.reshape(-1).repeat(len(router_logits)).float()
        share = (used * real[:, None, None]).sum(0) / real.sum()
        mean = (weights * real[:, None]).sum(0) / real.sum()
    return (share * mean[None]).sum() * experts
