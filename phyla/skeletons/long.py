"""The calls of models in which some tokens, named by the caller, see all others."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.context import Context
from phyla.blocks.local import Globals, globals_of
from phyla.blocks.stack import Stack, StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.outputs import BaseModelOutput
from phyla.skeletons.base import IdTensor, context_for, expand_head_mask, flag, fold_choices, read_ids
from phyla.skeletons.encoder_decoder import EncoderDecoderModel
from phyla.skeletons.text import Text, TextModel


class GlobalTextModel(TextModel):
    """Token ids to states, near tokens seeing each other and global ones seeing all.

    Layers find the `Globals` of a call in `ctx.notes["globals"]`.
    """

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S), or inputs_embeds (B, S, D) in their place; (B, choices, S) for multiple choice.
        attention_mask (B, S): 1 real, 0 padding. global_attention_mask (B, S): 1 for tokens that see all and
        are seen by all; by default the first token where rows are classified, the question where it is
        answered, the choices where one is chosen, otherwise none.
        """
        if self.head_spec.task == "multiple-choice":
            (global_attention_mask,) = fold_choices((global_attention_mask,))
        text = Text(
            input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, head_mask, None, None,
            None, False, output_attentions, output_hidden_states, notes={"globals": global_attention_mask},
        )  # fmt: skip
        call = Call(self.config, None, None, labels, start_positions, end_positions)
        return self._run(text, call, return_dict)

    def _context(self, given: Tensor, text: Text) -> Context:
        ctx = super()._context(given, text)
        ctx.notes = {"globals": self._globals(text.notes["globals"], ctx.attention_mask, text.ids, given)}
        return ctx

    def _tell(self, out: Any, ctx: Context) -> None:
        out.global_attentions = global_attentions(ctx)

    def _globals(
        self, mask: Tensor | None, attention_mask: Tensor | None, ids: Tensor | None, given: Tensor
    ) -> Globals | None:
        """The caller's global tokens, or those that the task has by default."""
        task = self.head_spec.task
        first = mask is None and task == "sequence-classification"
        if first:
            mask = torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device)
            mask[:, 0] = True
        elif mask is None and ids is not None and task in ("question-answering", "multiple-choice"):
            mask = question_mask(ids, self.config.sep_token_id, task == "question-answering")
        if mask is None:
            return None
        if mask.shape != given.shape[:2]:
            raise ArgumentError(
                f"global_attention_mask must be {tuple(given.shape[:2])}, but is {tuple(mask.shape)}"
            )
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ArgumentError("attention_mask must be (batch, positions) where tokens are global")
        found = globals_of(mask.to(given.device), attention_mask, 1 if first else None)
        return None if found is None else replace(found, first=first)


def question_mask(ids: Tensor, separator: int | None, before: bool) -> Tensor:
    """bool (B, S): tokens before the first separator, or behind the two that follow the question."""
    marks = torch.eq(ids, -1 if separator is None else separator)
    if not torch.compiler.is_compiling() and not bool((marks.sum(1) == 3).all()):
        raise ArgumentError(
            f"every row must hold exactly three separators ({separator}) to tell the question from the text, "
            f"but they hold {marks.sum(1).tolist()}; or pass global_attention_mask"
        )
    end, slots = marks.int().argmax(1, keepdim=True), torch.arange(ids.shape[1], device=ids.device)
    return slots < end if before else slots > end + 1


def global_attentions(ctx: Context) -> tuple[Tensor, ...] | None:
    """What global tokens saw (B, H, S, G) in each layer, if it was asked for."""
    seen = ctx.memo.get("global-attentions")
    return None if seen is None else tuple(seen)


class GlobalEncoderDecoderModel(EncoderDecoderModel):
    """An encoder in which near tokens see each other and global ones see all, and a plain decoder."""

    def encode(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        global_attention_mask: Tensor | None = None,
    ) -> BaseModelOutput:
        """States of the encoder for input_ids (B, S); global_attention_mask (B, S): 1 for global tokens."""
        given = read_ids(input_ids, inputs_embeds, " to the encoder")
        attentions = flag(output_attentions, self.config.output_attentions)
        ctx = context_for(self, given.shape[:2], given.device, attention_mask, None, None, attentions, False)
        if global_attention_mask is not None:
            chosen = globals_of(global_attention_mask.to(given.device), ctx.attention_mask)
            ctx.notes = {"globals": chosen}
        encoder: Stack = self.backbone.encoder
        ctx.head_mask = expand_head_mask(head_mask, len(encoder.layers), self.dtype)
        states = flag(output_hidden_states, self.config.output_hidden_states)
        out: StackOutput = encoder(ctx, input_ids, inputs_embeds, None, states)
        result = BaseModelOutput(out.last_hidden_state, out.hidden_states, out.attentions)
        result.global_attentions = global_attentions(ctx)
        return result

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        global_attention_mask: Tensor | None = None,
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
        """As every encoder-decoder; global_attention_mask (B, S) names the encoder's global tokens."""
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_ids, attention_mask, inputs_embeds, head_mask, output_attentions, output_hidden_states,
                global_attention_mask,
            )  # fmt: skip
        return super().forward(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask,
            decoder_head_mask=decoder_head_mask, cross_attn_head_mask=cross_attn_head_mask,
            encoder_outputs=encoder_outputs, past_key_values=past_key_values,
            decoder_inputs_embeds=decoder_inputs_embeds, labels=labels, start_positions=start_positions,
            end_positions=end_positions, use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=return_dict, cache_position=cache_position,
            decoder_position_ids=decoder_position_ids, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
