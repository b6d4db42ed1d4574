"""The call of models that read a text in any order and remember the states of earlier segments."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.stack import StackOutput
from phyla.blocks.two_stream import Streams
from phyla.errors import ArgumentError
from phyla.heads.beam_span import SpanCall
from phyla.model import PreTrainedModel
from phyla.skeletons.base import (
    IdTensor,
    conclude,
    context_for,
    expand_head_mask,
    flag,
    fold_choices,
    fold_vectors,
    only_one,
    read_ids,
)


class MemoryTextModel(PreTrainedModel):
    """Token ids to states of tokens, or of targets that do not see themselves."""

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        mems: Any = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        input_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        is_impossible: Tensor | None = None,
        cls_index: Tensor | None = None,
        p_mask: Tensor | None = None,
        use_mems: bool | None = None,
        use_cache: bool | None = None,
        past_key_values: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S), or inputs_embeds (B, S, D); (B, choices, S) for multiple choice. attention_mask
        (B, S) or (B, remembered + S): 1 real, 0 padding; input_mask is its opposite. mems: states (T, B, D)
        of each layer, as returned with use_mems. perm_mask (B, S, S): 1 where token i does not see token j.
        target_mapping (B, M, S): where the M tokens stand whose states are wanted. use_cache is the generic
        name of use_mems, past_key_values a cache that takes the place of mems.
        """
        config, choices = self.config, 0
        given = only_one(input_ids, inputs_embeds)
        if self.head_spec.task == "multiple-choice":
            choices = given.shape[1]
            input_ids, attention_mask, token_type_ids, input_mask = fold_choices(
                (input_ids, attention_mask, token_type_ids, input_mask)
            )
            inputs_embeds = fold_vectors(inputs_embeds)
        given = read_ids(input_ids, inputs_embeds)
        if input_mask is not None and attention_mask is not None:
            raise ArgumentError("pass either attention_mask or input_mask, which is its opposite")
        if input_mask is not None:
            attention_mask = 1 - input_mask.long()
        cache: Any = past_key_values
        use_mems = use_cache if use_mems is None else use_mems
        use_mems = flag(use_mems, config.use_mems_train if self.training else config.use_mems_eval)
        layers = self.backbone.layers
        memory: list[Tensor | None] = [None] * len(layers)
        if cache is not None:
            memory = [slot.keys for slot in cache.slots]
        elif mems is not None:
            memory = [t if t is None else t.transpose(0, 1) for t in mems]
        ctx = context_for(
            self, given.shape[:2], given.device, None, None, None,
            flag(output_attentions, config.output_attentions), False,
        )  # fmt: skip
        embed = self.backbone.embed
        x = embed.streams(input_ids, inputs_embeds, target_mapping, ctx)
        ctx.memo["streams"] = self._streams(
            given, memory, attention_mask, perm_mask, target_mapping, token_type_ids
        )
        ctx.head_mask = expand_head_mask(head_mask, len(layers), self.dtype)
        states = flag(output_hidden_states, config.output_hidden_states)
        keeps = use_mems or cache is not None
        out: StackOutput = self.backbone.run(x, ctx, input_ids, states or keeps)
        length = given.shape[1]
        if keeps and out.hidden_states is not None:
            self._remember(out, memory, cache, length)
        if target_mapping is not None:
            out.last_hidden_state = out.last_hidden_state[:, length:]
            out.hidden_states = tuple(
                t for s in out.hidden_states or () for t in (s[:, :length], s[:, length:])
            )
        out.hidden_states = out.hidden_states if states else None
        call = SpanCall(
            config, input_ids, attention_mask, labels, start_positions, end_positions, num_choices=choices,
            is_impossible=is_impossible, cls_index=cls_index, p_mask=p_mask,
        )  # fmt: skip
        return conclude(self, out, call, return_dict)

    def _streams(
        self,
        given: Tensor,
        memory: list[Tensor | None],
        mask: Tensor | None,
        perm_mask: Tensor | None,
        targets: Tensor | None,
        types: Tensor | None,
    ) -> Streams:
        """Distances and masks of a call; all keys are remembered positions and then tokens."""
        config, device = self.config, given.device
        batch, length = given.shape[:2]
        past = 0 if not memory or memory[0] is None else memory[0].shape[1]
        keys = past + length
        query = torch.arange(past, keys, device=device)[:, None]
        key = torch.arange(keys, device=device)
        hidden: Tensor | None = None  # (B or 1, S, K)
        if config.attn_type == "uni":
            hidden = key > query
            if config.same_length:
                hidden = hidden | ((key < query - past) & (key < length))
            hidden = hidden[None]
        if perm_mask is not None:
            moved = torch.nn.functional.pad(perm_mask.to(device) > 0, (past, 0), value=False)
            hidden = moved if hidden is None else hidden | moved
        if mask is not None:
            if mask.shape[0] != batch or mask.shape[1] < length:
                raise ArgumentError(
                    f"attention_mask must be ({batch}, {length}) or, with what is remembered, longer, "
                    f"but is {tuple(mask.shape)}"
                )
            padding = mask.to(device)[:, -keys:] == 0
            padding = torch.nn.functional.pad(padding, (keys - padding.shape[1], 0), value=False)[:, None]
            hidden = padding if hidden is None else hidden | padding
        own = None if hidden is None else hidden & (key != query)
        apart = None
        if types is not None:
            known = torch.nn.functional.pad(types.to(device), (past, 0))
            apart = types.to(device)[:, :, None] != known[:, None]
        places = torch.arange(keys, -length if config.attn_type == "bi" else -1, -1, device=device)
        clamp = config.clamp_len
        both = [places, -places] if config.bi_data else [places]
        both = [p.clamp(-clamp, clamp) if clamp > 0 else p for p in both]
        distances = self.backbone.embed.distances(torch.stack(both))  # (1 or 2, P, D)
        if config.bi_data:
            distances = distances.repeat_interleave(batch // 2, 0)
        return Streams(length, distances, own, hidden, apart, targets, memory)

    def _remember(self, out: Any, memory: list[Tensor | None], cache: Any, length: int) -> None:
        """Put what came into each layer into the cache, or into out.mems (T, B, D)."""
        config = self.config
        come = [state[:, :length].detach() for state in out.hidden_states[:-1]]
        if cache is not None:
            for slot, state in zip(cache.slots, come, strict=True):
                slot.remember(state)
            cache.length += length
            return
        new = []
        for old, state in zip(memory, come, strict=True):
            state = state[:, : config.reuse_len] if config.reuse_len else state
            state = state if old is None else torch.cat((old, state), 1)
            new.append((state[:, -config.mem_len :] if config.mem_len else state).transpose(0, 1))
        out.mems = tuple(new)

    def next_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs of one step of `generate`: a blank behind the text, whose token is the target.

        With a cache the text's last token is fed again beside the new one, as in published results.
        """
        ids, cache = inputs["input_ids"], inputs.get("past_key_values")
        last = ids[:, -1:]
        if cache is not None and cache.length:
            cache.truncate(cache.length - 2)
            ids = torch.cat((cache.slots[0].tail, ids), 1)
        if cache is not None:
            cache.slots[0].tail = last
        ids = torch.cat((ids, torch.zeros_like(last)), 1)
        batch, length = ids.shape
        blank = torch.nn.functional.one_hot(torch.tensor(length - 1, device=ids.device), length).float()
        mask = inputs.get("attention_mask")
        if mask is not None:
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
        return {k: v for k, v in inputs.items() if k != "token_type_ids"} | {
            "input_ids": ids, "attention_mask": mask, "perm_mask": blank.expand(batch, length, -1),
            "target_mapping": blank.expand(batch, 1, -1),
        }  # fmt: skip
