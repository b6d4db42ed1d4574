"""Logits processors of speech models, with their public names."""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import GenerationError
from phyla.generation.checks import check_argument
from phyla.generation.logits import NEVER, Columns, LogitsProcessor


class WhisperTimeStampLogitsProcessor(LogitsProcessor):
    """Whisper's rules for time stamps (Radford et al. 2022, sec. 4.5).

    Stamps come in pairs (save before an end token) and never run backwards; the first token is a stamp no
    later than `max_initial_timestamp_index`; where stamps together are likelier than any text token, a stamp
    must follow.
    """

    def __init__(self, generate_config: Any, begin_index: int | None = None,
                 _detect_timestamp_from_logprob: bool | None = None):  # fmt: skip
        self.no_stamps = generate_config.no_timestamps_token_id
        self.first_stamp = self.no_stamps + 1
        self.eos = generate_config.eos_token_id or generate_config.bos_token_id
        forced = getattr(generate_config, "forced_decoder_ids", None) or ()
        self.begin_index = begin_index or len(forced) + 1
        self.latest_start = getattr(generate_config, "max_initial_timestamp_index", None)
        detect = _detect_timestamp_from_logprob
        self.detect = (
            getattr(generate_config, "_detect_timestamp_from_logprob", True) if detect is None else detect
        )

    def set_begin_index(self, begin_index: int) -> None:
        """Move the place where the transcript begins."""
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ids, first = input_ids[:, self.begin_index :], self.first_stamp
        token = torch.arange(scores.shape[1], device=scores.device)  # (vocabulary,)
        is_stamp = token >= first
        banned = (token == self.no_stamps).expand_as(scores).clone()
        if ids.shape[1]:
            stamps = ids >= first  # (rows, length)
            last = stamps[:, -1:]
            paired = stamps[:, -2:-1] if ids.shape[1] > 1 else torch.ones_like(last)
            banned |= last & paired & is_stamp
            banned |= last & ~paired & (token < self.eos)
            place = torch.where(stamps, torch.arange(ids.shape[1], device=ids.device), -1).amax(
                1, keepdim=True
            )
            latest = ids.gather(1, place.clamp(min=0)) + torch.where(last & ~paired, 0, 1)
            banned |= (place >= 0) & is_stamp & (token < latest)
        elif input_ids.shape[1] == self.begin_index:
            banned |= ~is_stamp
            if self.latest_start is not None:
                banned |= token > first + self.latest_start
        scores = scores.masked_fill(banned, NEVER)
        if not self.detect:
            return scores
        logp = scores.float().log_softmax(-1)
        likelier = logp[:, first:].logsumexp(-1) > logp[:, :first].amax(-1)
        return scores.masked_fill(likelier[:, None] & ~is_stamp, NEVER)


class WhisperNoSpeechDetection(LogitsProcessor):
    """Note the probability of the no-speech token where the transcript begins, in `no_speech_prob` (rows,).

    With a start sequence of several tokens (`begin_index` above 1) the model is run once more on `inputs`, to
    see the scores behind its first token.
    """

    def __init__(self, no_speech_token: int, begin_index: int, scores_is_logprobs: bool = False):
        self.no_speech_token = no_speech_token
        self.start_offset = self.begin_index = begin_index
        self.scores_is_logprobs = scores_is_logprobs
        self.no_speech_prob: Any = [0.0]
        self.model: nn.Module | None = None
        self.inputs: dict[str, Any] = {}

    def set_model(self, model: nn.Module) -> None:
        """The model to run."""
        self.model = model

    def set_inputs(self, inputs: dict[str, Any]) -> None:
        """The model's inputs; `inputs` in it stands for the input features."""
        self.inputs = {
            ("input_features" if name == "inputs" else name): value for name, value in inputs.items()
        }

    def set_begin_index(self, begin_index: int) -> None:
        """Move the place where the transcript begins."""
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] != self.begin_index:
            return scores
        logprobs, seen = self.scores_is_logprobs, scores
        if self.start_offset > 1:
            if self.model is None:
                raise GenerationError(
                    "WhisperNoSpeechDetection needs set_model and set_inputs before it is used"
                )
            with torch.no_grad():
                seen = self.model(**self.inputs).logits[:, self.begin_index - self.start_offset]
            logprobs = False
        chances = seen.exp() if logprobs else seen.float().softmax(-1)
        self.no_speech_prob = chances[:, self.no_speech_token]
        return scores


class AlternatingCodebooksLogitsProcessor(LogitsProcessor):
    """Bark's coarse tokens: first and second codebook take turns behind a prompt of `input_start_len`."""

    def __init__(self, input_start_len: int, semantic_vocab_size: int, codebook_size: int):
        check_argument("input_start_len", input_start_len)
        check_argument("semantic_vocab_size", semantic_vocab_size)
        check_argument("codebook_size", codebook_size)
        self.input_start_len = input_start_len
        self.first = semantic_vocab_size
        self.second = semantic_vocab_size + codebook_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = torch.arange(scores.shape[1], device=scores.device)
        if (input_ids.shape[1] - self.input_start_len) % 2:
            return scores.masked_fill(token < self.second, NEVER)
        return scores.masked_fill((token < self.first) | (token >= self.second), NEVER)


class BarkEosPrioritizerLogitsProcessor(LogitsProcessor):
    """End as soon as an end token is likelier than `min_eos_p`."""

    def __init__(self, eos_token_id: int | list[int] | Tensor, min_eos_p: float | None, device: str = "cpu"):
        check_argument("eos_token_id", eos_token_id)
        if min_eos_p is not None:
            check_argument("min_eos_p", min_eos_p)
        self.eos, self.min_eos_p = Columns(eos_token_id), min_eos_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.min_eos_p:
            return scores
        columns = self.eos.of(scores)
        stop = (scores.float().softmax(-1)[:, columns] > self.min_eos_p).any(1, keepdim=True)
        ends = torch.full_like(scores, NEVER).index_copy(1, columns, scores[:, columns])
        return torch.where(stop, ends, scores)
