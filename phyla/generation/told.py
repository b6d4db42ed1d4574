"""A draft of the caller's own: `candidate_generator=` of `generate`, which is asked row by row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.generation.drafts import Proposal, proposal_of
from phyla.generation.task import Task


class ToldDraft:
    """What one CandidateGenerator, or one for each row, says; see `CandidateGenerator`.

    begins: where the text of each row begins behind its padding. Scores that come with the candidates are
    those they were drawn by; without them a candidate counts where the model chooses the same.
    """

    def __init__(self, source: Any, task: Task, begins: Sequence[int] | None, vocabulary: int) -> None:
        rows = len(task.ids)
        sources = list(source) if isinstance(source, list | tuple) else [source] * rows
        if len(sources) != rows or not all(callable(getattr(s, "get_candidates", None)) for s in sources):
            raise ArgumentError(
                f"candidate_generator must be a CandidateGenerator, or one for each of {rows} rows, but is "
                f"{source!r}"
            )
        self.sources, self.task, self.vocabulary = sources, task, vocabulary
        self.begins = list(begins) if begins is not None else [0] * rows
        self.scores = torch.empty(0)
        self.lengths = [0] * rows

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """As Draft."""
        rows: list[list[int]] = []
        chances: list[Tensor | None] = []
        for row, (length, on) in enumerate(zip(lengths, going, strict=True)):
            told, drawn = self._ask(row, ids, length, most[row]) if on and most[row] > 0 else ([], None)
            rows.append(told)
            chances.append(drawn)
        if not any(rows):
            return None
        made = proposal_of(rows, self.task.pad_id, ids.device)
        if self.task.do_sample and all(c is not None or not r for c, r in zip(chances, rows, strict=True)):
            made.chances = torch.zeros(*made.ids.shape, self.vocabulary, device=ids.device)
            for row, own in enumerate(chances):
                if own is not None and rows[row]:
                    made.chances[row, : len(own), : own.shape[-1]] = own[:, : self.vocabulary]
        return made

    def _ask(self, row: int, ids: Tensor, length: int, most: int) -> tuple[list[int], Tensor | None]:
        text = ids[row : row + 1, self.begins[row] : length].clone()
        told, scores = self.sources[row].get_candidates(text)
        count, size = told.shape[-1] - text.shape[1], text.shape[1]
        if told.dim() != 2 or len(told) != 1 or count < 0 or not torch.equal(told[:, :size].to(text), text):
            raise ArgumentError(
                f"get_candidates must give the ids of shape (1, {size}) with candidates behind them, but "
                f"gave shape {tuple(told.shape)}"
            )
        fresh = told[0, size : size + most].tolist()
        drawn = None if scores is None else scores[0, : len(fresh)].to(ids.device).softmax(-1)
        return fresh, drawn

    def see(self, scores: Tensor, lengths: list[int]) -> None:
        """The model's scores (rows, k + 1, vocabulary) of the newest step, and how long the texts are now."""
        self.scores, self.lengths = scores, list(lengths)

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Tell the generators, with the texts as they are now."""
        for row, (count, right, on) in enumerate(zip(drafted, matched, going, strict=True)):
            if on:
                scores = self.scores[row : row + 1, : count + 1]
                text = self.task.ids[row : row + 1, self.begins[row] : self.lengths[row]].clone()
                self.sources[row].update_candidate_strategy(text, scores, min(right, count))
