"""Rows of a request that go on together: beams of one text, a text and its unguided twin."""

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation.beams import BeamSettings
from phyla.generation.engine.request import Handle, Row
from phyla.generation.engine.schedule import Scheduler
from phyla.generation.grouped import search_state
from phyla.generation.plan import end_tokens, pad_token
from phyla.generation.task import Task


class Team:
    """Rows whose scores are kept until all are known; `held` has them by row."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.held: dict[Row, Tensor] = {}

    def hold(self, row: Row, scores: Tensor) -> bool:
        """Keep a row's scores (V); whether all are there."""
        row.held = True
        self.held[row] = scores
        return len(self.held) == len(self.rows)

    @property
    def torn(self) -> bool:
        """Whether a step broke off while the next tokens were chosen: the rows' scores are lost."""
        lost = any(row.held and row not in self.held for row in self.rows)
        return lost or len(self.held) == len(self.rows)


class Guided(Team):
    """A text, and one of a negative prompt that goes on with the same tokens (arXiv:2306.17806)."""

    def __init__(self, row: Row, twin: Row, scale: float) -> None:
        super().__init__([row, twin])
        self.row, self.twin, self.scale = row, twin, scale
        row.team = twin.team = self

    def mixed(self) -> Tensor:
        """The scores (V) of the text, pushed away from its twin's."""
        guided, unguided = (self.held[r].log_softmax(-1) for r in self.rows)
        self.held = {}
        return unguided + self.scale * (guided - unguided)

    def forked(self, made: Row, scheduler: Scheduler) -> Row:
        """The twin of another text that goes on from here."""
        twin = scheduler.forked(self.twin, made.number)
        made.handle.shadows.append(twin)
        Guided(made, twin, self.scale)
        return twin

    def follow(self, scheduler: Scheduler) -> None:
        """Let the twin have the text's newest token, or end with it."""
        if self.row.reason is not None:
            scheduler.drop(self.twin)
            return
        self.twin.ids.append(self.row.ids[-1])
        for row in self.rows:
            scheduler.resume(row)


class Beams(Team):
    """The beams of a text: they share pages until they write."""

    def __init__(self, row: Row, settings: BeamSettings, device: torch.device) -> None:
        super().__init__([row])
        handle, config, start = row.handle, row.handle.config, len(row.seen)
        self.handle, self.prompt, self.head = handle, list(row.ids), row.ids[: row.hidden]
        self.hidden = row.hidden
        self.settings = settings
        pad = pad_token(config)
        ids = torch.tensor([row.seen + [pad] * handle.limit], dtype=torch.long, device=device)
        generators = [] if row.generator is None else [row.generator]
        task = Task(
            ids=ids, given=ids[:, :start], start=start, limit=handle.limit, repeats=1, pad_id=pad,
            eos=end_tokens(config, device), processors=row.processors, criteria=handle.criteria,
            do_sample=bool(config.do_sample), allow_nonfinite=bool(config.remove_invalid_values),
            generators=generators,
        )  # fmt: skip
        row.generator, row.team = None, self
        self.task, self.state = task, search_state(task, settings, config)

    def advance(self, scheduler: Scheduler) -> bool:
        """Take the scores of all beams; whether the search goes on."""
        logits = torch.stack([self.held[row] for row in self.rows])
        self.held = {}
        if len(self.rows) == 1:
            logits = logits.expand(self.settings.count, -1)
        self.handle.mark_first()
        more = self.state.take(logits, self.state.score(logits))
        if not more or self.handle.finished:  # what a caller brings may cancel
            return False
        old, self.rows = self.rows, []
        moved: set[Row] = set()
        for source in self.state.sources.tolist():
            row = old[source % len(old)]
            self.rows.append(scheduler.forked(row, row.number) if row in moved else row)
            moved.add(row)
        for row in old:
            if row not in moved:
                scheduler.drop(row)
        for row, text in zip(self.rows, self.state.texts.tolist(), strict=True):
            row.ids = self.head + text
            scheduler.resume(row)
        self.handle.shadows = list(self.rows)
        return True

    def outcome(self) -> list[Row]:
        """The texts of the best beams."""
        found, start = self.state.found(), self.task.start
        rows: list[Row] = []
        for number, ids in enumerate(found.ids.tolist()):
            length = int((found.origin[number] >= 0).sum())
            text = self.prompt + ids[start : start + length]
            made = Row(self.handle, number, text, len(self.prompt), score=float(found.scores[number]))
            made.hidden = self.hidden
            ended = length and text[-1] in self.handle.ends
            made.reason = "eos" if ended else "length" if length >= self.handle.limit else "stop"
            rows.append(made)
        return rows


def show(placed: list, layers: tuple[Tensor, ...] | None) -> None:
    """Give the rows of a step the states (1, N, D) of each layer that they are to be shown."""
    if not layers:
        raise GenerationError("the strategy looks at states of the layers, but the model gives none")
    for row, part in placed:
        if row.watched == "text":
            row.team.see(row, part.start, layers[-1][0, part.begin : part.end])
        elif row.watched and part.start + part.length == len(row.ids):
            row.states = tuple(layer[:, part.end - 1] for layer in layers)


def guide(handle: Handle, row: Row, negative: list[int], scale: float) -> Row:
    """Give a text its unguided twin, which reads the negative prompt."""
    twin = Row(handle, row.number, list(negative), len(negative))
    handle.shadows.append(twin)
    Guided(row, twin, scale)
    return twin
