"""The call of models that answer questions about a table."""

from typing import Any

from torch import Tensor

from phyla.heads.table import TableCall
from phyla.model import PreTrainedModel
from phyla.skeletons.base import IdTensor, conclude, context_for, expand_head_mask, flag, read_ids


class TableModel(PreTrainedModel):
    """A question and the cells of a table to the cells of the answer."""

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        table_mask: Tensor | None = None,
        labels: Tensor | None = None,
        aggregation_labels: Tensor | None = None,
        float_answer: Tensor | None = None,
        numeric_values: Tensor | None = None,
        numeric_values_scale: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S), or inputs_embeds (B, S, D) in their place. token_type_ids (B, S, 7): segment,
        column, row, earlier answer, rank, inverse rank, relation to the question's numbers. table_mask
        (B, S): 1 in the table's body. labels (B, S): 1 in the answer's cells. aggregation_labels (B): the
        operation. float_answer (B): the answer as a number, NaN without one. numeric_values,
        numeric_values_scale (B, S): each token's number, NaN without one, and how many tokens share it.
        """
        config = self.config
        given = read_ids(input_ids, inputs_embeds)
        ctx = context_for(
            self, given.shape[:2], given.device, attention_mask, position_ids, None,
            flag(output_attentions, config.output_attentions), False,
        )  # fmt: skip
        ctx.head_mask = expand_head_mask(head_mask, len(self.backbone.layers), self.dtype)
        states = flag(output_hidden_states, config.output_hidden_states)
        out = self.backbone(ctx, input_ids, inputs_embeds, token_type_ids, states)
        call = TableCall(
            config, input_ids, attention_mask, labels, token_type_ids=token_type_ids, table_mask=table_mask,
            aggregation_labels=aggregation_labels, float_answer=float_answer, numeric_values=numeric_values,
            numeric_values_scale=numeric_values_scale,
        )  # fmt: skip
        return conclude(self, out, call, return_dict)
