"""Time series: bringing values to one scale, and what a model of them computes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.embed import Tokens
from phyla.blocks.spec import Block
from phyla.blocks.stack import StackOutput
from phyla.errors import ArgumentError


@dataclass
class SeriesOutput(StackOutput):
    """States of a series, the location and scale (B, 1, C) of its values, and what was hidden (B, C, P)."""

    mask: Tensor | None = None
    loc: Tensor | None = None
    scale: Tensor | None = None
    patch_input: Tensor | None = None
    static_features: Tensor | None = None
    state: Any = None


@dataclass(frozen=True)
class Scaling:
    """Values (B, T, C) to one scale: by the "mean" of their sizes, by "std" around their mean, or "none".

    least: under the root of "std", or the smallest scale of "mean"; None: 1e-5 and 1e-10. default: scale of
    what was never observed under "mean"; None takes that of the batch.
    """

    kind: str
    least: float | None = None
    default: float | None = None

    def __call__(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scaled values (B, T, C), their location and scale (B, 1, C)."""
        if self.kind == "none":
            one = torch.ones_like(values[:, :1])
            return values, torch.zeros_like(one), one
        count = observed.sum(1, keepdim=True)
        if self.kind == "std":
            count = count.clamp(min=1.0)
            loc = (values * observed).sum(1, keepdim=True) / count
            variance = ((values - loc) * observed).square().sum(1, keepdim=True) / count
            scale = torch.sqrt(variance + (1e-5 if self.least is None else self.least))
            return (values - loc) / scale, loc, scale
        sums = (values * observed).abs().sum(1, keepdim=True)
        scale = sums / count.clamp(min=1)
        if self.default is None:
            default = (sums.sum(0) / count.sum(0).clamp(min=1)).expand_as(scale)
        else:
            default = torch.full_like(scale, self.default)
        scale = torch.where(count > 0, scale, default)
        scale = scale.clamp(min=1e-10 if self.least is None else self.least)
        return values / scale, torch.zeros_like(scale), scale


def scaling(config: Any) -> Scaling:
    """The scaling of a public configuration: its key `scaling` and the rarer ones beside it."""
    kinds = {"mean": "mean", True: "mean", "std": "std"}
    least, default = (getattr(config, key, None) for key in ("minimum_scale", "default_scale"))
    return Scaling(kinds.get(config.scaling, "none"), least, default)


class SeriesFeatures(Block):
    """What a forecaster reads of each moment: lagged values, what holds for the whole series, time features.

    context: moments of the past that are read. lags: how far back each moment looks. categories: (values,
    width) of the vectors of each static category.
    """

    def __init__(
        self, context: int, lags: tuple[int, ...], scaling: Scaling, categories: tuple[tuple[int, int], ...]
    ) -> None:
        super().__init__()
        self.context, self.lags, self.scaling = context, lags, scaling
        self.categories = nn.ModuleList(Tokens(count, width) for count, width in categories)

    def forward(
        self, past: Tensor, past_times: Tensor, observed: Tensor | None, categories: Tensor | None,
        numbers: Tensor | None, future: Tensor | None, future_times: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """past, future (B, T) or (B, T, C); times (B, T, features); categories (B, n); numbers (B, m).

        observed: 1 where the past is known. Returns features (B, context + T', F), location and scale (B, 1)
        or (B, 1, C), and what holds for the whole series (B, S).
        """
        context = self.context
        observed = torch.ones_like(past) if observed is None else observed
        _, loc, scale = self.scaling(past[:, -context:], observed[:, -context:])
        times, values = past_times[:, max(self.lags) :], past
        if future is not None and future_times is not None:
            times, values = torch.cat((times, future_times), 1), torch.cat((past, future), 1)
        values, length = (values - loc) / scale, times.shape[1]
        if max(self.lags) + length > values.shape[1]:
            raise ArgumentError(
                f"past_values must hold at least {context + max(self.lags)} moments (context_length and the "
                f"largest lag) and past_time_features as many, but they hold {past.shape[1]} and "
                f"{past_times.shape[1]}"
            )
        end = values.shape[1]
        lagged = torch.stack([values[:, end - lag - length : end - lag] for lag in self.lags], -1)
        parts = [loc.abs().log1p(), scale.log()]
        static = [part if part.dim() == 2 else part.squeeze(1) for part in parts]
        if numbers is not None:
            static.insert(0, numbers)
        if categories is not None:
            vectors = [table(categories[:, i]) for i, table in enumerate(self.categories)]
            static = [*vectors, *static]
        whole = torch.cat(static, 1)  # (B, S)
        features = (lagged.flatten(2), whole[:, None].expand(-1, length, -1), times)
        return torch.cat(features, -1), loc, scale, whole
