"""One rank's part of maps, tables, attentions, experts and norms: classes that modules take on in place.

What stands at a site sees whole inputs and outputs, as in an undivided model, and is the same on all ranks:
there the parts are put together and taken apart again.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.context import Context
from phyla.blocks.embed import Tokens
from phyla.blocks.gradient import lookup
from phyla.blocks.linear import Linear
from phyla.blocks.matmul import linear
from phyla.blocks.norm import LayerNorm, RMSNorm
from phyla.blocks.position import Alibi, alibi_slopes
from phyla.blocks.shares import Ranks, Span


class Whole:
    """A divided module as what stands at its site sees it: its sizes whole, its tensors put together."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        found, span = getattr(self.module, name), self.module.spans.get(name)
        return found if span is None or found is None else span.joined(found)


class ColumnLinear(Linear):
    """This rank's rows of the weight: x whole -> own outputs, or all of them where it `gathers`."""

    ranks: Ranks
    spans: dict[str, Span]
    gathers = False

    def forward(self, x: Tensor) -> Tensor:
        y = linear(self.ranks.enter(x), self.weight, self.bias)
        if self.site is None and not self.gathers:
            return y
        span = self.spans["weight"]
        y = self.ranks.whole(y, -1, span.edges)
        if self.site is not None:
            y = self.site(x, y, Whole(self))
        return y if self.gathers else self.ranks.pick(y, -1, span.start, span.stop)


class PickingLinear(Linear):
    """A map that all ranks hold whole, of whose outputs each goes on with `kept` (keys of few heads)."""

    ranks: Ranks
    spans: dict[str, Span]
    kept: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        return self.ranks.pick(super().forward(x), -1, *self.kept)


class RowLinear(Linear):
    """This rank's columns of the weight: own inputs -> the sum of all ranks, then the bias, once.

    splits: the input is whole, and each rank takes its part.
    """

    ranks: Ranks
    spans: dict[str, Span]
    splits = False

    def forward(self, x: Tensor) -> Tensor:
        span, given = self.spans["weight"], x
        if self.splits:
            x = self.ranks.pick(x, -1, span.start, span.stop)
        y = self.ranks.total(linear(x, self.weight))
        if self.bias is not None:
            y = y + self.bias
        if self.site is None:
            return y
        return self.site(given if self.splits else self.ranks.whole(x, -1, span.edges), y, Whole(self))


class TokenShare(Tokens):
    """This rank's rows of the table: other ids give zeros here, and the sum of all ranks the vectors."""

    ranks: Ranks
    spans: dict[str, Span]

    @property
    def num_embeddings(self) -> int:
        return self.spans["weight"].edges[-1]

    def forward(self, ids: Tensor) -> Tensor:
        start, stop = self.spans["weight"].start, self.spans["weight"].stop
        outside = (ids < start) | (ids >= stop)
        padding = self.padding
        if padding is not None:
            padding = padding - start if start <= padding < stop else None
        y = lookup((ids - start).masked_fill(outside, 0), self.weight, padding)
        y = self.ranks.total(y.masked_fill(outside[..., None], 0))
        return y if self.site is None else self.site(ids, y, Whole(self))


