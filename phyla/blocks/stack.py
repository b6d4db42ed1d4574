"""Layers in sequence and the skeletons made of them: encoder, decoder, encoder with decoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from phyla.blocks.cache import Cache
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError

# (stack, x, ctx) -> the states after all layers, or None where it does not apply: see phyla/fast/step.py.
native: "Callable[[Stack, Tensor, Context], Tensor | None] | None" = None


@dataclass
class StackOutput:
    """What a stack computed; tuples are None unless asked for: states (B, S, D), attentions (B, H, S, K)."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    router_logits: tuple[Any, ...] | None = None
    image_size: tuple[int, int] | None = None  # (Y, X) of the pixels that a vision body saw

    @property
    def router_probs(self) -> tuple[Tensor, ...] | None:
        """The public name of encoders for their routers' scores."""
        return self.router_logits


class Layer(Block):
    """Residual branches one after the other, by name: `Layer(attn=residual(...), ffn=residual(...))`."""

    site_kind = "stream"

    def __init__(self, **branches: Spec) -> None:
        super().__init__()
        self.order = tuple(branches)
        for name, branch in branches.items():
            setattr(self, name, make(branch))
        self.register_module("site", None)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x, ctx)
        return x if self.site is None else self.site(x, ctx)


class Parallel(Block):
    """Branches that all read the same stream and are summed into it at once (GPT-J, NeoX, Falcon).

    pre: one norm for all branches; a branch without it may have its own. dropout: on the sum of the branches
    (Falcon).
    """

    site_kind = "stream"

    def __init__(self, pre: Spec | None = None, dropout: float = 0.0, **branches: Spec) -> None:
        super().__init__()
        self.pre_norm, self.dropout_prob = make(pre), dropout
        self.order = tuple(branches)
        for name, branch in branches.items():
            setattr(self, name, make(branch))
        self.register_module("site", None)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        h = x if self.pre_norm is None else self.pre_norm(x)
        y = x
        for name in self.order:
            branch = getattr(self, name)
            y = y + branch.change(branch.normed(h), y, ctx)
        if self.training and self.dropout_prob:
            y = x + F.dropout(y - x, self.dropout_prob)
        return y if self.site is None else self.site(y, ctx)


def repeat(
    count: int, layer: Spec | Sequence[Spec], pruned: Mapping[Any, Sequence[int]] | None = None
) -> tuple[Spec, ...]:
    """`count` layers of one description, or of several in turn (Gemma 2: local, global, local, ...).

    pruned: layer number -> the heads that its `attn` lost (the public `pruned_heads`).
    """
    kinds = [layer] if isinstance(layer, Spec) else list(layer)
    lost = {int(i): len(set(heads)) for i, heads in (pruned or {}).items()}
    return tuple(_less(kinds[i % len(kinds)], lost.get(i, 0)) for i in range(count))


def _less(layer: Spec, lost: int) -> Spec:
    """The layer with `lost` heads fewer, each as wide as before."""
    if not lost:
        return layer
    attn = layer.branches["attn"]
    count, _, width = attn.heads.resolve(attn.width)
    attn = attn.but(heads=replace(attn.heads, q=count - lost, width=width))
    return layer.but(branches={**layer.branches, "attn": attn})


