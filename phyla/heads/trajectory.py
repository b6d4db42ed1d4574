"""The head that says what comes next in a trajectory of states, actions and returns."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from phyla.blocks import Linear
from phyla.heads.base import Call, Head, HeadModule
from phyla.outputs import ModelOutput
from phyla.outputs.series import DecisionTransformerOutput


class _Next(HeadModule):
    """The action from the state before it; the next state and return from the action."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.bounded = config.action_tanh
        self.state = Linear(width, config.state_dim)
        self.action = Linear(width, config.act_dim)
        self.returned = Linear(width, 1)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        _, after_state, after_action = out.last_hidden_state.unflatten(1, (-1, 3)).unbind(2)  # (B, T, D) each
        action = self.action(after_state)
        return {
            "state_preds": self.state(after_action),
            "action_preds": torch.tanh(action) if self.bounded else action,
            "return_preds": self.returned(after_action),
        }


@dataclass(frozen=True)
class Decide(Head):
    """Next actions, states and returns (Chen et al. 2021, arXiv:2106.01345, section 3)."""

    task: ClassVar[str] = "base-model"
    output: type[ModelOutput] = DecisionTransformerOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Next(config, width)
