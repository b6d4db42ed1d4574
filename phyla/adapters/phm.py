"""Parameterised hypercomplex layers (Zhang et al. 2021, arXiv:2102.08597) of Compacter (arXiv:2106.04647)."""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import AdapterError


class Bank(nn.Module):
    """What the layers of one adapter share: the rule, or the factors of the weights."""

    def __init__(self, tensors: dict[str, Tensor], trained: bool = True) -> None:
        super().__init__()
        for name, value in tensors.items():
            learn = trained or not name.startswith("phm_rule")
            self.register_parameter(name, nn.Parameter(value, requires_grad=learn))


def rule_of(config: Any) -> dict[str, Tensor]:
    """Fresh tensors of the rule, (n, n, n), or of its two factors."""
    n = config.phm_dim
    if config.factorized_phm_rule:
        shapes = {"phm_rule_left": (n, n, 1), "phm_rule_right": (n, 1, n)}
    else:
        shapes = {"phm_rule": (n, n, n)}
    made = {}
    for name, shape in shapes.items():
        value = torch.empty(shape)
        if config.phm_c_init == "normal":
            value.normal_(0.0, config.phm_init_range)
        elif config.phm_c_init == "uniform":
            value.uniform_(-1.0, 1.0)
        else:
            raise AdapterError(f"phm_c_init must be normal or uniform, but is {config.phm_c_init!r}")
        made[name] = value
    return made


def weights_of(config: Any, inputs: int, outputs: int, ahead: str = "W") -> dict[str, Tensor]:
    """Fresh tensors of the weight of one layer (in -> out)."""
    n, rank = config.phm_dim, config.phm_rank
    if inputs % n or outputs % n:
        raise AdapterError(
            f"phm_dim ({n}) must divide the widths of the bottleneck, but those are {inputs} and {outputs}; "
            "choose another reduction_factor"
        )
    if config.factorized_phm_W:
        shapes = {f"{ahead}_left": (n, inputs // n, rank), f"{ahead}_right": (n, rank, outputs // n)}
    else:
        shapes = {ahead: (n, inputs // n, outputs // n)}
    made = {}
    for name, shape in shapes.items():
        value = torch.empty(shape)
        for item in value:
            if config.hypercomplex_nonlinearity == "glorot-normal":
                nn.init.xavier_normal_(item)
            elif config.hypercomplex_nonlinearity == "normal":
                nn.init.normal_(item, 0.0, 0.02)
            else:
                nn.init.xavier_uniform_(item)
        made[name] = value
    return made


class PHMLinear(nn.Module):
    """x H + b with H = sum_i rule_i (x) W_i (Kronecker products). x (..., in), result (..., out)."""

    def __init__(self, config: Any, inputs: int, outputs: int, bank: Bank | None, side: str) -> None:
        super().__init__()
        object.__setattr__(self, "bank", bank)  # shared by all layers: its owner is the adapter
        self.own_rule, self.own_weight = not config.shared_phm_rule, not config.shared_W_phm
        self.side = side
        tensors: dict[str, Tensor] = {}
        if self.own_weight:
            tensors |= weights_of(config, inputs, outputs)
        if self.own_rule:
            tensors |= rule_of(config)
        for name, value in tensors.items():
            learn = config.learn_phm or not name.startswith("phm_rule")
            self.register_parameter(name, nn.Parameter(value, requires_grad=learn))
        self.b = nn.Parameter(torch.zeros(outputs)) if config.phm_bias else None

    def like(self, x: Tensor) -> Tensor:
        """A parameter of its own, or x where all are shared."""
        return next(self.parameters(), x)

    def _product(self, owner: Any, name: str, x: Tensor) -> Tensor:
        """What the owner has as one tensor or as factors, brought to where x is: banks serve all layers."""
        whole = getattr(owner, name, None)
        if whole is None:
            whole = torch.bmm(getattr(owner, f"{name}_left"), getattr(owner, f"{name}_right"))
        return whole if owner is self else whole.to(x.device, x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rule = self._product(self if self.own_rule else self.bank, "phm_rule", x)
        if self.own_weight:
            weight = self._product(self, "W", x)
        else:
            weight = self._product(self.bank, f"W_{self.side}", x)
        n, rows, columns = weight.shape
        matrix = torch.einsum("iab,icd->acbd", rule, weight).reshape(n * rows, n * columns)
        y = x @ matrix
        return y if self.b is None else y + self.b
