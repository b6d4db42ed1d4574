"""Logits processors that forbid, force or re-weigh tokens, with their public names.

A processor takes the token ids so far (rows, length) and the scores of the next token (rows, vocabulary), and
returns new scores of that shape; it never changes its input. The sampling filters are in `warpers.py`.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.checks import check_argument, check_field

NEVER = -math.inf


class LogitsProcessor:
    """Base class of all logits processors."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores (rows, vocabulary) from the ids so far (rows, length) and the scores."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores)")


class LogitsProcessorList(list):
    """Processors applied in order."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **extra: object) -> Tensor:
        """Scores after all processors; those that take more than ids and scores get it by name."""
        for processor in self:
            kind: Any = type(processor)
            names = _extra_arguments(kind)
            if not names:
                scores = processor(input_ids, scores)
                continue
            missing = [name for name in names if name not in extra]
            if missing:
                raise ArgumentError(
                    f"{type(processor).__name__} needs the argument {missing[0]!r}, which was not given"
                )
            scores = processor(input_ids, scores, **{name: extra[name] for name in names})
        return scores


@cache
def _extra_arguments(kind: Any) -> tuple[str, ...]:
    named = [p for p in inspect.signature(kind.__call__).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return tuple(p.name for p in named[3:] if p.default is p.empty)


def id_list(ids: int | Iterable[int] | Tensor) -> list[int]:
    """Token ids given as a number, a list or a tensor, as a list."""
    if isinstance(ids, Tensor):
        return ids.flatten().tolist()
    try:
        return [int(i) for i in ids] if isinstance(ids, Iterable) else [int(ids)]
    except (TypeError, ValueError):
        raise GenerationError(f"token ids must be a number or a list of numbers, but are {ids!r}") from None


class Columns:
    """Columns of the vocabulary, as an index tensor on the device of the scores; ids past the vocabulary are
    left out.
    """

    def __init__(self, ids: int | Iterable[int] | Tensor):
        self.ids = id_list(ids)
        self.index: Tensor | None = None

    def of(self, scores: Tensor) -> Tensor:
        if self.index is None or self.index.device != scores.device:
            size = scores.shape[-1]
            self.index = torch.tensor(
                [i for i in self.ids if 0 <= i < size], dtype=torch.long, device=scores.device
            )
        return self.index


class MinLengthLogitsProcessor(LogitsProcessor):
    """No end token before the sequence, prompt included, has `min_length` tokens."""

    def __init__(self, min_length: int, eos_token_id: int | list[int] | Tensor, device: str = "cpu"):
        check_argument("min_length", min_length)
        self.min_length = min_length
        self.eos = Columns(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return (
            scores.index_fill(1, self.eos.of(scores), NEVER)
            if input_ids.shape[1] < self.min_length
            else scores
        )


class MinNewTokensLengthLogitsProcessor(MinLengthLogitsProcessor):
    """No end token before `min_new_tokens` tokens follow a prompt of `prompt_length_to_skip`."""

    def __init__(
        self,
        prompt_length_to_skip: int,
        min_new_tokens: int,
        eos_token_id: int | list[int] | Tensor,
        device: str = "cpu",
    ):
        check_argument("prompt_length_to_skip", prompt_length_to_skip)
        check_argument("min_new_tokens", min_new_tokens)
        super().__init__(prompt_length_to_skip + min_new_tokens, eos_token_id)


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Divide positive and multiply negative scores of tokens seen so far by `penalty` (Keskar et al. 2019,
    sec. 4.1).

    `prompt_mask` (rows, prompt length), True at real tokens, keeps padding from counting as seen.
    """

    def __init__(self, penalty: float, prompt_mask: Tensor | None = None):
        check_argument("repetition_penalty", penalty)
        self.penalty = penalty
        self.prompt_mask = prompt_mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.prompt_mask is not None:
            input_ids = _without_padding(input_ids, self.prompt_mask)
        return _reweigh_seen(scores, input_ids, self.penalty)


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Favour (penalty above 1) or disfavour (below 1) the tokens of the encoder's input (rows, length)."""

    def __init__(self, penalty: float, encoder_input_ids: Tensor, prompt_mask: Tensor | None = None):
        check_argument("encoder_repetition_penalty", penalty)
        self.penalty = 1 / penalty
        self.seen = encoder_input_ids
        if prompt_mask is not None:
            self.seen = _without_padding(self.seen, prompt_mask)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _reweigh_seen(scores, _as_many_rows(self.seen, scores), self.penalty)


