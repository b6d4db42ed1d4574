"""Heads that give the parameters of a distribution instead of one number."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    NegativeBinomial,
    Normal,
    StudentT,
    TransformedDistribution,
)  # fmt: skip

from phyla.blocks import Linear
from phyla.errors import ConfigError, nearest


def positive(x: Tensor) -> Tensor:
    """(x + sqrt(x^2 + 4)) / 2: a smooth map to positive numbers."""
    return (x + torch.sqrt(x.square() + 4.0)) / 2.0


def _least(x: Tensor) -> Tensor:
    return positive(x).clamp_min(torch.finfo(x.dtype).eps)


# Public name of a distribution -> what maps each of its parameters to its domain (None: any number).
KINDS: dict[str, tuple[Any, ...]] = {
    "student_t": (lambda df: 2.0 + positive(df), None, _least),
    "normal": (None, _least),
    "negative_binomial": (positive, None),
}


class DistributionParameters(nn.Module):
    """States (..., D) -> a tuple of parameters (..., size); size 1 is squeezed away."""

    def __init__(self, kind: str, width: int, size: int = 1) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(
                f"distribution_output must be one of {sorted(KINDS)}, but is {kind!r}." + nearest(kind, KINDS)
            )
        self.kind, self.size = kind, size
        self.proj = nn.ModuleList(Linear(width, size) for _ in KINDS[kind])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = (proj(x) for proj in self.proj)
        mapped = (
            y if domain is None else domain(y) for y, domain in zip(found, KINDS[self.kind], strict=True)
        )
        return tuple(y.squeeze(-1) for y in mapped)

    def distribution(
        self, parameters: tuple[Tensor, ...], loc: Tensor | None = None, scale: Tensor | None = None
    ) -> Distribution:
        """The distribution; with size > 1 the last dimension is one event. It is moved to loc and scale."""
        events = 0 if self.size == 1 else 1
        if self.kind == "negative_binomial":
            total, logits = parameters
            if scale is not None:  # whole numbers cannot be scaled, but the gamma rate behind them can
                logits = logits + scale.log()
            base: Distribution = NegativeBinomial(total_count=total, logits=logits)
            return Independent(base, 1) if events else base
        if self.kind == "student_t":
            base = StudentT(parameters[0], parameters[1], parameters[2])
        else:
            base = Normal(parameters[0], parameters[1])
        if events:
            base = Independent(base, 1)
        if loc is None and scale is None:
            return base
        transform = AffineTransform(0.0 if loc is None else loc, 1.0 if scale is None else scale, events)
        return TransformedDistribution(base, [transform])


def weighted_mean(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of x, of what has a weight where weights are given."""
    if weights is None:
        return x.mean()
    total = torch.where(weights != 0, x * weights, torch.zeros_like(x)).sum()
    return total / weights.sum().clamp(min=1.0)
