"""The call of models of trajectories."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import conclude, context_for, flag


class TrajectoryModel(PreTrainedModel):
    """States, actions and returns of an agent to those that follow."""

    main_input_name = "states"

    def forward(
        self,
        states: Tensor | None = None,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        returns_to_go: Tensor | None = None,
        timesteps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on T steps: states (B, T, states), actions (B, T, actions), returns_to_go (B, T, 1).

        timesteps (B, T) number the steps; attention_mask (B, T): 1 where a step counts. rewards are not read.
        """
        if states is None or actions is None or returns_to_go is None or timesteps is None:
            raise ArgumentError("pass states, actions, returns_to_go and timesteps")
        config, (batch, steps) = self.config, timesteps.shape
        mask = None if attention_mask is None else attention_mask.bool().repeat_interleave(3, 1)
        attentions = flag(output_attentions, config.output_attentions)
        positions = torch.zeros(1, 3 * steps, dtype=torch.long, device=states.device)
        ctx = context_for(self, (batch, 3 * steps), states.device, mask, positions, None, attentions, False)
        record = flag(output_hidden_states, config.output_hidden_states)
        out = self.backbone(ctx, states, actions, returns_to_go, timesteps, record)
        return conclude(self, out, Call(config), return_dict)
