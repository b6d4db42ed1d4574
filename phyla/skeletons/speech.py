"""The calls of models that write down speech: an encoder of sound features and a decoder of tokens."""

from typing import Any

from torch import Tensor

from phyla.errors import ArgumentError
from phyla.heads.ctc import AudioCall
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutput
from phyla.skeletons.base import IdTensor, conclude, context_for, expand_head_mask, flag
from phyla.skeletons.encoder_decoder import EncoderDecoderModel
from phyla.skeletons.text import TextModel


def listen(
    model: PreTrainedModel,
    stack: Any,
    features: Tensor | None,
    mask: Tensor | None,
    head_mask: Tensor | None,
    attentions: bool | None,
    states: bool | None,
) -> BaseModelOutput:
    """States of an encoder whose embedding answers `embed(features, mask)` with the stream and its mask."""
    if features is None:
        raise ArgumentError(f"pass {model.main_input_name}, the sound")
    x, real = stack.embed(features.to(model.dtype) if features.is_floating_point() else features, mask)
    attentions = flag(attentions, model.config.output_attentions)
    ctx = context_for(model, x.shape[:2], x.device, real, None, None, attentions, False)
    ctx.head_mask = expand_head_mask(head_mask, len(stack.layers), model.dtype)
    out = stack.run(x, ctx, None, flag(states, model.config.output_hidden_states))
    return BaseModelOutput(out.last_hidden_state, out.hidden_states, out.attentions)


class SpeechModel(EncoderDecoderModel):
    """Sound features of an encoder and token ids of a decoder to states of the decoder."""

    main_input_name = "input_features"

    def encode(  # type: ignore[override]
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """States of the encoder; attention_mask is 1 at real frames of input_features."""
        encoder = self.backbone.encoder
        return listen(
            self, encoder, input_features, attention_mask, head_mask, output_attentions, output_hidden_states
        )

    def forward(  # type: ignore[override]
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run encoder and decoder, or the decoder alone where encoder_outputs are given.

        input_features as the encoder's embedding takes them, decoder_input_ids (B, T); labels (B, T) stand in
        for decoder_input_ids, shifted right.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ArgumentError("pass decoder_input_ids (or labels)")
            decoder_input_ids = self.start_ids(labels)
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_features, attention_mask, head_mask, output_attentions, output_hidden_states
            )
        length = encoder_outputs[0].shape[1]
        return super().forward(
            attention_mask=self.backbone.encoder.embed.real(attention_mask, length),
            decoder_input_ids=decoder_input_ids, decoder_attention_mask=decoder_attention_mask,
            decoder_head_mask=decoder_head_mask, cross_attn_head_mask=cross_attn_head_mask,
            encoder_outputs=encoder_outputs, past_key_values=past_key_values,
            decoder_inputs_embeds=decoder_inputs_embeds, labels=labels, use_cache=use_cache,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            return_dict=return_dict, cache_position=cache_position,
            decoder_position_ids=decoder_position_ids, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip

    def freeze_encoder(self) -> None:
        """Train the decoder alone."""
        self.backbone.encoder.requires_grad_(False)


class SpeechEncoderModel(PreTrainedModel):
    """Sound features to states of an encoder alone."""

    main_input_name = "input_features"

    def forward(
        self,
        input_features: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on input_features, or go on from encoder_outputs."""
        states = flag(output_hidden_states, self.config.output_hidden_states)
        states = states or getattr(self.head, "mix", None) is not None
        if encoder_outputs is None:
            out = listen(self, self.backbone, input_features, None, head_mask, output_attentions, states)
        else:
            given = isinstance(encoder_outputs, tuple | list)
            out = BaseModelOutput(*encoder_outputs) if given else encoder_outputs
        call = AudioCall(self.config, labels=labels)
        return conclude(self, out, call, return_dict)

    def freeze_encoder(self) -> None:
        """Train the head alone."""
        self.backbone.requires_grad_(False)


class SpeechDecoderModel(TextModel):
    """The decoder alone, which may attend to the states of an encoder (a draft for a larger model)."""

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run the decoder on input_ids (B, S); encoder_outputs: states (B, K, D), or what has them."""
        memory = encoder_outputs
        if memory is not None and not isinstance(memory, Tensor):
            memory = memory[0]
        return super().forward(
            input_ids, attention_mask, position_ids=position_ids, head_mask=head_mask,
            inputs_embeds=inputs_embeds, encoder_hidden_states=memory, past_key_values=past_key_values,
            use_cache=use_cache, labels=labels, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=return_dict,
            logits_to_keep=logits_to_keep, num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
