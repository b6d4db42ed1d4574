"""Selective state spaces: mixers whose memory is a state, not keys and values."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.act import activation
from phyla.blocks.cache import StateCache
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.residual import Mixer
from phyla.blocks.scan import kernel, selective_scan
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


class FanLinear(Linear):
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


def kept(ctx: Context, x: Tensor, leading: bool = False) -> Tensor | None:
    """1 at the new real tokens and 0 at padding, (B, S, 1) in the dtype of x; None where nothing is padded.

    leading: only padding before a row's first real token counts.
    """
    given = ctx.attention_mask
    if given is None or given.dim() != 2:
        return None
    if leading:
        given = given.long().cumsum(-1) > 0
    return given[:, ctx.start : ctx.start + ctx.length, None].to(x.dtype)


def causal_conv(x: Tensor, conv: nn.Conv1d, cache: StateCache | None) -> Tensor:
    """Each channel's convolution with its own past, x (B, S, I); the cache keeps the last taps - 1 inputs."""
    taps = conv.kernel_size[0]
    x = x.transpose(1, 2)  # (B, I, S)
    past = None if cache is None else cache.get("conv")
    if cache is None and x.is_cuda and 2 <= taps <= 4 and not torch.compiler.is_compiling():
        fused = kernel("causal_conv1d", "causal_conv1d_fn")
        if fused is not None:
            return fused(x, conv.weight[:, 0], conv.bias).transpose(1, 2)
    x = F.pad(x, (taps - 1, 0)) if past is None else torch.cat((past, x), -1)
    if cache is not None:
        cache.set("conv", x[..., x.shape[-1] - (taps - 1) :].clone())
    if x.shape[-1] == taps:
        y = (x * conv.weight[:, 0]).sum(-1, keepdim=True)
        y = y if conv.bias is None else y + conv.bias[:, None]
    else:
        y = F.conv1d(x, conv.weight, conv.bias, groups=conv.groups)
    return y.transpose(1, 2)


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
        self.in_x = FanLinear(width, inner, bias=bias)
        self.in_gate = FanLinear(width, inner, bias=bias)
        self.conv = nn.Conv1d(inner, inner, conv, groups=inner, bias=conv_bias)
        self.select = FanLinear(inner, rank + 2 * state, bias=False)
        self.step = _Step(rank, inner)
        self.step.fresh = fresh
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out = FanLinear(inner, width, bias=bias)
        self.out.gain = fresh.out_gain

    def new_cache(self, batch: int, length: int) -> StateCache:
        return StateCache()

    def mix(self, x: Stream, ctx: Context) -> Stream:
        cache, keep = ctx.slot(self.slot), kept(ctx, x)
        h, gate = self.in_x(x), self.in_gate(x)  # (B, S, I)
        h = self.act(causal_conv(h if keep is None else h * keep, self.conv, cache))
        if keep is not None:
            h = h * keep
        step, b, c = self.selected(h)
        step = F.softplus(self.step(step).float())  # (B, S, I)
        y = self._scan(h.float(), step, b.float(), c.float(), cache)
        y = y + h.float() * self.D.float()
        return self.out(y.to(x.dtype) * self.act(gate))

    def selected(self, h: Tensor) -> tuple[Tensor, ...]:
        """Low-rank step (B, S, rank), b and c (B, S, N) that the inputs h (B, S, I) select."""
        return self.select(h).split((self.rank, self.state, self.state), -1)

    def _scan(self, x: Tensor, step: Tensor, b: Tensor, c: Tensor, cache: StateCache | None) -> Tensor:
        a = -torch.exp(self.A_log.float())  # (I, N)
        state = None if cache is None else cache.get("state")
        fused = None
        if x.is_cuda and state is None and not torch.compiler.is_compiling():
            fused = kernel("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
        if fused is None:
            y, last = selective_scan(x, step, a, b, c, state)
        else:
            turned = (t.transpose(1, 2).contiguous() for t in (x, step, b, c))
            u, delta, b, c = turned
            y, last = fused(u, delta, a, b, c, return_last_state=True)
            y = y.transpose(1, 2)
        if cache is not None:
            cache.set("state", last)
        return y

    def reset(self, std: float) -> bool:
        with torch.no_grad():
            steps = torch.arange(1, self.state + 1, dtype=torch.float32, device=self.A_log.device)
            self.A_log.copy_(steps.log().expand(self.inner, -1))
            nn.init.ones_(self.D)
        return True
