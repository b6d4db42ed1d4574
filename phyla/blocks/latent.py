"""Latent vectors, fixed in number, that look at any input; queries that look at them (arXiv:2107.14795)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.attention import Attention, Heads
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.norm import LayerNorm
from phyla.blocks.spec import Block, Spec, make
from phyla.blocks.stack import StackOutput
from phyla.errors import ConfigError


@dataclass
class LatentOutput(StackOutput):
    """Latent vectors, and what a decoder reads from them: logits (B, N, C)."""

    logits: Tensor | None = None


class LatentAttention(Attention):
    """Attention with scores `qk` wide and values `v`, of a stream of `source` if it looks elsewhere.

    skip: whether the queries themselves are added to what they find.
    """

    def __init__(
        self, width: int, heads: int, qk: int, v: int, source: int | None, dropout: float, skip: bool
    ) -> None:
        if qk % heads or v % heads:
            raise ConfigError(
                f"qk_channels ({qk}) and v_channels ({v}) must be multiples of the number of heads ({heads})"
            )
        cross = source is not None
        super().__init__(
            width, Heads(heads, width=qk // heads), dropout=dropout, cross=cross, kv_width=source
        )
        self.v, self.o, self.skip = Linear(source or width, v), Linear(v, width), skip
        self.memory_norm = make(LayerNorm(source)) if source is not None else None

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().project(x, source if self.memory_norm is None else self.memory_norm(source))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return super().forward(x, ctx) if self.skip else self.change(self.normed(x), x, ctx)


class LatentDecoder(Block):
    """Queries look at the latents; without any, the inputs are the queries. out: widths of a projection."""

    def __init__(self, queries: Spec | None, look: Spec, out: tuple[int, int] | None) -> None:
        super().__init__()
        self.queries, self.look = make(queries), make(look)
        self.out = Linear(*out) if out is not None else None

    def forward(self, latents: Tensor, inputs: Tensor, ctx: Context, points: Any) -> Tensor:
        x = inputs
        if self.queries is not None:
            x = self.queries(points).to(latents.dtype).expand(len(latents), -1, -1)
        x = self.look(x, replace(ctx, memory=latents, memory_mask=None, head_mask=None, memo={}))
        return x if self.out is None else self.out(x)


class Latents(Block):
    """Latents (count, width) look at the input, pass `blocks` times through the layers, and are decoded."""

    def __init__(
        self, embed: Spec | None, latents: tuple[int, int], look: Spec, layers: Sequence[Spec], blocks: int,
        decode: Spec | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.decode = make(embed), make(decode)
        self.latents = nn.Parameter(torch.empty(latents))
        self.look, self.layers, self.blocks = make(look), make(list(layers)), blocks

    @property
    def depth(self) -> int:
        """Layers passed, one counted each time."""
        return self.blocks * len(self.layers)

    def forward(
        self, ctx: Context, x: Tensor, record_states: bool = False, points: Any = None
    ) -> LatentOutput:
        """Embedded inputs x (B, N, C), which are also ctx.memory, to the output."""
        h = self.look(self.latents.expand(len(x), -1, -1), replace(ctx, head_mask=None))
        states = []
        for block in range(self.blocks):
            for index, layer in enumerate(self.layers):
                states.append(h)
                ctx.layer = block * len(self.layers) + index
                h = layer(h, ctx)
            states.append(h)
        logits = None if self.decode is None else self.decode(h, x, ctx, points)
        return LatentOutput(
            h,
            hidden_states=tuple(states) if record_states else None,
            attentions=None if ctx.attentions is None else tuple(ctx.attentions),
            cross_attentions=None if ctx.cross_attentions is None else tuple(ctx.cross_attentions),
            logits=logits,
        )
