"""Contrastive search: likely tokens that do not repeat what the text said already (Su et al. 2022)."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation.forward import Forward, select_rows
from phyla.generation.rewind import rewind, snapshot
from phyla.generation.search import check_finite, deliver, finished
from phyla.generation.task import Steps, Task


def contrastive_search(
    forward: Forward, task: Task, alpha: float, top_k: int, low_memory: bool
) -> Steps[int]:
    """Fill `task.ids` with the candidates of greatest (1 - alpha) p - alpha (similarity to the text); returns
    the length reached.

    The text's states are those of the last layer. `low_memory` reads the candidates one after another instead
    of in one batch of rows * top_k.
    """
    if forward.cache is None:
        raise GenerationError(
            "contrastive search (penalty_alpha) needs use_cache=True and a model with a cache"
        )
    ids, length, rows = task.ids, task.start, task.ids.shape[0]
    forward.chunk = None  # the states of all that is read are needed
    out = forward(forward.prompt_ids)
    states = last_states(forward, out)  # (rows, positions, width)
    unseen = None if forward.mask is None else forward.mask[:, : states.shape[1]] == 0
    done = torch.zeros(rows, dtype=torch.bool, device=ids.device)
    may_end = task.eos is not None or bool(task.criteria)
    every = torch.arange(rows, device=ids.device)
    for step in range(task.limit):
        if step:
            yield
        logits = forward.logits(out)
        scores = task.processors(ids[:, :length], logits) if task.processors else logits
        if task.record is not None:
            task.record.step(out, logits, scores)
        chances, tokens = scores.softmax(-1).topk(min(top_k, scores.shape[-1]))  # (rows, k)
        last = step + 1 == task.limit
        read = _one_by_one if low_memory else _side_by_side
        next_out, next_states = read(forward, ids[:, : length + 1], tokens, last)
        chosen = best_candidate(states, next_states, chances, scores, tokens, alpha, unseen)
        token = tokens.gather(1, chosen[:, None])[:, 0]
        states = torch.cat([states, next_states[every, chosen][:, None]], 1)
        if unseen is not None:
            unseen = torch.cat([unseen, torch.zeros_like(unseen[:, :1])], 1)
        if not last:
            if low_memory:
                ids[:, length] = token
                out = forward(ids[:, : length + 1])
            else:
                index = every * tokens.shape[1] + chosen
                forward.select(index)
                out = _rows_of(next_out, index, rows * tokens.shape[1])
        finite = scores.amax(-1).isfinite() | done
        if may_end:
            token = torch.where(done, task.pad_id, token)
        ids[:, length] = token
        length += 1
        if may_end:
            done = done | finished(task, ids[:, :length], token)
        check_finite(finite, step, logits, scores)
        deliver(task, token, done)
        if bool(done.all()):
            break
    return length


def last_states(forward: Forward, out: Any) -> Tensor:
    """The states of the last layer (rows, positions, width) of a model's output."""
    states = getattr(out, f"{forward.prefix}hidden_states", None)
    if not states:
        raise GenerationError(f"{type(forward.model).__name__} gives no hidden states, which this needs")
    return states[-1]


def _side_by_side(forward: Forward, ids: Tensor, tokens: Tensor, last: bool) -> tuple[Any, Tensor]:
    """The output for all candidates (rows, k) in one batch, and their states (rows, k, width)."""
    rows, k = tokens.shape
    forward.select(torch.arange(rows, device=ids.device).repeat_interleave(k))
    wide = ids.repeat_interleave(k, 0)
    wide[:, -1] = tokens.flatten()
    before = snapshot(forward) if last else None
    out = forward(wide)
    states = last_states(forward, out)[:, -1].unflatten(0, (rows, k))
    if before is not None:  # what is returned has a row for each text, without the candidate
        rewind(forward, wide, before)
        forward.select(torch.arange(rows, device=ids.device) * k)
    return out, states


def _one_by_one(forward: Forward, ids: Tensor, tokens: Tensor, last: bool) -> tuple[Any, Tensor]:
    """As above, one candidate after another, each taken back."""
    text, states, out, before = ids.clone(), [], None, snapshot(forward)
    for column in tokens.unbind(1):
        text[:, -1] = column
        out = forward(text)
        states.append(last_states(forward, out)[:, -1])
        rewind(forward, text, before)
    return out, torch.stack(states, 1)


def best_candidate(
    states: Tensor, candidates: Tensor, chances: Tensor, scores: Tensor, tokens: Tensor, alpha: float,
    unseen: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Which of the candidates `tokens` (rows, k) each row goes on with, (rows,).

    states: (rows, positions, width) of the text, of which `unseen` are padding; candidates: (rows, k, width).
    """
    likeness = _likeness(states, candidates, unseen)  # (rows, k)
    # where fewer than k tokens are allowed, the others fill up the k: none of them may win
    forbidden = scores.gather(1, tokens) == -torch.inf
    worth = (1 - alpha) * chances - alpha * likeness
    return worth.masked_fill(forbidden, -torch.inf).argmax(-1)


def _likeness(states: Tensor, candidates: Tensor, unseen: Tensor | None) -> Tensor:
    """The greatest cosine (rows, k) between candidates (rows, k, width) and the text (rows, positions,
    width).
    """
    unit = states / states.norm(dim=-1, keepdim=True)
    cosine = candidates / candidates.norm(dim=-1, keepdim=True) @ unit.transpose(1, 2)  # (rows, k, positions)
    if unseen is not None:
        cosine = cosine.masked_fill(unseen[:, None], -torch.inf)
    return cosine.amax(-1)


def _rows_of(out: Any, index: Tensor, rows: int) -> Any:
    for name, value in select_rows(dict(out.items()), index, rows).items():
        if name != "past_key_values":
            setattr(out, name, value)
    return out
