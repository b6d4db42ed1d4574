"""The call of text stacks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from phyla.blocks.context import Context
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

# Names that a cache has in outputs.
CACHES = frozenset(("past_key_values", "past_buckets_states", "cache_params", "state"))


@dataclass
class Text:
    """What a text stack reads in one call, as its arguments name it, and options; None where not given.

    vectors: inputs_embeds; memory: encoder states, with their mask; past: a cache; notes: what else some
    layers read, as `ctx.notes`.
    """

    ids: Tensor | None
    vectors: Tensor | None
    mask: Tensor | None
    types: Tensor | None
    positions: Tensor | None
    head_mask: Tensor | None
    memory: Tensor | None
    memory_mask: Tensor | None
    past: Any
    use_cache: bool | None
    attentions: bool | None
    states: bool | None
    router_logits: bool | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def fold(self) -> int:
        """Make each choice a row of its own, and say how many there are."""
        choices = only_one(self.ids, self.vectors).shape[1]
        tokenwise = (self.ids, self.mask, self.types, self.positions)
        self.ids, self.mask, self.types, self.positions = fold_choices(tokenwise)
        self.vectors = fold_vectors(self.vectors)
        return choices


class TextModel(PreTrainedModel):
    """Token ids to states: encoders, decoders, state-space models, and decoders with cross-attention."""

    steps_by_ids = True

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
        past = past_key_values if past_key_values is not None else cache_params
        if past is None and state is not None:
            given = read_ids(input_ids, inputs_embeds)
            past = self.backbone.recall(take_cache(self, None, True, *given.shape[:2]), state)
        text = Text(
            input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, head_mask,
            encoder_hidden_states, encoder_attention_mask, past, use_cache, output_attentions,
            output_hidden_states, output_router_logits,
        )  # fmt: skip
        call = Call(
            self.config, None, None, labels, start_positions, end_positions,
            sentence_order_label if next_sentence_label is None else next_sentence_label,
            logits_to_keep=logits_to_keep, num_items_in_batch=num_items_in_batch,
            mc_token_ids=mc_token_ids, mc_labels=mc_labels,
        )  # fmt: skip
        return self._run(text, call, return_dict)

    def _run(self, text: Text, call: Call, return_dict: bool | None) -> Any:
        """The public output for a text; `call` is told what of the text the head reads."""
        config, backbone = self.config, self.backbone
        given = only_one(text.ids, text.vectors)
        task, grouped = self.head_spec.task, given.dim() == (3 if text.ids is not None else 4)
        if task == "multiple-choice" or (task == "double-heads" and grouped):
            call.num_choices = text.fold()
            if task == "double-heads":
                (call.labels,) = fold_choices((call.labels,))
        given = read_ids(text.ids, text.vectors)
        call.input_ids, call.attention_mask = text.ids, text.mask
        embed = backbone.embed
        if text.types is not None and embed.segment is None and not embed.shares_segments:
            if self.family.segments_required:
                raise ArgumentError(f"{type(self).__name__} has no token types: leave token_type_ids out")
            text.types = None
        ctx = self._context(given, text)
        if flag(text.router_logits, config.__dict__.get("output_router_logits", self.head_spec.routed)):
            ctx.router_logits = []
        states = flag(text.states, config.output_hidden_states)
        out = backbone(ctx, text.ids, text.vectors, text.types, states)
        self._tell(out, ctx)
        return conclude(self, out, call, return_dict)

    def _tell(self, out: Any, ctx: Context) -> None:
        """Put into the backbone's output what has other names, or is in the context, where it is public."""
        out.cache_params = out.past_key_values

    def _context(self, given: Tensor, text: Text) -> Context:
        """The context of a call on ids (B, S) or vectors (B, S, D): masks, positions, cache, memory."""
        batch, length = given.shape[:2]
        by_default = text.use_cache is None and not self.training
        caching = self.caches_by_default if by_default else bool(text.use_cache)
        cache = take_cache(self, text.past, caching, batch, length)
        cross = text.memory is not None or self.config.add_cross_attention
        ctx = context_for(
            self, (batch, length), given.device, text.mask, text.positions, cache,
            flag(text.attentions, self.config.output_attentions), cross,
        )  # fmt: skip
        ctx.notes = text.notes
        ctx.head_mask = expand_head_mask(text.head_mask, len(self.backbone.layers), self.dtype)
        if text.memory is not None:
            ctx.memory = text.memory
            if text.memory_mask is not None:
                ctx.memory_mask = text.memory_mask.bool()
        return ctx

    @property
    def caches_by_default(self) -> bool:
        """Whether a call without `use_cache` returns a cache: as config.use_cache says, for decoders."""
        fields = self.head_spec.output.__dataclass_fields__
        return bool(self.config.__dict__.get("use_cache", False)) and not CACHES.isdisjoint(fields)
