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
    those of the chosen ones divided by their sum when `renormalise`, or by their norm of the power that it
    is. jitter: width of the uniform noise on the input while training. chances: the softmax is recorded,
    where scores are asked for.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        experts: int,
        chosen: int,
        act: str = "silu",
        renormalise: bool | float = True,
        jitter: float = 0.0,
        chances: bool = False,
    ) -> None:
        super().__init__()
        self.experts, self.chosen, self.renormalise, self.jitter = experts, chosen, renormalise, jitter
        self.inner, self.chances = inner, chances
        self.act = activation(act)
        self.router = Linear(width, experts, bias=False)
        # Or a module with packed matrices: phyla/quantization/experts.py.
        self.gate: Any = nn.Parameter(torch.empty(experts, inner, width))
        self.up: Any = nn.Parameter(torch.empty(experts, inner, width))
        self.down: Any = nn.Parameter(torch.empty(experts, width, inner))

    def mix(self, x: Stream, ctx: Context) -> Stream:
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        tokens = x.reshape(-1, x.shape[-1])  # (N, D)
        weights, index = self.route(tokens, ctx)
        return self._run(tokens, weights.to(x.dtype), index).view_as(x)

    def route(self, tokens: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Weights and numbers of each token's experts, (N, chosen) each; the router's scores are recorded."""
        logits = self.router(tokens)  # (N, X)
        weights = torch.softmax(logits, -1, dtype=torch.float32)
        if ctx.router_logits is not None:
            ctx.router_logits.append(weights.to(tokens.dtype) if self.chances else logits)
        weights, index = torch.topk(weights, self.chosen, -1)  # (N, chosen)
        if self.renormalise == 1:
            weights = weights / weights.sum(-1, keepdim=True)
        elif self.renormalise:
            weights = weights / torch.linalg.vector_norm(weights, self.renormalise, -1, keepdim=True)
        return weights, index

    def _run(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        # Read once, because an adapter may stand before them and compute what is read.
        every = self.gate, self.up, self.down
        packed = any(isinstance(weight, nn.Module) for weight in every)
        if torch.compiler.is_compiling():
            run = self._run_each if packed else self._run_dense
            return run(tokens, weights, index, every)
        if tokens.is_cuda and not packed:
            return self._run_dense(tokens, weights, index, every)
        if not packed and torch.is_grad_enabled() and every[0].requires_grad:
            if tokens.dtype == every[0].dtype and not torch.is_autocast_enabled("cpu"):
                return self._run_sorted(tokens, weights, index, every)
        y = torch.zeros_like(tokens)
        # Taken apart once: the gradient of each single expert would be as large as all of them.
        gate, up, down = (w if isinstance(w, nn.Module) else w.unbind() for w in every)
        for expert in index.unique().tolist():  # sorted: a token's sum has one order in any company
            rows, place = torch.where(index == expert)
            h = tokens[rows]
            h = self.act(_product(h, gate, expert)) * _product(h, up, expert)
            y.index_add_(0, rows, _product(h, down, expert) * weights[rows, place, None])
        return y

    def _run_each(
        self, tokens: Tensor, weights: Tensor, index: Tensor, every: tuple[Any, Any, Any]
    ) -> Tensor:
        """All experts on all tokens, one by one: static shapes with only one of them expanded."""
        share = self._shares(tokens, weights, index)
        gate, up, down = every
        y = torch.zeros_like(tokens)
        for expert in range(self.experts):
            h = self.act(_product(tokens, gate, expert)) * _product(tokens, up, expert)
            y = y + _product(h, down, expert) * share[:, expert, None]
        return y

    def _shares(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """The weight of every expert for each token, (N, X), 0 for those that it did not choose."""
        share = torch.zeros(len(tokens), self.experts, dtype=tokens.dtype, device=tokens.device)
        return share.scatter(1, index, weights)

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

    def _run_dense(
        self, tokens: Tensor, weights: Tensor, index: Tensor, every: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """All experts on all tokens: static shapes for captured graphs."""
        gate, up, down = every
        h = self.act(torch.einsum("nd,xfd->xnf", tokens, gate)) * torch.einsum("nd,xfd->xnf", tokens, up)
        return torch.einsum("xnf,xdf,nx->nd", h, down, self._shares(tokens, weights, index))


def _product(x: Tensor, matrices: Any, expert: int) -> Tensor:
    """x W^T for the matrix of one expert."""
    return matrices(x, expert) if isinstance(matrices, nn.Module) else linear(x, matrices[expert])


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
