"""Heads that guess tokens behind the next one."""

import torch
from torch import Tensor

from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.shapes import Stream
from phyla.blocks.spec import Block, Spec, make


class Ahead(Block):
    """One depth of multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2, eq. 21-23).

    From the states of the model, or of the depth before, and the vectors of the tokens that come next to the
    states that the model's head scores for the token after those. layer: one layer of the model's kind; norm:
    of the states, of the vectors, and of what comes out.
    """

    def __init__(self, width: int, layer: Spec, norm: Spec) -> None:
        super().__init__()
        self.embed_norm, self.state_norm = make(norm), make(norm)
        self.join = Linear(2 * width, width, bias=False)
        self.layer = make(layer)
        self.norm = make(norm)

    def forward(self, states: Stream, vectors: Tensor, ctx: Context) -> Stream:
        """States (B, S, D) and vectors (B, S, D) of the tokens behind them, to states (B, S, D)."""
        x = self.join(torch.cat((self.embed_norm(vectors), self.state_norm(states)), -1))
        return self.norm(self.layer(x, ctx))
