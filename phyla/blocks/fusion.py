"""Images in a stream of tokens: vectors of another tower stand where placeholder tokens stood."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.context import Context
from phyla.blocks.spec import Block, Spec, make
from phyla.blocks.stack import StackOutput
from phyla.errors import ArgumentError

Look = Callable[[Any, Tensor, bool], StackOutput]  # (vision stack, pixels, whether to keep states) -> output


@dataclass
class Images:
    """What a caller said about the images of one call.

    pixels: (N, C, Y, X), or (N, tiles, C, Y, X). sizes: (N, 2) heights and widths before any resizing.
    layers, strategy: the public vision_feature_layer and vision_feature_select_strategy, None for the
    config's.
    """

    pixels: Tensor
    sizes: Tensor | list | None = None
    layers: int | list | None = None
    strategy: str | None = None


def place(x: Tensor, marked: Tensor, vectors: Tensor) -> Tensor:
    """The stream x (B, S, D) with vectors (N, D) at its marked slots (B, S), in order of rows and slots."""
    order = (marked.flatten().long().cumsum(0) - 1).clamp(0, len(vectors) - 1)  # (B * S)
    return torch.where(marked[..., None], vectors.to(x)[order].view_as(x), x)


def check_count(marked: Tensor, vectors: Tensor, token: int, what: str = "image") -> None:
    """ArgumentError unless there is one vector for each placeholder token."""
    if torch.compiler.is_compiling():
        return
    count = int(marked.sum())
    if count != len(vectors):
        raise ArgumentError(
            f"there must be one {what} token (id {token}) for each {what} vector, but the text holds {count} "
            f"tokens and the {what}s make {len(vectors)} vectors; let the processor write the tokens"
        )


class ImageText(Block):
    """A vision tower, a projector into the width of the text, and a text decoder that reads its vectors.

    token: id of the placeholder. layers: which hidden states of the tower the projector gets, several side by
    side; None for its final states. strategy: "default" drops the first vector of an image (the class
    vector), "full" keeps all.
    """

    def __init__(
        self,
        vision: Spec,
        projector: Spec,
        text: Spec,
        token: int,
        layers: int | list | None = None,
        strategy: str = "full",
    ) -> None:
        super().__init__()
        self.vision, self.projector, self.text = make(vision), make(projector), make(text)
        self.token, self.layers, self.strategy = token, layers, strategy

    def seen(self, images: Images, pixels: Tensor, look: Look) -> Tensor:
        """Projected vectors (N, P, D) of pixels (N, C, Y, X)."""
        layers = self.layers if images.layers is None else images.layers
        strategy = self.strategy if images.strategy is None else images.strategy
        if strategy not in ("default", "full"):
            raise ArgumentError(
                f'vision_feature_select_strategy must be "default" or "full", not {strategy!r}'
            )
        out = look(self.vision, pixels, layers is not None)
        if layers is None:
            x = out.last_hidden_state
        else:
            states: Any = out.hidden_states
            chosen = [layers] if isinstance(layers, int) else layers
            x = torch.cat([states[i] for i in chosen], -1) if len(chosen) > 1 else states[chosen[0]]
        return self.project(x[:, 1:] if strategy == "default" else x)

    def project(self, x: Tensor) -> Tensor:
        """States of the tower (N, P, D') as vectors of the text (N, P, D)."""
        return self.projector.mix(x, Context.of(x)) if hasattr(self.projector, "mix") else self.projector(x)

    def features(self, images: Images, look: Look) -> Tensor:
        """Vectors (..., D) of all images, in the order of the placeholder tokens."""
        return self.seen(images, images.pixels, look)

    def arrange(self, ctx: Context, segments: Tensor | None, learning: bool) -> None:
        """Change masks and positions of the call where the text model alone would have others."""
