"""HiFi-GAN's generator: features of sound to the waveform (Kong et al. 2020, arXiv:2010.05646)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.spec import Block, make
from phyla.blocks.wave import Conv


class Dilations(Block):
    """Pairs of convolutions, the first of each dilated, added to the signal (B, C, T) one after the other."""

    def __init__(self, width: int, kernel: int, dilations: Sequence[int], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.first = make([Conv(width, width, kernel, 1, (kernel - 1) * d // 2, d) for d in dilations])
        self.second = make([Conv(width, width, kernel, 1, (kernel - 1) // 2)] * len(dilations))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            y = first(F.leaky_relu(x, self.slope))
            x = x + second(F.leaky_relu(y, self.slope))
        return x


class Vocoder(Block):
    """Features (B, C, S) to sound (B, 1, T): each stage raises the rate and sums several reaches.

    width: channels before the first stage, halved by each. kernels, dilations: of the reaches. condition:
    channels of a vector that is added to the first layer (the speaker). bias: of the last layer.
    """

    def __init__(
        self, channels: int, width: int, rates: Sequence[int], rate_kernels: Sequence[int],
        kernels: Sequence[int], dilations: Sequence[Sequence[int]], slope: float, condition: int = 0,
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.slope = slope
        self.pre = make(Conv(channels, width, 7, padding=3))
        self.condition = make(Conv(condition, width, 1)) if condition else None
        raises, reaches = [], []
        for rate, kernel in zip(rates, rate_kernels, strict=True):
            raises.append(Conv(width, width // 2, kernel, rate, (kernel - rate) // 2, transposed=True))
            width //= 2
            reaches += [Dilations(width, k, d, slope) for k, d in zip(kernels, dilations, strict=True)]
        self.raises, self.reaches, self.count = make(raises), make(reaches), len(kernels)
        self.post = make(Conv(width, 1, 7, padding=3, bias=bias))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.pre(x)
        if condition is not None and self.condition is not None:
            x = x + self.condition(condition)
        for i, raised in enumerate(self.raises):
            x = raised(F.leaky_relu(x, self.slope))
            near = self.reaches[i * self.count : (i + 1) * self.count]
            total = near[0](x)
            for reach in near[1:]:
                total = total + reach(x)
            x = total / self.count
        return torch.tanh(self.post(F.leaky_relu(x)))


def vocoder_names(ours: str, theirs: str) -> dict[str, str]:
    """Public names of a vocoder's parts."""
    return {
        f"{ours}pre": f"{theirs}conv_pre",
        f"{ours}post": f"{theirs}conv_post",
        f"{ours}condition": f"{theirs}cond",
        f"{ours}raises.{{i}}": f"{theirs}upsampler.{{i}}",
        f"{ours}reaches.{{i}}.first.{{j}}": f"{theirs}resblocks.{{i}}.convs1.{{j}}",
        f"{ours}reaches.{{i}}.second.{{j}}": f"{theirs}resblocks.{{i}}.convs2.{{j}}",
    }
