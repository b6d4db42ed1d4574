"""The call of text stacks whose attention hashes."""

from typing import Any

from torch import Tensor

from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import IdTensor, conclude, context_for, expand_head_mask, flag, read_ids, take_cache


class HashTextModel(PreTrainedModel):
    """Token ids to states, with as many rounds of hashing as the caller wants."""

    def forward(
        self,
        input_ids: IdTensor = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        past_buckets_states: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S), or inputs_embeds (B, S, D). attention_mask (B, cached + S): 1 real, 0 padding.
        past_buckets_states (or, under its generic name, past_key_values): a decoder's cache, filled in place.
        """
        config = self.config
        given = read_ids(input_ids, inputs_embeds)
        batch, length = given.shape[:2]
        past = past_buckets_states if past_buckets_states is not None else past_key_values
        fields = self.head_spec.output.__dataclass_fields__
        caching = flag(use_cache, config.use_cache and not self.training and "past_buckets_states" in fields)
        ctx = context_for(
            self, (batch, length), given.device, attention_mask, position_ids,
            take_cache(self, past, caching, batch, length), flag(output_attentions, config.output_attentions),
            False,
        )  # fmt: skip
        if num_hashes is not None:
            ctx.memo["hashes"] = num_hashes
        if head_mask is not None:
            ctx.head_mask = expand_head_mask(head_mask, len(self.backbone.layers), self.dtype)
        states = flag(output_hidden_states, config.output_hidden_states)
        out = self.backbone(ctx, input_ids, inputs_embeds, None, states)
        out.past_buckets_states = out.past_key_values
        call = Call(config, input_ids, attention_mask, labels, start_positions, end_positions)
        return conclude(self, out, call, return_dict)
