"""One typed call signature for each kind of model: text stack, encoder-decoder, vision, two towers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import Cache
from phyla.blocks.context import Context
from phyla.blocks.stack import DualOutput, Stack, StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call, HeadModule
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutput, BaseModelOutputWithPooling, ModelOutput

IdTensor = Tensor | None


def flag(value: bool | None, default: bool) -> bool:
    """The caller's choice, or the configuration's."""
    return default if value is None else bool(value)


def finish(model: PreTrainedModel, fields: dict[str, Any], out: Any, return_dict: bool | None) -> Any:
    """The public output of a class: the head's fields and, for the rest, the backbone's."""
    kind = model.head_spec.output
    names = kind.__dataclass_fields__
    values = {n: fields[n] if n in fields else getattr(out, n, None) for n in names}
    result: ModelOutput = kind(**values)
    return result if flag(return_dict, model.config.return_dict) else result.to_tuple()


def only_one(ids: Tensor | None, vectors: Tensor | None, to: str = "") -> Tensor:
    """Token ids or the vectors in their place; ArgumentError unless exactly one of them is there."""
    given = ids if ids is not None else vectors
    if given is None or (ids is not None and vectors is not None):
        raise ArgumentError(f"pass either input_ids or inputs_embeds{to}, and not both")
    return given


def check_ids(ids: Tensor, name: str) -> None:
    """Refuse token ids that are no whole numbers or not (B, S)."""
    if ids.dim() != 2:
        raise ArgumentError(f"{name} must be (batch, sequence), but have shape {tuple(ids.shape)}")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ArgumentError(f"{name} must be whole numbers, but are {ids.dtype}")


def positions_of(mask: Tensor | None, start: int, length: int, device: torch.device) -> Tensor:
    """Positions (B or 1, S) of new tokens: counted from each row's first attended token, or from slot 0."""
    slots = torch.arange(start, start + length, device=device)[None]
    if mask is None or mask.dim() != 2:
        return slots
    lead = mask.int().argmax(-1, keepdim=True)  # padding in front of each row
    return (slots - lead).clamp(min=0)


def context_for(
    model: PreTrainedModel,
    shape: Sequence[int],
    device: torch.device,
    mask: Tensor | None,
    positions: Tensor | None,
    cache: Cache | None,
    attentions: bool,
    cross: bool,
    name: str = "attention_mask",
) -> Context:
    """The context of one call; `shape` is (B, S) of the new tokens."""
    batch, length = shape
    start = 0 if cache is None else cache.length
    if mask is not None:
        if mask.dim() not in (2, 4):
            raise ArgumentError(
                f"{name} must be (batch, positions) or 4-dimensional, but has shape {tuple(mask.shape)}"
            )
        if mask.dim() == 2:
            if mask.shape[0] != batch or mask.shape[1] != start + length:
                raise ArgumentError(
                    f"{name} must be ({batch}, {start + length}) for {length} new and {start} cached "
                    f"positions, but is {tuple(mask.shape)}"
                )
            mask = mask.to(device=device, dtype=torch.bool)
    counted = positions is None
    if positions is None:
        positions = positions_of(mask, start, length, device)
    return Context(
        positions=positions,
        length=length,
        start=start,
        counted=counted,
        attention_mask=mask,
        cache=cache,
        implementation=model.implementation,
        attentions=[] if attentions else None,
        cross_attentions=[] if attentions and cross else None,
    )


