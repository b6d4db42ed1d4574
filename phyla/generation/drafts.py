"""Where candidates for speculative decoding come from: the text itself, or a smaller model."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.forward import Forward
from phyla.generation.logits import NEVER
from phyla.generation.rewind import Lanes
from phyla.generation.rows import processed
from phyla.generation.search import draw, repeat
from phyla.generation.task import Task


@dataclass
class Proposal:
    """Candidate ids (rows, k), of which the first counts[r] of each row r count, and, where they were drawn,
    the chances (rows, k, vocabulary) they were drawn by.
    """

    ids: Tensor
    counts: list[int]
    chances: Tensor | None = None


class Draft(Protocol):
    """A source of candidates."""

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """At most most[r] candidates behind the first lengths[r] ids of each row r that is `going` on."""

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Take note of how many of the candidates were right in each row."""


class PromptLookup:
    """What followed the latest n-gram where the text had it before (Saxena 2023).

    sources: ids (rows, any) that are looked in as well: what an encoder has read. begins: where the text of
    each row begins behind its padding.
    """

    def __init__(
        self, count: int, longest: int | None, pad_id: int, sources: Tensor | None = None,
        begins: list[int] | None = None,
    ):  # fmt: skip
        longest = longest or 2
        if count < 1 or longest < 1:
            raise GenerationError(
                "prompt_lookup_num_tokens and max_matching_ngram_size must be at least 1, but are "
                f"{count} and {longest}"
            )
        self.count, self.longest, self.pad_id, self.sources = count, longest, pad_id, sources
        self.begins = begins

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """The continuation of the first earlier occurrence of the longest n-gram."""
        found = []
        for row, (length, on) in enumerate(zip(lengths, going, strict=True)):
            source, count = None if self.sources is None else self.sources[row], min(most[row], self.count)
            begin = self.begins[row] if self.begins else 0
            found.append(self.after(ids[row, begin:length], source, count) if on else [])
        return None if not any(found) else proposal_of(found, self.pad_id, ids.device)

    def after(self, ids: Tensor, source: Tensor | None, most: int) -> list[int]:
        """At most `most` ids that followed the end of `ids` (length,) there, or in `source`, before."""
        length = len(ids) if most > 0 else 0
        for size in range(min(self.longest, length), 0, -1):
            tail = ids[length - size :]
            for text in (ids[:-1], source):
                if text is None or len(text) < size:
                    continue
                at = (text.unfold(0, size, 1) == tail).all(1).nonzero()
                begins = at[:, 0] + size
                # the last id of a text that is read in full has nothing behind it
                begins = begins[begins < (length if text is not source else len(text))]
                if len(begins):
                    begin = int(begins[0])
                    return (ids if text is not source else text)[begin : begin + most].tolist()
        return []

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Nothing."""


@dataclass
class Schedule:
    """How many tokens a model drafts at once, and how sure it must be to go on.

    kind: "constant"; "heuristic_transient", two more after a whole success and one less otherwise;
    "heuristic", likewise and kept for later calls.
    """

    count: float
    kind: str
    threshold: float | None

    def __post_init__(self) -> None:
        kinds = ("constant", "heuristic", "heuristic_transient")
        if self.kind not in kinds:
            raise GenerationError(
                f"num_assistant_tokens_schedule must be one of {kinds}, but is {self.kind!r}"
            )
        if not self.count >= 1:
            raise GenerationError(f"num_assistant_tokens must be at least 1, but is {self.count}")

    def learn(self, drafted: int, matched: int) -> None:
        """Adapt the count."""
        if self.kind != "constant" and drafted:
            self.count = self.count + 2 if matched == drafted else max(1.0, self.count - 1)


class Guesses:
    """The candidates of all rows as a draft makes them, one place behind the other, until no row is `open`.

    ids (rows, any), of which the first lengths[r] are row r's text; limits: candidates a row may have.
    """

    def __init__(self, task: Task, ids: Tensor, lengths: list[int], limits: list[int]):
        self.task, self.lengths, self.limits = task, lengths, limits
        self.text = nn.functional.pad(ids, (0, max(limits)), value=task.pad_id)
        self.tokens: list[Tensor] = []  # (rows,) each
        self.chances: list[Tensor] = []  # (rows, vocabulary) each
        self.counts, self.open = [0] * len(ids), [n > 0 for n in limits]

    def add(self, scores: Tensor) -> Tensor:
        """The next token (rows,) of each row, drawn or best, by the draft's scores (rows, vocabulary)."""
        task, rows = self.task, len(self.text)
        places = [n + len(self.tokens) for n in self.lengths]
        scores = processed(task.processors, self.text, places, scores, self.open)
        token = draw_rows(task, scores, self.open) if task.do_sample else scores.argmax(-1)
        self.text[torch.arange(rows), torch.tensor(places).clamp(max=self.text.shape[1] - 1)] = token
        self.tokens.append(token)
        self.chances.append(scores.softmax(-1))
        self.counts = [n + on for n, on in zip(self.counts, self.open, strict=True)]
        ended = [False] * rows if task.eos is None else (token[:, None] == task.eos).any(1).tolist()
        self.open = [
            on and n < most and not end
            for on, n, most, end in zip(self.open, self.counts, self.limits, ended, strict=True)
        ]
        return token

    def proposal(self) -> Proposal:
        """All of them; with their chances where the check needs these."""
        told = self.task.do_sample or self.task.ensemble is not None
        chances = torch.stack(self.chances, 1) if told else None
        return Proposal(torch.stack(self.tokens, 1), self.counts, chances)


