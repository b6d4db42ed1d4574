"""Mixers and the residual branch around them: where norms, dropout, scales and the branch site stand."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from phyla.blocks.context import Context
from phyla.blocks.shapes import NewStream, Rows, Stream
from phyla.blocks.spec import Block, Spec, make


class Mixer(Block):
    """Something that turns the stream into a new stream: attention, feed-forward, experts, state space, ...

    A subclass writes `mix(x, ctx)`; one with memory between calls also writes `new_cache(batch, length)` and
    sets `slot`. Alone, a mixer computes `mix`; as a branch (see `residual`) it computes the residual sum
    around it.
    """

    site_kind = "branch"
    caches = False
    slot = -1

    def __init__(self) -> None:
        super().__init__()
        self.is_branch = False
        self.register_module("site", None)
        self.register_module("mix_site", None)

    def attach(
        self,
        pre: Spec | None,
        post: Spec | None,
        out: Spec | None,
        dropout: float,
        scale: Any,
        keep_norm: bool,
        path_dropout: float = 0.0,
    ) -> None:
        """Make this mixer a residual branch; see `residual`."""
        self.is_branch = True
        self.pre_norm, self.post_norm, self.out_norm = make(pre), make(post), make(out)
        self.dropout_prob, self.keep_norm, self.path_dropout = dropout, keep_norm, path_dropout
        self.multiplier = scale if isinstance(scale, int | float) else None
        self.layer_scale = make(scale) if isinstance(scale, Spec) else None

    def mix(self, x: Stream, ctx: Context) -> NewStream:
        """The mixer itself, without its residual. x (B, S, D)."""
        raise TypeError(f"{type(self).__name__} must define mix(x, ctx)")

    def idle(self, ctx: Context) -> bool:
        """Whether this call leaves the branch out (cross-attention without an encoder)."""
        return False

    def new_cache(self, batch: int, length: int) -> Any:
        """Memory for `length` positions of `batch` rows, or None."""
        return None

    def _flat(self, ctx: Context) -> bool:
        """Whether the row holds several texts, which this mixer must tell apart (see blocks/flat.py)."""
        return self.caches and ctx.cache is not None and getattr(ctx.cache, "flat", False)

    def change(self, h: Stream, x: Stream, ctx: Context) -> Stream:
        """What the branch adds to the stream x, given the normed stream h."""
        y = ctx.cache.mix(self, h, ctx) if self._flat(ctx) else self.mix(h, ctx)
        if self.mix_site is not None:
            y = self.mix_site(y, x, self)
        if self.out_norm is not None:
            y = self.out_norm(y)
        if self.training and self.dropout_prob:
            y = F.dropout(y, self.dropout_prob)
        if self.layer_scale is not None:
            y = self.layer_scale(y)
        elif self.multiplier is not None:
            y = y * self.multiplier
        if self.training and self.path_dropout:
            y = drop_path(y, self.path_dropout)
        return y if self.site is None else self.site(y, x, self)

    def normed(self, x: Stream) -> Stream:
        """The stream as the mixer sees it."""
        return x if self.pre_norm is None else self.pre_norm(x)

    def forward(self, x: Stream, ctx: Context) -> NewStream:
        if not self.is_branch:
            y = ctx.cache.mix(self, x, ctx) if self._flat(ctx) else self.mix(x, ctx)
            return y if self.site is None else self.site(y, x, self)
        if self.idle(ctx):
            return x
        h = self.normed(x)
        y = self.change(h, x, ctx)
        if self.site is not None and getattr(self.site, "closes", False):
            return y  # the site took the residual sum and the norm upon itself
        x = (h if self.keep_norm else x) + y
        return x if self.post_norm is None else self.post_norm(x)


def residual(
    mixer: Spec,
    pre: Spec | None = None,
    post: Spec | None = None,
    out: Spec | None = None,
    dropout: float = 0.0,
    scale: Any = None,
    keep_norm: bool = False,
    path_dropout: float = 0.0,
) -> Spec:
    """The branch x + dropout(out(mixer(pre(x)))), then `post`.

    pre: norm of the mixer's input; out: norm of its output (Gemma 2, Swin 2); post: norm after the sum
    (BERT). scale: a number or a `LayerScale` on the output. keep_norm: the sum starts from the normed input
    (BLOOM's and Falcon's `apply_residual_connection_post_layernorm`). path_dropout: see `drop_path`.
    """
    branch = {
        "pre": pre,
        "post": post,
        "out": out,
        "dropout": dropout,
        "scale": scale,
        "keep_norm": keep_norm,
        "path_dropout": path_dropout,
    }
    return Spec(mixer.block, mixer.args, branch)


class LayerScale(Block):
    """A learned gain for each channel (Touvron et al. 2021, arXiv:2103.17239). x (..., D)."""

    def __init__(self, width: int, init: float = 1.0) -> None:
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Rows) -> Rows:
        return x * self.weight

    def reset(self, std: float) -> bool:
        nn.init.constant_(self.weight, self.init)
        return True


def drop_path(x: torch.Tensor, chance: float) -> torch.Tensor:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): whole rows of x become 0, others grow."""
    kept = torch.rand((len(x), *[1] * (x.dim() - 1)), dtype=x.dtype, device=x.device) >= chance
    return x * (kept.to(x.dtype) / (1 - chance))


def path_chances(last: float, count: int) -> list[float]:
    """Chances of `drop_path` that grow evenly from 0 to `last` over `count` layers."""
    return [last * i / max(count - 1, 1) for i in range(count)]
