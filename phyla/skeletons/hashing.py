"""The call of text stacks whose attention hashes."""

from typing import Any

from torch import Tensor

from phyla.blocks.context import Context
from phyla.heads.base import Call
from phyla.skeletons.base import IdTensor
from phyla.skeletons.text import Text, TextModel


class HashTextModel(TextModel):
    """Token ids to states, with as many rounds of hashing as the caller wants.

    Layers find the number of rounds in `ctx.notes["hashes"]`, where it is not their own.
    """

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        past_buckets_states: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S), or inputs_embeds (B, S, D). attention_mask (B, cached + S): 1 real, 0 padding.
        past_buckets_states (or, under its generic name, past_key_values): a decoder's cache, filled in place.
        """
        text = Text(
            input_ids, inputs_embeds, attention_mask, None, position_ids, head_mask, None, None,
            past_key_values if past_buckets_states is None else past_buckets_states, use_cache,
            output_attentions, output_hidden_states,
            notes={} if num_hashes is None else {"hashes": num_hashes},
        )  # fmt: skip
        call = Call(self.config, None, None, labels, start_positions, end_positions)
        return self._run(text, call, return_dict)

    def _tell(self, out: Any, ctx: Context) -> None:
        out.past_buckets_states = out.past_key_values
