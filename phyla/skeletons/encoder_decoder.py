"""The call of encoder-decoders."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.stack import Stack
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutput, MoEModelOutput
from phyla.skeletons.base import (
    IdTensor,
    check_ids,
    conclude,
    context_for,
    expand_head_mask,
    flag,
    read_ids,
    take_cache,
)
from phyla.skeletons.side import Side


class EncoderDecoderModel(PreTrainedModel):
    """Token ids of an encoder and of a decoder to states of the decoder."""

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    def get_encoder(self) -> Side:
        """The encoder, which is called as `encode` is."""
        return Side(self.backbone.encoder, self.encode)

    def get_decoder(self) -> Stack:
        """The decoder's stack."""
        return self.backbone.decoder

    def encode(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
    ) -> Any:
        """States of the encoder for input_ids (B, S)."""
        given = read_ids(input_ids, inputs_embeds, " to the encoder")
        attentions = flag(output_attentions, self.config.output_attentions)
        ctx = context_for(self, given.shape[:2], given.device, attention_mask, None, None, attentions, False)
        encoder = self.backbone.encoder
        ctx.head_mask = expand_head_mask(head_mask, len(encoder.layers), self.dtype)
        states = flag(output_hidden_states, self.config.output_hidden_states)
        if self._routes(output_router_logits):
            ctx.router_logits = []
        out = encoder(ctx, input_ids, inputs_embeds, None, states)
        if out.router_logits is not None:
            return MoEModelOutput(out.last_hidden_state, out.hidden_states, out.attentions, out.router_logits)
        return BaseModelOutput(out.last_hidden_state, out.hidden_states, out.attentions)

    def _routes(self, wanted: bool | None) -> bool:
        """Whether a call returns the scores of routers."""
        return flag(wanted, self.config.__dict__.get("output_router_logits", self.head_spec.routed))

    def start_ids(self, ids: Tensor) -> Tensor:
        """Decoder inputs for targets `ids` (B, S): one step to the right, the start token in front."""
        start, padding = self.config.decoder_start_token_id, self.config.pad_token_id
        if self.family.wraps_start:
            ids = ids.masked_fill(ids == -100, padding)
            last = ids.ne(padding).sum(1, keepdim=True) - 1
            return torch.cat((ids.gather(1, last), ids[:, :-1]), 1)
        if start is None:
            raise ArgumentError(
                "config.decoder_start_token_id must be set to make decoder inputs from labels"
            )
        shifted = ids.new_zeros(ids.shape)
        shifted[:, 1:] = ids[:, :-1]
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == -100, padding if padding is not None else 0)

    prepare_decoder_input_ids_from_labels = start_ids

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        output_router_logits: bool | None = None,
    ) -> Any:
        """Run encoder and decoder, or the decoder alone where encoder_outputs are given.

        input_ids (B, S), decoder_input_ids (B, T); labels (B, T) stand in for decoder_input_ids, shifted
        right. attention_mask (B, S) is the encoder's, decoder_attention_mask (B, cached + T) the decoder's.
        """
        config = self.config
        given = decoder_input_ids if decoder_input_ids is not None else decoder_inputs_embeds
        if given is None:
            source = labels if self.head_spec.task == "seq2seq-lm" and labels is not None else None
            if source is None and self.family.shifts_inputs:
                source = input_ids
            if source is None:
                raise ArgumentError("pass decoder_input_ids (or labels)")
            given = decoder_input_ids = self.start_ids(source)
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_ids, attention_mask, inputs_embeds, head_mask, output_attentions, output_hidden_states,
                output_router_logits,
            )  # fmt: skip
        elif isinstance(encoder_outputs, tuple | list):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if decoder_input_ids is not None:
            check_ids(decoder_input_ids, "decoder_input_ids")
        batch, length = given.shape[:2]
        caching = bool(config.use_cache and not self.training) if use_cache is None else bool(use_cache)
        cache = take_cache(self, past_key_values, caching, batch, length)
        attentions = flag(output_attentions, config.output_attentions)
        ctx = context_for(
            self, (batch, length), given.device, decoder_attention_mask, decoder_position_ids, cache,
            attentions, True, "decoder_attention_mask",
        )  # fmt: skip
        ctx.memory = encoder_outputs.last_hidden_state
        if attention_mask is not None:
            ctx.memory_mask = attention_mask.to(device=given.device, dtype=torch.bool)
        decoder = self.backbone.decoder
        ctx.head_mask = expand_head_mask(decoder_head_mask, len(decoder.layers), self.dtype)
        states = flag(output_hidden_states, config.output_hidden_states)
        if self._routes(output_router_logits):
            ctx.router_logits = []
        out = decoder(ctx, decoder_input_ids, decoder_inputs_embeds, None, states)
        joined = joint_output(out, encoder_outputs)
        call = Call(
            config, input_ids if self.family.shifts_inputs else decoder_input_ids, attention_mask, labels,
            start_positions, end_positions, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        return conclude(self, joined, call, return_dict)


def joint_output(out: Any, encoder: Any) -> Any:
    """The decoder's output with the public names of both sides."""
    out.decoder_hidden_states, out.decoder_attentions = out.hidden_states, out.attentions
    out.encoder_last_hidden_state = encoder.last_hidden_state
    out.encoder_hidden_states = getattr(encoder, "hidden_states", None)
    out.encoder_attentions = getattr(encoder, "attentions", None)
    out.encoder_router_logits = getattr(encoder, "router_probs", None)
    out.decoder_router_logits = getattr(out, "router_logits", None)
    out.encoder_global_attentions = getattr(encoder, "global_attentions", None)
    return out
