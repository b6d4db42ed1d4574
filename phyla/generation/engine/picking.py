"""The next token of each row: its own processors, sampling settings and generator."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation import warpers
from phyla.generation.config import GenerationConfig
from phyla.generation.engine.request import Handle, Row
from phyla.generation.modes import GenerationMode, check_supported, generation_mode
from phyla.generation.penalties import MirostatLogitsWarper, XTCLogitsWarper
from phyla.generation.plan import build_processors
from phyla.generation.prompt import Prompt
from phyla.generation.search import draw, not_finite

_KNOWN = (
    GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION,
    GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE,
)  # fmt: skip
_ABSENT = ("dola_layers", "penalty_alpha")
# arguments of generate that a request cannot have, and what it can have instead
ELSEWHERE = {
    "assistant_tokenizer": "drafts of another vocabulary need generate",
    "streamer": "iterate over the handle, or use stream",
    "row_settings": "each request has its own settings",
    "past_key_values": "equal beginnings of prompts are shared by themselves",
}


def check_settings(config: GenerationConfig, drafted: bool, guided: bool) -> None:
    """Raise GenerationError for settings that the engine has no part for, or that do not go together."""
    mode = generation_mode(config, True if drafted else None)
    if mode not in _KNOWN:
        raise GenerationError(
            f"the engine decodes greedily, samples or follows beams; {mode.value} needs generate"
        )
    for name in _ABSENT:
        if getattr(config, name):
            raise GenerationError(f"the engine has no {name}: use generate")
    if guided and mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise GenerationError(f"the engine guides greedy decoding and sampling; {mode.value} needs generate")
    if config.mirostat_tau is not None and (config.num_beams or 1) > 1:
        raise GenerationError(
            f"mirostat_tau works with num_beams=1 alone, but num_beams is {config.num_beams}"
        )
    check_supported(config, mode)


def prepare_row(
    model: Any, row: Row, custom: list, allowed: Any, grammar: Any = None, tokenizer: Any = None
) -> None:
    """Give a row the processors that its settings ask for, and the one of its grammar."""
    ids = torch.tensor([row.seen], dtype=torch.long, device=model.device)
    start, source, handle = ids.shape[1], ids if row.seen else None, row.handle
    if handle.source is not None:
        source = torch.tensor([handle.source], device=model.device)
    prompt = Prompt(ids, ids, None, row.fixed, source_ids=source)
    generators = [row.generator] if row.generator is not None else []
    if grammar is not None:
        from phyla.generation.parsing import grammar_processor

        limit = handle.limit
        custom = [*custom, grammar_processor(model, handle.config, grammar, tokenizer, 1, start, limit)]
    row.processors = build_processors(
        model, handle.config, prompt, start + handle.limit, custom, allowed, None, generators
    )


def keeps_state(row: Row) -> bool:
    """Whether a row's processors remember its text, or draw with its generator: others need their own."""
    return any(isinstance(step, MirostatLogitsWarper | XTCLogitsWarper) for step in row.processors)


def pick(rows: list[Row], logits: Tensor) -> list[int | Exception]:
    """A token for each row from its scores (rows, V), or what is wrong with them."""
    tokens: list[int | Exception] = [0] * len(rows)
    for numbers in _alike(rows):
        first, scores = rows[numbers[0]], logits[numbers]
        finite = scores.amax(-1).isfinite()
        if first.processors:
            ids = torch.tensor([first.seen], dtype=torch.long, device=logits.device)
            if len(numbers) > 1:  # warpers look at scores alone
                ids = ids[:, :1].expand(len(numbers), -1)
            scores = first.processors(ids, scores)
        best, chosen = scores.max(-1)
        finite &= best.isfinite()
        if first.handle.config.do_sample:
            generators = [rows[n].generator for n in numbers]
            safe = scores.masked_fill(~finite[:, None], 0.0)
            chosen = draw(safe, [g for g in generators if g is not None])
        marks = (
            scores.log_softmax(-1).gather(1, chosen[:, None])[:, 0] if _wants_marks(first.handle) else None
        )
        sound = finite.tolist()
        for place, (number, token) in enumerate(zip(numbers, chosen.tolist(), strict=True)):
            step = len(rows[number].tokens)
            if not sound[place] and not first.handle.config.remove_invalid_values:
                alone = slice(place, place + 1)
                tokens[number] = not_finite(step, finite[alone], logits[numbers][alone], scores[alone])
                continue
            tokens[number] = token
            if rows[number].handle.keep:
                rows[number].kept.append((logits[number].clone(), scores[place].clone()))
            if marks is not None:
                rows[number].logprobs.append(float(marks[place]))
    return tokens


def _wants_marks(handle: Handle) -> bool:
    return bool(handle.config.output_scores)


def _alike(rows: list[Row]) -> list[list[int]]:
    """Numbers of rows that can be served by one list of processors."""
    groups: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        if row.alike is None:
            row.alike = _kind(row)
        groups.setdefault(row.alike or number, []).append(number)
    return list(groups.values())


def _kind(row: Row) -> tuple[Any, ...]:
    """What rows have in common that one pass can serve; nothing where a row's own text decides."""
    if any(type(step).__module__ != warpers.__name__ for step in row.processors):
        return ()
    config, steps = row.handle.config, [(type(s).__name__, sorted(vars(s).items())) for s in row.processors]
    return bool(config.do_sample), bool(config.output_scores), bool(config.remove_invalid_values), repr(steps)
