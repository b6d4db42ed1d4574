"""Representation fine-tuning: changes of the stream at some positions (Wu et al. 2024, arXiv:2404.03592)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from phyla.adapters.bottleneck import Act
from phyla.adapters.config import ARCHITECTURES, AdapterConfig, known
from phyla.adapters.dialect import STREAMS
from phyla.adapters.interpret import Facts, Flow, Method, run
from phyla.adapters.places import Place, Survey
from phyla.blocks.context import Context


@dataclass
class ReftConfig(AdapterConfig):
    """Units on the first and last positions of the outputs of some layers."""

    architecture: ClassVar[str | None] = "reft"
    layers: Any = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = True
    tied_weights: bool = False
    dropout: float = 0.05
    non_linearity: str | None = None
    dtype: str | None = None
    output_reft: bool = True
    init_weights_seed: int | None = None
    subtract_projection: bool = True
    __hash__ = AdapterConfig.__hash__

    def unsaved(self) -> tuple[str, ...]:
        return ("subtract_projection",) if self.subtract_projection else ()


@known("loreft")
@dataclass
class LoReftConfig(ReftConfig):
    """x + R^T (W x + b - R x) with orthonormal rows in R."""

    __hash__ = AdapterConfig.__hash__


@known("noreft")
@dataclass
class NoReftConfig(ReftConfig):
    """As LoReFT with any R."""

    orthogonality: bool = False
    __hash__ = AdapterConfig.__hash__


@known("direft")
@dataclass
class DiReftConfig(ReftConfig):
    """x + R^T (W x + b) with any R."""

    orthogonality: bool = False
    subtract_projection: bool = False
    __hash__ = AdapterConfig.__hash__


ARCHITECTURES["reft"] = ReftConfig


class Unit(nn.Module):
    """One change of vectors x (..., D)."""

    def __init__(self, config: ReftConfig, width: int) -> None:
        super().__init__()
        self.projection: Any = nn.Linear(width, config.r, bias=False)
        nn.init.orthogonal_(self.projection.weight)
        self.learned_source = nn.Linear(width, config.r)
        if config.orthogonality:
            self.projection = nn.utils.parametrizations.orthogonal(self.projection)
        self.act = None if config.non_linearity is None else Act(config.non_linearity)
        self.subtract, self.dropout_prob = config.subtract_projection, config.dropout

    def _apply(self, fn: Any, recurse: bool = True) -> "Unit":
        """Move or cast; orthonormal rows stay in float32, for half precision has no such factorisation."""
        made = super()._apply(fn, recurse)
        if is_parametrized(self.projection):
            super()._apply(_widened, recurse)
        return made

    def forward(self, x: Tensor) -> Tensor:
        given, weight = x, self.projection.weight
        x = x.to(weight.dtype)
        h = self.learned_source(x)
        if self.act is not None:
            h = self.act(h)
        if self.subtract:
            h = h - F.linear(x, weight)
        if self.training and self.dropout_prob:
            h = F.dropout(h, self.dropout_prob)
        return given + (h @ weight).to(given.dtype)


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


class Reft(nn.Module):
    """The part at one layer: a unit for the first positions and one for the last (or one for both)."""

    def __init__(self, config: ReftConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.first, self.last = config.prefix_positions, config.suffix_positions
        count = 1 if config.tied_weights else 2  # public files hold both, used or not
        self.units = nn.ModuleList(Unit(config, width) for _ in range(count))

    def forward(self, x: Tensor, index: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """x (B, S, D); index (B, S) the number of each position; start, end (B, 1): the row's real part."""
        y = x
        if self.first > 0:
            inside = (index >= start) & (index < start + self.first)
            y = torch.where(inside[..., None], self.units[0](x), y)
        if self.last > 0:
            inside = (index < end) & (index >= end - self.last)
            y = torch.where(inside[..., None], self.units[-1](x), y)
        return y

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by public name."""
        return self.state_dict()

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by public name."""
        self.load_state_dict(tensors)


def attach(config: ReftConfig, places: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """The parts of one adapter with their places."""
    for layer in places.layers:
        streams = 0 if layer.maps else STREAMS.get(layer.model_type, 1)
        if streams and config.output_reft and (config.layers == "all" or layer.index in config.layers):
            yield layer.stream, Reft(config, layer.width * streams)


class StreamSite(nn.Module, Method):
    """The site of a layer's output while adapters of this file are active: (x, ctx) -> x."""

    def __init__(self, setup: Any, parts: dict[str, list[Reft]], facts: Facts) -> None:
        super().__init__()
        self.setup, self.parts, self.facts = setup, parts, facts

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        if x.dim() > 3:  # rows of rows, such as the channels of a series
            return self(x.flatten(0, -3), ctx).view_as(x)
        index, start, end = positions(x, ctx)
        (y,) = run(self.setup, (x,), (index, start, end), self, self.facts)
        assert y is not None
        return y

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        x = flow[0]
        for part in self.parts.get(name, ()):
            x = part(x, *fixed)
        return (x,)


def positions(x: Tensor, ctx: Context | None) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S) numbers of the positions of x; (B, 1) the first and one past the last that is no padding."""
    batch, length = x.shape[:2]
    begin = 0 if ctx is None else ctx.start
    index = torch.arange(begin, begin + length, device=x.device).expand(batch, -1)
    mask = None if ctx is None else ctx.attention_mask
    if mask is None or mask.dim() != 2:
        start = index.new_zeros(batch, 1)
        return index, start, start + begin + length
    real = mask.to(torch.int8)
    start = real.argmax(1, keepdim=True)
    end = mask.shape[1] - real.flip(1).argmax(1, keepdim=True)
    return index, start, end
