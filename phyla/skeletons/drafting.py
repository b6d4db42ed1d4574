"""The call of drafts that fill blanks behind what another model has read."""

from typing import Any

from torch import Tensor

from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import conclude, context_for, flag, take_cache


class BlockDraftModel(PreTrainedModel):
    """Vectors of blanks, and the states that another model has of the text before them, to states."""

    main_input_name = "noise_embeds"

    def forward(
        self,
        noise_embeds: Tensor | None = None,
        context_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        noise_embeds (B, S, D): vectors of the last token and of blanks. context_hidden_states (B, C, layers *
        D): states of the text before them that the cache does not hold. attention_mask (B, cached + C + S).
        position_ids (B, C + S). past_key_values: a cache, filled in place; what is there for the blanks is
        to be cut off before the next call. Raises ArgumentError for wrong shapes.
        """
        if noise_embeds is None or context_hidden_states is None:
            raise ArgumentError(f"{type(self).__name__} needs noise_embeds and context_hidden_states")
        batch, context = context_hidden_states.shape[:2]
        length, width = context + noise_embeds.shape[1], self.backbone.read.in_features
        if noise_embeds.shape[0] != batch or context_hidden_states.shape[-1] != width:
            raise ArgumentError(
                f"context_hidden_states must be ({len(noise_embeds)}, positions, {width}), but have shape "
                f"{tuple(context_hidden_states.shape)}"
            )
        cache = take_cache(self, past_key_values, bool(use_cache), batch, length)
        ctx = context_for(
            self, (batch, length), noise_embeds.device, attention_mask, position_ids, cache,
            flag(output_attentions, self.config.output_attentions), False,
        )  # fmt: skip
        if ctx.positions.shape[-1] != length:
            raise ArgumentError(
                f"position_ids must be (batch, {length}), but have {tuple(ctx.positions.shape)}"
            )
        states = flag(output_hidden_states, self.config.output_hidden_states)
        out = self.backbone(ctx, noise_embeds, context_hidden_states, states)
        return conclude(self, out, Call(self.config), return_dict)

    def fill(self, blanks: Tensor, states: Tensor, places: Tensor, seen: Tensor, cache: Any) -> Tensor:
        """States (B, S, D) of blanks (B, S, D) behind states (B, C, layers * D) and what the cache holds.

        places: positions (B, cached + C + S) of all keys, windows go by them; seen: which of them are text.
        """
        new = blanks.shape[1] + states.shape[1]
        mask = None if bool(seen.all()) else seen
        ctx = context_for(
            self, (len(blanks), new), blanks.device, mask, places[:, -new:].clamp(min=0), cache, False, False
        )
        ctx.memo["places"] = places
        return self.backbone(ctx, blanks, states).last_hidden_state
