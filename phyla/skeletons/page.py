"""The call of encoders that read a page: words with their boxes, and the page's image behind them."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.heads.page import PageCall
from phyla.model import PreTrainedModel
from phyla.skeletons.base import IdTensor, check_ids, conclude, context_for, expand_head_mask, flag


class PageModel(PreTrainedModel):
    """Token ids, boxes and pixels to states of tokens and patches; the backbone has `read` and `stack`."""

    def forward(
        self,
        input_ids: IdTensor = None,
        bbox: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S) or inputs_embeds (B, S, D); bbox (B, S, 4): left, upper, right, lower edge of each
        token's word in thousandths of the page; pixel_values (B, C, Y, X): the page. Either may be left out.
        """
        if input_ids is not None and inputs_embeds is not None:
            raise ArgumentError("pass either input_ids or inputs_embeds, and not both")
        words = input_ids if input_ids is not None else inputs_embeds
        if words is None and pixel_values is None:
            raise ArgumentError("pass input_ids, inputs_embeds or pixel_values")
        if input_ids is not None:
            check_ids(input_ids, "input_ids")
        config, backbone = self.config, self.backbone
        x, mask, count = None, None, 0
        if words is not None:
            count = words.shape[1]
            text = context_for(
                self, words.shape[:2], words.device, attention_mask, position_ids, None, False, False
            )
            mask = text.attention_mask
            if bbox is None:
                bbox = torch.zeros(*words.shape[:2], 4, dtype=torch.long, device=words.device)
            check_boxes(bbox, words.shape[:2], config.max_2d_position_embeddings)
            x = backbone.embed(input_ids, inputs_embeds, bbox, token_type_ids, text)
        x, boxes, places = backbone.join(x, bbox, pixel_values)
        if mask is not None and mask.dim() == 2:
            mask = torch.cat((mask, mask.new_ones(len(x), x.shape[1] - count)), 1)
        ctx = context_for(
            self, x.shape[:2], x.device, mask, None, None, flag(output_attentions, config.output_attentions),
            False,
        )  # fmt: skip
        ctx.head_mask = expand_head_mask(head_mask, len(backbone.stack.layers), x.dtype)
        backbone.relate(ctx, boxes, places)
        out = backbone.stack.run(x, ctx, None, flag(output_hidden_states, config.output_hidden_states))
        call = PageCall(
            config,
            input_ids,
            attention_mask,
            labels,
            start_positions,
            end_positions,
            words=count or x.shape[1],
        )
        return conclude(self, out, call, return_dict)


def check_boxes(boxes: Tensor, shape: torch.Size, limit: int) -> None:
    """ArgumentError unless there is a box of numbers from 0 to limit - 1 for each token."""
    if tuple(boxes.shape) != (*shape, 4):
        raise ArgumentError(f"bbox must be {(*shape, 4)}, a box for each token, but is {tuple(boxes.shape)}")
    if not torch.compiler.is_compiling() and boxes.numel():
        least, most = (int(x) for x in torch.aminmax(boxes))
        if least < 0 or most >= limit:
            raise ArgumentError(
                f"bbox must hold numbers from 0 to {limit - 1}, but holds {least} to {most}; "
                "scale boxes to thousandths of the page"
            )
