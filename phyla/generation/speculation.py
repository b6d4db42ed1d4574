"""Speculative decoding: several drafted tokens are checked in one step of the model.

Each row goes on by as many candidates as are right in it, and one token more: what a row gives does not
depend on the others. Only where rows cannot part (recurrent layers, outputs that are recorded step by step,
processors that remember the batch) all go on by what is right in every one. Each row's tokens follow the
model's own distribution (Leviathan et al. 2023, algorithm 1); greedy tokens are its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phyla.generation.drafts import Draft, Proposal, draw_rows
from phyla.generation.forward import Forward
from phyla.generation.logits import NEVER
from phyla.generation.rewind import Lanes
from phyla.generation.rows import all_processed, together
from phyla.generation.search import check_finite, deliver, draw, finished, repeat
from phyla.generation.task import Steps, Task


def speculate(
    forward: Forward, task: Task, draft: Draft, parting: bool = True, room: int | None = None
) -> Steps[int]:
    """Fill `task.ids` with tokens that the draft proposes and the model accepts; returns the length.

    parting: whether rows may go on by numbers of their own. room: positions that the models have behind the
    last (None: any number): what fills up the rows of a check takes some.
    """
    run = _Run(forward, task)
    out = forward(forward.prompt_ids)
    out = repeat(forward, out, task.repeats) if task.repeats > 1 else out
    parting = parting and _recordable(task) and not together(task.processors)
    lanes = Lanes(forward, parting and len(task.ids) > 1)
    run.commit(out, None, lanes.ragged)
    del out
    while run.goes_on():
        yield
        most = run.most(room)
        proposal = draft.propose(task.ids, run.lengths, run.going, most) if any(most) else None
        fresh = run.newest()
        if proposal is not None:
            fresh = torch.cat([fresh, proposal.ids], 1)
        out = lanes.feed(fresh, keep=fresh.shape[1])
        was = list(run.going)
        taken = run.commit(out, proposal, lanes.ragged)
        del out
        if proposal is not None:
            see = getattr(draft, "see", None)
            if see is not None:
                see(run.scores, run.lengths)
            draft.learn(proposal.counts, taken, was)
        lanes.keep([n + 1 for n in taken], run.going)
    run.close()
    return max(run.lengths)


def _recordable(task: Task) -> bool:
    """Whether what is asked back can be put together from rows that are at different steps."""
    return task.record is None or all(steps is None for steps in task.record.fields.values())


class _Run:
    """How far each row is: `lengths` of the texts in `task.ids`, and which rows are `going` on."""

    def __init__(self, forward: Forward, task: Task):
        self.forward, self.task = forward, task
        rows = len(task.ids)
        self.lengths, self.going = [task.start] * rows, [True] * rows
        self.end, self.told = task.start + task.limit, task.start
        self.scores = torch.empty(0)  # of the newest step
        self.kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]

    def goes_on(self) -> bool:
        return any(self.going)

    def close(self) -> None:
        """Record the steps of rows that parted; a row that is over can have nothing but padding."""
        record = self.task.record
        if record is None or not any(self.kept):
            return
        over = torch.full_like(self.kept[0][0][0], NEVER)
        if 0 <= self.task.pad_id < len(over):
            over[self.task.pad_id] = 0.0
        for step in range(max(map(len, self.kept))):
            both = [row[step] if step < len(row) else (over, over) for row in self.kept]
            for steps, place in ((record.logits, 0), (record.scores, 1)):
                if steps is not None:
                    steps.append(torch.stack([pair[place] for pair in both]))

    def most(self, room: int | None) -> list[int]:
        """How many candidates each row may have: one token more comes behind them."""
        left = [self.end - n - 1 if on else 0 for n, on in zip(self.lengths, self.going, strict=True)]
        if room is None:
            return left
        bound = room + min(n + 1 for n, on in zip(left, self.going, strict=True) if on)
        return [min(n, bound) for n in left]

    def newest(self) -> Tensor:
        """The last id of each row, (rows, 1)."""
        at = torch.tensor(self.lengths, device=self.task.ids.device)[:, None] - 1
        return self.task.ids.gather(1, at)

    def commit(self, out: Any, proposal: Proposal | None, ragged: bool) -> list[int]:
        """Take what is right of a proposal and one token more; how many candidates each row took."""
        task, drafted = self.task, 0 if proposal is None else proposal.ids.shape[1]
        logits = self.forward.scores(out, drafted + 1)  # (rows, drafted + 1, vocabulary)
        scores = self.scores = self._scores(logits, proposal)
        tokens, right = _accepted(task, proposal, scores, self.going)
        counts = [n + 1 for n in right]
        if not ragged:
            least = min(n for n, on in zip(counts, self.going, strict=True) if on)
            counts = [least] * len(counts)
        taken = [n - 1 for n in counts]
        for i in range(max(n for n, on in zip(counts, self.going, strict=True) if on)):
            at = [on and i < n for n, on in zip(counts, self.going, strict=True)]
            if not any(at):
                break
            step = max(n for n, on in zip(self.lengths, at, strict=True) if on) - task.start
            off = torch.tensor(at, device=logits.device).logical_not()
            check_finite(scores[:, i].amax(-1).isfinite() | off, step, logits[:, i], scores[:, i])
            if ragged and task.record is not None:
                for row, on in enumerate(at):
                    if on:
                        self.kept[row].append((logits[row, i].clone(), scores[row, i].clone()))
            elif task.record is not None:
                task.record.step(_position(out, i, drafted), logits[:, i], scores[:, i])
            self._write(tokens[:, i], at)
        self._tell()
        return taken

    def _scores(self, logits: Tensor, proposal: Proposal | None) -> Tensor:
        task = self.task
        if not task.processors:
            return logits
        text = task.ids
        width = logits.shape[1]
        if proposal is not None:
            fill = task.pad_id if task.eos is None else int(task.eos[0])
            text = torch.nn.functional.pad(text, (0, width), value=task.pad_id)
            for row, (length, count) in enumerate(zip(self.lengths, proposal.counts, strict=True)):
                text[row, length : length + count] = proposal.ids[row, :count]
                text[row, length + count : length + width] = fill
        counts = [0] * len(logits) if proposal is None else proposal.counts
        return all_processed(task.processors, text, self.lengths, counts, logits, self.going)

    def _write(self, token: Tensor, at: list[bool]) -> None:
        """Put a token (rows,) behind each row that is `at` it, and see which rows it ends."""
        task = self.task
        lengths = sorted({n for n, on in zip(self.lengths, at, strict=True) if on})
        for row, (value, on) in enumerate(zip(token.tolist(), at, strict=True)):
            if on:
                task.ids[row, self.lengths[row]] = value
                self.lengths[row] += 1
        over = [n >= self.end for n in self.lengths]
        if task.eos is not None or task.criteria:
            for length in lengths if task.criteria else lengths[:1]:  # criteria see texts of one length
                ended = finished(task, task.ids[:, : length + 1], token).tolist()
                over = [
                    a or (b and on and (n == length + 1 or not task.criteria))
                    for a, b, on, n in zip(over, ended, at, self.lengths, strict=True)
                ]
        self.going = [a and not b for a, b in zip(self.going, over, strict=True)]

    def _tell(self) -> None:
        """Give the streamer the steps that all rows have taken."""
        if self.task.streamer is None:
            return
        until = min(
            (n for n, on in zip(self.lengths, self.going, strict=True) if on), default=max(self.lengths)
        )
        device = self.task.ids.device
        for place in range(self.told, until):
            over = [
                not on and n <= place + 1 < self.end for n, on in zip(self.lengths, self.going, strict=True)
            ]
            deliver(self.task, self.task.ids[:, place], torch.tensor(over, device=device))
        self.told = until


def _accepted(
    task: Task, proposal: Proposal | None, scores: Tensor, going: list[bool]
) -> tuple[Tensor, list[int]]:
    """Tokens (rows, k + 1), and how many candidates are right in each row: the token behind those is new."""
    if proposal is None:
        return _choose(task, scores, [0] * len(scores), going), [0] * len(scores)
    if task.do_sample and proposal.chances is not None:
        return _accepted_drawn(task, proposal, proposal.chances, scores, going)
    if task.ensemble is not None and proposal.chances is not None:  # greedy: the best of both
        own, count = scores.softmax(-1), proposal.chances.shape[1]
        mixed = task.ensemble * own[:, :count] + (1 - task.ensemble) * proposal.chances
        behind = (
            torch.arange(count, device=scores.device)
            >= torch.tensor(proposal.counts, device=scores.device)[:, None]
        )  # where a row has no candidate
        mixed = torch.where(behind[..., None], own[:, :count], mixed)
        scores = torch.cat([mixed, own[:, count:]], 1)
    tokens = _choose(task, scores, proposal.counts, going, proposal.ids)
    same = tokens[:, :-1] == proposal.ids
    return tokens, _leading(same, proposal.counts)


def _accepted_drawn(
    task: Task, proposal: Proposal, drawn_by: Tensor, scores: Tensor, going: list[bool]
) -> tuple[Tensor, list[int]]:
    """As `_accepted`, for candidates that were drawn by the chances (rows, k, vocabulary)."""
    wanted, chosen = scores.softmax(-1), proposal.ids[..., None]
    flips = _numbers(task, proposal.ids, proposal.counts, going)
    drawn, own = drawn_by.gather(2, chosen)[..., 0], wanted[:, :-1].gather(2, chosen)[..., 0]
    if task.ensemble is not None:  # arXiv:2604.07622: lossy, more candidates pass
        own = task.ensemble * own + (1 - task.ensemble) * drawn
    right = flips * drawn <= own
    counts = _leading(right, proposal.counts)
    tokens = torch.nn.functional.pad(proposal.ids, (0, 1))
    for row, (count, most) in enumerate(zip(counts, proposal.counts, strict=True)):
        if not going[row]:
            continue
        left = scores[row, count : count + 1]
        if count < most:
            rest = (wanted[row, count] - drawn_by[row, count]).clamp(min=0)[None]
            # nothing is left over where both agree but for rounding
            left = rest.log() if bool(rest.sum() > 0) else left
        tokens[row, count] = draw(left, _own(task, row))[0]
    return tokens, counts


def _leading(right: Tensor, counts: Sequence[int]) -> list[int]:
    """How many of the first counts[r] of each row (rows, k) are right before the first that is not."""
    known = right.long().cumprod(1).sum(1).tolist()
    return [min(n, most) for n, most in zip(known, counts, strict=True)]


def _choose(
    task: Task, scores: Tensor, counts: Sequence[int], going: list[bool], ids: Tensor | None = None
) -> Tensor:
    """The best or drawn tokens (rows, k + 1); of row r only the first counts[r] + 1 are drawn.

    With candidates `ids` (rows, k) a row with a generator of its own draws no further than the first that is
    not the candidate: it uses up a number a token, as without a draft, whatever was proposed.
    """
    best = scores.argmax(-1)
    if not task.do_sample:
        return best
    if len(task.generators) <= 1 and (len(scores) > 1 or not task.generators):
        flat = draw(scores.flatten(0, 1), task.generators)
        return flat.view(best.shape)
    drawing = list(going)
    for i in range(scores.shape[1]):
        drawing = [on and i <= n for n, on in zip(counts, drawing, strict=True)]
        if not any(drawing):
            break
        best[:, i] = draw_rows(task, scores[:, i], drawing)
        if ids is not None and i < ids.shape[1]:
            right = (best[:, i] == ids[:, i]).tolist()
            drawing = [on and same for on, same in zip(drawing, right, strict=True)]
    return best


def _own(task: Task, row: int) -> list[torch.Generator]:
    return task.generators[row : row + 1] if len(task.generators) > 1 else task.generators


def _numbers(task: Task, like: Tensor, counts: Sequence[int], going: list[bool]) -> Tensor:
    """Numbers (rows, k) from 0 to 1; of a row with a generator of its own only the first counts[r]."""
    rows, width = like.shape
    generators, device = task.generators, like.device
    if len(generators) <= 1:
        return torch.rand(rows, width, generator=generators[0] if generators else None, device=device)
    numbers = torch.zeros(rows, width, device=device)
    for row, (count, on) in enumerate(zip(counts, going, strict=True)):
        if on:
            numbers[row, :count] = torch.rand(count, generator=generators[row], device=device)
    return numbers


def _position(out: Any, index: int, drafted: int) -> Any:
    """The output of one position of the last `drafted` + 1; the whole of it where nothing was drafted."""
    return out if drafted == 0 else _Position(out, index - drafted - 1)


class _Position:
    """States and attentions of one position, counted from the end; the keys behind it are left out."""

    def __init__(self, out: Any, back: int):
        self.out, self.back = out, back

    def __getattr__(self, name: str) -> Any:
        layers = getattr(self.out, name)
        if layers is None:
            return None
        stop = self.back + 1 or None
        if "hidden_states" in name:
            return tuple(layer[:, self.back : stop] for layer in layers)
        keys = stop if "cross" not in name else None
        return tuple(layer[..., self.back : stop, :keys] for layer in layers)
