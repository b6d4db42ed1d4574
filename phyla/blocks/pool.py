"""From the stream to one vector a row."""

import torch
from torch import Tensor

from phyla.blocks.act import activation
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError


def first_token(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, D): of each row of x (B, S, D) the first token that the mask (B, S) attends, else slot 0."""
    if mask is None or mask.dim() != 2 or mask.shape[1] != x.shape[1]:
        return x[:, 0]
    return x[torch.arange(len(x), device=x.device), mask.to(x.device).int().argmax(-1)]


class Pool(Block):
    """One vector of width D (or `out`) from the stream (B, S, D): pick, norm, then act(dense(x)).

    pick: "first" token; "last" slot; "end" the first token `end_id`, or where that is 2 the highest id
    (CLIP's old files). norm: on the picked vector (CLIP's vision tower). act None leaves the dense layer out.
    """

    def __init__(
        self,
        width: int,
        pick: str = "first",
        norm: Spec | None = None,
        act: str | None = "tanh",
        out: int | None = None,
        end_id: int | None = None,
    ) -> None:
        super().__init__()
        self.pick, self.end_id = pick, end_id
        self.norm = make(norm)
        self.dense = Linear(width, out or width) if act is not None else None
        self.act = activation(act) if act is not None else None

    def forward(self, x: Tensor, ids: Tensor | None, ctx: Context) -> Tensor:
        if self.pick == "first":
            y = first_token(x, ctx.attention_mask)
        elif self.pick == "last":
            y = x[:, -1]
        else:
            if ids is None:
                raise ArgumentError(
                    "the vector of a text is taken at its end token: pass input_ids, not inputs_embeds"
                )
            if self.end_id is None:
                raise ArgumentError('pick="end" needs end_id, the number of the end token')
            marked = ids.int() if self.end_id == 2 else (ids == self.end_id).int()
            ahead = x.shape[1] - ids.shape[1]  # prompts of an adapter
            y = x[torch.arange(len(x), device=x.device), marked.argmax(-1) + ahead]
        if self.norm is not None:
            y = self.norm(y)
        if self.dense is not None and self.act is not None:
            y = self.act(self.dense(y))
        return y


class MeanPool(Block):
    """The mean of tokens (B, S, D) -> (B, D) or of maps (B, C, Y, X) -> (B, C, 1, 1), or (B, C) where normed.

    front: tokens at the front that do not count.
    """

    def __init__(self, norm: Spec | None = None, front: int = 0) -> None:
        super().__init__()
        self.norm, self.front = make(norm), front

    def forward(self, x: Tensor, ids: Tensor | None, ctx: Context) -> Tensor:
        if x.dim() == 3:
            y = x[:, self.front :].mean(1)
        else:
            y = x.mean((2, 3), keepdim=self.norm is None)
        return y if self.norm is None else self.norm(y)
