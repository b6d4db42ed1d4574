"""Speculation by request: candidates for the next tokens of rows, from their text or from a smaller model.

A candidate counts if the row's own choice is the same: tokens, drawn ones too, are those without a draft.
"""

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from phyla.blocks.cache import _copied
from phyla.errors import ArgumentError
from phyla.generation.candidates import CandidateGenerator
from phyla.generation.drafts import PromptLookup, Schedule, fitted
from phyla.generation.engine.request import Handle, Row
from phyla.generation.rows import together
from phyla.generation.task import Task
from phyla.generation.translate import RetoldDraft


class Draft(Protocol):
    """A source of candidates for rows of the engine."""

    def propose(self, rows: list[Row], most: list[int]) -> list[list[int]]:
        """At most most[i] candidates behind the ids of each row."""

    def learn(self, row: Row, drafted: int, matched: int) -> None:
        """Take note of how many were right."""

    def forget(self, row: Row) -> None:
        """The row is over."""


class Lookup:
    """What followed the newest n-gram where the text, or what the encoder read, had it before."""

    def __init__(self, count: int, longest: int | None) -> None:
        self.lookup = PromptLookup(count, longest, 0)

    def propose(self, rows: list[Row], most: list[int]) -> list[list[int]]:
        """As Draft."""
        found = []
        for row, limit in zip(rows, most, strict=True):
            source = row.handle.source
            read = None if source is None else torch.tensor(source)
            found.append(self.lookup.after(torch.tensor(row.seen), read, min(limit, self.lookup.count)))
        return found

    def learn(self, row: Row, drafted: int, matched: int) -> None:
        """Nothing."""

    def forget(self, row: Row) -> None:
        """Nothing."""


class Told:
    """What a CandidateGenerator of the caller's own says; its scores are not looked at."""

    def __init__(self, source: CandidateGenerator, vocabulary: int) -> None:
        self.source, self.vocabulary = source, vocabulary

    def propose(self, rows: list[Row], most: list[int]) -> list[list[int]]:
        """As Draft."""
        found = []
        for row, limit in zip(rows, most, strict=True):
            text = torch.tensor([row.seen])
            ids, _ = self.source.get_candidates(text.clone())
            size = text.shape[1]
            if ids.dim() != 2 or len(ids) != 1 or not torch.equal(ids[:, :size].to(text), text):
                raise ArgumentError(
                    f"get_candidates must give the ids of shape (1, {size}) with candidates behind them, but "
                    f"gave shape {tuple(ids.shape)}"
                )
            told = ids[0, size:].tolist()[:limit]
            if any(not 0 <= token < self.vocabulary for token in told):
                raise ArgumentError(f"candidates must be ids below {self.vocabulary}, but are {told}")
            found.append(told)
        return found

    def learn(self, row: Row, drafted: int, matched: int) -> None:
        """Tell the generator."""
        scores = torch.zeros(1, drafted + 1, 0)
        self.source.update_candidate_strategy(torch.tensor([row.seen]), scores, matched)

    def forget(self, row: Row) -> None:
        """Nothing."""


class Retold:
    """What a model of another vocabulary writes, told in the words of the row's; each row has its reader."""

    def __init__(
        self, model: Any, tokenizer: Any, own_tokenizer: Any, schedule: Schedule, vocabulary: int
    ) -> None:
        self.model, self.tokenizers, self.schedule = model, (tokenizer, own_tokenizer), schedule
        self.vocabulary = vocabulary
        self.known: dict[Row, RetoldDraft] = {}

    def propose(self, rows: list[Row], most: list[int]) -> list[list[int]]:
        """As Draft."""
        found = []
        for row, limit in zip(rows, most, strict=True):
            ids = torch.tensor([row.seen], device=self.model.device)
            draft = self.known.get(row)
            if draft is None:
                task = Task(ids, ids, ids.shape[1], row.handle.limit, 1, 0, None)
                draft = RetoldDraft(self.model, *self.tokenizers, task, self.schedule, None)
                self.known[row] = draft
            with torch.no_grad():
                told = draft.propose(ids, [ids.shape[1]], [True], [limit])
            tokens = [] if told is None else told.ids[0, : told.counts[0]].tolist()
            found.append(tokens if all(token < self.vocabulary for token in tokens) else [])
        return found

    def learn(self, row: Row, drafted: int, matched: int) -> None:
        """Adapt the schedule of the row."""
        if row in self.known:
            self.known[row].learn([drafted], [matched], [True])

    def forget(self, row: Row) -> None:
        """The row is over."""
        self.known.pop(row, None)


