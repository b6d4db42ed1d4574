"""The call of models of time series without a decoder."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.heads.series import SeriesCall
from phyla.model import PreTrainedModel
from phyla.outputs.series import SamplePatchTSTOutput
from phyla.skeletons.base import conclude, context_for, flag


class SeriesModel(PreTrainedModel):
    """Values of the past to states of their patches, classes, numbers or later values."""

    main_input_name = "past_values"

    def forward(
        self,
        past_values: Tensor | None = None,
        past_observed_mask: Tensor | None = None,
        future_values: Tensor | None = None,
        target_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on past_values (B, time, channels); past_observed_mask: 1 where they were observed.

        future_values (B, time, channels) and target_values (B, ...) are what the loss compares with.
        """
        config = self.config
        expected = (config.context_length, config.num_input_channels)
        if past_values is None or past_values.dim() != 3 or tuple(past_values.shape[1:]) != expected:
            found = None if past_values is None else tuple(past_values.shape)
            raise ArgumentError(f"past_values must be (batch, {expected[0]}, {expected[1]}), but are {found}")
        observed = torch.ones_like(past_values) if past_observed_mask is None else past_observed_mask
        attentions = flag(output_attentions, config.output_attentions)
        shape, device = past_values.shape[:2], past_values.device
        ctx = context_for(self, shape, device, None, None, None, attentions, False)
        states = flag(output_hidden_states, config.output_hidden_states)
        out = self.backbone(ctx, past_values, observed, states)
        call = SeriesCall(config, future_values=future_values, target_values=target_values)
        return conclude(self, out, call, return_dict)

    def can_generate(self) -> bool:
        return hasattr(self.head, "samples")

    @torch.no_grad()
    def generate(self, past_values: Tensor, past_observed_mask: Tensor | None = None) -> SamplePatchTSTOutput:
        """Draw `num_parallel_samples` futures (B, samples, time, channels) or numbers (B, samples, n)."""
        if not self.can_generate():
            raise ArgumentError(f"{type(self).__name__} has nothing to draw; use a class for prediction")
        out = self(past_values=past_values, past_observed_mask=past_observed_mask, return_dict=True)
        return SamplePatchTSTOutput(self.head.samples(out))  # type: ignore[union-attr]
