"""The call of models that see."""

from typing import Any

from torch import Tensor

from phyla.blocks.stack import Stack, StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import (
    context_for,
    expand_head_mask,
    finish,
    flag,
)


class VisionModel(PreTrainedModel):
    """Pixels to states of the patches."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on pixel_values (B, C, Y, X), already resized and normalised."""
        if pixel_values is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        out = self.see(
            pixel_values,
            bool_masked_pos,
            head_mask,
            output_attentions,
            output_hidden_states,
            interpolate_pos_encoding,
        )
        call = Call(self.config, labels=labels, pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        fields = {} if self.head is None else self.head(out, call)
        return finish(self, fields, out, return_dict)

    def see(
        self,
        pixels: Tensor,
        hidden: Tensor | None,
        head_mask: Tensor | None,
        attentions: bool | None,
        states: bool | None,
        interpolate: bool | None,
    ) -> StackOutput:
        """The backbone's output for pixels (B, C, Y, X)."""
        return see(
            self, self.backbone, pixels, hidden, head_mask, flag(attentions, self.config.output_attentions),
            flag(states, self.config.output_hidden_states), bool(interpolate),
        )  # fmt: skip


def see(
    model: PreTrainedModel,
    stack: Stack,
    pixels: Tensor,
    hidden: Tensor | None,
    head_mask: Tensor | None,
    attentions: bool,
    states: bool,
    interpolate: bool,
) -> StackOutput:
    """Run a vision stack whose embedding takes pixels."""
    x = stack.embed(pixels, hidden, interpolate)
    ctx = context_for(model, x.shape[:2], x.device, None, None, None, attentions, False)
    if head_mask is not None:
        ctx.head_mask = expand_head_mask(head_mask, len(stack.layers), x.dtype)
    return stack.run(x, ctx, None, states)
