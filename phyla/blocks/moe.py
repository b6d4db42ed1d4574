"""A mixture of experts as a feed-forward mixer."""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.act import activation, gated
from phyla.blocks.context import Context
from phyla.blocks.linear import Linear
from phyla.blocks.matmul import linear
from phyla.blocks.residual import Mixer
from phyla.blocks.shapes import Stream


class Experts(Mixer):
    """Each token goes to the `chosen` best of X gated feed-forwards (Jiang et al. 2024, arXiv:2401.04088).

    After Shazeer et al. 2017. gate, up (X, F, D), down (X, D, F). Weights are the softmax over all experts,
    renormalised over the chosen ones when `renormalise`. jitter: width of the uniform noise on the input
    while training.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        experts: int,
        chosen: int,
        act: str = "silu",
        renormalise: bool = True,
        jitter: float = 0.0,
    ) -> None:
        super().__init__()
        self.experts, self.chosen, self.renormalise, self.jitter = experts, chosen, renormalise, jitter
        self.act = activation(act)
        self.router = Linear(width, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, inner, width))
        self.up = nn.Parameter(torch.empty(experts, inner, width))
        self.down = nn.Parameter(torch.empty(experts, width, inner))

    def mix(self, x: Stream, ctx: Context) -> Stream:
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        tokens = x.reshape(-1, x.shape[-1])  # (N, D)
        weights, index = self.route(tokens, ctx)
        return self._run(tokens, weights.to(x.dtype), index).view_as(x)

    def route(self, tokens: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Weights and numbers of each token's experts, (N, chosen) each; the router's scores are recorded."""
        logits = self.router(tokens)  # (N, X)
        if ctx.router_logits is not None:
            ctx.router_logits.append(logits)
        weights = torch.softmax(logits, -1, dtype=torch.float32)
        weights, index = torch.topk(weights, self.chosen, -1)  # (N, chosen)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, index

    def _run(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or tokens.is_cuda:
            return self._run_dense(tokens, weights, index)
        # Read once, because an adapter may stand before them and compute what is read.
        every = gate, _, _ = self.gate, self.up, self.down
        plain = tokens.dtype == gate.dtype and not torch.is_autocast_enabled("cpu")
        if plain and torch.is_grad_enabled() and gate.requires_grad:
            return self._run_sorted(tokens, weights, index, every)
        y = torch.zeros_like(tokens)
        # Taken apart once: the gradient of each single expert would be as large as all of them.
        parts = zip(*(weight.unbind() for weight in every), strict=True)
        for expert, (gate, up, down) in enumerate(parts):
            rows, place = torch.where(index == expert)
            if len(rows):
                h = tokens[rows]
                h = self.act(linear(h, gate)) * linear(h, up)
                y.index_add_(0, rows, linear(h, down) * weights[rows, place, None])
        return y

    def _run_sorted(
        self, tokens: Tensor, weights: Tensor, index: Tensor, every: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Tokens of one expert side by side, and one gradient for the weights of all experts."""
        gate, up, down = every
        order = index.flatten().argsort(stable=True)
        counts = index.flatten().bincount(minlength=self.experts).tolist()
        rows = order // self.chosen
        h = tokens[rows]
        h = gated(self.act, _Grouped.apply(h, gate, counts), _Grouped.apply(h, up, counts))
        h = _Grouped.apply(h, down, counts) * weights.flatten()[order, None]
        return torch.zeros_like(tokens).index_add(0, rows, h)

    def _run_dense(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """All experts on all tokens: static shapes for captured graphs."""
        share = torch.zeros(len(tokens), self.experts, dtype=tokens.dtype, device=tokens.device)
        share = share.scatter(1, index, weights)  # (N, X)
        h = self.act(torch.einsum("nd,xfd->xnf", tokens, self.gate)) * torch.einsum(
            "nd,xfd->xnf", tokens, self.up
        )
        return torch.einsum("xnf,xdf,nx->nd", h, self.down, share)


class _Grouped(torch.autograd.Function):
    """Rows x (N, in), `counts` of them for each matrix of weight (X, out, in) in turn -> (N, out)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        return torch.cat([part @ w.t() for part, w in zip(x.split(counts), weight, strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.counts = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        parts = list(zip(gradient.split(ctx.counts), x.split(ctx.counts), weight, strict=True))
        of_x = torch.cat([g @ w for g, _, w in parts])
        if torch.is_grad_enabled():  # somebody wants gradients of these gradients
            return of_x, torch.stack([g.t() @ h for g, h, _ in parts]), None
        of_weight = torch.empty_like(weight)
        for (g, h, _), out in zip(parts, of_weight, strict=True):
            torch.mm(g.t(), h, out=out)
        return of_x, of_weight, None
