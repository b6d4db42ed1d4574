"""The SynthID text watermark (Dathathri et al. 2024): settings, processor and detectors, with the public
names.
"""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.checks import check_argument
from phyla.generation.logits import LogitsProcessor
from phyla.generation.watermark import BaseWatermarkingConfig

_MULTIPLIER = 6364136223846793005  # of newlib's linear congruential generator
_LARGEST = 2**24


class SynthIDTextWatermarkingConfig(BaseWatermarkingConfig):
    """Settings of the SynthID watermark: n-grams of `ngram_len`, one key for each layer of the tournament."""

    def __init__(
        self,
        ngram_len: int,
        keys: list[int],
        context_history_size: int = 1024,
        sampling_table_seed: int = 0,
        sampling_table_size: int = 2**16,
        skip_first_ngram_calls: bool = False,
        debug_mode: bool = False,
    ):
        self.ngram_len = ngram_len
        self.keys = keys
        self.sampling_table_size = sampling_table_size
        self.sampling_table_seed = sampling_table_seed
        self.context_history_size = context_history_size
        self.skip_first_ngram_calls = skip_first_ngram_calls
        self.debug_mode = debug_mode

    def validate(self) -> None:
        """Raise GenerationError for settings out of range."""
        if not 0 < self.sampling_table_size <= _LARGEST:
            raise GenerationError(
                f"sampling_table_size must be 1 to {_LARGEST}, but is {self.sampling_table_size!r}"
            )
        if self.ngram_len < 2 or not self.keys:
            raise GenerationError(
                f"ngram_len must be at least 2 and keys must not be empty, but are {self.ngram_len!r} and "
                f"{self.keys!r}"
            )

    def construct_processor(self, vocab_size: int, device: Any) -> "SynthIDTextWatermarkLogitsProcessor":
        """The processor that marks the text."""
        return SynthIDTextWatermarkLogitsProcessor(device=device, **self.to_dict())


