"""From token ids to the stream."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.context import Context
from phyla.blocks.gradient import lookup
from phyla.blocks.linear import Linear
from phyla.blocks.spec import Block, Spec, make


class Tokens(nn.Module):
    """The table of token vectors (V, width), which heads can share; its site sees (ids, vectors, table)."""

    site: nn.Module | None

    def __init__(self, vocabulary: int, width: int, padding: int | None = None) -> None:
        super().__init__()
        self.padding = padding
        self.weight = nn.Parameter(torch.empty(vocabulary, width))
        self.register_module("site", None)

    @property
    def num_embeddings(self) -> int:
        """V, whatever part of the table is here."""
        return len(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        y = lookup(ids, self.weight, self.padding)
        return y if self.site is None else self.site(ids, y, self)


class Embed(Block):
    """Token vectors, plus positions and segments, normed: ids (B, S) -> stream (B, S, D).

    inner: width of the token table when it differs from D; a projection follows (without bias, before
    positions: OPT). scale: factor on the token vectors (T5 none, BART sqrt(D), Gemma sqrt(D)). scale_rounded:
    the factor is rounded to the dtype of the stream first (Gemma). padding: row that gets no gradient.
    out: width of the stream where it differs from all of these; a projection with bias comes last (ALBERT).
    segments: size of the table of token types, or "tokens" where given types are looked up in the token table
    (GPT-2).
    """

    site_kind = "stream"

    def __init__(
        self,
        vocabulary: int,
        width: int,
        position: Spec | None = None,
        segments: int | str = 0,
        norm: Spec | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
        scale_rounded: bool = False,
        inner: int | None = None,
        padding: int | None = None,
        out: int | None = None,
    ) -> None:
        super().__init__()
        inner = inner or width
        self.tokens = Tokens(vocabulary, inner, padding)
        self.project = Linear(inner, width, bias=False) if inner != width else None
        self.position = make(position)
        self.segment = Tokens(segments, width) if isinstance(segments, int) and segments else None
        self.shares_segments = segments == "tokens"
        self.norm = make(norm)
        self.lift = Linear(width, out) if out is not None else None
        self.dropout_prob, self.scale, self.scale_rounded = dropout, scale, scale_rounded
        self.register_module("site", None)

    def words(self, ids: Tensor) -> Tensor:
        """Token vectors (B, S, width) as a caller may give them in place of ids (B, S)."""
        return self.tokens(ids)

    def vectors(self, ids: Tensor) -> Tensor:
        """Token vectors (B, S, width) with the factor that they have, without positions and norms."""
        return self._scaled(self.words(ids))

    def _scaled(self, x: Tensor) -> Tensor:
        if self.scale is None:
            return x
        if self.scale_rounded:
            return x * torch.full((), self.scale, dtype=x.dtype, device=x.device)
        return x * self.scale

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, segment_ids: Tensor | None, ctx: Context
    ) -> Tensor:
        """ids (B, S), or ready token vectors (B, S, D) in their place; segment_ids (B, S), default all 0."""
        x = vectors
        if x is None:
            assert ids is not None
            x = self.words(ids)
        if vectors is None or self.scale_rounded:
            x = self._scaled(x)
        if self.project is not None:
            x = self.project(x)
        if self.shares_segments and segment_ids is not None:
            x = x + self.tokens(segment_ids)
        elif self.segment is not None:
            x = x + (self.segment(segment_ids) if segment_ids is not None else self.segment.weight[0])
        if self.position is not None:
            x = x + self.position(self.position.index(ctx, ids)).to(x.dtype)
        if self.norm is not None:
            x = self.norm(x)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        if self.lift is not None:
            x = self.lift(x)
        return x if self.site is None else self.site(x, ctx)
