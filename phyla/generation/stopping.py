"""When a row is finished: stopping criteria with their public names.

A criterion takes the token ids so far (rows, length) and the scores, and returns a bool for each row (rows,).
"""

import time
from typing import Any

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation.checks import check_argument
from phyla.generation.logits import id_list


class StoppingCriteria:
    """Base class of all stopping criteria."""

    def __call__(self, input_ids: Tensor, scores: Any, **extra: Any) -> Tensor | bool:
        """True for each row (rows,) that is finished."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores)")


class StoppingCriteriaList(list):
    """Criteria of which any may finish a row."""

    def __call__(self, input_ids: Tensor, scores: Any = None, **extra: Any) -> Tensor:
        """True for each row (rows,) that some criterion finishes."""
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            result = criterion(input_ids, scores, **extra)
            if isinstance(result, Tensor):
                result = result.to(done.device).reshape(-1)
            done = done | result
        return done

    @property
    def max_length(self) -> int | None:
        """The length at which a MaxLengthCriteria of this list stops, or None."""
        return next((c.max_length for c in self if isinstance(c, MaxLengthCriteria)), None)


class MaxLengthCriteria(StoppingCriteria):
    """Stop when the sequence, prompt included, has `max_length` tokens."""

    def __init__(self, max_length: int, max_position_embeddings: int | None = None):
        check_argument("max_length", max_length)
        self.max_length = max_length
        self.max_position_embeddings = max_position_embeddings

    def __call__(self, input_ids: Tensor, scores: Any, **extra: Any) -> Tensor:
        return _all_rows(input_ids, input_ids.shape[1] >= self.max_length)


class MaxTimeCriteria(StoppingCriteria):
    """Stop when more than `max_time` seconds have passed since `initial_timestamp` (default: now)."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None):
        check_argument("max_time", max_time)
        self.max_time = max_time
        # a given start is wall-clock time; without one, a clock that nobody sets back
        self.clock = time.monotonic if initial_timestamp is None else time.time
        self.start = self.clock() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: Tensor, scores: Any, **extra: Any) -> Tensor:
        return _all_rows(input_ids, self.clock() - self.start > self.max_time)


class EosTokenCriteria(StoppingCriteria):
    """Stop a row at any of the end tokens."""

    def __init__(self, eos_token_id: int | list[int] | Tensor):
        check_argument("eos_token_id", eos_token_id)
        self.eos_token_id = torch.tensor(id_list(eos_token_id), dtype=torch.long)

    def __call__(self, input_ids: Tensor, scores: Any, **extra: Any) -> Tensor:
        if self.eos_token_id.device != input_ids.device:
            self.eos_token_id = self.eos_token_id.to(input_ids.device)
        return (input_ids[:, -1:] == self.eos_token_id).any(1)


class StopStringCriteria(StoppingCriteria):
    """Stop a row when its newest token completes one of the strings, wherever the borders of the tokens lie.

    A string may begin in the prompt and may end inside the newest token. `tokenizer` needs only `decode`.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | list[str]):
        check_argument("stop_strings", stop_strings)
        if not callable(getattr(tokenizer, "decode", None)):
            raise GenerationError(
                "stop_strings need the model's tokenizer: pass tokenizer=... to generate, or leave them out"
            )
        self.tokenizer = tokenizer
        self.stop_strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        # every token but a special one holds a byte or more; the few over give the decoder its context
        self.window = max(len(s.encode()) for s in self.stop_strings) + 8

    def __call__(self, input_ids: Tensor, scores: Any, **extra: Any) -> Tensor:
        rows = input_ids[:, -self.window :].tolist()
        return torch.tensor([self.completes(row) for row in rows], device=input_ids.device)

    def completes(self, ids: list[int]) -> bool:
        """Whether the last of `ids` completes a stop string that was not complete before it."""
        text = self._decode(ids)
        if not any(s in text for s in self.stop_strings):
            return False
        # half characters at the end of the older text are not yet text
        before = len(self._decode(ids[:-1]).rstrip("\N{REPLACEMENT CHARACTER}"))
        return any((at := text.rfind(s)) >= 0 and at + len(s) > before for s in self.stop_strings)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class ConfidenceCriteria(StoppingCriteria):
    """Stop a draft (one row) whose newest token had a probability below the threshold."""

    def __init__(self, assistant_confidence_threshold: float):
        self.assistant_confidence_threshold = assistant_confidence_threshold

    def __call__(self, input_ids: Tensor, scores: Any, **extra: Any) -> Tensor:
        chance = scores[-1].softmax(-1).gather(1, input_ids[:, -1:])[:, 0]
        return chance < self.assistant_confidence_threshold


def _all_rows(input_ids: Tensor, done: bool) -> Tensor:
    return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)


def validate_stopping_criteria(
    stopping_criteria: StoppingCriteriaList, max_length: int
) -> StoppingCriteriaList:
    """A copy of the criteria with one for `max_length`, if there is none; a different one is an error."""
    known = stopping_criteria.max_length
    if known is not None and known != max_length:
        raise GenerationError(f"max_length is {max_length}, but a MaxLengthCriteria stops at {known}")
    made = StoppingCriteriaList(stopping_criteria)
    if known is None:
        made.append(MaxLengthCriteria(max_length))
    return made
