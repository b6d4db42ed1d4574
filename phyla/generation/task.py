"""What a decoding strategy works on, and what it keeps for the caller."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.forward import Forward
from phyla.generation.logits import LogitsProcessorList
from phyla.generation.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)
from phyla.generation.plan import end_tokens, pad_token
from phyla.generation.prompt import Prompt
from phyla.generation.stopping import StoppingCriteriaList

Found = TypeVar("Found")
# a strategy: it stops before each step of the model but the first, and returns what it found
Steps: TypeAlias = Generator[None, None, Found]


@dataclass
class Task:
    """What a strategy runs with.

    ids: (rows, start + limit) int64, the prompt of `start` ids at the front and padding behind it; given: the
    prompt as the caller gave it. repeats: sequences for each row of the prompt. generators: none, one, or one
    a row. settled: what a streamer of beams is told through. ensemble: the model's part in what checks a
    draft (None: all of it).
    """

    ids: Tensor
    given: Tensor
    start: int
    limit: int
    repeats: int
    pad_id: int
    eos: Tensor | None
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)
    do_sample: bool = False
    allow_nonfinite: bool = False
    generators: list[torch.Generator] = field(default_factory=list)
    streamer: Any = None
    record: "Record | None" = None
    settled: Any = None
    ensemble: float | None = None


class Record:
    """What a call asked to get back beside the ids, step by step."""

    def __init__(
        self, scores: bool, logits: bool, attentions: bool, hidden_states: bool, encoder_decoder: bool
    ):
        self.scores: list[Tensor] | None = [] if scores else None
        self.logits: list[Tensor] | None = [] if logits else None
        prefix = "decoder_" if encoder_decoder else ""
        # of the model's output -> of generate's
        self.fields: dict[str, list | None] = {
            f"{prefix}attentions": [] if attentions else None,
            "cross_attentions": [] if attentions and encoder_decoder else None,
            f"{prefix}hidden_states": [] if hidden_states else None,
        }
        self.encoder_decoder = encoder_decoder
        self.legacy_cache = False  # tuples of tensors in place of the cache

    def step(self, out: Any, logits: Tensor, scores: Tensor) -> None:
        """Keep what one step gave."""
        if self.logits is not None:
            self.logits.append(logits.clone())
        if self.scores is not None:
            self.scores.append(scores.clone() if scores is logits else scores)
        for name, steps in self.fields.items():
            if steps is not None:
                if not hasattr(out, name):
                    kind = "hidden_states" if name.endswith("hidden_states") else "attentions"
                    raise GenerationError(f"this model has no {kind}: leave output_{kind}=True out")
                steps.append(getattr(out, name))

    def output(self, sequences: Tensor, forward: Forward, beams: dict[str, Any] | None = None) -> Any:
        """The public output object; `beams` are the fields that only beam search has."""
        kept: dict[str, Any] = {
            name: tuple(steps) for name, steps in self.fields.items() if steps is not None
        }
        kept |= {
            name: tuple(steps) for name in ("scores", "logits") if (steps := getattr(self, name)) is not None
        }
        if self.encoder_decoder:
            for name in ("attentions", "hidden_states"):
                if f"decoder_{name}" in kept:
                    kept[f"encoder_{name}"] = getattr(forward.encoded, name, None)
        kinds: tuple[type, type] = (GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput)
        if beams is not None:
            kinds = (GenerateBeamDecoderOnlyOutput, GenerateBeamEncoderDecoderOutput)
            kept |= beams
        past: Any = forward.cache
        if self.legacy_cache and hasattr(past, "to_legacy_cache"):
            past = past.to_legacy_cache()
        return kinds[self.encoder_decoder](sequences=sequences, past_key_values=past, **kept)


def make_task(
    config: GenerationConfig, prompt: Prompt, limit: int, beams: bool, seed: Any, encoder_decoder: bool
) -> Task:
    """The task of one call, without its processors and criteria; with `beams` there is one row a prompt."""
    repeats = 1 if beams else config.num_return_sequences or 1
    given, ids = (
        x.repeat_interleave(repeats, dim=0) if repeats > 1 else x for x in (prompt.given, prompt.ids)
    )
    rows, start = ids.shape
    pad_id = pad_token(config)
    buffer = torch.full((rows, start + limit), pad_id, dtype=torch.long, device=ids.device)
    buffer[:, :start] = ids
    record = None
    if config.return_dict_in_generate:
        record = Record(
            bool(config.output_scores),
            bool(config.output_logits),
            bool(config.output_attentions),
            bool(config.output_hidden_states),
            encoder_decoder,
        )
        record.legacy_cache = bool(config.return_legacy_cache)
    return Task(
        ids=buffer, given=given, start=start, limit=limit, repeats=repeats, pad_id=pad_id,
        eos=end_tokens(config, ids.device), do_sample=bool(config.do_sample),
        allow_nonfinite=bool(config.remove_invalid_values), generators=row_generators(seed, rows, ids.device),
        record=record,
    )  # fmt: skip


def row_generators(
    seed: int | Sequence[int] | None, rows: int, device: torch.device
) -> list[torch.Generator]:
    """None, one for the call, or one for each row, as `seed` says."""
    if seed is None:
        return []
    many = isinstance(seed, Sequence) and not isinstance(seed, str)
    seeds: list[Any] = list(seed) if isinstance(seed, Sequence) and many else [seed]
    if many and len(seeds) != rows:
        raise ArgumentError(f"seed must be one number, or one for each of {rows} rows, but has {len(seeds)}")
    if not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise ArgumentError(f"seed must be an integer or a list of integers, but is {seed!r}")
    return [torch.Generator(device).manual_seed(s) for s in seeds]
