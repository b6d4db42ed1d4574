"""One side of a model under its public call."""

from collections.abc import Callable
from typing import Any

from torch import nn

# What a side shares with its part: tensors and modules, and what would change the part.
_TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_CHANGES = (
    "compile", "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook",
)  # fmt: skip


class Side(nn.Module):
    """A part of a model that is called as its method `call`, with the weights, names and mode of the part.

    What is set or hooked here is the part's, and counts in calls of the whole model.
    """

    part: nn.Module
    call: Callable[..., Any]

    def __init__(self, part: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        shared = {name: getattr(part, name) for name in (*_TENSORS, *_CHANGES)}
        for name, value in {**shared, "part": part, "call": call, "training": part.training}.items():
            object.__setattr__(self, name, value)  # as registered, the part would be a part of itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["part"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["part"], name, value)

    def train(self, mode: bool = True) -> "Side":
        """As for any module."""
        self.part.train(mode)
        object.__setattr__(self, "training", mode)
        return self

    def forward(self, *inputs: Any, return_dict: bool | None = None, **named: Any) -> Any:
        """What the method gives, or its tuple with return_dict=False."""
        out = self.call(*inputs, **named)
        return out.to_tuple() if return_dict is False else out
