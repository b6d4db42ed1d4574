"""Position-wise feed-forward mixers."""

from typing import Any

import torch.nn.functional as F

from phyla.blocks.act import activation, gated
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear, activated
from phyla.blocks.matmul import FEW_ROWS
from phyla.blocks.residual import Mixer
from phyla.blocks.shapes import NewStream, Stream


class FFN(Mixer):
    """down(act(up(x))) (Vaswani et al. 2017, arXiv:1706.03762, eq. 2). x (B, S, D), inner width F.

    dropout stands after the activation; `out` is the output width when it differs from the input's.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        act: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        self.act, self.act_name, self.inner_dropout = activation(act), act, dropout
        self.up = Linear(width, inner, bias=bias)
        self.down = Linear(inner, out or width, bias=bias)

    def mix(self, x: Stream, ctx: Context) -> NewStream:
        h = activated(self.up, x, self.act_name, self.act)  # (B, S, F)
        if self.training and self.inner_dropout:
            h = F.dropout(h, self.inner_dropout)
        return self.down(h)


class GatedFFN(Mixer):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 5). x (B, S, D)."""

    def __init__(
        self, width: int, inner: int, act: str = "silu", bias: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.act, self.inner_dropout = activation(act), dropout
        # Set by fast.pack: gate and up as one product.
        self.joined: Any = None
        self.gate = Linear(width, inner, bias=bias)
        self.up = Linear(width, inner, bias=bias)
        self.down = Linear(inner, width, bias=bias)

    def mix(self, x: Stream, ctx: Context) -> NewStream:
        # With many rows the arithmetic counts, and dense halves are quicker to go on with than strided ones.
        if self.joined is not None and self.joined.ready() and x.shape[0] * x.shape[1] <= FEW_ROWS:
            gate, up = self.joined(x)
        else:
            gate, up = self.gate(x), self.up(x)
        h = gated(self.act, gate, up)  # (B, S, F)
        if self.training and self.inner_dropout:
            h = F.dropout(h, self.inner_dropout)
        return self.down(h)