class Schedules:
    """A schedule for each row, so that what is drafted for a row does not depend on the others."""

    def __init__(self, schedule: Schedule, rows: int):
        self.rows = [replace(schedule) for _ in range(rows)]

    @property
    def first(self) -> Schedule:
        """That of the first row, which later calls go on with."""
        return self.rows[0]

    def limits(self, most: list[int], going: list[bool]) -> list[int]:
        """How many candidates each row may have, of `most` that there is room for."""
        return [
            min(n, int(own.count)) if on else 0 for n, own, on in zip(most, self.rows, going, strict=True)
        ]

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Adapt those of the rows that were going on."""
        for own, count, right, on in zip(self.rows, drafted, matched, going, strict=True):
            if on:
                own.learn(count, min(right, count))


class Certainty:
    """How sure a draft was of its tokens, and which were right: what threshold would have served best.

    A token that is checked in vain costs a quarter, one that is not drafted though right three quarters.
    """

    def __init__(self) -> None:
        self.sure: list[float] = []
        self.right: list[bool] = []

    def learn(self, sure: list[float], matched: int) -> None:
        """Take the chances of one row's candidates; behind the first wrong one nothing is known."""
        for i, chance in enumerate(sure[: matched + 1]):
            self.sure.append(chance)
            self.right.append(i < matched)

    def threshold(self) -> float | None:
        """The best threshold, or None while there are too few tokens, or only right or only wrong ones."""
        hits = sum(self.right)
        misses = len(self.right) - hits
        if len(self.right) <= 5 or not hits or not misses:
            return None
        best, least, caught, wasted = 1.0, 3.0, 0, 0
        pairs = sorted(zip(self.sure, self.right, strict=True), reverse=True)
        for i, (chance, right) in enumerate(pairs):
            caught, wasted = caught + right, wasted + (not right)
            if i + 1 < len(pairs) and pairs[i + 1][0] == chance:
                continue
            cost = wasted / misses + 3 * (1 - caught / hits)
            if cost < least:
                best, least = chance, cost
        return best


