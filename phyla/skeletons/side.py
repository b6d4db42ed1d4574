"""One side of a model under its public call."""

from collections.abc import Callable
from typing import Any

from torch import nn


class Side(nn.Module):
    """A part of a model that is called as its method `call`, with the weights, names and mode of the part."""

    part: nn.Module
    call: Callable[..., Any]

    def __init__(self, part: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        shared = {name: getattr(part, name) for name in ("_parameters", "_buffers", "_modules")}
        for name, value in {**shared, "part": part, "call": call, "training": part.training}.items():
            object.__setattr__(self, name, value)  # as registered, the part would be a part of itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["part"], name)

    def train(self, mode: bool = True) -> "Side":
        """As for any module."""
        self.part.train(mode)
        object.__setattr__(self, "training", mode)
        return self

    def forward(self, *inputs: Any, return_dict: bool | None = None, **named: Any) -> Any:
        """What the method gives, or its tuple with return_dict=False."""
        out = self.call(*inputs, **named)
        return out.to_tuple() if return_dict is False else out
