"""The call of text stacks that answer questions and are told how long the question is."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.heads.loss import span_loss
from phyla.skeletons.base import IdTensor, flag
from phyla.skeletons.text import TextModel

FAR = 1e6  # published: what the scores of the question's tokens are lowered by


class QuestionTextModel(TextModel):
    """Token ids to start and end of an answer that lies behind the question."""

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        question_lengths: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S). question_lengths (B, 1): tokens up to the question's separator, which no answer
        begins or ends with; by default up to the first separator. token_type_ids are 0 there, else 1.
        """
        hidden = None
        if question_lengths is None and input_ids is not None:
            question_lengths = (input_ids == self.config.sep_token_id).int().argmax(-1, keepdim=True) + 1
        if question_lengths is not None:
            given = input_ids if input_ids is not None else inputs_embeds
            if given is None:
                raise ArgumentError("pass either input_ids or inputs_embeds")
            slots = torch.arange(given.shape[1], device=given.device)
            hidden = slots < question_lengths.reshape(-1, 1).to(given.device)  # (B, S)
            token_type_ids = (~hidden).long() if token_type_ids is None else token_type_ids
            hidden = hidden & (slots > 0)
        out = super().forward(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
        )  # fmt: skip
        start, end = out.start_logits, out.end_logits
        if hidden is not None:
            start, end = start - FAR * hidden.to(start.dtype), end - FAR * hidden.to(end.dtype)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        result = type(out)(**{**out, "loss": loss, "start_logits": start, "end_logits": end})
        return result if flag(return_dict, self.config.return_dict) else result.to_tuple()
