"""Parts that turn the input of a projection: OFT, BOFT, HRA; and (IA)3, which scales input or output.

Qiu et al. 2023 (arXiv:2306.07280); Liu et al. 2024 (arXiv:2311.06243); Yuan et al. 2024 (arXiv:2405.17484);
Liu et al. 2022 (arXiv:2205.05638).
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.peft.configs import BOFTConfig, HRAConfig, IA3Config, OFTConfig, ends
from phyla.adapters.peft.part import Part, Turn, take
from phyla.adapters.peft.targets import Target, dense
from phyla.errors import AdapterError


def _linear(target: Target, name: str) -> None:
    if target.kind not in ("linear", "expert"):
        raise AdapterError(f"{name} changes projections, but {target.path} is none")


class Blocks(Turn):
    """OFT: each block of the input is turned by the Cayley transform of a skew matrix."""

    leaves: ClassVar[dict[str, str]] = {"weight": "oft_R.weight"}

    def __init__(self, config: OFTConfig, target: Target) -> None:
        super().__init__(target)
        _linear(target, "OFT")
        width = target.shape[1]
        if bool(config.r) == bool(config.oft_block_size):
            raise AdapterError("OFT needs r or oft_block_size, and the other one 0")
        size = config.oft_block_size or max(1, width // config.r)
        if width % size:
            raise AdapterError(
                f"oft_block_size must divide the width {width} of {target.path}, but is {size}"
            )
        self.size, self.count, self.terms = size, width // size, config.num_cayley_neumann_terms
        self.series, self.dropout = config.use_cayley_neumann, config.module_dropout
        self.bound = config.eps if config.coft else None
        rows = 1 if config.block_share else self.count
        self.weight = nn.Parameter(torch.zeros(rows, size * (size - 1) // 2))
        if not config.init_weights:
            nn.init.normal_(self.weight, std=0.1)
        self.register_buffer("upper", torch.triu_indices(size, size, 1), persistent=False)

    def rotations(self) -> Tensor:
        """The turn of each block, (count or 1, size, size)."""
        upper: Any = self.upper
        skew = self.weight.new_zeros(len(self.weight), self.size, self.size)
        skew[:, upper[0], upper[1]] = self.weight
        skew = skew - skew.mT
        if self.bound is not None:  # COFT: no farther from the identity than eps
            limit = self.bound / math.sqrt(len(skew))
            length = skew.norm(dim=(1, 2), keepdim=True)
            skew = torch.where(length <= limit, skew, limit * skew / length.clamp(min=1e-30))
        eye = torch.eye(self.size, dtype=skew.dtype, device=skew.device)
        if not self.series:
            return torch.linalg.solve(eye + skew, eye - skew, left=False)
        # (I + Q)(I + Q + Q^2 + ...) cut off: all powers count twice but the first and the last.
        last = max(3, self.terms - 1) if self.terms > 2 else self.terms - 1
        total, power = eye.expand_as(skew), eye.expand_as(skew)
        for number in range(1, last + 1):
            power = power @ skew
            total = total + power * (1 if number == last > 1 else 2)
        return total

    def turned(self, x: Tensor) -> Tensor:
        turns = self.rotations()
        if self.training and self.dropout and len(turns) > 1:
            drop = torch.randperm(len(turns), device=x.device) < int(self.dropout * len(turns))
            eye = torch.eye(self.size, dtype=turns.dtype, device=x.device)
            turns = torch.where(drop[:, None, None], eye, turns)
        turns = turns.expand(self.count, -1, -1).to(x.dtype)
        return torch.einsum("...rk,rkc->...rc", x.unflatten(-1, (self.count, self.size)), turns).flatten(-2)

    def matrix(self) -> Tensor:
        return torch.block_diag(*self.rotations().expand(self.count, -1, -1))


class Butterfly(Turn):
    """BOFT: several turns of blocks with the input shuffled between them, and a scale of the output."""

    leaves: ClassVar[dict[str, str]] = {"boft_R": "boft_R", "boft_s": "boft_s"}

    def __init__(self, config: BOFTConfig, target: Target) -> None:
        super().__init__(target)
        _linear(target, "BOFT")
        width, steps = target.shape[1], config.boft_n_butterfly_factor
        if bool(config.boft_block_size) == bool(config.boft_block_num):
            raise AdapterError("BOFT needs boft_block_size or boft_block_num, and the other one 0")
        size = config.boft_block_size or width // config.boft_block_num
        count = width // size
        if size * count != width or steps < 1 or count % 2 ** (steps - 1):
            raise AdapterError(
                f"blocks of {size} in {steps} butterfly steps do not divide {target.path}'s width {width}"
            )
        self.dropout = config.boft_dropout
        self.boft_R = nn.Parameter(torch.zeros(steps, count, size, size))
        self.boft_s = nn.Parameter(torch.ones(target.shape[0], 1))
        if not config.init_weights:
            nn.init.normal_(self.boft_R, std=0.1)
            nn.init.normal_(self.boft_s, mean=1.0, std=0.1)
        orders = [_shuffle(width, count >> step, size // 2, steps - 1) for step in range(steps)]
        self.register_buffer("orders", torch.stack(orders), persistent=False)

    def matrix(self) -> Tensor:
        skew = 0.5 * (self.boft_R - self.boft_R.mT)
        eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        turns = torch.linalg.solve(eye + skew, eye - skew, left=False)
        if self.training and self.dropout:
            drop = torch.rand(turns.shape[:2], device=turns.device) < self.dropout
            turns = torch.where(drop[..., None, None], eye, turns)
        orders: Any = self.orders
        whole: Tensor | None = None
        for blocks, order in zip(turns, orders, strict=True):
            step = torch.block_diag(*blocks)[order][:, order]
            whole = step if whole is None else step @ whole
        assert whole is not None
        return whole

    def change(self, x: Tensor, y: Tensor, linear: Any, rows: Any) -> Tensor:
        bias = getattr(linear, "bias", None)
        pure = y if bias is None else y - bias
        return (pure + super().change(x, y, linear, rows)) * take(self.boft_s, rows)[:, 0] - pure

    def merged(self, weight: Tensor, bias: Tensor | None, rows: Any) -> tuple[Tensor, Tensor | None]:
        turned, bias = super().merged(weight, bias, rows)
        return turned * take(self.boft_s, rows), bias


def _shuffle(width: int, blocks: int, half: int, steps: int) -> Tensor:
    """The order of inputs of one butterfly step: even halves of each group ahead of the odd ones."""
    order = torch.arange(width)
    if steps == 0:
        return order
    group = order.view(blocks, -1, half)
    return torch.cat([group[:, 0::2], group[:, 1::2]], 1).flatten()


class Reflections(Turn):
    """HRA: a chain of reflections (I - 2 u u^T) of the input; apply_GS: of orthogonalised vectors at once."""

    leaves: ClassVar[dict[str, str]] = {"hra_u": "hra_u"}

    def __init__(self, config: HRAConfig, target: Target) -> None:
        super().__init__(target)
        _linear(target, "HRA")
        if config.r < 1:
            raise AdapterError(f"r must be a positive integer, but is {config.r}")
        self.orthogonal = config.apply_GS
        width = target.shape[1]
        self.hra_u = nn.Parameter(torch.empty(width, config.r))
        nn.init.kaiming_uniform_(self.hra_u, a=math.sqrt(5))
        if config.init_weights and config.r % 2 == 0:  # pairs of equal reflections undo each other
            with torch.no_grad():
                half = self.hra_u[:, : config.r // 2].clone()
                self.hra_u.copy_(half.repeat_interleave(2, 1))

    def vectors(self) -> Tensor:
        """Unit vectors, (in, r)."""
        if not self.orthogonal:
            return self.hra_u / self.hra_u.norm(dim=0)
        found: list[Tensor] = []
        for column in self.hra_u.unbind(1):
            for other in found:
                column = column - (other @ column) * other
            found.append(column / column.norm())
        return torch.stack(found, 1)

    def turned(self, x: Tensor) -> Tensor:
        # The weight is multiplied from the right by H1 H2 ...: the input meets the last one first.
        vectors = self.vectors().to(x.dtype)
        if self.orthogonal:
            return x - 2 * (x @ vectors) @ vectors.T
        for vector in vectors.unbind(1)[::-1]:
            x = x - 2 * (x @ vector)[..., None] * vector
        return x

    def matrix(self) -> Tensor:
        return self.turned(torch.eye(len(self.hra_u), dtype=self.hra_u.dtype, device=self.hra_u.device))


class Scale(Part):
    """(IA)3: y times a vector, or x times a vector at `feedforward_modules`."""

    leaves: ClassVar[dict[str, str]] = {"ia3_l": "ia3_l"}

    def __init__(self, config: IA3Config, target: Target) -> None:
        super().__init__(target)
        names = config.feedforward_modules or ()
        if target.kind not in ("linear", "expert", "conv"):
            raise AdapterError(f"IA3 changes projections and convolutions, but {target.path} is none")
        self.ahead = ends(target.path, names)
        out, inner, *kernel = target.shape
        ones = [1] * len(kernel)
        if kernel:
            self.ia3_l = nn.Parameter(torch.ones(1, inner if self.ahead else out, *ones))
        else:
            self.ia3_l = nn.Parameter(torch.ones(1, inner) if self.ahead else torch.ones(out, 1))
        if not config.init_ia3_weights:
            nn.init.normal_(self.ia3_l)

    def change(self, x: Tensor, y: Tensor, linear: Any, rows: Any) -> Tensor:
        factor = self.ia3_l.flatten().to(x.dtype)
        if self.ahead:
            return F.linear(x * (factor - 1), dense(linear, x.dtype))
        return y * (take(factor, rows) - 1)

    def merged(self, weight: Tensor, bias: Tensor | None, rows: Any) -> tuple[Tensor, Tensor | None]:
        factor = self.ia3_l.flatten().to(weight.dtype)
        rest = [1] * (weight.dim() - 2)
        if self.ahead:
            return weight * factor.view(1, -1, *rest), bias
        factor = take(factor, rows)
        return weight * factor.view(-1, 1, *rest), None if bias is None else bias * factor
