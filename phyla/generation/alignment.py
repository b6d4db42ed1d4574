"""When each token was said: cross-attention of chosen heads, aligned by dynamic time warping.

(Radford et al. 2022; Sakoe & Chiba 1978.)
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.errors import ConfigError


def token_times(
    outputs: Any, heads: Sequence[tuple[int, int]], filter_width: int, frames: Any = None, prompt: int = 0,
    step: float = 0.02,
) -> Tensor:  # fmt: skip
    """Seconds at which each token of `outputs.sequences` begins, (rows, length); 0 for the first.

    outputs: of generate, with cross_attentions. heads: pairs (layer, head). frames: real input frames, one
    number or one a row. prompt: ids before the first new one. step: seconds of one encoder state.
    """
    weights = _attended(outputs, heads, prompt)  # (rows, heads, tokens, states)
    rows, tokens = weights.shape[0], weights.shape[2]
    times = torch.zeros(rows, tokens + 1, device=weights.device)
    lengths = _lengths(frames, rows)
    for row in range(rows):
        seen = weights[row] if lengths is None else weights[row, ..., : lengths[row] // 2]
        spread, mean = torch.std_mean(seen, dim=-2, keepdim=True, unbiased=False)
        path = median_filter((seen - mean) / spread, filter_width).mean(0)
        token, place = warp(-path.double().cpu())
        first = torch.cat(
            (torch.ones(1, dtype=torch.bool), token.diff() > 0)
        )  # where the path enters a token
        times[row, 1:] = place[first] * step
    return times


def _attended(outputs: Any, heads: Sequence[tuple[int, int]], prompt: int) -> Tensor:
    """Weights of the chosen heads over all steps, of the winning beams where there are beams."""
    steps = outputs.cross_attentions
    layers = {layer: torch.cat([given[layer] for given in steps], dim=2) for layer, _ in heads}
    weights = torch.stack([layers[layer][:, head] for layer, head in heads], dim=1)
    beams = getattr(outputs, "beam_indices", None)
    if beams is None:
        return weights
    length = min(int((beams != -1).sum(-1).max()) + prompt, weights.shape[2])
    origin = beams.new_zeros(len(beams), length)
    origin[:, prompt:] = beams[:, : length - prompt].clamp(min=0)
    return torch.stack([weights[origin[:, i], :, i] for i in range(length)], dim=2)


def _lengths(frames: Any, rows: int) -> list[int] | None:
    if frames is None:
        return None
    values = frames.tolist() if hasattr(frames, "tolist") else frames
    values = [values] if isinstance(values, int) else list(values)
    return [values[i * len(values) // rows] for i in range(rows)]


def median_filter(x: Tensor, width: int) -> Tensor:
    """Each value replaced by the median of the `width` around it along the last dimension, edges mirrored."""
    if width < 1 or width % 2 == 0:
        raise ConfigError(f"median_filter_width must be an odd positive number, but is {width}")
    side = width // 2
    if x.shape[-1] <= side:
        return x
    padded = F.pad(x, (side, side), mode="reflect")
    return padded.unfold(-1, width, 1).sort()[0][..., side]


def warp(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest monotone path through a matrix (N, M): row and column of each of its places."""
    rows, columns = cost.shape
    total = torch.full((rows + 1, columns + 1), torch.inf)
    total[0, 0] = 0
    move = torch.full((rows + 1, columns + 1), 2, dtype=torch.int8)  # 0: both, 1: a row, 2: a column
    move[1:, 0] = 1
    for diagonal in range(2, rows + columns + 1):
        i = torch.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        both, row, column = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        by_both, by_row = (both < row) & (both < column), (row < both) & (row < column)
        best = torch.where(by_both, both, torch.where(by_row, row, column))
        total[i, j] = (cost[i - 1, j - 1] + best).float()
        move[i, j] = torch.where(by_both, 0, torch.where(by_row, 1, 2)).to(torch.int8)
    path, moves, at, to = [], move.tolist(), rows, columns
    while at > 0 or to > 0:
        path.append((at - 1, to - 1))
        kind = moves[at][to]
        at, to = at - (kind != 2), to - (kind != 1)
    steps = torch.tensor(path[::-1])
    return steps[:, 0], steps[:, 1]