class SynthIDTextWatermarkLogitsProcessor(LogitsProcessor):
    """Move the chances of tokens by a tournament of keyed coin flips (g-values), which a detector can redo.

    A context that the row had before is not marked again. What it knows of a row follows from the ids alone,
    so
    that beams and drafts may come and go; the prompt, what the first call sees, does not seed.
    """

    def __init__(
        self,
        ngram_len: int,
        keys: list[int],
        sampling_table_size: int,
        sampling_table_seed: int,
        context_history_size: int,
        device: Any,
        skip_first_ngram_calls: bool = False,
        debug_mode: bool = False,
    ):
        check_argument("ngram_len", ngram_len)
        check_argument("sampling_table_size", sampling_table_size)
        check_argument("sampling_table_seed", sampling_table_seed)
        check_argument("context_history_size", context_history_size)
        self.ngram_len = ngram_len
        self.keys = torch.tensor(keys, device=device)
        generator = torch.Generator(device).manual_seed(sampling_table_seed)
        self.sampling_table = torch.randint(0, 2, (sampling_table_size,), generator=generator, device=device)
        self.context_history_size = context_history_size
        self.skip_first_ngram_calls = skip_first_ngram_calls
        self.debug_mode = debug_mode
        self.start: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._check(input_ids)
        if self.debug_mode:
            scores = torch.ones_like(scores)
        if self.start is None:
            self.start = input_ids.shape[1]
        new = input_ids[:, self.start :]
        skipped = self.ngram_len - 1 if self.skip_first_ngram_calls else 0
        if new.shape[1] < skipped:
            return scores
        history = torch.nn.functional.pad(new, (self.ngram_len - 1, 0))
        contexts = history.unfold(1, self.ngram_len - 1, 1)[:, skipped:]  # one a call, (rows, calls, n - 1)
        contexts = contexts[:, -self.context_history_size - 1 :]
        hashes = accumulate(contexts.new_ones(contexts.shape[:-1]), contexts)  # (rows, calls)
        seen = (hashes[:, :-1] == hashes[:, -1:]).any(1, keepdim=True)
        tokens = torch.arange(scores.shape[1], device=scores.device)
        flips = self.sample_g_values(self._keyed(accumulate(hashes[:, -1:], tokens[None, :, None])))
        return torch.where(seen, scores, self.update_scores(scores, flips))

    def update_scores(self, scores: Tensor, g_values: Tensor) -> Tensor:
        """Scores (rows, vocabulary) after the tournament of g_values (rows, vocabulary, depth)."""
        chances = scores.softmax(1)
        for flips in g_values.unbind(-1):
            chances = chances * (1 + flips - (flips * chances).sum(1, keepdim=True))
        logs = chances.log()
        return torch.where(logs.isfinite(), logs, torch.finfo(logs.dtype).min)

    def compute_ngram_keys(self, ngrams: Tensor) -> Tensor:
        """A number for each n-gram (rows, count, ngram_len) and layer: (rows, count, depth)."""
        if ngrams.ndim != 3 or ngrams.shape[2] != self.ngram_len:
            raise ArgumentError(
                f"ngrams must have shape (rows, count, {self.ngram_len}), but have {tuple(ngrams.shape)}"
            )
        return self._keyed(accumulate(torch.ones_like(ngrams[..., 0]), ngrams))

    def _keyed(self, hashes: Tensor) -> Tensor:
        return accumulate(hashes[..., None].expand(*hashes.shape, len(self.keys)), self.keys[:, None])

    def sample_g_values(self, ngram_keys: Tensor) -> Tensor:
        """The coin flip, 0 or 1, of each key."""
        return self.sampling_table[ngram_keys % len(self.sampling_table)]

    def compute_g_values(self, input_ids: Tensor) -> Tensor:
        """The flips of a text (rows, length): (rows, length - ngram_len + 1, depth)."""
        self._check(input_ids)
        return self.sample_g_values(self.compute_ngram_keys(input_ids.unfold(1, self.ngram_len, 1)))

    def compute_context_repetition_mask(self, input_ids: Tensor) -> Tensor:
        """False (rows, length - ngram_len + 1) where the context was there shortly before."""
        self._check(input_ids)
        contexts = input_ids[:, :-1].unfold(1, self.ngram_len - 1, 1)
        hashes = accumulate(contexts.new_ones(contexts.shape[:-1]), contexts)
        place = torch.arange(hashes.shape[1], device=hashes.device)
        gap = place[:, None] - place
        near = (gap > 0) & (gap <= self.context_history_size)
        return ~((hashes[:, :, None] == hashes[:, None]) & near).any(-1)

    def compute_eos_token_mask(self, input_ids: Tensor, eos_token_id: int) -> Tensor:
        """1 (rows, length) before the first end token, 0 from it on."""
        self._check(input_ids)
        return ((input_ids == eos_token_id).cumsum(1) == 0).long()

    def expected_mean_g_value(self, vocab_size: int, coinflip_prob: float = 0.5) -> float:
        """The mean flip of marked text of one layer, were all tokens equally likely."""
        return coinflip_prob + coinflip_prob * (1 - coinflip_prob) * (1 - 1 / vocab_size)

    def _check(self, ids: Tensor) -> None:
        if ids.ndim != 2:
            raise ArgumentError(f"input_ids must have shape (rows, length), but have {tuple(ids.shape)}")


def accumulate(hashes: Tensor, data: Tensor) -> Tensor:
    """Hashes (...) with the numbers of data (..., count) mixed in, one after another."""
    for column in data.unbind(-1):
        hashes = (hashes + column) * _MULTIPLIER + 1
    return hashes


class SynthIDTextWatermarkDetector:
    """Tells marked text by a trained model of g-values (see `BayesianDetectorModel`)."""

    def __init__(
        self, detector_module: Any, logits_processor: SynthIDTextWatermarkLogitsProcessor, tokenizer: Any
    ):
        self.detector_module = detector_module
        self.logits_processor = logits_processor
        self.tokenizer = tokenizer

    def __call__(self, tokenized_outputs: Tensor) -> Any:
        """What the model says of texts (rows, length)."""
        processor = self.logits_processor
        real = processor.compute_eos_token_mask(tokenized_outputs, self.tokenizer.eos_token_id)
        counted = (
            processor.compute_context_repetition_mask(tokenized_outputs) * real[:, processor.ngram_len - 1 :]
        )
        return self.detector_module(processor.compute_g_values(tokenized_outputs), counted)
