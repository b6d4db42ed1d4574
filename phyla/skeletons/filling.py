"""The call of encoders that fill masks, and so can write a text's next token into a blank behind it."""

from typing import Any

import torch

from phyla.errors import GenerationError
from phyla.skeletons.text import TextModel


class FillingTextModel(TextModel):
    """Token ids to scores of masked tokens; `generate` reads those of a padding token behind the text."""

    def can_generate(self) -> bool:
        return True

    def next_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs of one step of `generate`, with the blank that the next token is read from."""
        padding, ids = self.config.pad_token_id, inputs["input_ids"]
        if padding is None:
            raise GenerationError(
                "config.pad_token_id must be set: the next token is read from a padding token"
            )
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        blank = ids.new_full((len(ids), 1), padding)
        return inputs | {
            "input_ids": torch.cat((ids, blank), 1),
            "attention_mask": torch.cat((mask, torch.zeros_like(mask[:, :1])), 1),
        }
