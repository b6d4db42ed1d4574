"""Trained rows of the token table, and of the output matrix that is tied to it."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.peft.part import Part
from phyla.adapters.peft.targets import Target
from phyla.errors import AdapterError


class Rows(Part):
    """Rows that stand in the place of those of the table with the numbers `indices`."""

    leaves: ClassVar[dict[str, str]] = {"rows": "trainable_tokens_delta"}

    def __init__(self, indices: list[int], target: Target, fresh: bool = False) -> None:
        super().__init__(target)
        self.also: list[str] = []  # the public modules that are tied to the table
        size = target.shape[0]
        if not indices or not all(isinstance(i, int) and 0 <= i < size for i in indices):
            raise AdapterError(f"token indices must be integers from 0 to {size - 1}, but are {indices!r}")
        if len(set(indices)) < len(indices):
            raise AdapterError(f"token indices must be distinct, but are {indices}")
        index = torch.tensor(indices)
        self.register_buffer("index", index, persistent=False)
        where = torch.full((size,), -1)
        where[index] = torch.arange(len(indices))
        self.register_buffer("where", where, persistent=False)
        start = target.weight.detach()[index.to(target.weight.device)].clone()
        self.rows = nn.Parameter(torch.randn_like(start) if fresh else start)

    def change(self, x: Tensor, y: Tensor, linear: Any, rows: Any) -> Tensor:
        index: Any = self.index
        where: Any = self.where
        if x.is_floating_point():  # the output matrix: scores of these tokens
            bias = getattr(linear, "bias", None)
            scores = F.linear(x, self.rows.to(x.dtype), None if bias is None else bias[index])
            return torch.zeros_like(y).index_copy(-1, index, scores - y[..., index])
        number = where[x]
        new = self.rows[number.clamp(min=0)].to(y.dtype)
        return torch.where((number >= 0)[..., None], new - y, torch.zeros_like(y))

    def merged(self, weight: Tensor, bias: Tensor | None, rows: Any) -> tuple[Tensor, Tensor | None]:
        return weight.index_copy(0, self.index, self.rows.to(weight.dtype)), bias  # type: ignore[arg-type]
