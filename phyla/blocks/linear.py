"""The linear map that every projection is: a weight, a bias and one site."""

from collections.abc import Callable

from torch import Tensor, nn

from phyla.blocks.matmul import linear, linear_act


class Linear(nn.Linear):
    """y = x W^T + b, with a site that may change y (LoRA, scaling, probes). x (..., in), y (..., out)."""

    site_kind = "linear"
    site: nn.Module | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_module("site", None)

    def reset_parameters(self) -> None:
        """Nothing: values come from a checkpoint or from `init_weights`."""

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight, self.bias)
        return y if self.site is None else self.site(x, y, self)


def activated(part: nn.Module, x: Tensor, name: str, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act(part(x)), where `name` is the public name of `act`: one pass where nobody looks in between."""
    if type(part) is Linear and part.site is None and not (part._forward_hooks or part._forward_pre_hooks):
        y = linear_act(x, part.weight, part.bias, name)
        if y is not None:
            return y
    return act(part(x))
