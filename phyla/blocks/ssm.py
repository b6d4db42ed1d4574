"""Selective state spaces: mixers whose memory is a state, not keys and values."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from phyla.blocks.act import activation
from phyla.blocks.cache import StateCache
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.residual import Mixer
from phyla.blocks.scan import scan
from phyla.blocks.shapes import Stream


@dataclass(frozen=True)
class FreshState:
    """Fresh values of a selective state space (the paper's section 3.6 and its published code).

    Steps are log-uniform in low .. high, at least `floor`; weights of the low-rank step are uniform within
    scale / sqrt(rank) ("random") or all equal to it ("constant"). out_gain: factor on the output's weights.
    """

    low: float = 0.001
    high: float = 0.1
    floor: float = 1e-4
    scale: float = 1.0
    scheme: str = "random"
    out_gain: float = 1.0


class _Fan(Linear):
    """A projection whose fresh weights are uniform within gain / sqrt(inputs)."""

    gain = 1.0

    def reset(self, std: float) -> bool:
        bound = self.gain / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        return True


class _Step(Linear):
    """The low-rank step, whose bias makes fresh steps small."""

    fresh = FreshState()

    def reset(self, std: float) -> bool:
        fresh, bound = self.fresh, self.fresh.scale / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, bound if fresh.scheme == "constant" else -bound, bound)
        low, high = math.log(fresh.low), math.log(fresh.high)
        with torch.no_grad():
            step = torch.empty_like(self.bias).uniform_(low, high).exp().clamp(min=fresh.floor)
            self.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of this is `step`
        return True


class Mamba(Mixer):
    """A gated convolution followed by a selective scan (Gu & Dao, arXiv:2312.00752, algorithm 2, figure 3).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t;  y_t = C_t h_t + D x_t, with A = -exp(A_log) (inner, state).
    width D, inner I, state N, conv: taps, rank: width of the low-rank step,
    fresh: how it starts. Padding (mask 0) enters nothing into the state.
    """

    caches = True

    def __init__(
        self,
        width: int,
        inner: int,
        state: int,
        conv: int,
        rank: int,
        act: str = "silu",
        bias: bool = False,
        conv_bias: bool = True,
        fresh: FreshState = FreshState(),
    ) -> None:
        super().__init__()
        self.inner, self.state, self.rank, self.taps = inner, state, rank, conv
        self.act = activation(act)
        self.in_x = _Fan(width, inner, bias=bias)
        self.in_gate = _Fan(width, inner, bias=bias)
        self.conv = nn.Conv1d(inner, inner, conv, groups=inner, bias=conv_bias)
        self.select = _Fan(inner, rank + 2 * state, bias=False)
        self.step = _Step(rank, inner)
        self.step.fresh = fresh
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out = _Fan(inner, width, bias=bias)
        self.out.gain = fresh.out_gain

    def new_cache(self, batch: int, length: int) -> StateCache:
        return StateCache()

    def mix(self, x: Stream, ctx: Context) -> Stream:
        cache = ctx.slot(self.slot)
        given = ctx.attention_mask
        keep = None
        if given is not None and given.dim() == 2:
            keep = given[:, ctx.start : ctx.start + ctx.length, None].to(x.dtype)  # (B, S, 1)
        h, gate = self.in_x(x), self.in_gate(x)  # (B, S, I)
        if keep is not None:
            h = h * keep
        h = h.transpose(1, 2)  # (B, I, S)
        past = None if cache is None else cache.get("conv")
        if past is None:
            past = h.new_zeros(h.shape[0], self.inner, self.taps - 1)
        h = torch.cat((past, h), -1)
        if cache is not None:
            cache.set("conv", h[..., h.shape[-1] - (self.taps - 1) :].clone())
        h = self.act(F.conv1d(h, self.conv.weight, self.conv.bias, groups=self.inner)).transpose(
            1, 2
        )  # (B, S, I)
        if keep is not None:
            h = h * keep
        low, b, c = self.select(h).split((self.rank, self.state, self.state), -1)
        step = F.softplus(self.step(low).float())  # (B, S, I)
        a = -torch.exp(self.A_log.float())  # (I, N)
        decay = torch.exp(step[..., None] * a)  # (B, S, I, N)
        entry = (step * h.float())[..., None] * b.float()[:, :, None]  # (B, S, I, N)
        state = None if cache is None else cache.get("state")
        states, last = scan(decay, entry, state)
        if cache is not None:
            cache.set("state", last)
        y = torch.einsum("bsin,bsn->bsi", states, c.float()) + h.float() * self.D.float()
        return self.out(y.to(x.dtype) * self.act(gate))

    def reset(self, std: float) -> bool:
        with torch.no_grad():
            steps = torch.arange(1, self.state + 1, dtype=torch.float32, device=self.A_log.device)
            self.A_log.copy_(steps.log().expand(self.inner, -1))
            nn.init.ones_(self.D)
        return True
