"""The calls of text decoders that look aside at images through cross-attention, and of towers that see
tiles.
"""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.context import OfTokens
from phyla.blocks.mask import additive
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import IdTensor, conclude, context_for, finish, flag, only_one, read_ids, take_cache
from phyla.skeletons.multimodal import wants_cache


class TiledVisionModel(PreTrainedModel):
    """Tiles of images to their states; the backbone takes pixels, aspect-ratio ids and masks, and a
    context.
    """

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        aspect_ratio_ids: Tensor | None = None,
        aspect_ratio_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on pixel_values (B, images, tiles, C, Y, X).

        aspect_ratio_ids (B, images): which arrangement the tiles have; aspect_ratio_mask (B, images, tiles):
        1
        where a tile holds a part of the image.
        """
        if pixel_values is None:
            raise ArgumentError("pass pixel_values (batch, images, tiles, channels, height, width)")
        out = see_tiles(
            self, self.backbone, pixel_values, aspect_ratio_ids, aspect_ratio_mask,
            flag(output_attentions, self.config.output_attentions),
            flag(output_hidden_states, self.config.output_hidden_states),
        )  # fmt: skip
        return finish(self, {}, out, return_dict)


def see_tiles(
    model: PreTrainedModel,
    tower: Any,
    pixels: Tensor,
    ids: Tensor | None,
    mask: Tensor | None,
    attentions: bool,
    states: bool,
) -> Any:
    """Run a tower that sees tiles."""
    if pixels.dim() != 6:
        raise ArgumentError(
            "pixel_values must be (batch, images, tiles, channels, height, width), "
            f"but are {tuple(pixels.shape)}"
        )
    if ids is None:
        raise ArgumentError("images in tiles need aspect_ratio_ids (batch, images)")
    if mask is None:
        mask = pixels.new_ones(pixels.shape[:3])
    ctx = context_for(model, (len(pixels), 1), pixels.device, None, None, None, attentions, False)
    return tower(pixels, ids, mask, ctx, states)


class CrossTextModel(PreTrainedModel):
    """Token ids to states, with states of images to look at."""

    def get_decoder(self) -> Any:
        """The text model's stack."""
        return getattr(self.backbone, "text", self.backbone)

    def read(
        self,
        ids: Tensor | None,
        vectors: Tensor | None,
        mask: Tensor | None,
        positions: Tensor | None,
        memory: Tensor | None,
        aside: tuple[Tensor | None, Tensor | None],
        options: tuple[Any, bool | None, bool | None, bool | None],
        call: Call,
        return_dict: bool | None,
    ) -> Any:
        """The public output for a text; aside: what each token sees of the images, and whether it sees any.

        options: past_key_values, use_cache, output_attentions, output_hidden_states.
        """
        past, use_cache, attentions, states = options
        config = self.config
        given = read_ids(ids, vectors)
        batch, length = given.shape[:2]
        cache = take_cache(self, past, wants_cache(self, use_cache), batch, length)
        ctx = context_for(
            self, (batch, length), given.device, mask, positions, cache,
            flag(attentions, config.output_attentions), False,
        )  # fmt: skip
        if memory is not None:
            ctx.memory = memory.reshape(batch, -1, memory.shape[-1])
        ctx.memory_mask, sees = aside
        if sees is not None:
            ctx.notes = {"sees": OfTokens(sees)}
        if ctx.attentions is not None:
            ctx.cross_attentions = ctx.attentions  # the public tuple holds those of all layers, in order
        out = self.get_decoder()(ctx, ids, vectors, None, flag(states, config.output_hidden_states))
        return conclude(self, out, call, return_dict)

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cross_attention_states: Tensor | None = None,
        cross_attention_mask: Tensor | None = None,
        full_text_row_masked_out_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run the model on input_ids (B, S).

        cross_attention_states (B, K, D) or (B * pieces, K', D); cross_attention_mask (B, 1, S, K): added to
        scores; full_text_row_masked_out_mask (B, 1, S, 1): 0 at tokens that see no image.
        """
        sees = None if full_text_row_masked_out_mask is None else full_text_row_masked_out_mask[:, 0]
        call = Call(
            self.config, input_ids, attention_mask, labels, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        options = (past_key_values, use_cache, output_attentions, output_hidden_states)
        return self.read(
            input_ids, inputs_embeds, attention_mask, position_ids, cross_attention_states,
            (cross_attention_mask, sees), options, call, return_dict,
        )  # fmt: skip


class CrossImageTextModel(CrossTextModel):
    """Token ids and tiles of images to states of a text; the backbone has `vision`, `projector` and
    `text`.
    """

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        pixel_values: Tensor | None = None,
        aspect_ratio_mask: Tensor | None = None,
        aspect_ratio_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_mask: Tensor | None = None,
        cross_attention_states: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S); pixel_values (B, images, tiles, C, Y, X) with aspect_ratio_ids (B, images) and
        aspect_ratio_mask (B, images, tiles), in the first step alone, or cross_attention_states in their
        place.
        cross_attention_mask (B, S, images, tiles): 1 where a token sees a tile.
        """
        if pixel_values is not None and (inputs_embeds is not None or cross_attention_states is not None):
            raise ArgumentError("pixel_values go with input_ids, and not with cross_attention_states")
        memory = cross_attention_states
        if pixel_values is not None:
            seen = see_tiles(
                self, self.backbone.vision, pixel_values, aspect_ratio_ids, aspect_ratio_mask, False, False
            )
            memory = self.backbone.projector(seen.last_hidden_state)
        aside: tuple[Tensor | None, Tensor | None] = (None, None)
        if cross_attention_mask is not None:
            length = only_one(input_ids, inputs_embeds).shape[1]
            start = 0 if past_key_values is None else past_key_values.length
            if cross_attention_mask.shape[1] == start + length:
                cross_attention_mask = cross_attention_mask[:, start:]
            aside = tokens_aside(cross_attention_mask, self.backbone.vision.length, self.dtype)
        call = Call(
            self.config, input_ids, attention_mask, labels, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        options = (past_key_values, use_cache, output_attentions, output_hidden_states)
        return self.read(
            input_ids, inputs_embeds, attention_mask, position_ids, memory, aside, options, call, return_dict
        )


def tokens_aside(mask: Tensor, vectors: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """From (B, S, images, tiles) to an additive mask (B, 1, S, K) and (B, S, 1): 1 where a token sees any
    tile.

    A token that sees none attends to all alike, as public results have it.
    """
    seen = mask.bool().repeat_interleave(vectors, 3).flatten(2)[:, None]  # (B, 1, S, K)
    some = seen.any(-1, keepdim=True)
    return additive(seen | ~some, dtype), some[:, 0].to(dtype)
