"""Contrastive search in pages: candidates for the next token are texts of their own until one is chosen."""

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation.contrastive import best_candidate
from phyla.generation.engine.request import Row, stopped
from phyla.generation.engine.schedule import Scheduler
from phyla.generation.engine.teams import Team
from phyla.generation.search import check_finite


class Contrast(Team):
    """A text and the candidates for its next token, which share its pages (Su et al. 2022).

    text: what is written so far, which has no memory itself. rows: at first the prompt, then the candidates.
    """

    def __init__(self, row: Row, alpha: float, top_k: int) -> None:
        super().__init__([row])
        self.handle, self.alpha, self.top_k = row.handle, alpha, top_k
        self.text = Row(row.handle, row.number, list(row.ids), row.fixed, hidden=row.hidden, told=True)
        self.states: Tensor | None = None  # (positions, D) of the text
        self.newest: dict[Row, Tensor] = {}  # (1, D) of the candidates
        self.logits = self.scores = torch.empty(0)  # (1, V) behind the text
        self.chances = self.tokens = torch.empty(0)  # (1, k) of the candidates
        row.team, row.watched = self, "text"

    def see(self, row: Row, start: int, states: Tensor) -> None:
        """Take the last layer's states (n, D) of a row's positions from `start` on."""
        length, known = len(self.text.ids), 0 if self.states is None else len(self.states)
        if start + len(states) > length:
            self.newest[row] = states[length - start :][:1]
        fresh = states[max(known - start, 0) : length - start]
        if start <= known and len(fresh):  # a row that lost its memory is read again
            self.states = fresh if self.states is None else torch.cat([self.states, fresh])

    def advance(self, scheduler: Scheduler) -> bool:
        """Choose among the candidates, if there are any, and propose the next; whether the text goes on."""
        chosen = self.rows[0]
        if len(self.newest):
            chosen = self._choose()
            for row in self.rows:
                if row is not chosen:
                    scheduler.drop(row)
            self.rows = self.handle.shadows = [chosen]
            reason = stopped(self.text)
            if self.handle.finished:  # what a caller brings may cancel
                return False
            self.text.reason = reason
            if reason is not None:
                return False
        self.logits, self.held = self.held[chosen][None], {}
        self._propose(chosen, scheduler)
        return not self.handle.finished

    def _choose(self) -> Row:
        if self.states is None:
            raise GenerationError("contrastive search needs the states of the text, but the model gave none")
        newest = torch.cat([self.newest[row] for row in self.rows])
        place = best_candidate(
            self.states[None], newest[None], self.chances, self.scores, self.tokens, self.alpha
        )
        number = int(place)
        token = int(self.tokens[0, number])
        check_finite(self.scores.amax(-1).isfinite(), len(self.text.tokens), self.logits, self.scores)
        self.text.ids.append(token)
        if self.handle.config.output_scores:
            self.text.logprobs.append(float(self.scores.log_softmax(-1)[0, token]))
        if self.handle.keep:
            self.text.kept.append((self.logits[0].clone(), self.scores[0].clone()))
        self.states, self.newest = torch.cat([self.states, newest[number : number + 1]]), {}
        self.handle.mark_first()
        return self.rows[number]

    def _propose(self, row: Row, scheduler: Scheduler) -> None:
        """The likeliest tokens, each a text of its own."""
        ids = torch.tensor([self.text.seen], dtype=torch.long, device=self.logits.device)
        self.scores = row.processors(ids, self.logits) if row.processors else self.logits
        if self.handle.finished:
            return
        count = min(self.top_k, self.scores.shape[-1])
        self.chances, self.tokens = self.scores.softmax(-1).topk(count)
        self.rows = [row, *(scheduler.forked(row, row.number) for _ in range(count - 1))]
        for own, token in zip(self.rows, self.tokens[0].tolist(), strict=True):
            own.ids = [*self.text.ids, token]
            scheduler.resume(own)
        self.handle.shadows = list(self.rows)

    def outcome(self) -> list[Row]:
        """The text."""
        return [self.text]
