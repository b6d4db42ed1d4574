"""What the native passes are told of where tokens stand: angles that turn heads, biases on their scores."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.attention import Attention
from phyla.blocks.context import Context
from phyla.blocks.position import Alibi, Rotary, StackBias


class Positions:
    """The angles and biases of one call, each made once for all layers that have it in common."""

    def __init__(self, plan: Any, ctx: Context) -> None:
        self.ctx = ctx
        self.angles: dict[str, tuple[Tensor, ...]] = {}
        self.biases: dict[tuple[Any, ...], Tensor] = {}
        for position in plan.positions:
            if isinstance(position, Rotary):
                turns = position.angles(ctx, torch.float32)
                self.angles[position.signature] = tuple(t.contiguous() for t in turns)

    def tell(self, part: Any, attn: Attention, first: int, keys: int) -> None:
        """Write into `part` where a layer's cos, sin and bias lie; keys: how many slots from `first` on."""
        position = attn.position
        if isinstance(position, Rotary):
            cos, sin = self.angles[position.signature]
            part.angle_rows, part.cos, part.sin = len(cos), cos.data_ptr(), sin.data_ptr()
        elif isinstance(position, Alibi | StackBias):
            key = (position.signature, attn.scale, first, keys)
            if key not in self.biases:
                self.biases[key] = self._bias(position, attn.scale, first, keys)
            bias = self.biases[key]  # (1 or B, H, 1, keys)
            part.bias, part.bias_head = bias.data_ptr(), bias.stride(1)
            part.bias_row = bias.stride(0) if len(bias) > 1 else 0

    def _bias(self, position: Alibi | StackBias, scale: float, first: int, keys: int) -> Tensor:
        like = torch.empty(0, 0, keys, 0, device="cpu")
        return position.bias(like, like, first, scale, self.ctx).contiguous()
