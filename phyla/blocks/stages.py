"""Vision bodies in stages of falling resolution, and what makes feature maps of any vision body."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phyla.blocks.context import Context
from phyla.blocks.spec import Block, Spec, make
from phyla.blocks.stack import StackOutput


@dataclass
class StagesOutput(StackOutput):
    """States of tokens (B, Y * X, D) also as maps (B, D, Y, X)."""

    reshaped_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class FeatureOutput(StackOutput):
    """Feature maps (B, C, Y, X) of the chosen stages, beside what the body computed."""

    feature_maps: tuple[Tensor, ...] = ()


class Stage(Block):
    """Layers at one resolution; `enter` stands before them, `leave` behind, to change it.

    tokens: maps are (B, Y, X, D) and layers work on (B, Y * X, D), with (Y, X) in ctx.memo["grid"]; else maps
    are (B, C, Y, X), of which layers know.
    """

    def __init__(
        self,
        layers: Sequence[Spec],
        enter: Spec | None = None,
        leave: Spec | None = None,
        tokens: bool = False,
    ) -> None:
        super().__init__()
        self.enter, self.layers, self.leave = make(enter), make(list(layers)), make(leave)
        self.tokens = tokens
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """The map behind the layers; `leave` is the caller's to apply."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self.through, x, ctx, use_reentrant=False)
        return self.through(x, ctx)

    def through(self, x: Tensor, ctx: Context) -> Tensor:
        """`forward` without checkpointing; it says itself which grid its layers work on."""
        if self.enter is not None:
            x = self.enter(x)
        grid = (x.shape[1], x.shape[2])
        if self.tokens:
            ctx.memo["grid"] = grid
            x = x.flatten(1, 2)  # (B, Y * X, D)
        for layer in self.layers:
            x = layer(x, ctx)
        return x.unflatten(1, grid) if self.tokens else x


class Stages(Block):
    """embed -> stages -> norm -> pool on maps.

    before: hidden_states hold a stage's map before it is left for the next (feature maps), else after it.
    one_attention: of each stage only the last layer's attention weights are kept (Swin).
    """

    def __init__(
        self,
        embed: Spec,
        layers: Sequence[Spec],
        norm: Spec | None = None,
        pool: Spec | None = None,
        before: bool = False,
        one_attention: bool = False,
    ) -> None:
        super().__init__()
        self.embed, self.layers = make(embed), make(list(layers))
        self.norm, self.pool = make(norm), make(pool)
        self.before, self.one_attention = before, one_attention
        self.tokens = self.layers[0].tokens
        self.implementation: str | None = None  # as in Stack

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StagesOutput:
        """From the embedded map x to the output."""
        if self.implementation is not None:
            ctx.implementation = self.implementation
        states = [x] if record_states else None
        for index, stage in enumerate(self.layers):
            ctx.layer = index
            seen = len(ctx.attentions or ())
            y = stage(x, ctx)
            x = y if stage.leave is None else stage.leave(y)
            if states is not None:
                states.append(y if self.before else x)
            del y
            if self.one_attention and ctx.attentions is not None:
                ctx.attentions[seen:] = ctx.attentions[-1:]
        if self.norm is not None:
            x = self.norm(x)
        if self.tokens:
            x = x.flatten(1, 2)
        pooled = None if self.pool is None else self.pool(x, None, ctx)
        attentions = tuple(ctx.attentions) if ctx.attentions else None  # convolutions have none
        out = StagesOutput(x, pooled, attentions=attentions)
        if states is not None:
            out.hidden_states = tuple(s.flatten(1, 2) if self.tokens else s for s in states)
            if self.tokens:
                out.reshaped_hidden_states = tuple(s.permute(0, 3, 1, 2) for s in states)
        return out


class StageMaps(Block):
    """The maps of stages (by number, 0 is the stem), each through a norm of its own where there are `norms`.

    channels_last: the body's maps are (B, Y, X, C).
    """

    def __init__(
        self,
        indices: Sequence[int],
        norms: Mapping[str, Spec] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.indices, self.channels_last = tuple(indices), channels_last
        self.norms = None if norms is None else nn.ModuleDict({k: make(v) for k, v in norms.items()})

    def forward(self, out: Any, body: Any, size: tuple[int, int]) -> tuple[Tensor, ...]:
        states = getattr(out, "reshaped_hidden_states", None) or out.hidden_states
        maps = tuple(states[i] for i in self.indices)
        if self.norms is not None:
            maps = tuple(norm(x) for norm, x in zip(self.norms.values(), maps, strict=True))
        return tuple(x.permute(0, 3, 1, 2) for x in maps) if self.channels_last else maps


class TokenMaps(Block):
    """States of layers (by number, 0 is the embedding) as maps (B, D, Y, X) of patches of `patch` pixels.

    front: vectors before the patches, which are left out. final: through the body's last norm. reshape=False
    leaves the states as tokens.
    """

    def __init__(
        self,
        indices: Sequence[int],
        patch: tuple[int, int],
        front: int = 1,
        final: bool = True,
        reshape: bool = True,
    ) -> None:
        super().__init__()
        self.indices, self.patch, self.front = tuple(indices), patch, front
        self.final, self.reshape = final, reshape

    def forward(self, out: Any, body: Any, size: tuple[int, int]) -> tuple[Tensor, ...]:
        maps = []
        for index in self.indices:
            x = out.hidden_states[index]
            x = body.norm(x) if self.final else x
            if self.reshape:
                grid = (size[0] // self.patch[0], size[1] // self.patch[1])
                x = x[:, self.front :].unflatten(1, grid).permute(0, 3, 1, 2)  # (B, D, Y, X)
            maps.append(x)
        return tuple(maps)


def look(
    body: Any,
    pixels: Tensor,
    implementation: str = "sdpa",
    attentions: bool = False,
    states: bool = False,
    memo: dict[Any, Any] | None = None,
) -> Any:
    """Run a vision body on pixels (B, C, Y, X) as a part of another model."""
    x = body.embed(pixels, None, False)
    ctx = Context(
        positions=torch.arange(x.shape[1], device=x.device)[None],
        length=x.shape[1],
        implementation=implementation,
        attentions=[] if attentions else None,
        memo={"pixels": (pixels.shape[-2], pixels.shape[-1]), **(memo or {})},
    )
    ctx.head_mask = ctx.memo.get("head_mask")
    return body.run(x, ctx, None, states)


class Features(Block):
    """A vision body whose chosen states become feature maps: pixels (B, C, Y, X) -> FeatureOutput.

    maps: StageMaps, TokenMaps or their like: forward(output, body, size of the pixels).
    """

    def __init__(self, body: Spec, maps: Spec) -> None:
        super().__init__()
        self.body, self.maps = make(body), make(maps)

    @property
    def embed(self) -> Any:
        """The body's embedding."""
        return self.body.embed

    @property
    def layers(self) -> Any:
        """The body's layers."""
        return self.body.layers

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> FeatureOutput:
        """From the embedded image x to the output."""
        out = self.body.run(x, ctx, ids, True)
        return FeatureOutput(
            out.last_hidden_state,
            hidden_states=out.hidden_states if record_states else None,
            attentions=out.attentions,
            feature_maps=self.maps(out, self.body, ctx.memo["pixels"]),
        )

    def forward(
        self,
        pixels: Tensor,
        implementation: str = "sdpa",
        attentions: bool = False,
        states: bool = False,
        memo: dict[Any, Any] | None = None,
    ) -> FeatureOutput:
        return look(self, pixels, implementation, attentions, states, memo)
