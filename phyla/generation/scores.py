"""Scores of the tokens that were chosen."""

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError


def compute_transition_scores(
    model: nn.Module,
    sequences: Tensor,
    scores: tuple[Tensor, ...],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The score of each chosen token, (rows, new tokens), from what `generate` returned with
    output_scores=True.

    `normalize_logits` makes log-probabilities of the scores. With beam search give its beam_indices: tokens
    of a beam that had ended score 0.
    """
    if not scores:
        raise ArgumentError("scores must hold one tensor a step; pass output_scores=True to generate")
    table = torch.stack(scores)  # (steps, rows, vocabulary)
    if normalize_logits:
        table = table.log_softmax(-1)
    if beam_indices is None:
        steps = len(scores)
        beams = torch.arange(table.shape[1], device=sequences.device)[:, None].expand(-1, steps)
    else:
        steps = int((beam_indices >= 0).sum(-1).max())
        beams = beam_indices[:, :steps]
    tokens = sequences[:, sequences.shape[1] - steps :]  # (rows, steps)
    chosen = table[torch.arange(steps, device=table.device), beams.clamp(min=0), tokens]
    return chosen.masked_fill(beams < 0, 0.0)
