"""Tokenizers whose texts begin with tokens that a setting chooses: a task, a language."""

from .base import PreTrainedTokenizerBase


class Prefixed(PreTrainedTokenizerBase):
    """Texts between `prefix_tokens`, as they stand at the moment, and the end."""

    eos_token_id: int

    @property
    def prefix_tokens(self) -> list[int]:
        """The ids before each text; none unless a tokenizer says so."""
        return []

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The prefix, the sequences, the end."""
        return [*self.prefix_tokens, *token_ids_0, *(token_ids_1 or []), self.eos_token_id]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
        return [1] * len(self.prefix_tokens) + [0] * len(token_ids_0 + (token_ids_1 or [])) + [1]
