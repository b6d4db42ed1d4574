"""Parts that make the whole change of a weight: LoHa, LoKr, FourierFT.

Hyeon-Woo et al. 2022 (arXiv:2108.06098); Yeh et al. 2023 (arXiv:2309.14859);
Gao et al. 2024 (arXiv:2405.03003).
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.adapters.peft.configs import FourierFTConfig, LoHaConfig, LoKrConfig, LycorisConfig, by_pattern
from phyla.adapters.peft.part import Delta
from phyla.adapters.peft.targets import Target
from phyla.errors import AdapterError


def _uniform(*shape: int) -> nn.Parameter:
    made = nn.Parameter(torch.empty(*shape))
    nn.init.kaiming_uniform_(made, a=math.sqrt(5))
    return made


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


class Lycoris(Delta):
    """What LoHa and LoKr share: rank, scaling and the dropout of training."""

    def __init__(self, config: LycorisConfig, target: Target) -> None:
        super().__init__(target)
        if target.kind not in ("linear", "conv", "expert"):
            raise AdapterError(f"{type(config).__name__} changes no modules like {target.path}")
        self.rank = by_pattern(config.rank_pattern, target.path, config.r)
        self.scaling = by_pattern(config.alpha_pattern, target.path, config.alpha) / self.rank
        self.rank_dropout, self.module_dropout = config.rank_dropout, config.module_dropout
        self.rescaled = getattr(config, "rank_dropout_scale", True)
        kernel = target.shape[2:]
        self.kernel = kernel
        self.effective = config.use_effective_conv2d and math.prod(kernel) > 1

    def dropped(self, delta: Tensor) -> Tensor:
        if self.training and self.rank_dropout:
            keep = (torch.rand(len(delta), device=delta.device) > self.rank_dropout).to(delta.dtype)
            keep = keep / keep.mean().clamp(min=1e-6) if self.rescaled else keep
            delta = delta * keep.view(-1, *[1] * (delta.dim() - 1))
        if self.training and self.module_dropout:
            delta = delta * (torch.rand((), device=delta.device) > self.module_dropout)
        return delta


class Hadamard(Lycoris):
    """(W1a W1b) * (W2a W2b), or of a tensor for the kernel between each two."""

    leaves: ClassVar[dict[str, str]] = {
        name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    }

    def __init__(self, config: LoHaConfig, target: Target) -> None:
        super().__init__(config, target)
        out, inner = target.shape[:2]
        last = _zeros if config.init_weights else _uniform
        if self.effective:
            kernel = (*self.kernel, 1)[:2]
            self.hada_t1, self.hada_t2 = (_uniform(self.rank, self.rank, *kernel) for _ in range(2))
            self.hada_w1_a, self.hada_w1_b = _uniform(self.rank, out), _uniform(self.rank, inner)
            self.hada_w2_a, self.hada_w2_b = _uniform(self.rank, out), last(self.rank, inner)
        else:
            inner *= math.prod(self.kernel)
            self.hada_w1_a, self.hada_w1_b = _uniform(out, self.rank), _uniform(self.rank, inner)
            self.hada_w2_a, self.hada_w2_b = _uniform(out, self.rank), last(self.rank, inner)

    def delta(self) -> Tensor:
        if self.effective:
            first = _between(self.hada_t1, self.hada_w1_a, self.hada_w1_b)
            second = _between(self.hada_t2, self.hada_w2_a, self.hada_w2_b)
        else:
            first, second = self.hada_w1_a @ self.hada_w1_b, self.hada_w2_a @ self.hada_w2_b
        return (first * second).reshape(self.shape) * self.scaling


def _between(kernel: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(out, in, k, l) from a kernel (r, r, k, l) between a (r, out) and b (r, in)."""
    return torch.einsum("ijkl,ip,jr->prkl", kernel, a, b)


def factors(number: int, factor: int = -1) -> tuple[int, int]:
    """Two factors of a number: `factor` and the rest if it divides, else those nearest to each other.

    factor: a bound for the smaller one, -1 for none.
    """
    if factor > 0 and number % factor == 0:
        return factor, number // factor
    bound = math.isqrt(number) if factor == -1 else min(factor, math.isqrt(number))
    first = max(d for d in range(1, bound + 1) if number % d == 0)
    return first, number // first


class Kronecker(Lycoris):
    """W1 (x) W2, each whole or of low rank."""

    leaves: ClassVar[dict[str, str]] = {
        name: name
        for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    }

    def __init__(self, config: LoKrConfig, target: Target) -> None:
        super().__init__(config, target)
        (out_l, out_k), (in_m, in_n) = (factors(n, config.decompose_factor) for n in target.shape[:2])
        lycoris = config.init_weights == "lycoris"
        ahead = _zeros if config.init_weights and not lycoris else _uniform
        behind = _zeros if lycoris else _uniform
        self.whole_1 = not (config.decompose_both and self.rank < max(out_l, in_m) / 2)
        self.whole_2 = self.rank >= max(out_k, in_n) / 2
        if self.whole_1:
            self.lokr_w1 = ahead(out_l, in_m)
        else:
            self.lokr_w1_a, self.lokr_w1_b = ahead(out_l, self.rank), _uniform(self.rank, in_m)
        if self.whole_2:
            self.lokr_w2 = behind(out_k, in_n, *self.kernel)
        elif self.effective:
            self.lokr_t2 = _uniform(self.rank, self.rank, *(*self.kernel, 1)[:2])
            self.lokr_w2_a, self.lokr_w2_b = _uniform(self.rank, out_k), behind(self.rank, in_n)
        else:
            self.lokr_w2_a = _uniform(out_k, self.rank)
            self.lokr_w2_b = behind(self.rank, in_n * math.prod(self.kernel))

    def delta(self) -> Tensor:
        first: Tensor = self.lokr_w1 if self.whole_1 else self.lokr_w1_a @ self.lokr_w1_b
        second: Tensor
        if self.whole_2:
            second = self.lokr_w2
        elif self.effective:
            second = _between(self.lokr_t2, self.lokr_w2_a, self.lokr_w2_b)
        else:
            second = self.lokr_w2_a @ self.lokr_w2_b
        first = first[..., None, None] if second.dim() == 4 else first
        return torch.kron(first, second.contiguous()).reshape(self.shape) * self.scaling


class Spectrum(Delta):
    """The real part of the inverse Fourier transform of a few learned entries at random places."""

    leaves: ClassVar[dict[str, str]] = {"spectrum": "fourierft_spectrum"}

    def __init__(self, config: FourierFTConfig, target: Target) -> None:
        super().__init__(target)
        if target.kind not in ("linear", "expert"):
            raise AdapterError(f"FourierFT changes projections, but {target.path} is none")
        count = by_pattern(config.n_frequency_pattern, target.path, config.n_frequency)
        size = target.shape[0] * target.shape[1]
        if not 0 < count <= size:
            raise AdapterError(f"n_frequency must be 1 to {size} for {target.path}, but is {count}")
        draw = torch.Generator().manual_seed(config.random_loc_seed)
        places = torch.randperm(size, generator=draw)[:count]
        self.register_buffer("places", places, persistent=False)
        self.scaling = config.scaling
        self.spectrum = nn.Parameter(torch.zeros(count) if config.init_weights else torch.randn(count))

    def delta(self) -> Tensor:
        places: Any = self.places
        flat = self.spectrum.new_zeros(self.shape[0] * self.shape[1], dtype=torch.float32)
        whole = flat.index_copy(0, places, self.spectrum.float()).view(self.shape)
        return (torch.fft.ifft2(whole).real * self.scaling).to(self.spectrum.dtype)
