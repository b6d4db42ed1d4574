"""The call of text stacks."""

from typing import Any

from torch import Tensor

from phyla.blocks.context import Context
from phyla.blocks.stack import Stack
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import (
    IdTensor,
    conclude,
    context_for,
    expand_head_mask,
    flag,
    fold_choices,
    fold_vectors,
    only_one,
    read_ids,
    take_cache,
)


class TextModel(PreTrainedModel):
    """Token ids to states: encoders, decoders, state-space models, and decoders with cross-attention."""

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        cache_params: Any = None,
        state: Any = None,
        mc_token_ids: Tensor | None = None,
        mc_labels: Tensor | None = None,
        sentence_order_label: Tensor | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S), or inputs_embeds (B, S, D) in their place; (B, choices, S) for multiple choice,
        where mc_token_ids (B, choices) say which token a double head reads and mc_labels (B) which choice is
        right. attention_mask (B, cached + S): 1 real, 0 padding, on either side; or a ready 4-D mask.
        past_key_values: a cache, filled in place; use_cache=True makes one. state: the public tensors of a
        recurrent model's memory in its place. logits_to_keep: only the last n
        positions.

        Raises ArgumentError for wrong shapes and dtypes.
        """
        config = self.config
        choices = 0
        given = only_one(input_ids, inputs_embeds)
        task, grouped = self.head_spec.task, given.dim() == (3 if input_ids is not None else 4)
        if task == "multiple-choice" or (task == "double-heads" and grouped):
            choices = given.shape[1]
            input_ids, attention_mask, token_type_ids, position_ids = fold_choices(
                (input_ids, attention_mask, token_type_ids, position_ids)
            )
            if task == "double-heads":
                (labels,) = fold_choices((labels,))
            inputs_embeds = fold_vectors(inputs_embeds)
        given = read_ids(input_ids, inputs_embeds)
        batch, length = given.shape[:2]
        backbone: Stack = self.backbone
        if (
            token_type_ids is not None
            and backbone.embed.segment is None
            and not backbone.embed.shares_segments
        ):
            if self.family.segments_required:
                raise ArgumentError(f"{type(self).__name__} has no token types: leave token_type_ids out")
            token_type_ids = None
        past = past_key_values if past_key_values is not None else cache_params
        if past is None and state is not None:
            past = backbone.recall(take_cache(self, None, True, batch, length), state)
        ctx = self._context(
            given, attention_mask, position_ids, past, use_cache,
            flag(output_attentions, config.output_attentions), head_mask, encoder_hidden_states,
            encoder_attention_mask,
        )  # fmt: skip
        if flag(output_router_logits, config.__dict__.get("output_router_logits", self.head_spec.routed)):
            ctx.router_logits = []
        out = backbone(
            ctx,
            input_ids,
            inputs_embeds,
            token_type_ids,
            flag(output_hidden_states, config.output_hidden_states),
        )
        out.cache_params = out.past_key_values
        call = Call(
            config, input_ids, attention_mask, labels, start_positions, end_positions,
            sentence_order_label if next_sentence_label is None else next_sentence_label,
            logits_to_keep=logits_to_keep, num_choices=choices, num_items_in_batch=num_items_in_batch,
            mc_token_ids=mc_token_ids, mc_labels=mc_labels,
        )  # fmt: skip
        return conclude(self, out, call, return_dict)

    def _context(
        self,
        given: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        past: Any,
        use_cache: bool | None,
        attentions: bool,
        head_mask: Tensor | None,
        memory: Tensor | None,
        memory_mask: Tensor | None,
    ) -> Context:
        """The context of a call on ids (B, S) or vectors (B, S, D): masks, positions, cache, memory."""
        batch, length = given.shape[:2]
        caching = self.caches_by_default if use_cache is None and not self.training else bool(use_cache)
        cache = take_cache(self, past, caching, batch, length)
        cross = memory is not None or self.config.add_cross_attention
        ctx = context_for(self, (batch, length), given.device, mask, positions, cache, attentions, cross)
        if head_mask is not None:
            ctx.head_mask = expand_head_mask(head_mask, len(self.backbone.layers), self.dtype)
        if memory is not None:
            ctx.memory = memory
            if memory_mask is not None:
                ctx.memory_mask = memory_mask.bool()
        return ctx

    @property
    def caches_by_default(self) -> bool:
        """Whether a call without `use_cache` returns a cache: as config.use_cache says, for decoders."""
        fields = self.head_spec.output.__dataclass_fields__
        return bool(self.config.__dict__.get("use_cache", False)) and (
            "past_key_values" in fields or "cache_params" in fields or "state" in fields
        )