def take_cache(model: PreTrainedModel, past: Any, wanted: bool, batch: int, length: int) -> Cache | None:
    """The caller's cache, a new one where wanted, or None."""
    if past is None:
        return model.new_cache(batch, length) if wanted else None
    if not isinstance(past, Cache):
        raise ArgumentError(
            "past_key_values must be a cache of this model (model.new_cache(batch, length) or the "
            f"past_key_values of an earlier output), but is {type(past).__name__}"
        )
    if past.batch != batch:
        raise ArgumentError(f"the cache holds {past.batch} rows, but the inputs have {batch}")
    return past


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
        mc_token_ids: Tensor | None = None,
        mc_labels: Tensor | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S), or inputs_embeds (B, S, D) in their place; (B, choices, S) for multiple choice,
        where mc_token_ids (B, choices) say which token a double head reads and mc_labels (B) which choice is
        right. attention_mask (B, cached + S): 1 real, 0 padding, on either side; or a ready 4-D mask.
        past_key_values: a cache, filled in place; use_cache=True makes one. logits_to_keep: only the last n
        positions.

        Raises ArgumentError for wrong shapes and dtypes.
        """
        config = self.config
        choices = 0
        given = only_one(input_ids, inputs_embeds)
        task, grouped = self.head_spec.task, given.dim() == (3 if input_ids is not None else 4)
        if task == "multiple-choice" or (task == "double-heads" and grouped):
            choices = given.shape[1]
            tokenwise = (input_ids, attention_mask, token_type_ids, position_ids)
            input_ids, attention_mask, token_type_ids, position_ids = (
                t if t is None else t.reshape(-1, t.shape[-1]) for t in tokenwise
            )
            if task == "double-heads" and labels is not None:
                labels = labels.reshape(-1, labels.shape[-1])
            inputs_embeds = (
                None if inputs_embeds is None else inputs_embeds.reshape(-1, *inputs_embeds.shape[-2:])
            )
        if input_ids is not None:
            check_ids(input_ids, "input_ids")
        given = only_one(input_ids, inputs_embeds)
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
        caching = self.caches_by_default if use_cache is None and not self.training else bool(use_cache)
        cache = take_cache(self, past, caching, batch, length)
        attentions = flag(output_attentions, config.output_attentions)
        ctx = context_for(
            self, (batch, length), given.device, attention_mask, position_ids, cache, attentions,
            encoder_hidden_states is not None or config.add_cross_attention,
        )  # fmt: skip
        if head_mask is not None:
            ctx.head_mask = expand_head_mask(head_mask, len(backbone.layers), self.dtype)
        if encoder_hidden_states is not None:
            ctx.memory = encoder_hidden_states
            if encoder_attention_mask is not None:
                ctx.memory_mask = encoder_attention_mask.bool()
        if flag(output_router_logits, config.__dict__.get("output_router_logits", False)):
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
            config, input_ids, attention_mask, labels, start_positions, end_positions, next_sentence_label,
            logits_to_keep=logits_to_keep, num_choices=choices, num_items_in_batch=num_items_in_batch,
            mc_token_ids=mc_token_ids, mc_labels=mc_labels,
        )  # fmt: skip
        fields = {} if self.head is None else self.head(out, call)
        return finish(self, fields, out, return_dict)

    @property
    def caches_by_default(self) -> bool:
        """Whether a call without `use_cache` returns a cache: as config.use_cache says, for decoders."""
        fields = self.head_spec.output.__dataclass_fields__
        return bool(self.config.__dict__.get("use_cache", False)) and (
            "past_key_values" in fields or "cache_params" in fields
        )


def expand_head_mask(mask: Tensor, layers: int, dtype: torch.dtype) -> Tensor:
    """(H) or (L, H) -> (L, 1, H, 1, 1)."""
    if mask.dim() == 1:
        mask = mask[None].expand(layers, -1)
    return mask[:, None, :, None, None].to(dtype)


class EncoderDecoderModel(PreTrainedModel):
    """Token ids of an encoder and of a decoder to states of the decoder."""

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    def get_encoder(self) -> Stack:
        """The encoder's stack."""
        return self.backbone.encoder

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
    ) -> BaseModelOutput:
        """States of the encoder for input_ids (B, S)."""
        given = only_one(input_ids, inputs_embeds, " to the encoder")
        if input_ids is not None:
            check_ids(input_ids, "input_ids")
        attentions = flag(output_attentions, self.config.output_attentions)
        ctx = context_for(self, given.shape[:2], given.device, attention_mask, None, None, attentions, False)
        encoder = self.backbone.encoder
        if head_mask is not None:
            ctx.head_mask = expand_head_mask(head_mask, len(encoder.layers), self.dtype)
        states = flag(output_hidden_states, self.config.output_hidden_states)
        out = encoder(ctx, input_ids, inputs_embeds, None, states)
        return BaseModelOutput(out.last_hidden_state, out.hidden_states, out.attentions)

    def start_ids(self, ids: Tensor) -> Tensor:
        """Decoder inputs for targets `ids` (B, S): one step to the right, the start token in front."""
        start, padding = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None:
            raise ArgumentError(
                "config.decoder_start_token_id must be set to make decoder inputs from labels"
            )
        shifted = ids.new_zeros(ids.shape)
        shifted[:, 1:] = ids[:, :-1]
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == -100, padding if padding is not None else 0)

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
                input_ids, attention_mask, inputs_embeds, head_mask, output_attentions, output_hidden_states
            )
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
        if decoder_head_mask is not None:
            ctx.head_mask = expand_head_mask(decoder_head_mask, len(decoder.layers), self.dtype)
        states = flag(output_hidden_states, config.output_hidden_states)
        out = decoder(ctx, decoder_input_ids, decoder_inputs_embeds, None, states)
        joined = joint_output(out, encoder_outputs)
        call = Call(
            config, input_ids if self.family.shifts_inputs else decoder_input_ids, attention_mask, labels,
            start_positions, end_positions, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        fields = {} if self.head is None else self.head(joined, call)
        return finish(self, fields, joined, return_dict)


def joint_output(out: Any, encoder: Any) -> Any:
    """The decoder's output with the public names of both sides."""
    out.decoder_hidden_states, out.decoder_attentions = out.hidden_states, out.attentions
    out.encoder_last_hidden_state = encoder.last_hidden_state
    out.encoder_hidden_states = getattr(encoder, "hidden_states", None)
    out.encoder_attentions = getattr(encoder, "attentions", None)
    return out


class VisionModel(PreTrainedModel):
    """Pixels to states of the patches."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on pixel_values (B, C, Y, X), already resized and normalised."""
        if pixel_values is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        out = self.see(
            pixel_values,
            bool_masked_pos,
            head_mask,
            output_attentions,
            output_hidden_states,
            interpolate_pos_encoding,
        )
        call = Call(self.config, labels=labels, pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        fields = {} if self.head is None else self.head(out, call)
        return finish(self, fields, out, return_dict)

    def see(
        self,
        pixels: Tensor,
        hidden: Tensor | None,
        head_mask: Tensor | None,
        attentions: bool | None,
        states: bool | None,
        interpolate: bool | None,
    ) -> StackOutput:
        """The backbone's output for pixels (B, C, Y, X)."""
        return see(
            self, self.backbone, pixels, hidden, head_mask, flag(attentions, self.config.output_attentions),
            flag(states, self.config.output_hidden_states), bool(interpolate),
        )  # fmt: skip


def see(
    model: PreTrainedModel,
    stack: Stack,
    pixels: Tensor,
    hidden: Tensor | None,
    head_mask: Tensor | None,
    attentions: bool,
    states: bool,
    interpolate: bool,
) -> StackOutput:
    """Run a vision stack whose embedding takes pixels."""
    x = stack.embed(pixels, hidden, interpolate)
    ctx = context_for(model, x.shape[:2], x.device, None, None, None, attentions, False)
    if head_mask is not None:
        ctx.head_mask = expand_head_mask(head_mask, len(stack.layers), x.dtype)
    return stack.run(x, ctx, None, states)


class DualModel(PreTrainedModel):
    """Texts and images to vectors that can be compared; the head is a `Contrast`."""

    head: HeadModule

    def read(
        self,
        ids: Tensor | None,
        mask: Tensor | None,
        positions: Tensor | None,
        segments: Tensor | None,
        attentions: bool | None,
        states: bool | None,
    ) -> StackOutput:
        """The text tower's output for ids (B, S)."""
        if ids is None:
            raise ArgumentError("pass input_ids (batch, sequence)")
        check_ids(ids, "input_ids")
        attentions = flag(attentions, self.config.output_attentions)
        ctx = context_for(self, ids.shape, ids.device, mask, positions, None, attentions, False)
        return self.backbone.text(ctx, ids, None, segments, flag(states, self.config.output_hidden_states))

    def look(
        self, pixels: Tensor | None, attentions: bool | None, states: bool | None, interpolate: bool | None
    ) -> StackOutput:
        """The image tower's output for pixels (B, C, Y, X)."""
        if pixels is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        return see(
            self, self.backbone.image, pixels, None, None, flag(attentions, self.config.output_attentions),
            flag(states, self.config.output_hidden_states), bool(interpolate),
        )  # fmt: skip

    def get_text_features(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Vectors (B, E) of texts in the common space, not normed; output_ options do not change them."""
        out = self.read(input_ids, attention_mask, position_ids, token_type_ids, None, None)
        return self.head.vector("text", out)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> Tensor:
        """Vectors (B, E) of images in the common space, not normed; output_ options do not change them."""
        return self.head.vector("image", self.look(pixel_values, None, None, interpolate_pos_encoding))

    def forward(
        self,
        input_ids: IdTensor = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Any:
        """Compare input_ids (T, S) with pixel_values (I, C, Y, X): scores (T, I); return_loss wants T = I."""
        states = output_hidden_states
        text = self.read(input_ids, attention_mask, position_ids, token_type_ids, output_attentions, states)
        image = self.look(pixel_values, output_attentions, states, interpolate_pos_encoding)
        texts, images = len(text.last_hidden_state), len(image.last_hidden_state)
        if return_loss and texts != images:
            raise ArgumentError(f"return_loss needs a text for each image, but got {texts} for {images}")
        out = DualOutput(text, image)
        fields = self.head(out, Call(self.config, input_ids, attention_mask, return_loss=bool(return_loss)))
        for name, tower in (("text_model_output", text), ("vision_model_output", image)):
            fields[name] = finish_tower(self, tower, return_dict)
        return finish(self, fields, out, return_dict)


def finish_tower(model: PreTrainedModel, out: StackOutput, return_dict: bool | None) -> Any:
    """The public output of one tower."""
    result = BaseModelOutputWithPooling(
        out.last_hidden_state, out.pooler_output, out.hidden_states, out.attentions
    )
    return result if flag(return_dict, model.config.return_dict) else result.to_tuple()
