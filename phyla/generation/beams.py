"""Beam search: several continuations of each row side by side, the best by their mean log-probability."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.forward import Forward
from phyla.generation.search import finished, not_finite, repeat
from phyla.generation.task import Steps, Task

LOST = -1e9  # the score of a beam that is not there (the reference's value: it shows in returned scores)


@dataclass
class BeamSettings:
    """How many beams to follow and to return for each row, and how lengths compare.

    Scores of finished beams are divided by length ** length_penalty. early_stopping: True ends a row when it
    has `count` finished beams; False when no running beam of the present length could beat them; "never" when
    none could at any length.
    """

    count: int
    returned: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False


@dataclass
class Found:
    """The returned beams, best first for each row: ids (rows, length), scores (rows,), origin (rows, new).

    origin names the beam, among batch * count, that each token was appended to; -1 behind the end.
    """

    ids: Tensor
    scores: Tensor
    origin: Tensor


@dataclass
class _Beams:
    """ids (batch, count, length), scores (batch, count) and origin (batch, count, new tokens)."""

    ids: Tensor
    scores: Tensor
    origin: Tensor

    def take(self, index: Tensor) -> "_Beams":
        """The beams `index` (batch, kept) of each row."""
        wide = index[..., None]
        return _Beams(self.ids.take_along_dim(wide, 1), self.scores.gather(1, index),
                      self.origin.take_along_dim(wide, 1))  # fmt: skip

    def join(self, other: "_Beams") -> "_Beams":
        """The beams of both."""
        pairs = ((self.ids, other.ids), (self.scores, other.scores), (self.origin, other.origin))
        return _Beams(*(torch.cat(pair, dim=1) for pair in pairs))

    def where(self, rows: Tensor, other: "_Beams") -> "_Beams":
        """These beams in the `rows` (batch,) that are True, those of `other` elsewhere."""
        wide = rows[:, None, None]
        scores = torch.where(rows[:, None], self.scores, other.scores)
        ids, origin = torch.where(wide, self.ids, other.ids), torch.where(wide, self.origin, other.origin)
        return _Beams(ids, scores, origin)


class BeamState:
    """The beams of a search: `take` one step's scores, go on with the beams `sources` name, or stop."""

    def __init__(self, task: Task, settings: BeamSettings):
        self.task, self.settings = task, settings
        count, (batch, total) = settings.count, task.ids.shape
        device = task.ids.device
        ids = task.ids[:, None].expand(batch, count, total).clone()
        origin = torch.full((batch, count, task.limit), -1, dtype=torch.int32, device=device)
        lost = torch.full((batch, count), LOST, device=device)
        first = torch.where(torch.arange(count, device=device) == 0, 0.0, LOST)  # at first all are the same
        self.running = _Beams(ids, first.expand(batch, count), origin)
        self.best = _Beams(ids, lost, origin)
        self.ended = torch.zeros(batch, count, dtype=torch.bool, device=device)
        self.open_rows = torch.ones(batch, dtype=torch.bool, device=device)
        self.step = 0

    @property
    def texts(self) -> Tensor:
        """The ids (batch * count, length) of the running beams."""
        return self.running.ids[:, :, : self.task.start + self.step].flatten(0, 1)

    @property
    def sources(self) -> Tensor:
        """Which of the beams before the newest token each running beam goes on from, (batch * count,)."""
        return self.running.origin[:, :, self.step - 1].flatten()

    def score(self, logits: Tensor) -> Tensor:
        """As SearchState."""
        return self.task.processors(self.texts, logits.log_softmax(-1))

    def take(self, logits: Tensor, scores: Tensor) -> bool:
        """Lengthen the beams by their scores (batch * count, vocabulary); whether the search goes on.

        Raises for scores that are not finite, and where no token is allowed.
        """
        task, settings, step, count = self.task, self.settings, self.step, self.settings.count
        batch = len(self.open_rows)
        grown, hits, possible = _grow(self.running, scores, step, task)
        alive = grown.scores + hits * LOST
        self.running = _Beams(grown.ids, alive, grown.origin).take(alive.topk(count).indices)
        new_best, new_ended = _collect(self.best, self.ended, grown, hits, step, settings)
        self.best = new_best.where(self.open_rows, self.best)
        self.ended = torch.where(self.open_rows[:, None], new_ended, self.ended)
        sound = (logits.amax(-1).isfinite() | task.allow_nonfinite).view(batch, count)
        sound = sound.all(1) | ~self.open_rows
        possible = possible | ~self.open_rows
        more = _improvable(self.running, self.best, self.ended, hits, step, task.limit, settings)
        self.open_rows = self.open_rows & more
        # the only place of a step that waits for the device
        all_sound, all_possible, on = torch.stack(
            [sound.all(), possible.all(), self.open_rows.any()]
        ).tolist()
        if not all_sound:
            raise not_finite(step, sound.repeat_interleave(count), logits, scores)
        if not all_possible:
            row = int((~possible).nonzero()[0])
            raise GenerationError(
                f"at least one token must be allowed, but all are ruled out at step {step}, row {row}"
            )
        self.step += 1
        return bool(on) and self.step < task.limit

    def tell(self, settled: Any) -> None:
        """As SearchState."""
        running, best = self.running, self.best
        start, stop, returned = self.task.start, self.task.start + self.step, self.settings.returned
        texts, finals = running.ids[:, :, start:stop].tolist(), best.ids[:, :, start:].tolist()
        lengths = (best.origin >= 0).sum(-1).tolist()
        told = zip(texts, finals, lengths, self.ended.tolist(), self.open_rows.tolist(), strict=True)
        for row, (going, done, sizes, over, still) in enumerate(told):
            cut = [text[:size] for text, size in zip(done, sizes, strict=True)]
            if still:
                ended = (text for text, end in zip(cut, over, strict=True) if end)
                settled.candidates(row, [*going, *ended])
            else:
                settled.closed(row, cut[:returned])

    def found(self) -> Found:
        """The best beams, as they are now."""
        return _returned(self.best, self.settings.returned, self.task.start)