class Shadows:
    """A smaller model that runs ahead of rows, in an engine of its own; it drafts its best tokens.

    setup: the adapters it runs with.
    """

    def __init__(self, engine: Any, schedule: Schedule, setup: Any, vocabulary: int) -> None:
        self.engine, self.schedule, self.setup, self.vocabulary = engine, schedule, setup, vocabulary
        self.known: dict[Row, Row] = {}
        self.kept: dict[Row, tuple[int, Any]] = {}  # states behind that many ids
        self.schedules: dict[Row, Schedule] = {}

    def propose(self, rows: list[Row], most: list[int]) -> list[list[int]]:
        """As Draft."""
        scheduler = self.engine.scheduler
        open_rows: dict[Row, tuple[Row, int]] = {}
        found: dict[Row, list[int]] = {row: [] for row in rows}
        for row, limit in zip(rows, most, strict=True):
            count = min(limit, int(self._schedule(row).count))
            if count > 0:
                open_rows[self._caught_up(row)] = (row, count)
        while open_rows:
            placed = scheduler.plan()
            if not placed:
                break
            logits, ended, broken = self.engine._all(placed)
            if broken is not None:
                raise broken
            for own, scores in zip(ended, logits, strict=True):
                row, count = open_rows[own]
                if self.engine.cache.has_states and own.done == len(row.ids):
                    self.kept[own] = (own.done, _copied(own.text.states))
                token, sure = self._best(row, own, scores)
                own.ids.append(token)
                found[row].append(token)
                unsure = self.schedule.threshold and sure < self.schedule.threshold
                if unsure or token in row.handle.ends or len(found[row]) == count:
                    own.held = True
                    del open_rows[own]
        for own in open_rows:
            scheduler.drop(own)
            self.known = {row: kept for row, kept in self.known.items() if kept is not own}
        return [found[row] for row in rows]

    def _best(self, row: Row, own: Row, scores: Tensor) -> tuple[int, float]:
        scores = fitted(scores[None], self.vocabulary)
        if row.processors and not together(row.processors):
            scores = row.processors(torch.tensor([own.ids], device=scores.device), scores)
        chance = scores[0].softmax(-1)
        token = int(chance.argmax())
        return token, float(chance[token])

    def _schedule(self, row: Row) -> Schedule:
        own = self.schedules.get(row)
        if own is None:
            own = self.schedules[row] = replace(self.schedule)
        return own

    def _caught_up(self, row: Row) -> Row:
        """The model's own row, with the ids of `row` and no memory of others."""
        scheduler, own = self.engine.scheduler, self.known.get(row)
        if own is None:
            handle = Handle(self.engine, row.handle.number, row.handle.prompt, row.handle.config,
                            row.handle.limit, self.setup)  # fmt: skip
            handle.memory = row.handle.memory if self.engine.encoder else None
            own = self.known[row] = Row(handle, row.number, list(row.ids), row.fixed)
            own.text.memory = handle.memory
            scheduler.add(own)
            return own
        pairs = enumerate(zip(own.ids, row.ids, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(own.ids), len(row.ids)))
        keep = min(own.done, same, len(row.ids) - 1)
        if own.done > keep and self.engine.cache.has_states:
            number, states = self.kept.get(own, (0, None))
            if states is None or number > keep:
                scheduler.release(own)
            else:
                own.text.states = _copied(states)
            keep = number if own.done else 0
        own.done, own.ids = keep, list(row.ids)
        scheduler.resume(own)
        return own

    def learn(self, row: Row, drafted: int, matched: int) -> None:
        """Adapt the schedule of the row."""
        self._schedule(row).learn(drafted, matched)

    def forget(self, row: Row) -> None:
        """Give the memory of the row's double back."""
        own = self.known.pop(row, None)
        self.schedules.pop(row, None)
        if own is not None:
            self.kept.pop(own, None)
            self.engine.scheduler.drop(own)
