"""What detectors of objects share: the call, its results, and decoders of queries."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from phyla.blocks.context import Context
from phyla.blocks.stack import Decoder, StackOutput


@dataclass
class Look:
    """One call of a detector: pixels (B, C, Y, X), their mask (B, Y, X), and what is asked for.

    encoded: states of the encoder in place of running it (its public output, or a tuple). labels: targets in
    training, for models that add noised ones to the queries. head: the class's head, some of whose parts
    move points from layer to layer. text: inputs of a text part.
    """

    pixels: Tensor
    mask: Tensor | None = None
    implementation: str = "sdpa"
    attentions: bool = False
    states: bool = False
    encoded: Any = None
    labels: Any = None
    head: Any = None
    text: dict[str, Any] = field(default_factory=dict)

    def context(self, x: Tensor, mask: Tensor | None = None, cross: bool = False, **memo: Any) -> Context:
        """The context of a stack on x (B, S, D), of which `mask` (B, S) is real."""
        return Context(
            positions=torch.arange(x.shape[1], device=x.device)[None],
            length=x.shape[1],
            attention_mask=mask,
            implementation=self.implementation,
            attentions=[] if self.attentions else None,
            cross_attentions=[] if self.attentions and cross else None,
            memo=dict(memo.items()),
        )

    def real(self) -> Tensor:
        """The mask (B, Y, X), True at what is no padding."""
        if self.mask is not None:
            return self.mask.to(device=self.pixels.device, dtype=torch.bool)
        b, _, y, x = self.pixels.shape
        return torch.ones((b, y, x), dtype=torch.bool, device=self.pixels.device)

    def encoder_output(self) -> StackOutput | None:
        """The caller's states of the encoder, by name."""
        given = self.encoded
        if given is None or hasattr(given, "last_hidden_state"):
            return given
        state, *rest = given
        return StackOutput(
            state,
            hidden_states=rest[0] if rest else None,
            attentions=rest[1] if len(rest) > 1 else None,
        )


def shrunk(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (B, Y, X) at the size of a feature map, by the nearest pixel."""
    return F.interpolate(mask[None].float(), size=tuple(size))[0].bool()


@dataclass
class DetectorOutput:
    """What a detector computed, under the public names; and what heads need besides (`extra`)."""

    last_hidden_state: Tensor
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Any, ...] | None = None
    intermediate_hidden_states: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(name)

    @classmethod
    def of(cls, decoder: Any, encoder: Any, **extra: Any) -> "DetectorOutput":
        """The outputs of two stacks joined."""
        return cls(
            decoder.last_hidden_state,
            decoder.hidden_states,
            decoder.attentions,
            decoder.cross_attentions,
            encoder.last_hidden_state,
            encoder.hidden_states,
            encoder.attentions,
            extra=extra,
        )


class QueryDecoder(Decoder):
    """A decoder whose states behind every layer are kept, normed, in ctx.memo["kept"].

    again: a layer reads the normed states of the one before it, as published models with auxiliary losses do.
    """

    def __init__(self, layers: Any, norm: Any, layer_drop: float = 0.0, again: bool = True) -> None:
        super().__init__(None, layers, norm, layer_drop=layer_drop)
        self.again = again

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StackOutput:
        states, kept = [x], []
        for index, layer in enumerate(self.layers):
            ctx.layer = index
            if self.training and self.layer_drop and torch.rand(()) < self.layer_drop:
                continue
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, ctx, use_reentrant=False)
            else:
                x = layer(x, ctx)
            kept.append(self.norm(x))
            x = kept[-1] if self.again else x
            states.append(x)
        x = self.norm(x)
        ctx.memo["kept"] = torch.stack(kept)  # (L, B, Q, D)
        states[-1] = x
        return StackOutput(
            x,
            hidden_states=tuple(states) if record_states else None,
            attentions=None if ctx.attentions is None else tuple(ctx.attentions),
            cross_attentions=None if ctx.cross_attentions is None else tuple(ctx.cross_attentions),
        )
