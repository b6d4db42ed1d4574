"""The calls of models that read an image as a row of flattened patches, each with its row and column."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutput
from phyla.skeletons.base import IdTensor, context_for, expand_head_mask, finish, flag
from phyla.skeletons.encoder_decoder import EncoderDecoderModel


def see_patches(
    model: PreTrainedModel,
    stack: Any,
    patches: Tensor | None,
    mask: Tensor | None,
    head_mask: Tensor | None,
    attentions: bool | None,
    states: bool | None,
) -> BaseModelOutput:
    """Run a vision stack on patches (B, P, 2 + F): row, column, pixels; without a mask, empty ones are
    padding.
    """
    if patches is None or patches.dim() != 3:
        found = None if patches is None else tuple(patches.shape)
        raise ArgumentError(f"flattened_patches must be (batch, patches, 2 + pixels), but are {found}")
    if mask is None:
        mask = patches.sum(-1) != 0
    config = model.config
    ctx = context_for(
        model, patches.shape[:2], patches.device, mask, None, None,
        flag(attentions, config.output_attentions), False,
    )  # fmt: skip
    ctx.head_mask = expand_head_mask(head_mask, len(stack.layers), model.dtype)
    states = flag(states, config.output_hidden_states)
    out = stack.run(stack.embed(patches), ctx, None, states)
    return BaseModelOutput(out.last_hidden_state, out.hidden_states, out.attentions)


class PatchesModel(PreTrainedModel):
    """Flattened patches to their states."""

    main_input_name = "flattened_patches"

    def forward(
        self,
        flattened_patches: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on flattened_patches (B, P, 2 + F), attention_mask (B, P) being 0 at padding."""
        out = see_patches(
            self, self.backbone, flattened_patches, attention_mask, head_mask, output_attentions,
            output_hidden_states,
        )  # fmt: skip
        return finish(self, {}, out, return_dict)


class PatchesToTextModel(EncoderDecoderModel):
    """Flattened patches of an encoder and token ids of a decoder to states of the decoder."""

    main_input_name = "flattened_patches"

    def encode(  # type: ignore[override]
        self,
        flattened_patches: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """States of the encoder for flattened_patches (B, P, 2 + F)."""
        return see_patches(
            self, self.backbone.encoder, flattened_patches, attention_mask, head_mask, output_attentions,
            output_hidden_states,
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self,
        flattened_patches: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Run encoder and decoder, or the decoder alone where encoder_outputs are given.

        flattened_patches (B, P, 2 + F) with attention_mask (B, P); labels (B, T) stand in for
        decoder_input_ids, shifted right.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.start_ids(labels)
            if decoder_attention_mask is None:
                first = torch.arange(labels.shape[1], device=labels.device) == 0
                decoder_attention_mask = (decoder_input_ids != self.config.pad_token_id) | first
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                flattened_patches, attention_mask, head_mask, output_attentions, output_hidden_states
            )
        if use_cache is None:
            use_cache = bool(self.config.get_text_config().use_cache) and not self.training
        return super().forward(
            attention_mask=attention_mask, decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask, decoder_head_mask=decoder_head_mask,
            encoder_outputs=encoder_outputs, past_key_values=past_key_values, labels=labels,
            decoder_inputs_embeds=decoder_inputs_embeds, use_cache=use_cache,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            return_dict=return_dict, logits_to_keep=logits_to_keep,
        )  # fmt: skip
