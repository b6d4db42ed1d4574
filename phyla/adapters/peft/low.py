"""Low-rank parts: LoRA with DoRA, at projections, tables, convolutions and experts; AdaLoRA; VeRA.

Hu et al. 2022 (arXiv:2106.09685); Liu et al. 2024 (arXiv:2402.09353); Zhang et al. 2023 (arXiv:2303.10512);
Kopiczko et al. 2024 (arXiv:2310.11454); Meng et al. 2024 (arXiv:2404.02948).
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.peft.configs import AdaLoraConfig, LoraConfig, VeraConfig, by_pattern
from phyla.adapters.peft.part import Delta, take
from phyla.adapters.peft.targets import Target, dense
from phyla.errors import AdapterError


class LowRank(Delta):
    """scaling B A: A (r, in), B (out, r); at a table A (r, V), B (D, r); at a convolution 4-D."""

    leaves: ClassVar[dict[str, str]] = {
        "lora_A": "lora_A.weight",
        "lora_B": "lora_B.weight",
        "lora_bias": "lora_B.bias",
        "m": "lora_magnitude_vector",
    }

    def __init__(self, config: LoraConfig, target: Target) -> None:
        super().__init__(target)
        rank = by_pattern(config.rank_pattern, target.path, config.r)
        alpha = by_pattern(config.alpha_pattern, target.path, config.lora_alpha)
        if not isinstance(rank, int) or rank < 1:
            raise AdapterError(f"r must be a positive integer, but is {rank!r} for {target.path}")
        self.rank, self.dropout = rank, config.lora_dropout
        self.scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
        out, inner, *kernel = target.shape
        groups = target.pieces[0].module.groups if target.kind == "conv" else 1
        if groups > 1:
            raise AdapterError(
                f"LoRA takes convolutions of one group, but {target.path} has {groups}: name it in "
                "exclude_modules, or take LoHa or LoKr"
            )
        if target.kind == "table":
            out, inner = inner, out
        self.lora_A = nn.Parameter(torch.empty(rank, inner, *kernel))
        self.lora_B = nn.Parameter(torch.empty(out, rank, *([1] * len(kernel))))
        self.lora_bias = nn.Parameter(torch.zeros(out)) if config.lora_bias else None
        self.register_buffer("start_A", None, persistent=False)
        self.register_buffer("start_B", None, persistent=False)
        self._fresh(config.init_lora_weights, target)
        self.m = nn.Parameter(self._lengths(target.weight.detach().float())) if config.use_dora else None

    def names(self) -> dict[str, str]:
        if self.kind != "table":
            return self.leaves
        return {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B", "m": self.leaves["m"]}

    def _fresh(self, how: Any, target: Target) -> None:
        a, b = self.lora_A, self.lora_B
        if isinstance(how, str) and how.lower() != "gaussian":
            self._from_base(how.lower(), target)
        elif target.kind == "table":
            nn.init.zeros_(a) if how else nn.init.normal_(a)
            nn.init.normal_(b)
        else:
            nn.init.normal_(a, std=1 / self.rank) if how == "gaussian" else nn.init.kaiming_uniform_(
                a, a=math.sqrt(5)
            )
            nn.init.zeros_(b) if how else nn.init.kaiming_uniform_(b, a=math.sqrt(5))

    def _from_base(self, how: str, target: Target) -> None:
        """Start from parts of the base's weight, whose share is taken off again: the model stays as is."""
        name, _, steps = how.partition("_niter_")
        if name not in ("pissa", "olora") or target.kind in ("table", "conv"):
            raise AdapterError(
                f"init_lora_weights must be a boolean, gaussian, pissa, pissa_niter_N or olora (projections "
                f"alone for the last three), but is {how!r} for {target.path}"
            )
        weight = target.weight.detach().float()
        if name == "olora":
            q, r = torch.linalg.qr(weight)
            high, low = q[:, : self.rank], r[: self.rank]
        else:
            if steps:
                u, s, v = torch.svd_lowrank(weight, self.rank, niter=int(steps))
            else:
                u, s, vh = torch.linalg.svd(weight, full_matrices=False)
                u, s, v = u[:, : self.rank], s[: self.rank], vh[: self.rank].T
            root = (s / self.scaling).sqrt()
            high, low = u * root, root[:, None] * v.T
        if len(low) < self.rank:
            raise AdapterError(f"r must be at most {len(low)} for {how} at {target.path}, but is {self.rank}")
        with torch.no_grad():
            self.lora_A.copy_(low)
            self.lora_B.copy_(high)
        self.start_A, self.start_B = low.contiguous(), high.contiguous()

    def product(self) -> Tensor:
        """B A before scaling, (out, in, ...); (V, D) at a table."""
        if self.kind == "table":
            return (self.lora_B @ self.lora_A).T
        whole = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        if self.start_A is not None:
            whole = whole - self.start_B @ self.start_A
        return whole.view(self.shape)

    def delta(self) -> Tensor:
        return self.product() * self.scaling

    def _lengths(self, total: Tensor) -> Tensor:
        return total.norm(dim=0) if self.kind == "table" else total.flatten(1).norm(dim=1)

    def change(self, x: Tensor, y: Tensor, linear: Any, rows: Any) -> Tensor:
        if self.kind == "table":
            more = F.linear(F.embedding(x, self.lora_A.T), self.lora_B) * self.scaling
        else:
            kept = F.dropout(x, self.dropout) if self.training and self.dropout else x
            more = self.path_of(kept.to(self.lora_A.dtype), rows)
        more = more.to(y.dtype)
        if self.m is None:
            return more
        # The lengths count as constants in the gradient (DoRA, section 4.3).
        weight = dense(linear, y.dtype)
        lengths = self._lengths(weight + take(self.delta(), rows).to(weight.dtype)).detach()
        pure = y if getattr(linear, "bias", None) is None else y - linear.bias
        return (pure + more) * (take(self.m, None if self.kind == "table" else rows) / lengths) - pure

    def path_of(self, x: Tensor, rows: Any) -> Tensor:
        """scaling B A x, without making the matrix."""
        bias = None if self.lora_bias is None else take(self.lora_bias, rows)
        more = F.linear(F.linear(x, self.lora_A), take(self.lora_B, rows), bias)
        if self.start_A is not None:
            more = more - F.linear(F.linear(x, self.start_A), take(self.start_B, rows))
        return more * self.scaling

    def merged(self, weight: Tensor, bias: Tensor | None, rows: Any) -> tuple[Tensor, Tensor | None]:
        total = weight + take(self.delta(), rows).to(weight.dtype)
        if self.lora_bias is not None:
            if bias is None:
                raise AdapterError(
                    f"{self.path} has no bias that lora_bias could be merged into: keep the adapter unmerged"
                )
            bias = bias + take(self.lora_bias, rows) * self.scaling
        if self.m is None:
            return total, bias
        if self.kind == "table":
            return total * (self.m / self._lengths(total).detach()), bias
        gain = take(self.m, rows) / self._lengths(total).detach()
        return total * gain.view(-1, *[1] * (total.dim() - 1)), bias

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        # Older versions held the magnitudes in a module of their own.
        old = "lora_magnitude_vector.weight"
        super().from_file({("lora_magnitude_vector" if k == old else k): v for k, v in tensors.items()})

    def to_file(self) -> dict[str, Tensor]:
        found = super().to_file()
        if self.start_A is not None:
            # On the plain base: an ordinary LoRA of twice the rank takes the start off again.
            found["lora_A.weight"] = torch.cat([self.lora_A, self.start_A])
            found["lora_B.weight"] = torch.cat([self.lora_B, -self.start_B], 1)
        if self.m is not None and self.kind == "conv":
            found["lora_magnitude_vector"] = self.m.view(1, -1, *[1] * (len(self.shape) - 2))
        return found


