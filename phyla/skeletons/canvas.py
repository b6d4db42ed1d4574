"""The call of models that refine a block of unfinished text, a canvas, behind finished text."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.cache import Cache
from phyla.blocks.context import Context
from phyla.blocks.stack import StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import Lazy, PreTrainedModel
from phyla.skeletons.base import IdTensor, check_ids, conclude, context_for, finish, flag, take_cache


class CanvasModel(PreTrainedModel):
    """Finished text to a memory, and a canvas behind it to scores of all its tokens.

    The backbone has `text(ids, ctx, ...)`, which fills the cache, and `refine(canvas, memory, ctx, ...)`,
    which reads it.
    """

    generate = Lazy("phyla.generation.denoise", "generate_blocks", "method")

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        self_conditioning_logits: Tensor | None = None,
        self_conditioning_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S): finished text that past_key_values does not hold yet, put into it (or into a new
        cache); attention_mask (B, cached + S). decoder_input_ids (B, C): the canvas, random by default; the
        cache stays without it. decoder_attention_mask (B, cached + S + C), by default attention_mask and the
        whole canvas. self_conditioning_logits (B, C, V): the scores of the step before, for the rows of
        self_conditioning_mask (B,). pixel_values, image_position_ids, mm_token_type_ids: as for `read_text`.
        labels (B, C): the finished tokens. use_cache=False leaves the cache out of what comes back.
        """
        config, first = self.config, None
        if input_ids is not None:
            first = self.read_text(
                input_ids, attention_mask, past_key_values, position_ids, pixel_values, image_position_ids,
                mm_token_type_ids,
            )  # fmt: skip
            past_key_values = first.past_key_values
        elif past_key_values is None:
            raise ArgumentError("pass input_ids, or past_key_values with finished text")
        if decoder_input_ids is None:
            size = (past_key_values.batch, config.canvas_length)
            decoder_input_ids = torch.randint(config.get_text_config().vocab_size, size, device=self.device)
        if decoder_attention_mask is None and attention_mask is not None:
            ahead = past_key_values.length - attention_mask.shape[1]  # learned positions of adapters
            pads = (ahead, decoder_input_ids.shape[1])
            decoder_attention_mask = F.pad(attention_mask, pads, value=1)
        out = self.refine(
            decoder_input_ids, past_key_values, decoder_attention_mask, decoder_position_ids,
            self_conditioning_logits, self_conditioning_mask,
            flag(output_attentions, config.output_attentions),
            flag(output_hidden_states, config.output_hidden_states),
        )  # fmt: skip
        out.past_key_values = None if use_cache is False else past_key_values
        vars(out)["encoder_last_hidden_state"] = None if first is None else first.last_hidden_state
        call = Call(config, labels=labels, num_items_in_batch=num_items_in_batch)
        return conclude(self, out, call, return_dict)

    def read_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        attentions: bool = False,
        states: bool = False,
    ) -> StackOutput:
        """Put finished text (B, S) into the cache, which is `past_key_values` of what comes back.

        pixel_values (N, P, 3 * Y * X), image_position_ids (N, P, 2): patches of images and their columns and
        rows, -1 for padding. mm_token_type_ids (B, S): 1 where a token is of an image.
        """
        check_ids(input_ids, "input_ids")
        batch, length = input_ids.shape
        cache = take_cache(self, past_key_values, True, batch, length)
        device = input_ids.device
        ctx = context_for(
            self, (batch, length), device, attention_mask, position_ids, cache, attentions, False
        )
        images = None if pixel_values is None else (pixel_values, image_position_ids)
        return self.backbone.read(input_ids, ctx, images, mm_token_type_ids, states)

    def refine(
        self,
        canvas: Tensor,
        past: Any,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        scores: Tensor | None = None,
        scored: Tensor | None = None,
        attentions: bool = False,
        states: bool = False,
    ) -> StackOutput:
        """States (B, C, D) of a canvas (B, C) behind the text that `past` holds.

        mask (B, text + C). positions (B or 1, C): by default the canvas begins behind each row's real tokens.
        """
        check_ids(canvas, "decoder_input_ids")
        batch, length = canvas.shape
        cache = take_cache(self, past, False, batch, length)
        if not isinstance(cache, Cache):
            raise ArgumentError("a canvas stands behind finished text: pass past_key_values that hold it")
        total, device = cache.length + length, canvas.device
        if mask is not None and mask.shape != (batch, total):
            raise ArgumentError(
                f"decoder_attention_mask must be ({batch}, {total}) for {cache.length} cached positions and "
                f"a canvas of {length}, but is {tuple(mask.shape)}"
            )
        seen = (
            torch.ones(1, total, dtype=torch.bool, device=device) if mask is None else mask.to(device).bool()
        )
        if positions is None:
            before = seen[:, : cache.length].sum(1, keepdim=True)
            positions = before + torch.arange(length, device=device)
        ctx = Context(
            positions=positions, length=length, start=cache.length, attention_mask=seen[:, None, None],
            implementation=self.implementation, attentions=[] if attentions else None,
        )  # fmt: skip
        return self.backbone.refine(canvas, cache, ctx, scores, scored, states)


class CanvasReader(CanvasModel):
    """The part that reads finished text, by itself."""

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        mm_token_type_ids: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """States (B, S, D) of finished text, and the cache that holds it; arguments as for `read_text`."""
        if input_ids is None:
            raise ArgumentError("pass input_ids")
        out = self.read_text(
            input_ids, attention_mask, past_key_values, position_ids, pixel_values, image_position_ids,
            mm_token_type_ids, flag(output_attentions, self.config.output_attentions),
            flag(output_hidden_states, self.config.output_hidden_states),
        )  # fmt: skip
        return finish(self, {}, out, return_dict)


class CanvasRefiner(CanvasModel):
    """The part that refines a canvas, by itself."""

    def forward(  # type: ignore[override]
        self,
        decoder_input_ids: Tensor,
        past_key_values: Any = None,
        self_conditioning_logits: Tensor | None = None,
        self_conditioning_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """States (B, C, D) of a canvas behind the text that past_key_values holds; see `CanvasModel`."""
        out = self.refine(
            decoder_input_ids, past_key_values, decoder_attention_mask, decoder_position_ids,
            self_conditioning_logits, self_conditioning_mask,
            flag(output_attentions, self.config.output_attentions),
            flag(output_hidden_states, self.config.output_hidden_states),
        )  # fmt: skip
        return finish(self, {}, out, return_dict)
