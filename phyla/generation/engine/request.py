"""One request to the engine: what is asked, what has come of it, and how its caller waits."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from phyla.blocks.flat import Text
from phyla.generation.config import GenerationConfig
from phyla.generation.logits import LogitsProcessorList, id_list
from phyla.generation.stopping import StoppingCriteriaList, StopStringCriteria


class Status(str, Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass
class GenerationOutput:
    """What a request gave: its prompt, the tokens behind it, why it ended.

    finish_reason: "eos", "length", "stop" (a criterion), "cancelled" or "error". score: of a beam, as
    `sequences_scores`. times: seconds of the clock time.monotonic at submission, at the first token and at
    the end.
    """

    request_id: str
    prompt_ids: list[int]
    generated_tokens: list[int]
    finish_reason: str
    status: Status
    logprobs: list[float] = field(default_factory=list)
    score: float | None = None
    error: str | None = None
    created_time: float = 0.0
    first_token_time: float | None = None
    finished_time: float = 0.0

    def is_finished(self) -> bool:
        """Whether it ran to its end."""
        return self.status == Status.FINISHED


@dataclass(eq=False)
class Row:
    """One text that is being written: its ids so far, how many of them the memory holds, and where.

    fixed: length of the prompt. keys: of its full pages; named: how many of those the engine has made known.
    alike: what rows that are picked at once have in common, () for none.
    guess: candidates behind the ids, which are read with them and then checked. held: the scores behind the
    ids are known, and wait for those of other rows. given: what is read as a whole in place of the first
    `fixed` ids, of which the first `hidden` stand for positions without an id; the positions of later ids are
    `shift` from their numbers.
    """

    handle: "Handle"
    number: int
    ids: list[int]
    fixed: int
    text: Text = field(default_factory=Text)
    done: int = 0
    named: int = 0
    keys: list[Any] = field(default_factory=list)
    generator: torch.Generator | None = None
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    logprobs: list[float] = field(default_factory=list)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    reason: str | None = None
    alike: tuple[Any, ...] | None = None
    guess: list[int] = field(default_factory=list)
    held: bool = False
    score: float | None = None
    team: Any = None
    draft: Any = None
    given: Any = None
    before: Any = None  # (done, states) before candidates were read
    lane: Any = None  # the call of its own that it goes on in
    told: bool = False  # its team writes it, and it is not read itself
    watched: str = ""  # "layers" where states behind its newest id are kept, "text" where its team has all
    shown: Any = None  # what its processors see of the states of all layers
    states: tuple[torch.Tensor, ...] = ()  # (1, D) behind its newest id, of a row that is shown them
    hidden: int = 0
    shift: int = 0

    @property
    def pending(self) -> int:
        """Ids and candidates that the memory does not hold yet; none while others are waited for."""
        return 0 if self.held else len(self.ids) + len(self.guess) - self.done

    def slice(self, start: int, end: int) -> list[int]:
        """The ids and candidates from `start` to `end`."""
        length = len(self.ids)
        found = self.ids[start:end]
        return found if end <= length else found + self.guess[max(start - length, 0) : end - length]

    @property
    def seen(self) -> list[int]:
        """The ids that processors and criteria look at."""
        return self.ids[self.hidden :]

    @property
    def tokens(self) -> list[int]:
        """What was generated."""
        return self.ids[self.fixed :]


class Handle:
    """A request as its caller sees it: `result()`, `for token in handle`, `cancel()`.

    With num_return_sequences above 1 the texts are `rows`, and iteration gives the tokens of the first.
    """

    def __init__(
        self, engine: Any, number: int, prompt: list[int], config: GenerationConfig, limit: int, setup: Any
    ) -> None:
        self.engine, self.number, self.prompt, self.config, self.limit = engine, number, prompt, config, limit
        self.setup = setup  # of the model's adapters
        self.request_id = f"req_{number}"
        self.status = Status.WAITING
        self.ends = set(() if config.eos_token_id is None else id_list(config.eos_token_id))
        self.criteria = StoppingCriteriaList()
        self.memory: Any = None
        self.feed: Any = None  # what tells the streamer
        self.mode: Any = None
        self.keep = False  # each step's scores, before and after the processors
        self.source: list[int] | None = None  # what an encoder has read
        self.prepare: Any = None  # gives a row the processors of the request
        self.shadows: list[Row] = []  # rows beside those that are written
        self.asked: Any = None  # what `submit` was given, as long as it may have to begin again
        self.error: BaseException | None = None
        self.rows: list[Row] = []
        self.created = time.monotonic()
        self.first_token: float | None = None
        self.ended = 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.status not in (Status.WAITING, Status.RUNNING)

    @property
    def tokens(self) -> list[int]:
        """The tokens of the first text so far; those of beams at the end alone."""
        return self.rows[0].tokens if self.rows else []

    def mark_first(self) -> None:
        """Note when the first token came."""
        if self.first_token is None:
            self.first_token = time.monotonic()

    def close(self, status: Status, error: BaseException | None) -> None:
        """It is over."""
        self.status, self.error, self.ended = status, error, time.monotonic()

    def cancel(self) -> None:
        """Stop, and give all memory back; what was generated stays."""
        self.engine.cancel(self)

    def result(self) -> GenerationOutput:
        """What came of the request, of its first text; runs the engine until it is done.

        Raises what the request failed with.
        """
        return self.results()[0]

    def results(self) -> list[GenerationOutput]:
        """As `result`, of all texts."""
        while not self.finished:
            self.engine.advance(self)
        if self.error is not None:
            raise self.error
        return self.outputs()

    def outputs(self) -> list[GenerationOutput]:
        """What there is of all texts now."""
        message = None if self.error is None else str(self.error)
        return [
            GenerationOutput(
                self.request_id if len(self.rows) == 1 else f"{self.request_id}_{row.number}",
                self.prompt, row.tokens, row.reason or "error", self.status, row.logprobs, row.score, message,
                self.created, self.first_token, self.ended,
            )
            for row in self.rows
        ]  # fmt: skip

    def __iter__(self) -> Iterator[int]:
        sent = 0
        while True:
            while sent < len(self.tokens):
                sent += 1
                yield self.tokens[sent - 1]
            if self.finished:
                break
            self.engine.advance(self)
        if self.error is not None:
            raise self.error


def stopped(row: Row) -> str | None:
    """Why a row ends with its newest token, or None."""
    handle = row.handle
    if row.ids[-1] in handle.ends:
        return "eos"
    for criterion in handle.criteria:
        if isinstance(criterion, StopStringCriteria):
            over = criterion.completes(row.seen[-criterion.window :])
        else:
            told = criterion(torch.tensor([row.seen]), None)
            over = bool(told.any()) if isinstance(told, torch.Tensor) else bool(told)
        if over:
            return "stop"
    return "length" if len(row.tokens) >= handle.limit else None