class Adaptive(LowRank):
    """AdaLoRA's B E A times alpha / (r + 1e-5), r the rank at the start."""

    leaves: ClassVar[dict[str, str]] = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_E": "lora_E"}

    def __init__(self, config: AdaLoraConfig, target: Target) -> None:
        pattern = by_pattern(
            {_module(k): v for k, v in (config.rank_pattern or {}).items()}, target.path, None
        )
        rank = config.init_r if pattern is None else sum(map(bool, pattern))
        plain = LoraConfig(r=max(1, rank), lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout)
        super().__init__(plain, target)
        if self.kind not in ("linear", "expert"):
            raise AdapterError(f"AdaLoRA changes projections, but {target.path} is none")
        self.lora_E = nn.Parameter(torch.zeros(rank, 1))
        if not rank:  # a module that gave up all its directions
            self.lora_A, self.lora_B = nn.Parameter(self.lora_A[:0]), nn.Parameter(self.lora_B[:, :0])
        self.rank = rank
        nn.init.normal_(self.lora_A, std=0.02)
        nn.init.normal_(self.lora_B, std=0.02)
        self.scaling = (config.lora_alpha if config.lora_alpha > 0 else config.init_r) / (
            config.init_r + 1e-5
        )

    def product(self) -> Tensor:
        return self.lora_B @ (self.lora_A * self.lora_E)

    def path_of(self, x: Tensor, rows: Any) -> Tensor:
        h = F.linear(x, self.lora_A) * self.lora_E[:, 0]
        return F.linear(h, take(self.lora_B, rows)) * self.scaling


