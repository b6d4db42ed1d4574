"""The linear map that every projection is: a weight, a bias and one site."""

from torch import Tensor, nn

from phyla.blocks.matmul import linear


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
