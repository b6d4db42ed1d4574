"""The call of drafts that guess tokens from one place, over keys that another model keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.context import Context
from phyla.errors import ArgumentError
from phyla.model import PreTrainedModel
from phyla.outputs import ModelOutput

Shared = Mapping[str, tuple[Tensor, Tensor]]


@dataclass
class Gemma4AssistantOutput(ModelOutput):
    """Scores (B, S, V), and states (B, S, D') as the next guess reads them in place of the other model's."""

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class OnePlaceModel(PreTrainedModel):
    """A token's vector beside the states before it, to scores of the next token and states."""

    main_input_name = "inputs_embeds"

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        shared_kv_states: Shared | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; input_ids and use_cache are not looked at.

        inputs_embeds (B, 1, 2 D'): the other model's vector of the last token and its states before it.
        position_ids (B, 1) of that token. shared_kv_states: of each kind of layer the keys and values
        (B, G, K, E) of the other model's last layer of that kind, which end at one place. attention_mask
        (B, K): 1 real, 0 padding. Raises ArgumentError where something is missing or has another shape.
        """
        if inputs_embeds is None or shared_kv_states is None:
            raise ArgumentError(f"{type(self).__name__} needs inputs_embeds and shared_kv_states")
        width = self.backbone.pre.in_features
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[1:] != (1, width):
            raise ArgumentError(
                f"inputs_embeds must be (batch, 1, {width}), but have shape {tuple(inputs_embeds.shape)}"
            )
        reach = max(kept[0].shape[2] for kept in shared_kv_states.values())
        if position_ids is None:
            position_ids = torch.full((len(inputs_embeds), 1), reach, device=inputs_embeds.device)
        ctx = Context(
            positions=position_ids, length=1, start=reach, implementation=self.implementation,
            attentions=[] if output_attentions else None,
            attention_mask=None if attention_mask is None else attention_mask[:, :reach].bool(),
        )  # fmt: skip
        out, logits, states = self.backbone(
            ctx, inputs_embeds, shared_kv_states, reach, bool(output_hidden_states)
        )
        made = Gemma4AssistantOutput(states, logits, out.hidden_states, out.attentions)
        return made if return_dict or return_dict is None else made.to_tuple()

    def can_generate(self) -> bool:
        """As published: its generation_config.json says how many tokens it drafts."""
        return True