def _module(name: str) -> str:
    """The module of a name in rank_pattern, which may end in `.lora_E` and begin with PEFT's wrappers."""
    return name.removeprefix("base_model.model.").split(".lora_E")[0].replace(".", r"\.")


class Pair(nn.Module):
    """VeRA's A (r, in) and B (out, r) for all modules, drawn from the key that files name."""

    def __init__(self, config: VeraConfig, targets: list[Target]) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(config.projection_prng_key)
        shapes = (config.r, max(t.shape[1] for t in targets)), (max(t.shape[0] for t in targets), config.r)
        for name, shape in zip(("vera_A", "vera_B"), shapes, strict=True):
            bound = math.sqrt(6 / shape[1])
            self.register_buffer(name, torch.empty(shape).uniform_(-bound, bound, generator=draw))


class Vector(Delta):
    """lambda_b * B (lambda_d * A x), A and B shared by all modules."""

    leaves: ClassVar[dict[str, str]] = {"lambda_b": "vera_lambda_b", "lambda_d": "vera_lambda_d"}

    def __init__(self, config: VeraConfig, target: Target, pair: Pair) -> None:
        super().__init__(target)
        if target.kind not in ("linear", "expert"):
            raise AdapterError(f"VeRA changes projections, but {target.path} is none")
        self.dropout = config.vera_dropout
        object.__setattr__(self, "pair", pair)  # shared by all modules: its owner is the adapter
        self.lambda_b = nn.Parameter(torch.zeros(target.shape[0]))
        self.lambda_d = nn.Parameter(torch.full((config.r,), config.d_initial))
        if not config.init_weights:
            nn.init.ones_(self.lambda_b)
            nn.init.normal_(self.lambda_d)

    def delta(self) -> Tensor:
        pair: Any = self.pair
        low = pair.vera_A[:, : self.shape[1]] * self.lambda_d[:, None]
        return (pair.vera_B[: self.shape[0]] * self.lambda_b[:, None]) @ low

    def change(self, x: Tensor, y: Tensor, linear: Any, rows: Any) -> Tensor:
        pair: Any = self.pair
        x = F.dropout(x, self.dropout) if self.training and self.dropout else x
        low, high = pair.vera_A[:, : self.shape[1]], take(pair.vera_B[: self.shape[0]], rows)
        h = F.linear(x, low.to(x.dtype)) * self.lambda_d
        return F.linear(h, high.to(x.dtype)) * take(self.lambda_b, rows)