class ModelDraft:
    """A smaller model with the same vocabulary, which runs ahead (Leviathan et al. 2023)."""

    def __init__(
        self, forward: Forward, task: Task, schedule: Schedule, vocabulary: int, parting: bool = True
    ):
        if forward.cache is None:
            raise GenerationError("a draft model needs use_cache=True and a cache, but has none")
        self.forward, self.task, self.vocabulary, self.parting = forward, task, vocabulary, parting
        self.schedules = Schedules(schedule, len(task.ids))
        self.certainty = Certainty()
        self.lanes: Lanes | None = None
        self.held = [task.start] * len(task.ids)  # ids that are read and right
        self.sure: Tensor | None = None

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """Tokens of the draft, drawn or best, of each row until it is unsure."""
        scores = self._caught_up(ids, lengths, going)
        guesses = Guesses(self.task, ids, lengths, self.schedules.limits(most, going))
        sure: list[Tensor] = []
        least = self.schedules.first.threshold
        assert self.lanes is not None
        while any(guesses.open):
            token = guesses.add(fitted(scores, self.vocabulary))
            sure.append(guesses.chances[-1].gather(1, token[:, None])[:, 0])
            if least:
                certain = (sure[-1] >= least).tolist()
                guesses.open = [on and still for on, still in zip(guesses.open, certain, strict=True)]
            if any(guesses.open):
                scores = self.forward.logits(self.lanes.feed(token[:, None], keep=1))
        self.sure = torch.stack(sure, 1)
        return guesses.proposal()

    def _caught_up(self, ids: Tensor, lengths: list[int], going: list[bool]) -> Tensor:
        """Scores (rows, vocabulary) behind the text of each row, which the draft has read then."""
        forward = self.forward
        if self.lanes is None:
            out = forward(forward.prompt_ids)
            if self.task.repeats > 1:
                repeat(forward, out, self.task.repeats)
            self.lanes = Lanes(forward, self.parting and len(ids) > 1)
        else:
            self._go_back(ids, lengths, going)
        open_ids = [n - held if on else 1 for n, held, on in zip(lengths, self.held, going, strict=True)]
        width = max(open_ids)
        at = torch.tensor(self.held)[:, None] + torch.arange(width)
        out = self.lanes.feed(ids.gather(1, at.clamp(max=ids.shape[1] - 1).to(ids.device)), keep=width)
        last = torch.tensor(open_ids, device=ids.device) - 1
        scores = self.forward.scores(out, width)[torch.arange(len(ids), device=ids.device), last]
        self.lanes.keep(open_ids, going)
        self.held = list(lengths)
        return scores

    def _go_back(self, ids: Tensor, lengths: list[int], going: list[bool]) -> None:
        """Forget the drafted ids that the model has not taken."""
        assert self.lanes is not None
        read = torch.cat(self.lanes.fresh, 1).tolist() if self.lanes.fresh else [[] for _ in lengths]
        right = []
        for row, (length, held) in enumerate(zip(lengths, self.held, strict=True)):
            real = ids[row, held : length - 1].tolist()
            wrong = (i for i, (a, b) in enumerate(zip(read[row], real, strict=False)) if a != b)
            right.append(next(wrong, min(len(read[row]), len(real))))
        if not self.lanes.ragged:
            right = [min((n for n, on in zip(right, going, strict=True) if on), default=0)] * len(right)
        self.lanes.keep(right, going)
        self.held = [a + b for a, b in zip(self.held, right, strict=True)]

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Adapt the schedule."""
        self.schedules.learn(drafted, matched, going)
        if self.sure is not None:
            for sure, count, right, on in zip(self.sure.tolist(), drafted, matched, going, strict=True):
                if on:
                    self.certainty.learn(sure[:count], min(right, count))


class AdapterDraft:
    """The model itself as a draft, with another adapter (or none) at its sites; no weights are copied."""

    def __init__(self, draft: ModelDraft, adapters: Any, name: str):
        self.draft, self.adapters = draft, adapters
        self.name = None if name == "__base__" else name
        self.certainty = draft.certainty

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """As ModelDraft, with the adapter active meanwhile."""
        setup, skip = self.adapters.setup, self.adapters.skip_layers
        self.adapters.activate(self.name)
        try:
            return self.draft.propose(ids, lengths, going, most)
        finally:
            self.adapters.activate(setup, skip)

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Adapt the schedule."""
        self.draft.learn(drafted, matched, going)


