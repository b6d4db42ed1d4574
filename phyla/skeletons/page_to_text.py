"""The calls of encoder-decoders that read a page (words, boxes, pixels) and write a text."""

from typing import Any

from torch import Tensor

from phyla.errors import ArgumentError
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutputWithAttentionMask
from phyla.skeletons.base import IdTensor, check_ids, context_for, expand_head_mask, finish, flag, only_one
from phyla.skeletons.encoder_decoder import EncoderDecoderModel


def read_page(
    model: PreTrainedModel,
    encoder: Any,
    words: tuple[Tensor | None, Tensor | None],
    mask: Tensor | None,
    boxes: Tensor | None,
    page: tuple[Tensor | None, Tensor | None],
    head_mask: Tensor | None,
    attentions: bool | None,
    states: bool | None,
) -> BaseModelOutputWithAttentionMask:
    """Run an encoder on words (ids, or vectors) with boxes (B, S, 4) and a page (pixels, boxes of
    patches).
    """
    ids, vectors = words
    given = only_one(ids, vectors, " to the encoder")
    if ids is not None:
        check_ids(ids, "input_ids")
    if boxes is not None and tuple(boxes.shape) != (*given.shape[:2], 4):
        raise ArgumentError(
            f"bbox must be {(*given.shape[:2], 4)}, a box for each token, but is {tuple(boxes.shape)}"
        )
    config = model.config
    text = context_for(model, given.shape[:2], given.device, mask, None, None, False, False)
    x, boxes, real = encoder.join(ids, vectors, boxes, *page, text)
    ctx = context_for(
        model, x.shape[:2], x.device, real, None, None, flag(attentions, config.output_attentions), False
    )
    ctx.head_mask = expand_head_mask(head_mask, len(encoder.layers), x.dtype)
    out = encoder.read(x, boxes, ctx, flag(states, config.output_hidden_states))
    return BaseModelOutputWithAttentionMask(
        out.last_hidden_state, real.long(), None, out.hidden_states, out.attentions
    )


class PageEncoderModel(PreTrainedModel):
    """Words, boxes and pixels to states."""

    def forward(
        self,
        input_ids: IdTensor = None,
        bbox: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_bbox: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on input_ids (B, S), bbox (B, S, 4) from 0 to 1, pixel_values (B, C, Y, X)."""
        out = read_page(
            self, self.backbone, (input_ids, inputs_embeds), attention_mask, bbox, (pixel_values,
            visual_bbox),
            head_mask, output_attentions, output_hidden_states,
        )  # fmt: skip
        return finish(self, {}, out, return_dict)


class PageToTextModel(EncoderDecoderModel):
    """Words, boxes and pixels of an encoder and token ids of a decoder to states of the decoder."""

    def encode(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        bbox: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_bbox: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithAttentionMask:
        """States of the encoder for a page, and which of them are real."""
        return read_page(
            self, self.backbone.encoder, (input_ids, inputs_embeds), attention_mask, bbox,
            (pixel_values, visual_bbox), head_mask, output_attentions, output_hidden_states,
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        bbox: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_bbox: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        head_mask: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Run encoder and decoder, or the decoder alone where encoder_outputs are given.

        input_ids (B, S); bbox (B, S, 4): edges of each token's word from 0 to 1; pixel_values (B, C, Y, X);
        visual_bbox (B, P, 4): boxes of the patches, a plain grid by default; labels (B, T) stand in for
        decoder_input_ids, shifted right.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.start_ids(labels)
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_ids, attention_mask, bbox, pixel_values, visual_bbox, inputs_embeds, head_mask,
                output_attentions, output_hidden_states,
            )  # fmt: skip
        return super().forward(
            attention_mask=getattr(encoder_outputs, "attention_mask", attention_mask),
            decoder_input_ids=decoder_input_ids, decoder_attention_mask=decoder_attention_mask,
            decoder_head_mask=decoder_head_mask, encoder_outputs=encoder_outputs,
            past_key_values=past_key_values, labels=labels, decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=return_dict, logits_to_keep=logits_to_keep,
        )  # fmt: skip
