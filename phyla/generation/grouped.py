"""Beam search in groups that keep apart (Vijayakumar et al. 2016), and under constraints (Post & Vilar 2018).

Both choose their beams one by one on the host: what goes on, what ends, and which group or constraint it
serves.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phyla.generation.beams import LOST, BeamSettings, BeamState, Found, SearchState
from phyla.generation.config import GenerationConfig
from phyla.generation.constraints import Constraint, ConstraintListState, read_constraints
from phyla.generation.modes import GenerationMode, generation_mode
from phyla.generation.search import finished, not_finite
from phyla.generation.task import Task


@dataclass
class _Ended:
    """A continuation that ended: its score by length, its new tokens and the beams they came from."""

    score: float
    new: list[int]
    origin: list[int]
    fulfilled: bool = True


class _Pool:
    """The best ended continuations of one group of beams of one row."""

    def __init__(self, size: int, limit: int, settings: BeamSettings):
        self.size, self.limit, self.settings = size, limit, settings
        self.entries: list[_Ended] = []
        self.lacking: list[tuple[float, list[int], list[int]]] = []  # what ended without all that must be
        self.done = False

    def add(self, total: float, new: list[int], origin: list[int], fulfilled: bool = True) -> None:
        score = total / len(new) ** self.settings.length_penalty
        if len(self.entries) < self.size or score > min(e.score for e in self.entries):
            self.entries.append(_Ended(score, new, origin, fulfilled))
            if len(self.entries) > self.size:
                self.entries.remove(min(self.entries, key=lambda e: (e.fulfilled, e.score)))

    def settle(self, best: float, length: int) -> None:
        """Take note that the best running total is `best` at `length` new tokens."""
        penalty, early = self.settings.length_penalty, self.settings.early_stopping
        if self.done or len(self.entries) < self.size:
            return
        reach = self.limit if early == "never" and penalty > 0 else length
        self.done = early is True or min(e.score for e in self.entries) >= best / reach**penalty


@dataclass
class _Next:
    """A beam of the next step: its total, its token, and the beam (of its row) that it grows from."""

    total: float
    token: int
    source: int


class _Row:
    """The beams of one row of the batch, in groups of `size`."""

    def __init__(
        self,
        number: int,
        groups: int,
        limit: int,
        settings: BeamSettings,
        constraints: list[Constraint] | None,
    ):
        self.number, self.count, self.size = number, settings.count, settings.count // groups
        self.pools = [_Pool(self.size, limit, settings) for _ in range(groups)]
        self.new: list[list[int]] = [[] for _ in range(self.count)]
        self.origin: list[list[int]] = [[] for _ in range(self.count)]
        self.states = [ConstraintListState(constraints) for _ in range(self.count)] if constraints else None

    @property
    def done(self) -> bool:
        """Whether all groups are settled."""
        return all(pool.done for pool in self.pools)

    def fulfilled(self, beam: int) -> bool:
        """Whether a beam has all that must be there."""
        return self.states is None or self.states[beam].completed

    def choose(
        self, group: int, totals: list[float], beams: list[int], tokens: list[int], ends: list[bool]
    ) -> list[_Next]:
        """The beams that go on from candidates, best first; those that end go to the pool."""
        pool, chosen = self.pools[group], []
        for rank, (total, beam, token, end) in enumerate(zip(totals, beams, tokens, ends, strict=True)):
            if end:
                if rank < self.size:
                    global_beam = self.number * self.count + beam
                    ended = total, [*self.new[beam], token], [*self.origin[beam], global_beam]
                    pool.add(*ended) if self.fulfilled(beam) else pool.lacking.append(ended)
                continue
            chosen.append(_Next(total, token, beam))
            if len(chosen) == self.size:
                break
        return chosen

    def grow(self, chosen: list[_Next]) -> None:
        """Take the beams of the next step."""
        base = self.number * self.count
        self.new = [[*self.new[c.source], c.token] for c in chosen]
        self.origin = [[*self.origin[c.source], base + c.source] for c in chosen]
        if self.states is not None:
            self.states = [self.states[c.source].copy() for c in chosen]
            for state, c in zip(self.states, chosen, strict=True):
                state.add(c.token)

    def favour(self, chosen: list[_Next], scores: Tensor) -> list[_Next]:
        """The chosen beams and steps towards constraints, mixed so that every bank of progress has some.

        scores: (count, vocabulary), the totals of all candidates.
        """
        assert self.states is not None
        seen = {(*self.new[c.source], c.token) for c in chosen}
        known, banks = list(chosen), []
        for c in chosen:
            state = self.states[c.source].copy()
            state.add(c.token)
            banks.append(state.get_bank())
        for beam, state in enumerate(self.states):
            for token in (state.advance() or ()) if not state.completed else ():
                if (*self.new[beam], token) in seen:
                    continue
                seen.add((*self.new[beam], token))
                ahead = state.copy()
                ahead.add(token)
                known.append(_Next(float(scores[beam, token]), token, beam))
                banks.append(ahead.get_bank())
        if len(known) == len(chosen):
            return chosen
        order = sorted(range(len(known)), key=lambda i: -(banks[i] * 100 + known[i].total))
        rank, before, turns = -1, None, []
        for i in order:
            rank = rank + 1 if banks[i] == before else 0
            before = banks[i]
            turns.append((rank, i))
        turns.sort(key=lambda turn: turn[0])
        return [known[i] for _, i in turns[: self.count]]

    def close(self, totals: list[float], returned: int) -> None:
        """Add the beams that never ended; those that break a constraint only where too few keep it."""
        for group, pool in enumerate(self.pools):
            running = range(0) if pool.done else range(group * self.size, (group + 1) * self.size)
            for beam in running:
                if self.fulfilled(beam) and self.new[beam]:
                    pool.add(totals[beam], self.new[beam], self.origin[beam])
            if self.states is not None and len(pool.entries) < returned:
                for beam in running:
                    if self.new[beam] and not self.fulfilled(beam):
                        pool.add(totals[beam], self.new[beam], self.origin[beam], fulfilled=False)
            if len(pool.entries) < returned:
                for ended in sorted(pool.lacking, reverse=True)[: returned - len(pool.entries)]:
                    pool.add(*ended, fulfilled=False)

    def tell(self, settled: Any, returned: int) -> None:
        """Give a streamer what no later step can change."""
        if self.done:
            settled.closed(self.number, [e.new for e in self.best(returned)])
            return
        texts = [e.new for pool in self.pools for e in pool.entries]
        for group, pool in enumerate(self.pools):
            texts += [] if pool.done else self.new[group * self.size : (group + 1) * self.size]
        settled.candidates(self.number, texts)

    def best(self, returned: int) -> list[_Ended]:
        """The best `returned`, those that fulfil the constraints first."""
        ended = [e for pool in self.pools for e in pool.entries]
        ended.reverse()  # of equals, the latest
        return sorted(ended, key=lambda e: (not e.fulfilled, -e.score))[:returned]


class GroupState:
    """The beams of a search in `groups`, or under `constraints`, as a SearchState."""

    def __init__(
        self, task: Task, settings: BeamSettings, groups: int, constraints: list[Constraint] | None
    ) -> None:
        self.task, self.settings, self.groups = task, settings, groups
        count, batch, device = settings.count, task.ids.shape[0], task.ids.device
        self.ids = task.ids.repeat_interleave(count, 0)  # (batch * count, length)
        self.totals = torch.full((batch, count), LOST, device=device)
        self.totals[:, :: count // groups] = 0
        self.rows = [_Row(i, groups, task.limit, settings, constraints) for i in range(batch)]
        self.tokens = torch.zeros(batch * count, dtype=torch.long, device=device)  # the newest
        self.chosen: list[list[_Next]] = [[] for _ in self.rows]
        self.step = 0

    @property
    def texts(self) -> Tensor:
        """As SearchState."""
        return self.ids[:, : self.task.start + self.step]

    @property
    def sources(self) -> Tensor:
        """As SearchState."""
        count = self.settings.count
        source = [
            row.number * count + c.source
            for row, picked in zip(self.rows, self.chosen, strict=True)
            for c in picked
        ]
        return torch.tensor(source, device=self.ids.device)

    def score(self, logits: Tensor) -> Tensor:
        """As SearchState; each group chooses its next beams on the way, the others are shown which."""
        count, size = self.settings.count, self.settings.count // self.groups
        chances, text, device = logits.log_softmax(-1), self.texts, self.ids.device
        scores, tokens = torch.empty_like(chances), torch.zeros_like(self.tokens)
        self.chosen = [[] for _ in self.rows]
        for group in range(self.groups):
            part = torch.arange(len(text), device=device).view(-1, count)
            part = part[:, group * size : (group + 1) * size].flatten()
            scores[part] = self.task.processors(
                text[part], chances[part], current_tokens=tokens, beam_group_idx=group
            )
            _step(self.task, self.rows, group, text, scores, self.totals, self.chosen)
            for row, picked in zip(self.rows, self.chosen, strict=True):
                for place, c in enumerate(picked[group * size :], group * size):
                    tokens[row.number * count + place] = c.token
        self.tokens = tokens
        return scores

    def take(self, logits: Tensor, scores: Tensor) -> bool:
        """As SearchState; raises for scores that are not finite."""
        count, rows = self.settings.count, self.rows
        sound = (logits.amax(-1).isfinite() | self.task.allow_nonfinite).view(len(rows), count).all(1)
        sound = sound | torch.tensor([row.done for row in rows], device=sound.device)
        if not bool(sound.all()):
            raise not_finite(self.step, sound.repeat_interleave(count), logits, scores)
        for row, picked in zip(rows, self.chosen, strict=True):
            row.grow(picked)
        totals = [[c.total for c in picked] for picked in self.chosen]
        self.totals = torch.tensor(totals, device=self.ids.device)
        if all(row.done for row in rows):
            return False
        self.ids = self.ids[self.sources]
        self.ids[:, self.task.start + self.step] = self.tokens
        self.step += 1
        return self.step < self.task.limit

    def tell(self, settled: Any) -> None:
        """As SearchState."""
        for row in self.rows:
            row.tell(settled, self.settings.returned)

    def found(self) -> Found:
        """As SearchState."""
        return _found(self.task, self.rows, self.totals.tolist(), self.settings.returned)


def search_state(task: Task, settings: BeamSettings, config: GenerationConfig) -> SearchState:
    """The search that the settings ask for: plain beams, groups of them, or beams under constraints."""
    mode = generation_mode(config)
    if mode in (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE):
        return BeamState(task, settings)
    constraints = None
    if mode == GenerationMode.CONSTRAINED_BEAM_SEARCH:
        constraints = read_constraints(config.constraints, config.force_words_ids)
    return GroupState(task, settings, config.num_beam_groups or 1, constraints)


def _step(
    task: Task, rows: list[_Row], group: int, text: Tensor, scores: Tensor, totals: Tensor,
    chosen: list[list[_Next]],
) -> None:  # fmt: skip
    """Choose the next beams of one group in every row."""
    (batch, count), vocabulary = totals.shape, scores.shape[-1]
    size = rows[0].size
    first = group * size
    sums = scores.view(batch, count, vocabulary) + totals[:, :, None]
    candidates = sums[:, first : first + size].flatten(1)
    ends = 0 if task.eos is None else len(task.eos)
    top = candidates.topk(min(max(2, 1 + ends) * size, candidates.shape[1]))
    beams, tokens = top.indices // vocabulary + first, top.indices % vocabulary
    hits = torch.zeros_like(tokens, dtype=torch.bool)
    if task.criteria:
        offset = torch.arange(batch, device=beams.device)[:, None] * count
        grown = torch.cat([text[(beams + offset).flatten()], tokens.flatten()[:, None]], 1)
        hits = finished(task, grown, tokens.flatten()).view_as(tokens)
    elif task.eos is not None:
        hits = (tokens[..., None] == task.eos).any(-1)
    told = (x.tolist() for x in (top.values, beams, tokens, hits))
    for row, *candidate in zip(rows, *told, strict=True):
        pool = row.pools[group]
        still = [_Next(0.0, task.pad_id, first + i) for i in range(size)]
        if pool.done:
            chosen[row.number] += still
            continue
        picked = row.choose(group, *candidate)
        if len(picked) < size:  # every way on has ended
            pool.done = True
            chosen[row.number] += still
            continue
        if row.states is not None:
            picked = row.favour(picked, sums[row.number])
        chosen[row.number] += picked
        pool.settle(candidate[0][0], len(row.new[0]) + 1)


def _found(task: Task, rows: list[_Row], totals: list[list[float]], returned: int) -> Found:
    best: list[_Ended] = []
    for row, values in zip(rows, totals, strict=True):
        row.close(values, returned)
        best += row.best(returned)
    longest = max((len(e.new) for e in best), default=0)
    device = task.ids.device
    new = torch.full((len(best), longest), task.pad_id, dtype=torch.long, device=device)
    origin = torch.full((len(best), longest), -1, dtype=torch.int32, device=device)
    for i, e in enumerate(best):
        new[i, : len(e.new)] = torch.tensor(e.new, device=device)
        origin[i, : len(e.new)] = torch.tensor(e.origin, dtype=torch.int32, device=device)
    prompt = task.ids[:, : task.start].repeat_interleave(returned, 0)
    scores = torch.tensor([e.score for e in best], device=device)
    return Found(torch.cat([prompt, new], 1), scores, origin)