def _reweigh_seen(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    if seen.shape[1] == 0:
        return scores
    old = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


def _without_padding(ids: Tensor, mask: Tensor) -> Tensor:
    """`ids` with padding replaced by the last real token of the row, which adds no token to the set of those
    seen.
    """
    length = min(mask.shape[1], ids.shape[1])
    mask = _as_many_rows(mask, ids)[:, :length]
    last = (torch.arange(length, device=ids.device) * mask).argmax(1, keepdim=True)  # (rows, 1)
    head = torch.where(mask.bool(), ids[:, :length], ids[:, :length].gather(1, last))
    return torch.cat([head, ids[:, length:]], dim=1)


def _as_many_rows(x: Tensor, like: Tensor) -> Tensor:
    """`x` with each row repeated so that it has as many rows as `like` (several sequences for one prompt)."""
    return x if x.shape[0] == like.shape[0] else x.repeat_interleave(like.shape[0] // x.shape[0], dim=0)


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """No n-gram of `ngram_size` tokens occurs twice in a row (Paulus et al. 2017, sec. 2.5).

    `prompt_mask` (rows, prompt length), True at real tokens, keeps n-grams that touch padding from counting.
    """

    def __init__(self, ngram_size: int, prompt_mask: Tensor | None = None):
        check_argument("ngram_size", ngram_size)
        self.ngram_size = ngram_size
        self.prompt_mask = prompt_mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        n, length = self.ngram_size, input_ids.shape[1]
        if length < n:
            return scores
        real = None
        if self.prompt_mask is not None:
            mask = _as_many_rows(self.prompt_mask, input_ids)[:, :length].bool()
            mask = torch.nn.functional.pad(mask, (0, length - mask.shape[1]), value=True)
            real = mask.unfold(1, n, 1).all(-1)
        return _forbid_next(scores, input_ids.unfold(1, n, 1), input_ids[:, length + 1 - n :], real)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """No n-gram of `encoder_ngram_size` tokens of the encoder's input (rows, length) occurs in the output."""

    def __init__(self, encoder_ngram_size: int, encoder_input_ids: Tensor, prompt_mask: Tensor | None = None):
        check_argument("encoder_ngram_size", encoder_ngram_size)
        self.ngram_size = encoder_ngram_size
        ids = encoder_input_ids if encoder_input_ids.ndim == 2 else encoder_input_ids[None]
        self.windows = self.real = None
        if ids.shape[1] >= encoder_ngram_size:
            self.windows = ids.unfold(1, encoder_ngram_size, 1)
            self.real = (
                None if prompt_mask is None else prompt_mask.bool().unfold(1, encoder_ngram_size, 1).all(-1)
            )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        start = input_ids.shape[1] + 1 - self.ngram_size
        if self.windows is None or start < 0:
            return scores
        real = None if self.real is None else _as_many_rows(self.real, scores)
        return _forbid_next(scores, _as_many_rows(self.windows, scores), input_ids[:, start:], real)


def _forbid_next(scores: Tensor, windows: Tensor, tail: Tensor, real: Tensor | None) -> Tensor:
    """Rule out the last token of each window (rows, count, n) that begins with the n - 1 tokens of `tail`."""
    match = (windows[..., :-1] == tail[:, None]).all(-1)  # (rows, count)
    if real is not None:
        match = match & real
    # the least wins where one token ends several windows
    value = torch.where(match, NEVER, math.inf).to(scores.dtype)
    return scores.scatter_reduce(1, windows[..., -1], value, "amin")


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Add a bias to the last token of a sequence where the tokens before it are the latest ones.

    `sequence_bias` is a dict {(ids): bias} or a list of [[ids], bias].
    """

    def __init__(self, sequence_bias: dict[tuple[int, ...], float] | list[list]):
        if not sequence_bias:
            raise GenerationError(f"sequence_bias must not be empty, but is {sequence_bias!r}")
        check_field("sequence_bias", sequence_bias)
        pairs = sequence_bias.items() if isinstance(sequence_bias, dict) else sequence_bias
        self.sequence_bias = {tuple(id_list(ids)): float(bias) for ids, bias in pairs}
        self.tables: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.tables is None:
            self.tables = self._prepare(scores)
        bias = torch.zeros_like(scores)
        for prefixes, last, values in self.tables:  # (count, n - 1), (count,), (count,)
            size = prefixes.shape[1]
            if size and size + 1 > input_ids.shape[1]:
                continue
            match = (input_ids[:, None, input_ids.shape[1] - size :] == prefixes).all(-1)  # (rows, count)
            bias.index_add_(1, last, torch.where(match, values, 0.0))
        return scores + bias

    def _prepare(self, scores: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        vocabulary, device = scores.shape[-1], scores.device
        for ids in self.sequence_bias:
            if max(ids) >= vocabulary:
                raise GenerationError(
                    f"sequence_bias must use token ids below the vocabulary size {vocabulary}, but has "
                    f"{max(ids)}"
                )
        tables = []
        for size in sorted({len(ids) for ids in self.sequence_bias}):
            group = {ids: bias for ids, bias in self.sequence_bias.items() if len(ids) == size}
            words = torch.tensor(list(group), dtype=torch.long, device=device)  # (count, size)
            values = torch.tensor(list(group.values()), device=device).to(scores)
            tables.append((words[:, :-1], words[:, -1], values))
        return tables


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """The token sequences `bad_words_ids` never occur; a lone end token in the list is ignored."""

    def __init__(self, bad_words_ids: list[list[int]], eos_token_id: int | list[int] | Tensor | None = None):
        if not bad_words_ids:
            raise GenerationError(
                f"bad_words_ids must be a non-empty list of lists, but is {bad_words_ids!r}"
            )
        check_field("bad_words_ids", bad_words_ids)
        ends = [] if eos_token_id is None else id_list(eos_token_id)
        words = {tuple(id_list(word)): NEVER for word in bad_words_ids}
        self.sequence_bias = {
            word: bias for word, bias in words.items() if not (len(word) == 1 and word[0] in ends)
        }
        self.tables = None


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Only tokens that `prefix_allowed_tokens_fn(row, ids so far)` lists may follow (De Cao et al. 2020)."""

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]], num_beams: int = 1):
        check_argument("prefix_allowed_tokens_fn", prefix_allowed_tokens_fn)
        check_argument("num_beams", num_beams)
        self.allowed = prefix_allowed_tokens_fn
        self.num_beams = num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.full_like(scores, NEVER)
        for row, ids in enumerate(input_ids):
            allowed = id_list(self.allowed(row // self.num_beams, ids))
            if not allowed:
                raise GenerationError(
                    f"prefix_allowed_tokens_fn must return at least one token id, but returned none for row "
                    f"{row // self.num_beams} after {len(ids)} tokens"
                )
            mask[row, allowed] = 0
        return scores + mask


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """The first token after a prompt of one token is `bos_token_id`."""

    def __init__(self, bos_token_id: int):
        check_argument("forced_bos_token_id", bos_token_id)
        self.bos_token_id = bos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] != 1:
            return scores
        if self.bos_token_id >= scores.shape[-1]:
            raise GenerationError(
                f"forced_bos_token_id must be below the vocabulary size {scores.shape[-1]}, but is "
                f"{self.bos_token_id}"
            )
        forced = torch.full_like(scores, NEVER)
        forced[:, self.bos_token_id] = 0
        return forced


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """The last token, where the sequence reaches `max_length`, is (one of) `eos_token_id`."""

    def __init__(self, max_length: int, eos_token_id: int | list[int] | Tensor, device: str = "cpu"):
        check_argument("max_length", max_length)
        check_argument("forced_eos_token_id", eos_token_id)
        self.max_length = max_length
        self.eos = Columns(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] != self.max_length - 1:
            return scores
        return torch.full_like(scores, NEVER).index_fill(1, self.eos.of(scores), 0)


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """NaN becomes 0, infinities the largest and least number of the dtype."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.nan_to_num(scores, nan=0.0)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Raise the end tokens' scores ever more, by |score| (factor^k - 1) at k tokens past `start` new ones."""

    def __init__(
        self,
        exponential_decay_length_penalty: tuple[int, float],
        eos_token_id: int | list[int] | Tensor,
        input_ids_seq_length: int,
    ):
        check_argument("exponential_decay_length_penalty", exponential_decay_length_penalty)
        self.start = exponential_decay_length_penalty[0] + input_ids_seq_length
        self.factor = exponential_decay_length_penalty[1]
        self.eos = Columns(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        past = input_ids.shape[1] - self.start
        if past <= 0:
            return scores
        columns = self.eos.of(scores)
        old = scores[:, columns]
        raised = old + old.abs() * (self.factor**past - 1)
        return scores.index_copy(1, columns, torch.where(old == NEVER, old, raised))  # ruled out stays so


class LogitNormalization(LogitsProcessor):
    """Scores become log-probabilities again."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.log_softmax(dim=-1)


class ForceTokensLogitsProcessor(LogitsProcessor):
    """Allow one token alone at some places: `force_token_map` pairs places of the text with token ids.

    A place is the number of ids before it; None frees a place.
    """

    def __init__(self, force_token_map: Any):
        pairs = force_token_map.items() if isinstance(force_token_map, dict) else force_token_map
        self.force_token_map = {int(place): token for place, token in pairs}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.force_token_map.get(input_ids.shape[1])
        if token is None:
            return scores
        forced = torch.full_like(scores, NEVER)
        forced[:, token] = 0
        return forced


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """The listed tokens never occur."""

    def __init__(self, suppress_tokens: Iterable[int], device: str = "cpu"):
        self.columns = Columns(suppress_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, self.columns.of(scores), NEVER)


class SuppressTokensAtBeginLogitsProcessor(SuppressTokensLogitsProcessor):
    """The listed tokens do not occur where the sequence has `begin_index` tokens."""

    def __init__(self, begin_suppress_tokens: Iterable[int], begin_index: int, device: str = "cpu"):
        super().__init__(begin_suppress_tokens)
        check_argument("begin_index", begin_index)
        self.begin_index = begin_index

    def set_begin_index(self, begin_index: int) -> None:
        """Move the place where the tokens are ruled out."""
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return super().__call__(input_ids, scores) if input_ids.shape[1] == self.begin_index else scores


class HammingDiversityLogitsProcessor(LogitsProcessor):
    """Lower a token's score by `diversity_penalty` for each beam of an earlier group that just took it
    (Vijayakumar et al. 2016).
    """

    def __init__(self, diversity_penalty: float, num_beams: int, num_beam_groups: int):
        check_argument("diversity_penalty", diversity_penalty)
        check_argument("num_beams", num_beams)
        check_argument("num_beam_groups", num_beam_groups)
        if not 2 <= num_beam_groups <= num_beams:
            raise GenerationError(
                f"num_beam_groups must be 2 to num_beams ({num_beams}), but is {num_beam_groups!r}"
            )
        self.penalty = diversity_penalty
        self.num_beams = num_beams
        self.group_size = num_beams // num_beam_groups

    def __call__(  # type: ignore[override]
        self, input_ids: Tensor, scores: Tensor, current_tokens: Tensor, beam_group_idx: int
    ) -> Tensor:
        """Scores of one group (batch * group size, vocabulary); `current_tokens` (batch * num_beams,) of this
        step.
        """
        start = beam_group_idx * self.group_size
        if start == 0:
            return scores
        earlier = current_tokens.view(-1, self.num_beams)[:, :start]  # (batch, earlier beams)
        count = scores.new_zeros(len(earlier), scores.shape[-1])
        count.scatter_add_(1, earlier, torch.ones_like(earlier, dtype=scores.dtype))
        return scores - self.penalty * _as_many_rows(count, scores)