class Stack(Block):
    """embed -> layers -> norm -> pool. The backbone of encoders and decoders alike.

    embed: token or patch embedding, or None where the caller brings states. norm: final norm.
    project: (from, to) widths of a Linear without bias after it (OPT). dropout: on the final states (T5).
    position: a bias shared by all layers (see `StackBias`). layer_drop: chance that training skips a layer.
    record: the last entry of hidden_states is the final states ("normed"), or those before the norm ("raw");
    "layers": hidden_states are the outputs of all layers and the final states, without the embedding (Mamba).
    """

    def __init__(
        self,
        embed: Spec | None = None,
        layers: Sequence[Spec] = (),
        norm: Spec | None = None,
        pool: Spec | None = None,
        project: tuple[int, int] | None = None,
        dropout: float = 0.0,
        position: Spec | None = None,
        record: str = "normed",
        layer_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = make(embed)
        self.layers = make(list(layers))
        self.norm, self.pool = make(norm), make(pool)
        self.project = Linear(*project, bias=False) if project is not None else None
        self.position = make(position)
        self.dropout_prob, self.record, self.layer_drop = dropout, record, layer_drop
        self.gradient_checkpointing = False
        # How attention is computed here, where that differs from the rest of the model.
        self.implementation: str | None = None

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StackOutput:
        """From embedded states x (B, S, D) to the output; `ids` serve a pool that looks for the end token."""
        states: list[Tensor] | None = ([] if self.record == "layers" else [x]) if record_states else None
        if self.implementation is not None:
            ctx.implementation = self.implementation
        if self.position is not None:
            ctx.memo["stack-bias"] = self.position
        last = len(self.layers) - 1
        done = native(self, x, ctx) if native is not None and states is None else None
        if done is not None:
            x = done
        for index, layer in enumerate(self.layers if done is None else ()):
            ctx.layer = index
            if self.training and self.layer_drop and torch.rand(()) < self.layer_drop:
                continue
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(_replayed, layer, x, _apart(ctx), use_reentrant=False)
            else:
                x = layer(x, ctx)
            if states is not None and (index < last or self.record != "normed"):
                states.append(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        if self.project is not None:
            x = self.project(x)
        if states is not None and self.record != "raw" and (last >= 0 or self.record == "layers"):
            states.append(x)
        if ctx.cache is not None:
            ctx.cache.length = ctx.start + ctx.length
        return StackOutput(
            x,
            None if self.pool is None else self.pool(x, ids, ctx),
            ctx.cache,
            None if states is None else tuple(states),
            _tuple(ctx.attentions),
            _tuple(ctx.cross_attentions),
            _tuple(ctx.router_logits),
        )

    def recall(self, cache: Cache | None, state: Any) -> Cache | None:
        """The cache filled with the public tensors of a memory; only stacks with such a form have it."""
        raise ArgumentError(f"{type(self).__name__} takes no `state`; pass past_key_values")

    def forward(
        self,
        ctx: Context,
        ids: Tensor | None = None,
        vectors: Tensor | None = None,
        segment_ids: Tensor | None = None,
        record_states: bool = False,
    ) -> StackOutput:
        """Token ids (B, S), or their vectors (B, S, D), to the output."""
        x = self.embed(ids, vectors, segment_ids, ctx)
        return self.run(x, ctx, ids, record_states)


class Encoder(Stack):
    """A stack whose tokens see both sides."""


class Decoder(Stack):
    """A stack whose tokens see earlier ones only."""


class EncoderDecoder(Block):
    """An encoder, and a decoder that attends to the encoder's states; `shared` gives both one token table."""

    def __init__(self, encoder: Spec, decoder: Spec, shared: bool = True) -> None:
        super().__init__()
        self.encoder, self.decoder = make(encoder), make(decoder)
        if shared:
            self.decoder.embed.tokens.weight = self.encoder.embed.tokens.weight


@dataclass
class DualOutput:
    """What two towers computed."""

    text: StackOutput
    other: StackOutput


class Dual(Block):
    """Two towers side by side, by name: `Dual(text=..., image=...)`; a head compares their vectors (CLIP)."""

    def __init__(self, **towers: Spec) -> None:
        super().__init__()
        for name, tower in towers.items():
            setattr(self, name, make(tower))


def _tuple(items: list[Any] | None) -> tuple[Any, ...] | None:
    return None if items is None else tuple(items)


def _apart(ctx: Context) -> Context:
    """The call as it stands, with a memory of its own."""
    return replace(ctx, memo=dict(ctx.memo))


def _replayed(layer: Any, x: Tensor, ctx: Context) -> Tensor:
    """A layer that finds the same memory in the backward pass's second run as in its first."""
    return layer(x, _apart(ctx))
