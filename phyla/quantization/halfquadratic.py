"""HQQ's search for the zeros of groups (Badri and Shaji 2023), which minimises |W - W'|^p for p < 1.

The half-quadratic split puts an error E beside the rounded weight: E is what shrinking leaves of W - W', and
the zero is then the mean of code - (W - E) / scale. Codes, zeros and errors take turns; the weight of the
quadratic part grows. Scales stay those of rounding to nearest, and errors count in steps of them, so that
the same weight suits large and small numbers (the authors' ten for all leaves no E of usual weights).
"""

import torch
from torch import Tensor

_P, _WEIGHT, _GROWTH, _ROUNDS = 0.7, 5.0, 1.1, 30
_ENOUGH = 0.998  # what errors must fall to in a round, all in all, for another
_LARGEST = 2e4  # of one over a scale: half precision must hold the product
_CHUNK = 1 << 18  # numbers at a time, so that they stay in the processor's cache


def search_zeros(grouped: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (n, group), scales and zeros (n, 1) of groups (n, group) in float32; w = (code - zero) * scale.

    Each group keeps the best zero that was met, so none is worse than rounded to nearest.
    """
    rows = max(_CHUNK // grouped.shape[1], 1)
    found = [_search(part, (1 << bits) - 1) for part in grouped.split(rows)]
    codes, scales, zeros = (torch.cat(each) for each in zip(*found, strict=True))
    return codes, scales, zeros


def _search(grouped: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    least, most = grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
    width = most - least
    steps = torch.where(width <= 1e-4, torch.ones_like(width), top / width).clamp_(max=_LARGEST)
    zeros = -least * steps
    best, kept = torch.full_like(zeros, torch.inf), zeros
    weight, scaled = _WEIGHT, grouped * steps
    for _ in range(_ROUNDS):
        codes = (scaled + zeros).round_().clamp_(0, top)
        left = scaled - codes + zeros
        size = left.abs()
        error = size.mean(1, keepdim=True)
        kept = torch.where(error < best, zeros, kept)
        best, before = torch.minimum(error, best), float(best.sum())
        if float(best.sum()) > before * _ENOUGH:
            break
        # Nothing is left of what is exactly met: its power has no bound.
        shrunk = (size - size.clamp_min(1e-12).pow(_P - 1) / weight).clamp_min_(0).copysign_(left)
        zeros = (codes - scaled + shrunk).mean(1, keepdim=True)
        weight *= _GROWTH
    return (scaled + kept).round_().clamp_(0, top), 1 / steps, kept
