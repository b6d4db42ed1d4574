"""Sine waves on the embeddings (Vaswani et al. 2017, arXiv:1706.03762, section 3.5): sines, then cosines."""

import math

import torch
from torch import Tensor

from phyla.blocks.position import Learned
from phyla.blocks.spec import Block


class Sinusoid(Learned):
    """A table of waves in place of learned vectors; width D, wave i has the frequency 10000^(-2i / D).

    stored: files of this class hold the table (and may lack it).
    """

    computed = True  # a file without the table is whole

    def __init__(self, positions: int, width: int, offset: int = 0, stored: bool = False) -> None:
        Block.__init__(self)
        self.offset, self.count, self.padding, self.stored = offset, "row", None, stored
        self.register_buffer("weight", torch.empty(positions, width), persistent=stored)

    def waves(self) -> Tensor:
        """(positions, D), computed in float64."""
        positions, width = self.weight.shape
        index = torch.arange(width, dtype=torch.float64)
        place = torch.arange(positions, dtype=torch.float64)[:, None]
        angles = place / 10000 ** (2 * (index // 2) / width)
        return torch.cat((angles[:, 0::2].sin(), angles[:, 1::2].cos()), 1)

    def fill_buffers(self) -> None:
        if not self.stored:
            self.weight.copy_(self.waves())

    def reset(self, std: float) -> bool:
        self.weight.copy_(self.waves())
        return True


class OpenSinusoid(Learned):
    """Waves for any position, computed as they are asked for; wave i of D / 2 falls from 1 to 1 / 10000.

    Positions count tokens other than `padding` and start behind it; padding itself stands nowhere (fairseq).
    """

    def __init__(self, width: int, padding: int) -> None:
        Block.__init__(self)
        self.width, self.offset, self.count, self.padding = width, 0, "tokens", padding
        self.register_buffer("frequencies", torch.empty(width // 2), persistent=False)

    def fill_buffers(self) -> None:
        half = self.width // 2
        step = math.log(10000) / (half - 1)
        self.frequencies.copy_(torch.exp(torch.arange(half).float() * -step))

    def forward(self, index: Tensor) -> Tensor:
        angles = index[..., None].float() * self.frequencies  # (B, S, D / 2)
        waves = torch.cat((angles.sin(), angles.cos()), -1)
        if self.width % 2:
            waves = torch.nn.functional.pad(waves, (0, 1))
        real = torch.ones_like(index) if self.padding is None else index.ne(self.padding)
        return waves * real[..., None]


class StoredSinusoid(Sinusoid):
    """A table that files hold, wave i of D / 2 falling from 1 to 1 / 10000 (tensor2tensor); not trained.

    padding: positions count what is not padding and start behind that row, which is 0 in a fresh table; rows
    past the table are computed.
    """

    def __init__(self, positions: int, width: int, padding: int | None = None) -> None:
        super().__init__(positions, width, stored=True)
        self.padding = padding
        self.count = "row" if padding is None else "tokens"

    def waves(self) -> Tensor:
        return self._rows(self.weight.shape[0])

    def _rows(self, count: int) -> Tensor:
        half = self.weight.shape[1] // 2
        steps = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
        angles = torch.arange(count).float()[:, None] * steps
        table = torch.cat((angles.sin(), angles.cos()), 1)
        if self.weight.shape[1] % 2:
            table = torch.nn.functional.pad(table, (0, 1))
        if self.padding is not None:
            table[self.padding] = 0
        return table

    def counted(self, real: Tensor) -> Tensor:
        """Rows (B, S) of places of which `real` (B, S) are no padding."""
        front = self.padding or 0
        return (real.int().cumsum(1) * real).long() + front

    def forward(self, index: Tensor) -> Tensor:
        front = 0 if self.padding is None else self.padding + 1
        if index.shape[-1] + front > self.weight.shape[0]:
            table = self._rows(index.shape[-1] + front).to(self.weight)
            return torch.nn.functional.embedding(index, table)
        return super().forward(index)
