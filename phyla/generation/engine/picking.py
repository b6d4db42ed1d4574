"""The next token of each row: its own processors, sampling settings and generator."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError, GenerationError
from phyla.generation import warpers
from phyla.generation.config import GenerationConfig
from phyla.generation.dola import Contrasted, layer_contrast
from phyla.generation.engine.feed import typed
from phyla.generation.engine.request import Handle, Row
from phyla.generation.engine.setups import Apart
from phyla.generation.modes import GenerationMode, check_supported, generation_mode
from phyla.generation.penalties import MirostatLogitsWarper, XTCLogitsWarper
from phyla.generation.plan import build_processors
from phyla.generation.prompt import Prompt
from phyla.generation.search import draw, not_finite

# arguments of generate that a request cannot have, and what it can have instead
ELSEWHERE = {
    "row_settings": "each request has its own settings",
    "custom_generate": "a loop of one's own runs in generate alone",
    "synced_gpus": "processes that share out a model take equal steps",
    "negative_prompt_attention_mask": "negative_prompt_ids are one text, without padding",
}


def check_settings(config: GenerationConfig, drafted: bool, guided: bool) -> GenerationMode:
    """The strategy. Raises Apart for one that has no pages, GenerationError for what does not go together."""
    mode = generation_mode(config, True if drafted else None)
    check_supported(config, mode)
    if config.use_mtp or config.speculation_type is not None:
        raise Apart("such a draft reads the model's states")
    if guided and mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise Apart(f"in pages guidance goes with greedy decoding and sampling, not with {mode.value}")
    return mode


def seed_of(seed: Any, config: GenerationConfig) -> int:
    """The seed of a request: without one from torch's global generator, so that manual_seed repeats a run."""
    if seed is None:
        return int(torch.randint(2**62, ())) if config.do_sample else 0
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ArgumentError(f"seed must be an integer, but is {seed!r}")
    if not -(2**63) <= seed < 2**63:
        raise ArgumentError(f"seed must be a whole number of 64 bits, but is {seed}")
    return seed


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    """A row's own generator."""
    return torch.Generator(device).manual_seed(seed)


class Shown:
    """The states of all layers behind a row's newest id, for processors that look at them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.states: tuple[Tensor, ...] = ()


def prepare_row(
    model: Any, row: Row, custom: list, allowed: Any, most: int, grammar: Any = None, tokenizer: Any = None
) -> None:
    """Give a row the processors that its settings ask for, and the one of its grammar.

    most: new tokens that the settings allow; a criterion of the caller's may let the text end elsewhere.
    """
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
        model, handle.config, prompt, start + most, custom, allowed, None, generators
    )
    if handle.mode == GenerationMode.DOLA_GENERATION:
        row.shown, row.watched = Shown(model), "layers"
        contrast = layer_contrast(row.shown, model.config, handle.config.dola_layers)
        row.processors = Contrasted(contrast, row.processors)


def keeps_state(row: Row) -> bool:
    """Whether a row's processors remember its text, or draw with its generator: others need their own."""
    own = (MirostatLogitsWarper, XTCLogitsWarper)
    return row.shown is not None or any(isinstance(step, own) for step in row.processors)


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
            if first.shown is not None:
                first.shown.states = first.states
            try:
                with torch.no_grad():
                    scores = _processed(first, ids, scores)
            except Exception as error:  # of their own: others have theirs
                for number in numbers:
                    tokens[number] = typed(error, f"a processor of {rows[number].handle.request_id}")
                continue
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


def _processed(row: Row, ids: Tensor, scores: Tensor) -> Tensor:
    """What a row's processors make of scores (rows, V); raises for what are no such scores."""
    made: Any = row.processors(ids, scores)
    if not isinstance(made, Tensor) or made.shape != scores.shape or not made.is_floating_point():
        found = (
            f"shape {tuple(made.shape)}, {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
        )
        raise GenerationError(f"processors must give scores of shape {tuple(scores.shape)}, but gave {found}")
    return made


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
