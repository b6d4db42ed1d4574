"""Settings of single rows: each row of a batch has processors of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError, UnknownArgumentError, nearest
from phyla.generation.config import GenerationConfig
from phyla.generation.logits import NEVER, LogitsProcessor, LogitsProcessorList

ROW_FIELDS = (
    "do_sample", "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens",
    "sequence_bias", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base",
    "dry_allowed_length", "xtc_probability", "xtc_threshold", "top_n_sigma", "mirostat_tau", "mirostat_eta",
    "min_new_tokens", "exponential_decay_length_penalty",
)  # fmt: skip


class OnlyBest(LogitsProcessor):
    """Leave the best token alone: greedy rows among sampled ones."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.argmax(-1, keepdim=True)
        return torch.full_like(scores, NEVER).scatter(1, best, scores.gather(1, best))


class RowProcessors(LogitsProcessor):
    """Processors of groups of rows: each list serves the rows (count,) beside it."""

    def __init__(self, groups: list[tuple[Tensor, LogitsProcessorList]]):
        self.groups = groups

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        result = scores.clone()
        for rows, processors in self.groups:
            result[rows] = processors(input_ids[rows], scores[rows])
        return result


def row_configs(
    config: GenerationConfig, settings: Sequence[dict[str, Any]], rows: int
) -> list[GenerationConfig]:
    """The configuration of each row; raises for a field that a row cannot have of its own."""
    if len(settings) != rows:
        raise ArgumentError(
            f"row_settings must have one dict for each of {rows} rows, but has {len(settings)}"
        )
    made = []
    for number, fields in enumerate(settings):
        for name in fields or ():
            if name not in ROW_FIELDS:
                raise UnknownArgumentError(
                    f"row_settings[{number}] sets {name!r}, which a row cannot have of its own."
                    f"{nearest(name, ROW_FIELDS)}"
                )
        own = config.copy()
        own.update(**(fields or {}))
        own.validate()
        made.append(own)
    return made


def row_processors(
    configs: list[GenerationConfig],
    repeats: int,
    build: Callable[[GenerationConfig, Tensor], LogitsProcessorList],
    device: torch.device,
) -> LogitsProcessorList:
    """Processors for a batch of `repeats` rows a configuration; rows of equal settings share theirs.

    `build` makes the processors of a configuration for prompt rows (count,).
    """
    groups: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        groups.setdefault(config.to_json_string(), []).append(number)
    sampled = any(config.do_sample for config in configs)
    lists = []
    for numbers in groups.values():
        config = configs[numbers[0]]
        steps = build(config, torch.tensor(numbers, device=device))
        if sampled and not config.do_sample:
            steps.append(OnlyBest())
        rows = [n * repeats + i for n in numbers for i in range(repeats)]
        lists.append((torch.tensor(rows, device=device), steps))
    return LogitsProcessorList([RowProcessors(lists)])


def together(processors: LogitsProcessorList) -> bool:
    """Whether some processor must be shown all rows of a batch at one length, since it remembers them."""
    inner = [p for r in processors if isinstance(r, RowProcessors) for _, own in r.groups for p in own]
    return any(getattr(p, "together", False) for p in [*processors, *inner])


def processed(
    processors: LogitsProcessorList, ids: Tensor, lengths: list[int], scores: Tensor, going: list[bool]
) -> Tensor:
    """Scores (rows, vocabulary) after the processors, where lengths[r] ids of each row are its text.

    Processors see texts of one length: they are asked once for each length of a row that is `going` on.
    """
    counts = [0] * len(lengths)
    return all_processed(processors, ids, lengths, counts, scores[:, None], going)[:, 0]


def all_processed(
    processors: LogitsProcessorList, ids: Tensor, lengths: list[int], counts: list[int], scores: Tensor,
    going: list[bool],
) -> Tensor:  # fmt: skip
    """As `processed`, for scores (rows, k + 1, vocabulary) behind lengths[r] ids and up to counts[r] more."""
    if not processors:
        return scores
    on = torch.tensor(going)
    begin = torch.tensor(lengths)
    end = begin + torch.tensor(counts)
    result = scores.clone()
    for length in range(int(begin[on].min()), int(end[on].max()) + 1):
        rows = (on & (begin <= length) & (length <= end)).nonzero()[:, 0].to(scores.device)
        if not len(rows):
            continue
        at = (length - begin).clamp(0, scores.shape[1] - 1).to(scores.device)
        picked = scores[torch.arange(len(scores), device=scores.device), at]
        result[rows, at[rows]] = processors(ids[:, :length], picked)[rows]
    return result
