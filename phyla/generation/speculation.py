"""Speculative decoding: several drafted tokens are checked in one step of the model.

Rows of a batch go on together: by as many candidates as are right in every row, and one token more. Each
row's
tokens follow the model's own distribution (Leviathan et al. 2023, algorithm 1); greedy tokens are its own.
"""

from typing import Any

import torch
from torch import Tensor

from phyla.generation.drafts import Draft, Proposal
from phyla.generation.forward import Forward
from phyla.generation.rewind import rewind, snapshot
from phyla.generation.search import check_finite, deliver, draw, finished, repeat
from phyla.generation.task import Task


def speculate(forward: Forward, task: Task, draft: Draft) -> int:
    """Fill `task.ids` with tokens that the draft proposes and the model accepts; returns the length."""
    ids, length, end = task.ids, task.start, task.start + task.limit
    done = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    step, proposal = 0, None
    while length < end and not bool(done.all()):
        drafted = 0 if proposal is None else proposal.ids.shape[1]
        before = snapshot(forward)
        if step == 0:
            out = forward(forward.prompt_ids)
            out = repeat(forward, out, task.repeats) if task.repeats > 1 else out
            text = ids[:, :length]
        else:
            text = ids[:, :length] if proposal is None else torch.cat([ids[:, :length], proposal.ids], 1)
            out = forward(text, keep=drafted + 1)
        logits = forward.scores(out, drafted + 1)  # (rows, drafted + 1, vocabulary)
        scores = torch.stack(
            [
                task.processors(text[:, : length + i], logits[:, i]) if task.processors else logits[:, i]
                for i in range(drafted + 1)
            ],
            1,
        )
        matched, last = _accept(task, proposal, scores, done)
        new = text[:, length : length + matched]
        for i, token in enumerate([*new.unbind(1), last]):
            finite = scores[:, i].amax(-1).isfinite() | done
            check_finite(finite, step + i, logits[:, i], scores[:, i])
            token = torch.where(done, task.pad_id, token)
            ids[:, length] = token
            length += 1
            if task.record is not None:
                task.record.step(_position(out, i, drafted, forward), logits[:, i], scores[:, i])
            done = done | finished(task, ids[:, :length], token)
            deliver(task, token, done)
            if bool(done.all()):
                break
        del out
        step += matched + 1
        if forward.fed >= length:
            rewind(forward, ids[:, :length], before)
        if drafted:
            draft.learn(drafted, matched)
        proposal = None
        if end - length > 1 and not bool(done.all()):
            proposal = draft.propose(ids[:, :length], ~done, end - length - 1)
    return length


def _accept(task: Task, proposal: Proposal | None, scores: Tensor, done: Tensor) -> tuple[int, Tensor]:
    """How many candidates are right in all rows, and each row's token behind them (rows,)."""
    drafted = scores.shape[1] - 1
    if proposal is None or drafted == 0:
        return 0, _choose(task, scores[:, 0])
    if task.do_sample and proposal.chances is not None:
        return _accept_drawn(task, proposal.ids, proposal.chances, scores, done)
    for i in range(drafted):
        token = _choose(task, scores[:, i])
        if bool(((token != proposal.ids[:, i]) & ~done).any()):
            return i, token
    return drafted, _choose(task, scores[:, drafted])


def _accept_drawn(
    task: Task, ids: Tensor, drawn_by: Tensor, scores: Tensor, done: Tensor
) -> tuple[int, Tensor]:
    """As `_accept`, for candidates that were drawn by the chances (rows, k, vocabulary)."""
    for i in range(ids.shape[1]):
        wanted, had = scores[:, i].softmax(-1), drawn_by[:, i]
        chosen = ids[:, i, None]
        flip = _uniform(task, wanted)
        right = flip * had.gather(1, chosen)[:, 0] <= wanted.gather(1, chosen)[:, 0]
        if not bool((right | done).all()):
            rest = (wanted - had).clamp(min=0)
            # nothing is left over where both agree but for rounding
            rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, wanted)
            return i, torch.where(right, ids[:, i], draw(rest.log(), task.generators))
    return ids.shape[1], draw(scores[:, ids.shape[1]], task.generators)


def _choose(task: Task, scores: Tensor) -> Tensor:
    return draw(scores, task.generators) if task.do_sample else scores.argmax(-1)


def _uniform(task: Task, like: Tensor) -> Tensor:
    """Numbers (rows,) from 0 to 1."""
    rows, generators = len(like), task.generators
    if len(generators) > 1:
        return torch.cat([torch.rand(1, generator=g, device=like.device) for g in generators])
    return torch.rand(rows, generator=generators[0] if generators else None, device=like.device)


def _position(out: Any, index: int, drafted: int, forward: Forward) -> Any:
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
