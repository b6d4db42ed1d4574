"""Parts of flows over time: gated and separable convolutions, splines, gains (arXiv:1505.05770)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.norm import LayerNorm
from phyla.blocks.spec import Block, make
from phyla.blocks.wave import Conv, OverChannels


class WaveNet(Block):
    """Gated dilated convolutions with skips (van den Oord et al. 2016, arXiv:1609.03499). x (B, D, S)."""

    def __init__(
        self, width: int, layers: int, kernel: int, rate: int = 1, dropout: float = 0.0, voice: int = 0
    ) -> None:
        super().__init__()
        self.width, self.drop = width, dropout
        self.voice = make(Conv(voice, 2 * width * layers, 1, gain=0)) if voice else None
        reach = [rate**i for i in range(layers)]
        self.gates = make(
            [Conv(width, 2 * width, kernel, 1, (kernel - 1) * d // 2, d, gain=0) for d in reach]
        )
        self.skips = make(
            [Conv(width, width if i == layers - 1 else 2 * width, 1, gain=0) for i in range(layers)]
        )

    def forward(self, x: Tensor, keep: Tensor, voice: Tensor | None) -> Tensor:
        total = torch.zeros_like(x)
        told = None if voice is None or self.voice is None else self.voice(voice).chunk(len(self.gates), 1)
        for i, (gate, skip) in enumerate(zip(self.gates, self.skips, strict=True)):
            h = gate(x)
            if told is not None:
                h = h + told[i]
            value, opening = h.chunk(2, 1)
            h = torch.tanh(value) * torch.sigmoid(opening)
            if self.training and self.drop:
                h = F.dropout(h, self.drop)
            h = skip(h)
            if i < len(self.gates) - 1:
                x = (x + h[:, : self.width]) * keep
            total = total + h[:, -self.width :]
        return total * keep


class Separable(Block):
    """Depthwise dilated, then pointwise convolutions, added to the signal. x (B, D, S)."""

    def __init__(self, width: int, kernel: int, count: int, dropout: float = 0.0) -> None:
        super().__init__()
        reach = [kernel**i for i in range(count)]
        self.wide = make(
            [Conv(width, width, kernel, 1, (kernel - 1) * d // 2, d, groups=width) for d in reach]
        )
        self.point = make([Conv(width, width, 1)] * count)
        norm = OverChannels(LayerNorm(width))
        self.first, self.second, self.drop = make([norm] * count), make([norm] * count), dropout

    def forward(self, x: Tensor, keep: Tensor, told: Tensor | None = None) -> Tensor:
        if told is not None:
            x = x + told
        for wide, point, first, second in zip(self.wide, self.point, self.first, self.second, strict=True):
            h = F.gelu(second(point(F.gelu(first(wide(x * keep))))))
            x = x + (F.dropout(h, self.drop) if self.training and self.drop else h)
        return x * keep


LEAST = 1e-3  # of a bin's width and height, and of a slope


def unbend(y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float) -> Tensor:
    """The inverse of monotone rational-quadratic splines on [-bound, bound], the identity outside.

    y (...); widths and heights (..., bins), slopes (..., bins - 1): not normed. (arXiv:1906.04032, eq. 6-8.)
    """

    def edges(parts: Tensor) -> Tensor:
        parts = LEAST + (1 - LEAST * parts.shape[-1]) * parts.softmax(-1)
        inner = 2 * bound * parts.cumsum(-1)[..., :-1] - bound
        end = torch.full_like(inner[..., :1], bound)
        return torch.cat((-end, inner, end), -1)

    left, low = edges(widths), edges(heights)
    width, height = left.diff(), low.diff()
    slope = F.softplus(F.pad(slopes, (1, 1), value=math.log(math.exp(1 - LEAST) - 1))) + LEAST
    inside = (y >= -bound) & (y <= bound)
    inner = y.clamp(-bound, bound)
    top = low[..., -1:] + 1e-6
    bin_ = (inner[..., None] >= torch.cat((low[..., :-1], top), -1)).sum(-1, keepdim=True) - 1

    def here(values: Tensor) -> Tensor:
        return values.gather(-1, bin_)[..., 0]

    steep, start, stop = here(height / width), here(slope), here(slope[..., 1:])
    rise, curve = inner - here(low), start + stop - 2 * steep
    a = here(height) * (steep - start) + rise * curve
    b = here(height) * start - rise * curve
    c = -steep * rise
    root = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(inside, root * here(width) + here(left), y)


class Affine(Block):
    """A shift and a gain of each channel. x (B, C, S)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.translate, self.log_scale = (nn.Parameter(torch.empty(channels, 1)) for _ in range(2))

    def inverse(self, x: Tensor, keep: Tensor, told: Tensor) -> Tensor:
        """x before it was moved."""
        return (x - self.translate) * torch.exp(-self.log_scale) * keep

    def reset(self, std: float) -> bool:
        nn.init.zeros_(self.translate)
        nn.init.zeros_(self.log_scale)
        return True
