"""The one linear recurrence that all state-space and recurrent mixers go through."""

import torch
from torch import Tensor

from phyla.blocks.shapes import State, Steps


def scan(decay: Steps, entry: Steps, state: State | None = None) -> tuple[Steps, State]:
    """h_t = decay_t * h_{t-1} + entry_t along dimension 1.

    decay, entry (B, S, ...); state (B, ...) is h_0 (default 0). Returns all h (B, S, ...) and the last one
    (B, ...).
    """
    length = entry.shape[1]
    if length == 1:
        last = entry[:, 0] if state is None else torch.addcmul(entry[:, 0], decay[:, 0], state)
        return last[:, None], last
    if state is not None:
        first = torch.addcmul(entry[:, 0], decay[:, 0], state)
        entry = torch.cat((first[:, None], entry[:, 1:]), 1)
    states = _doubling(decay, entry)
    return states, states[:, -1]


def _doubling(decay: Tensor, entry: Tensor) -> Tensor:
    """Log-depth scan: after round r every element holds the recurrence over its last 2^r inputs."""
    length, reach = entry.shape[1], 1
    while reach < length:
        entry = torch.cat(
            (entry[:, :reach], torch.addcmul(entry[:, reach:], decay[:, reach:], entry[:, :-reach])), 1
        )
        if 2 * reach < length:
            decay = torch.cat((decay[:, :reach], decay[:, reach:] * decay[:, :-reach]), 1)
        reach *= 2
    return entry
