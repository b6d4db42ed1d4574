"""What each of several processes holds of one model, and how they put their parts together.

The operations come in pairs: what one does to states, the other does to their gradients (Shoeybi et al. 2019,
arXiv:1909.08053, section 3).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import _functional_collectives as traced

from phyla.errors import CheckpointError


class Ranks:
    """The processes that hold one model together; every one makes the same calls in the same order."""

    def __init__(self, group: Any = None) -> None:
        self.group = _given_or_all(group)
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.leader: int = dist.get_global_rank(self.group, 0)

    def __deepcopy__(self, memo: dict) -> "Ranks":
        return self

    def edges(self, total: int, units: int) -> tuple[int, ...]:
        """Where the share of each rank begins, and `total` last: whole units, as even as they go."""
        return (*(units * rank // self.size * (total // units) for rank in range(self.size)), total)

    def enter(self, x: Tensor) -> Tensor:
        """x, the same on all ranks, into a computation of which each does a part: gradients are summed."""
        return _Enter.apply(x, self) if _learns(x) else x

    def total(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, in its place; what follows is the same on all ranks."""
        return _Total.apply(x, self) if _learns(x) else self._sum(x, in_place=True)

    def shared(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, which each goes on to use for a part: gradients are summed as well."""
        return _Shared.apply(x, self) if _learns(x) else self._sum(x)

    def whole(self, x: Tensor, dim: int, edges: Sequence[int]) -> Tensor:
        """All ranks' shares of a dimension put together; what follows is the same on all ranks."""
        return _Whole.apply(x, dim, edges, self) if _learns(x) else self._gather(x, dim, edges)

    def pick(self, x: Tensor, dim: int, start: int, stop: int) -> Tensor:
        """The part start .. stop of x, which is the same on all ranks; gradients are put together."""
        return _Pick.apply(x, dim, start, stop, self) if _learns(x) else x.narrow(dim, start, stop - start)

    def _sum(self, x: Tensor, in_place: bool = False) -> Tensor:
        if torch.compiler.is_compiling():
            return traced.all_reduce(x, "sum", self.group)
        y = x.contiguous() if in_place else x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(y, group=self.group)
        return y

    def _gather(self, x: Tensor, dim: int, edges: Sequence[int]) -> Tensor:
        dim = dim % x.dim()
        sizes = [stop - start for start, stop in itertools.pairwise(edges)]
        over = max(sizes) - x.shape[dim]
        if over:
            x = F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, over])
        if torch.compiler.is_compiling():
            parts = traced.all_gather_tensor(x.contiguous()[None], 0, self.group).unbind(0)
        else:
            x = x.contiguous()
            parts = tuple(torch.empty_like(x) for _ in sizes)
            dist.all_gather(list(parts), x, group=self.group)
        return torch.cat([p.narrow(dim, 0, n) for p, n in zip(parts, sizes, strict=True)], dim)

    def first(self, value: Any) -> Any:
        """What the first rank has for a plain value."""
        held = [value]
        dist.broadcast_object_list(held, src=self.leader, group=self.group)
        return held[0]

    def every(self, value: Any) -> list[Any]:
        """What all ranks have for a plain value, in their order."""
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value, group=self.group)
        return held

    def on_first(self, run: Callable[[], Any]) -> None:
        """Run something on the first rank while the others wait; where it fails, all fail."""
        fault: Exception | None = None
        if self.rank == 0:
            try:
                run()
            except Exception as error:
                fault = error
        told = self.first(None if fault is None else f"{type(fault).__name__}: {fault}")
        if fault is not None:
            raise fault
        if told is not None:
            raise CheckpointError(f"the first of {self.size} ranks failed: {told}")

    def align(self) -> None:
        """Let all ranks draw the random numbers that the first one is about to draw."""
        state = torch.get_rng_state()
        torch.set_rng_state(self._from_first(state))
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(self._from_first(torch.cuda.get_rng_state()))

    @torch.no_grad()
    def copy_first(self, x: Tensor) -> None:
        """Overwrite x with what the first rank has."""
        dist.broadcast(x, src=self.leader, group=self.group)

    def _from_first(self, state: Tensor) -> Tensor:
        where = _device_of(self.group)
        held = state.to(where)
        dist.broadcast(held, src=self.leader, group=self.group)
        return held.to(state.device)


def _given_or_all(group: Any) -> Any:
    return dist.group.WORLD if group is None else group


def _device_of(group: Any) -> torch.device:
    """Where tensors must lie that a group is to send."""
    return torch.device("cuda") if dist.get_backend(group) == "nccl" else torch.device("cpu")


def _learns(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


@dataclass(frozen=True)
class Span:
    """Which part of dimension `dim` of a parameter a rank holds: edges has where each rank's begins."""

    dim: int
    edges: tuple[int, ...]
    ranks: Ranks

    @property
    def start(self) -> int:
        """The first element of this rank."""
        return self.edges[self.ranks.rank]

    @property
    def stop(self) -> int:
        """The one behind its last."""
        return self.edges[self.ranks.rank + 1]

    def shape(self, own: Sequence[int]) -> torch.Size:
        """The shape of the whole, given that of a rank's part."""
        return torch.Size((*own[: self.dim], self.edges[-1], *own[self.dim + 1 :]))

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor, a view."""
        return whole.narrow(self.dim, self.start, self.stop - self.start)

    def joined(self, own: Tensor) -> Tensor:
        """The whole, from all ranks' parts."""
        return self.ranks.whole(own, self.dim, self.edges)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks._sum(gradient), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        return ranks._sum(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Shared(_Enter):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks._sum(x)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, edges: Sequence[int], ranks: Ranks) -> Tensor:
        ctx.dim, ctx.start, ctx.length = dim, edges[ranks.rank], x.shape[dim]
        return ranks._gather(x, dim, edges)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.narrow(ctx.dim, ctx.start, ctx.length), None, None, None


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, start: int, stop: int, ranks: Ranks) -> Tensor:
        ctx.dim, ctx.start, ctx.stop, ctx.ranks, ctx.shape = dim, start, stop, ranks, x.shape
        return x.narrow(dim, start, stop - start)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        wide = gradient.new_zeros(ctx.shape)
        wide.narrow(ctx.dim, ctx.start, ctx.stop - ctx.start).copy_(gradient)
        return ctx.ranks._sum(wide), None, None, None, None
