"""State-space duality: a selective state space whose heads decay by one number each."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from phyla.blocks.act import activation
from phyla.blocks.attention import Heads
from phyla.blocks.cache import StateCache
from phyla.blocks.context import Context
from phyla.blocks.norm import RMSNorm
from phyla.blocks.residual import Mixer
from phyla.blocks.scan import chunked_scan, kernel
from phyla.blocks.shapes import Stream
from phyla.blocks.spec import make
from phyla.blocks.ssm import FanLinear, FreshState, causal_conv, kept


class SSD(Mixer):
    """A gated convolution followed by a scan whose decay is a number a head (arXiv:2405.21060, figure 6).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t + D x_t, then an RMS norm of y gated by silu.
    heads: Heads(H, kv=G, width=P): G groups of heads share B and C. state N, conv: taps, chunk: steps that
    are computed at once, limits: dt is clamped to them. Padding (mask 0) enters nothing into the state.
    """

    caches = True

    def __init__(
        self,
        width: int,
        heads: Heads,
        state: int,
        conv: int,
        act: str = "silu",
        bias: bool = False,
        conv_bias: bool = True,
        eps: float = 1e-5,
        chunk: int = 256,
        limits: tuple[float, float] = (0.0, math.inf),
        fresh: FreshState = FreshState(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.num_heads, self.groups, self.head_width = heads.resolve(width)
        self.inner, self.state = self.num_heads * self.head_width, state
        self.chunk, self.limits, self.fresh = chunk, limits, fresh
        self.act, self.act_name = activation(act), act
        mixed = self.inner + 2 * self.groups * state
        self.in_gate = FanLinear(width, self.inner, bias=bias)
        self.in_x = FanLinear(width, mixed, bias=bias)
        self.in_step = FanLinear(width, self.num_heads, bias=bias)
        self.conv = nn.Conv1d(mixed, mixed, conv, groups=mixed, bias=conv_bias)
        self.step_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = make(RMSNorm(self.inner, eps=eps))
        self.out = FanLinear(self.inner, width, bias=bias)
        self.out.gain = fresh.out_gain

    def new_cache(self, batch: int, length: int) -> StateCache:
        return StateCache()

    def mix(self, x: Stream, ctx: Context) -> Stream:
        cache, keep = ctx.slot(self.slot), kept(ctx, x)
        groups, each = self.groups, self.num_heads // self.groups
        gate, step = self.in_gate(x), self.in_step(x)  # (B, S, I), (B, S, H)
        h = self.in_x(x)
        h = self.act(causal_conv(h if keep is None else h * keep, self.conv, cache))
        if keep is not None:
            h = h * keep
        shared = groups * self.state
        value, b, c = h.float().split((self.inner, shared, shared), -1)
        value = value.unflatten(-1, (groups, each, self.head_width))  # (B, S, G, R, P)
        b, c = (t.unflatten(-1, (groups, self.state)) for t in (b, c))  # (B, S, G, N)
        step = F.softplus(step.float() + self.step_bias.float()).clamp(*self.limits)
        y, last = self._scan(value, step.unflatten(-1, (groups, each)), b, c, cache)
        if cache is not None:
            cache.set("state", last)
        y = y + value * self.D.float().view(groups, each, 1)
        return self.out(self.norm(y.flatten(2) * F.silu(gate.float())).to(x.dtype))

    def _scan(
        self, x: torch.Tensor, step: torch.Tensor, b: torch.Tensor, c: torch.Tensor, cache: StateCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = None if cache is None else cache.get("state")
        a = -torch.exp(self.A_log.float()).view(self.groups, -1)  # (G, R)
        fused = None
        power_of_two = not self.chunk & (self.chunk - 1)
        if x.is_cuda and x.shape[1] > 1 and power_of_two and not torch.compiler.is_compiling():
            fused = kernel("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
        if fused is None:
            return chunked_scan(x * step[..., None], step * a, b, c, state, self.chunk)
        start = None if state is None else state.flatten(1, 2)
        y, last = fused(
            x.flatten(2, 3), step.flatten(2), a.flatten(), b, c, chunk_size=self.chunk, initial_states=start,
            return_final_states=True,
        )  # fmt: skip
        return y.view_as(x), last.unflatten(1, (self.groups, -1))

    def reset(self, std: float) -> bool:
        low, high = math.log(self.fresh.low), math.log(self.fresh.high)
        with torch.no_grad():
            step = torch.empty_like(self.step_bias).uniform_(low, high).exp().clamp(min=self.fresh.floor)
            self.step_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of this is `step`
            self.A_log.copy_(torch.arange(1, self.num_heads + 1, device=self.A_log.device).float().log())
            nn.init.ones_(self.D)
        return True