class SearchState(Protocol):
    """A search that one step's scores take further: what it follows, and where each of that came from."""

    task: Task
    settings: BeamSettings
    step: int

    @property
    def texts(self) -> Tensor:
        """The ids (batch * count, length) of the running beams."""

    @property
    def sources(self) -> Tensor:
        """Which of the beams before the newest token each running beam goes on from, (batch * count,)."""

    def score(self, logits: Tensor) -> Tensor:
        """The scores of all tokens (batch * count, vocabulary) that the settings make of the model's."""

    def take(self, logits: Tensor, scores: Tensor) -> bool:
        """Lengthen the beams; whether the search goes on."""

    def tell(self, settled: Any) -> None:
        """Give a streamer what no later step can change."""

    def found(self) -> Found:
        """The best beams, as they are now."""


def beam_search(forward: Forward, task: Task, state: SearchState) -> Steps[Found]:
    """The best continuations of each row of `task.ids`; a settled row does not change while others go on."""
    more = task.limit > 0
    while more:
        first = state.step == 0
        if not first:
            yield
        out = forward(forward.prompt_ids if first else state.texts)
        if first:
            out = repeat(forward, out, state.settings.count)
        logits = forward.logits(out)
        scores = state.score(logits)
        if task.record is not None:
            task.record.step(out, logits, scores)
        del out
        more = state.take(logits, scores)
        if more:
            if task.settled is not None:
                state.tell(task.settled)
                task.settled.flush()
            forward.select(state.sources)
    return state.found()