def draw_rows(task: Task, scores: Tensor, going: list[bool]) -> Tensor:
    """One token (rows,) a row; rows that are over use up no numbers of their own generators."""
    if len(task.generators) <= 1:
        return draw(scores, task.generators)
    tokens = scores.argmax(-1)
    for row, on in enumerate(going):
        if on:
            tokens[row] = draw(scores[row : row + 1], task.generators[row : row + 1])[0]
    return tokens


def padding_in_front(mask: Tensor | None, task: Task) -> Tensor:
    """How many places of padding stand in front of each row (rows, 1), by a mask (prompts, positions)."""
    if mask is None:
        return torch.zeros(len(task.ids), 1, dtype=torch.long, device=task.ids.device)
    return mask.argmax(1, keepdim=True).repeat_interleave(task.repeats, 0)


def proposal_of(rows: list[list[int]], fill: int, device: torch.device) -> Proposal:
    """Candidates of any number for each row, filled up behind."""
    longest = max(map(len, rows))
    filled = [[*r, *[fill] * (longest - len(r))] for r in rows]
    return Proposal(torch.tensor(filled, dtype=torch.long, device=device), [len(r) for r in rows])


def fitted(scores: Tensor, vocabulary: int) -> Tensor:
    """Scores (rows, any) with as many columns as the vocabulary: padded tables differ in size."""
    missing = vocabulary - scores.shape[-1]
    return scores[:, :vocabulary] if missing <= 0 else nn.functional.pad(scores, (0, missing), value=NEVER)


def early_exit(model: nn.Module, layers: Any) -> nn.Module:
    """The model with its first `layers` layers alone, sharing its weights."""
    stack = getattr(model, "backbone", None)
    whole = getattr(stack, "layers", None)
    if stack is None or whole is None:
        raise GenerationError(
            f"assistant_early_exit needs a decoder of one stack of layers, which "
            f"{type(model).__name__} is not"
        )
    if not isinstance(layers, int) or isinstance(layers, bool) or not 0 < layers < len(whole):
        raise GenerationError(
            f"assistant_early_exit must be a layer number from 1 to {len(whole) - 1}, but is {layers!r}"
        )
    short = _twin(stack)
    short.layers = nn.ModuleList(list(whole)[:layers])
    twin = _twin(model)
    twin.backbone = short
    return twin


def _twin(module: nn.Module) -> Any:
    """A module of the same parts, whose list of parts is its own."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def explicit(assistant: Any, config: Any, given: Iterable[str]) -> Schedule:
    """The schedule that this call sets or, where it is silent, the draft's own generation configuration."""
    own = getattr(assistant, "generation_config", None) or GenerationConfig()
    names = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
    count, kind, threshold = (getattr(config if n in given else own, n) for n in names)
    return Schedule(count, kind, threshold)


def check_assistant(model: Any, assistant: Any, translated: bool) -> None:
    """Raise ArgumentError for a draft that cannot serve this model."""
    if not isinstance(assistant, nn.Module) or not hasattr(assistant, "config"):
        raise ArgumentError(f"assistant_model must be a model, but is a {type(assistant).__name__}")
    sizes: list[Any] = [getattr(_text(m), "vocab_size", None) for m in (model, assistant)]
    if not translated and None not in sizes and abs(sizes[0] - sizes[1]) > 1024:
        raise ArgumentError(
            f"assistant_model must have the vocabulary of the model ({sizes[0]} tokens), but has {sizes[1]}: "
            "pass tokenizer and assistant_tokenizer to translate between them"
        )


def adapters_with(model: Any, name: str) -> Any:
    """The adapters of a model that has one of this name, or any for "__base__"."""
    adapters = getattr(model, "_modules", {}).get("adapters")
    known = [] if adapters is None else adapters.names()
    if adapters is None or name not in (*known, "__base__"):
        raise ArgumentError(
            f"assistant_adapter must name an adapter of the assistant ({known}) or be '__base__', but is "
            f"{name!r}"
        )
    return adapters


def _text(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