class HeadShare:
    """An attention with this rank's heads; masks, records and what stands at `kv_site` are of all heads.

    every: how many query and key/value heads the whole has. repeats: how many ranks hold each of the latter.
    """

    ranks: Ranks
    every: tuple[int, int]
    repeats = 1
    _modules: dict[str, Any]

    @property
    def kv_site(self) -> Any:
        """What stands at the site, between putting heads together and taking them apart."""
        site = self._modules["kv_site"]
        return None if site is None else functools.partial(self._whole_at, site)

    def _whole_at(
        self, site: Any, k: Tensor, v: Tensor, mask: Tensor | None, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        own, count = k.shape[1], self.ranks.size
        edges = tuple(range(0, (count + 1) * own, own))
        k, v = (self.ranks.whole(t, 1, edges)[:, :: self.repeats] for t in (k, v))
        k, v, mask = site(k, v, mask, x)
        start = self.ranks.rank // self.repeats * own
        return self.ranks.pick(k, 1, start, start + own), self.ranks.pick(v, 1, start, start + own), mask

    def answer(
        self, q: Tensor, k: Tensor, v: Tensor, first: int, causal: bool, x: Tensor, ctx: Context
    ) -> Tensor:
        """As any attention's."""
        heads, own, cross = self.every[0], q.shape[1], bool(self.cross)  # type: ignore[attr-defined]
        record = ctx.cross_attentions if cross else ctx.attentions
        changes: dict[str, Any] = {}
        for name in ("attention_mask", "memory_mask", "head_mask"):
            given = getattr(ctx, name)
            if given is not None and given.dim() > 3 and given.shape[-3] == heads > 1:
                changes[name] = given.narrow(-3, self.ranks.rank * own, own)
        if "attention_mask" in changes:  # layers share what they make of it
            changes["memo"] = ctx.once("heads of this rank", lambda: dict(ctx.memo))
        if record is not None:
            found: list[Tensor] = []
            changes["cross_attentions" if cross else "attentions"] = found
        if changes:
            ctx = replace(ctx, **changes)
        y = super().answer(q, k, v, first, causal, x, ctx)  # type: ignore[misc]
        if record is not None:
            record.append(self.ranks.whole(found[0], 1, tuple(range(0, heads + 1, own))))
        return y


class HeadNorm:
    """A norm of single heads, with weights that all ranks hold: their gradients are summed."""

    ranks: Ranks
    _parameters: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        with _entered(self):
            return super().forward(x)  # type: ignore[misc]


class HeadKeys:
    """Vectors of distances that all heads share, likewise."""

    ranks: Ranks
    _parameters: dict[str, Any]

    def bias(self, *given: Any) -> Tensor:
        with _entered(self):
            return super().bias(*given)  # type: ignore[misc]


@contextmanager
def _entered(module: Any) -> Iterator[None]:
    """Inside, the module's parameters stand for a part of their use."""
    held = dict(module._parameters)
    try:
        if torch.is_grad_enabled():
            module._parameters.update({n: module.ranks.enter(p) for n, p in held.items() if p is not None})
        yield
    finally:
        module._parameters.update(held)


class ExpertShare:
    """Experts of whose inner width this rank has a part; which experts a token goes to, all ranks know."""

    ranks: Ranks
    spans: dict[str, Span]

    def _run(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        ranks = self.ranks
        y = super()._run(ranks.enter(tokens), ranks.enter(weights), index)  # type: ignore[misc]
        return ranks.total(y)


class AlibiShare(Alibi):
    """The slopes of this rank's heads."""

    ranks: Ranks

    def fill_buffers(self) -> None:
        own = len(self.slopes)
        every = torch.tensor(alibi_slopes(self.heads))
        self.slopes.copy_(every[self.ranks.rank * own : (self.ranks.rank + 1) * own])


class WideNorm:
    """A norm over the heads of all ranks, with this rank's part of the weights."""

    ranks: Ranks
    spans: dict[str, Span]

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all ranks' elements, (..., 1)."""
        width: int = self.width  # type: ignore[attr-defined]
        return self.ranks.shared(x.sum(-1, keepdim=True)) / width


class WideRMSNorm(WideNorm, RMSNorm):
    """An RMS norm over the heads of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        wide, weight = x.float(), self.weight
        wide = wide * torch.rsqrt(self.mean(wide.square()) + self.eps)
        if self.cast == "early":
            return (weight + self.offset if self.offset else weight) * wide.to(x.dtype)
        return (wide * (weight.float() + self.offset)).to(x.dtype)


class WideLayerNorm(WideNorm, LayerNorm):
    """A layer norm over the heads of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide - self.mean(wide)
        wide = wide * torch.rsqrt(self.mean(wide.square()) + self.eps)
        if self.weight is not None:
            wide = wide * self.weight.float()
        return (wide if self.bias is None else wide + self.bias.float()).to(x.dtype)


@functools.cache
def share_of(kind: type, share: type) -> type:
    """A class of blocks with the ways of a share before its own."""
    return type(kind)(f"{kind.__name__}Share", (share, kind), {"__module__": __name__})