def beam_settings(config: GenerationConfig, guided: bool = False) -> BeamSettings | None:
    """The beams that the settings ask for, or None; raises GenerationError for what does not go with any."""
    if (config.num_beams or 1) == 1:
        return None
    if guided and (config.num_beam_groups or 1) > 1:
        raise GenerationError(
            f"guidance_scale works with num_beam_groups=1 alone, but it is {config.num_beam_groups}"
        )
    if config.mirostat_tau is not None:
        raise GenerationError(
            f"mirostat_tau works with num_beams=1 alone, but num_beams is {config.num_beams}"
        )
    penalty = 1.0 if config.length_penalty is None else config.length_penalty
    returned = config.num_return_sequences or 1
    return BeamSettings(config.num_beams, returned, penalty, config.early_stopping or False)


def _grow(beams: _Beams, scores: Tensor, step: int, task: Task) -> tuple[_Beams, Tensor, Tensor]:
    """The best longer beams (batch, kept), which of them end, and which rows (batch,) have any."""
    batch, count = beams.scores.shape
    vocabulary = scores.shape[-1]
    sums = (scores.view(batch, count, vocabulary) + beams.scores[:, :, None]).flatten(1)
    # enough that `count` beams go on even if all others end
    ends = 0 if task.eos is None else len(task.eos)
    kept = min(max(2, 1 + ends) * count, count * vocabulary)
    chances = _noisy(sums.softmax(-1), task.generators) if task.do_sample else sums
    index = chances.topk(kept).indices  # (batch, kept)
    source, token = index // vocabulary, index % vocabulary
    grown = beams.take(source)
    grown.scores = sums.gather(1, index)
    grown.ids[:, :, task.start + step] = token
    offset = torch.arange(batch, device=index.device)[:, None] * count
    grown.origin[:, :, step] = (source + offset).int()
    if step + 1 == task.limit:
        hits = torch.ones_like(index, dtype=torch.bool)
    elif task.eos is None and not task.criteria:
        hits = torch.zeros_like(index, dtype=torch.bool)
    else:
        ids = grown.ids[:, :, : task.start + step + 1].flatten(0, 1)
        hits = finished(task, ids, token.flatten()).view(batch, kept)
    return grown, hits, sums.amax(-1) > -torch.inf


def _noisy(chance: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Numbers (rows, choices) whose greatest n are n draws without return by `chance` (Gumbel's trick)."""
    noise = torch.empty_like(chance)
    if len(generators) > 1:
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(1, generator=generator)
    else:
        noise.exponential_(1, generator=generators[0] if generators else None)
    return chance / noise


def _collect(best: _Beams, ended: Tensor, grown: _Beams, hits: Tensor, step: int,
             settings: BeamSettings) -> tuple[_Beams, Tensor]:  # fmt: skip
    """The best finished beams so far, with those that just ended among the first `count`."""
    count = settings.count
    just = hits & (torch.arange(hits.shape[1], device=hits.device) < count)
    scores = grown.scores / (step + 1) ** settings.length_penalty
    scores = scores + ~just * LOST
    if settings.early_stopping is True:
        scores = scores + ended.all(1, keepdim=True) * LOST
    merged = best.join(_Beams(grown.ids, scores, grown.origin))
    index = merged.scores.topk(count).indices
    return merged.take(index), torch.cat([ended, just], dim=1).gather(1, index)


def _improvable(running: _Beams, best: _Beams, ended: Tensor, hits: Tensor, step: int, limit: int,
                settings: BeamSettings) -> Tensor:  # fmt: skip
    """Rows (batch,) whose running beams may still beat the finished ones."""
    penalty, early = settings.length_penalty, settings.early_stopping
    length = limit if early == "never" and penalty > 0 else step + 1
    hope = running.scores[:, :1] / length**penalty
    worst = torch.where(ended, best.scores.amin(1, keepdim=True), LOST)
    better = (hope > worst).any(1) & ~hits.all(1)
    return better & ~ended.all(1) if early is True else better


def _returned(best: _Beams, returned: int, start: int) -> Found:
    origin = best.origin[:, :returned].flatten(0, 1)
    new = int((origin >= 0).sum(1).max()) if origin.shape[1] else 0
    ids = best.ids[:, :returned].flatten(0, 1)[:, : start + new]
    return Found(ids, best.scores[:, :returned].flatten(), origin[:, :new])
