"""Heads of models of time series in patches: hidden patches, classes, numbers, the future."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Linear
from phyla.errors import ArgumentError, ConfigError
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.distribution import DistributionParameters, weighted_mean
from phyla.outputs import ModelOutput
from phyla.outputs.series import (
    PatchTSTForClassificationOutput,
    PatchTSTForPredictionOutput,
    PatchTSTForPretrainingOutput,
    PatchTSTForRegressionOutput,
    Seq2SeqTSPredictionOutput,
)  # fmt: skip


@dataclass
class SeriesCall(Call):
    """What the caller of a model of series passed: later values (B, T, C), targets (B) or (B, targets)."""

    future_values: Tensor | None = None
    target_values: Tensor | None = None
    future_observed_mask: Tensor | None = None


class SeriesModule(HeadModule):
    """What the heads share: pooling over patches, dropout, a linear map or a distribution."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.dropout_prob = config, config.head_dropout

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x

    def pooled(self, x: Tensor, may_keep: bool = False) -> Tensor:
        """States (B, C, P, D) -> (B, C, D), or (B, C, P * D) for the future without pooling."""
        kind = self.config.pooling_type
        if self.config.use_cls_token:
            return x[:, :, 0]
        if kind == "mean":
            return x.mean(2)
        if kind == "max":
            return x.amax(2)
        if may_keep and not kind:
            return x.flatten(2)
        raise ConfigError(f'pooling_type must be "mean" or "max", but is {kind!r}')

    def projection(self, width: int, size: int) -> nn.Module:
        """A linear map to `size` numbers, or to the parameters of their distribution."""
        if self.config.loss == "mse":
            return Linear(width, size)
        return DistributionParameters(self.config.distribution_output, width, size)

    def sample(self, distribution: Any) -> Tensor:
        """`num_parallel_samples` draws along a new dimension 1."""
        return torch.stack([distribution.sample() for _ in range(self.config.num_parallel_samples)], 1)


class _Hidden(SeriesModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config)
        self.out = Linear(width, config.patch_length)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        y = self.out(self.dropped(out.last_hidden_state))
        if self.config.use_cls_token:
            y = y[:, :, 1:]
        error = (y - out.patch_input).square().mean(-1)  # (B, C, P)
        return {"loss": (error * out.mask).sum() / (out.mask.sum() + 1e-10), "prediction_output": y}


@dataclass(frozen=True)
class HiddenPatches(Head):
    """Values of the patches that were hidden."""

    task: ClassVar[str] = "pretraining"
    output: type[ModelOutput] = PatchTSTForPretrainingOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Hidden(config, width)


class _Classes(SeriesModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config)
        self.out = Linear(config.num_input_channels * width, config.num_targets)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        y = self.out(self.dropped(self.pooled(out.last_hidden_state).flatten(1)))
        targets = getattr(call, "target_values", None)
        return {"loss": None if targets is None else F.cross_entropy(y, targets), "prediction_logits": y}


@dataclass(frozen=True)
class SeriesClassify(Head):
    """Classes of a series."""

    task: ClassVar[str] = "time-series-classification"
    output: type[ModelOutput] = PatchTSTForClassificationOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Classes(config, width)


class _Numbers(SeriesModule):
    out: Any

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config)
        self.out = self.projection(config.num_input_channels * width, config.num_targets)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        y = self.out(self.dropped(self.pooled(out.last_hidden_state).flatten(1)))
        targets, bounds = getattr(call, "target_values", None), self.config.output_range
        if isinstance(y, tuple):
            loss = None
            if targets is not None:
                loss = -self.out.distribution(y).log_prob(targets.view_as(y[0])).mean()
            return {"loss": loss, "regression_outputs": tuple(p.view(-1, self.config.num_targets) for p in y)}
        if bounds is not None:
            y = torch.sigmoid(y) * (bounds[1] - bounds[0]) + bounds[0]
        return {"loss": None if targets is None else F.mse_loss(y, targets), "regression_outputs": y}

    def samples(self, output: Any) -> Tensor:
        """Draws (B, samples, targets)."""
        y = output.regression_outputs
        if not isinstance(y, tuple):
            raise ArgumentError('generate draws from a distribution: set loss="nll" in the configuration')
        if self.out.size == 1:
            y = tuple(p.squeeze(-1) for p in y)
        return self.sample(self.out.distribution(y)).view(len(y[0]), -1, self.config.num_targets)


@dataclass(frozen=True)
class SeriesRegress(Head):
    """Numbers of a series."""

    task: ClassVar[str] = "time-series-regression"
    output: type[ModelOutput] = PatchTSTForRegressionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Numbers(config, width)


class _Future(SeriesModule):
    out: Any

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config)
        if not (config.pooling_type or config.use_cls_token):
            width = width * config.num_patches
        if config.share_projection:
            self.out = self.projection(width, config.prediction_length)
        else:
            each = (
                self.projection(width, config.prediction_length) for _ in range(config.num_input_channels)
            )
            self.channels = nn.ModuleList(each)

    @property
    def one(self) -> Any:
        """The projection, or the first of them."""
        return self.out if self.config.share_projection else self.channels[0]

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = self.dropped(self.pooled(out.last_hidden_state, may_keep=True))  # (B, C, D)
        if self.config.share_projection:
            y = self.out(x)
        else:
            each = [projection(x[:, i]) for i, projection in enumerate(self.channels)]
            single = not isinstance(each[0], tuple)
            y = torch.stack(each, 1) if single else tuple(torch.stack(p, 1) for p in zip(*each, strict=True))
        later = getattr(call, "future_values", None)
        loss = None
        if isinstance(y, tuple):
            y = tuple(p.transpose(1, 2) for p in y)  # (B, T, C) each
            if later is not None:
                loss = -self.one.distribution(y, out.loc, out.scale).log_prob(later).mean()
        else:
            y = y.transpose(1, 2) * out.scale + out.loc  # (B, T, C)
            loss = None if later is None else F.mse_loss(y, later)
        return {"loss": loss, "prediction_outputs": y}

    def samples(self, output: Any) -> Tensor:
        """Draws (B, samples, T, C), or the one forecast (B, 1, T, C)."""
        y = output.prediction_outputs
        if not isinstance(y, tuple):
            return y[:, None]
        return self.sample(self.one.distribution(y, output.loc, output.scale))


@dataclass(frozen=True)
class SeriesForecast(Head):
    """Later values of a series."""

    task: ClassVar[str] = "time-series-prediction"
    output: type[ModelOutput] = PatchTSTForPredictionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Future(config, width)


class _Likely(HeadModule):
    """The distribution of the value at each moment that a decoder reads."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        if config.loss != "nll":
            raise ConfigError(f'loss must be "nll", but is {config.loss!r}')
        self.out = DistributionParameters(config.distribution_output, width, config.input_size)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        later = getattr(call, "future_values", None)
        if later is None:
            return {"loss": None, "params": None}
        params = self.out(out.last_hidden_state)  # (B, T) or (B, T, C) each
        loss = -self.out.distribution(params, out.loc, out.scale).log_prob(later)  # (B, T)
        seen = getattr(call, "future_observed_mask", None)
        seen = torch.ones_like(later) if seen is None else seen
        return {"loss": weighted_mean(loss, seen if self.out.size == 1 else seen.amin(-1)), "params": params}


@dataclass(frozen=True)
class SeriesLikelihood(Head):
    """The distribution of later values, by a decoder."""

    task: ClassVar[str] = "time-series-prediction"
    output: type[ModelOutput] = Seq2SeqTSPredictionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Likely(config, width)
