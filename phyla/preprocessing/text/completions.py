"""Ends of generated code: what a model writes after the function that was asked for is cut off."""

import re

from .base import PreTrainedTokenizerBase


def first_parts(self, completion: str, truncate_before_pattern: list[str]) -> str:
    """The completion before its second `print`, its second `def`, and the first match of any of the
    patterns.
    """
    for keyword in ("print", "def"):
        starts = [match.start() for match in re.finditer(f"^{keyword}", completion, re.MULTILINE)]
        if len(starts) > 1:
            completion = completion[: starts[1]]
    found = [re.search(pattern, completion, re.MULTILINE) for pattern in truncate_before_pattern]
    return completion[: min((match.start() for match in found if match), default=len(completion))]


def decode_until(
    self,
    token_ids,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
    truncate_before_pattern: list[str] | None = None,
    **more,
) -> str:
    """The text of token ids, cut before the patterns where some are given."""
    text = PreTrainedTokenizerBase.decode(
        self,
        token_ids,
        skip_special_tokens=skip_special_tokens,
        clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        **more,
    )
    return first_parts(self, text, truncate_before_pattern) if truncate_before_pattern else text
