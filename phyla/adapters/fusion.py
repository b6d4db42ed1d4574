"""AdapterFusion: attention over the outputs of several adapters (Pfeiffer et al. 2021, arXiv:2005.00247)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.config import AdapterConfig
from phyla.errors import AdapterError


@dataclass
class AdapterFusionConfig(AdapterConfig):
    """Which of key, query and value have a matrix, and what stands around the attention."""

    key: bool = True
    query: bool = True
    value: bool = True
    query_before_ln: bool = False
    regularization: bool = True
    residual_before: bool = False
    temperature: bool = False
    value_before_softmax: bool = True
    value_initialized: bool = True
    dropout_prob: float | None = None
    __hash__ = AdapterConfig.__hash__


@dataclass
class StaticAdapterFusionConfig(AdapterFusionConfig):
    """Without a value matrix."""

    value: bool = False
    regularization: bool = False
    value_initialized: bool = False
    __hash__ = AdapterConfig.__hash__


@dataclass
class DynamicAdapterFusionConfig(AdapterFusionConfig):
    """With a value matrix that starts at the identity."""

    __hash__ = AdapterConfig.__hash__


ADAPTERFUSION_CONFIG_MAP = {
    "static": StaticAdapterFusionConfig(),
    "dynamic": DynamicAdapterFusionConfig(),
}


def fusion_config_of(config) -> AdapterFusionConfig:
    """The configuration that a name, a mapping or a configuration means; None: dynamic."""
    if config is None:
        config = "dynamic"
    if isinstance(config, AdapterFusionConfig):
        return config
    if isinstance(config, str):
        if config not in ADAPTERFUSION_CONFIG_MAP:
            raise AdapterError(
                f"a fusion must be one of {sorted(ADAPTERFUSION_CONFIG_MAP)}, but is {config!r}"
            )
        return ADAPTERFUSION_CONFIG_MAP[config]
    return AdapterFusionConfig.from_dict(config)  # type: ignore[return-value]


class Fusion(nn.Module):
    """Attention of each position over the adapters' outputs there: query (B, S, D), outputs (B, S, N, D)."""

    def __init__(self, config: AdapterFusionConfig, width: int) -> None:
        super().__init__()
        self.config, self.heat = config, 50.0 if config.temperature else 1.0
        self.seen: Callable[[Tensor], None] | None = None  # is told the shares, (B, S, N), where asked for
        self.query = nn.Linear(width, width) if config.query else None
        self.key = nn.Linear(width, width) if config.key else None
        self.value = nn.Linear(width, width, bias=False) if config.value else None
        for linear in (self.query, self.key):
            if linear is not None:
                nn.init.normal_(linear.weight, 0.0, 0.02)
                nn.init.zeros_(linear.bias)
        if self.value is not None:
            if config.value_initialized:
                nn.init.constant_(self.value.weight, 1e-6)
                with torch.no_grad():
                    self.value.weight.fill_diagonal_(1.0)
            else:
                nn.init.normal_(self.value.weight, 0.0, 0.02)

    def forward(self, query: Tensor, outputs: Tensor, residual: Tensor) -> Tensor:
        config, given = self.config, residual.dtype
        own = next((p.dtype for p in self.parameters()), given)
        query, outputs, residual = query.to(own), outputs.to(own), residual.to(own)
        values = outputs
        if config.residual_before:
            values = values + residual[..., None, :]
        q = query if self.query is None else self.query(query)
        k = outputs if self.key is None else self.key(outputs)
        if self.value is not None and config.value_before_softmax:
            values = self.value(values)
        scores = torch.matmul(k, q[..., None])[..., 0]  # (B, S, N)
        if self.training and config.dropout_prob:
            scores = F.dropout(scores, config.dropout_prob)
        shares = torch.softmax(scores / self.heat, -1)
        if self.seen is not None:
            self.seen(shares)
        if self.training and config.temperature:
            self.heat = max(self.heat - 0.05, 1.0)
        y = (shares[..., None] * values).sum(-2)
        if self.value is not None and not config.value_before_softmax:
            y = self.value(y)
        return (y if config.residual_before else y + residual).to(given)

    def penalty(self) -> Tensor | None:
        """How far the value matrix is from the identity: what training adds to the loss."""
        if self.value is None or not self.config.regularization:
            return None
        eye = torch.eye(len(self.value.weight), device=self.value.weight.device)
        return 0.01 * (eye - self.value.weight).pow(2).sum()
