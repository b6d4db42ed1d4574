"""Greedy decoding and sampling: one token a row and step."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import GenerationError, NonFiniteLogitsError
from phyla.generation.forward import Forward, select_rows
from phyla.generation.task import Steps, Task


def decode(forward: Forward, task: Task) -> Steps[int]:
    """Fill `task.ids` token by token; returns the length reached."""
    ids, length = task.ids, task.start
    done = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    may_end = task.eos is not None or bool(task.criteria)
    for step in range(task.limit):
        if step:
            yield
        out = forward(forward.prompt_ids if step == 0 else ids[:, :length])
        if step == 0 and task.repeats > 1:
            out = repeat(forward, out, task.repeats)
        logits = forward.logits(out)
        scores = task.processors(ids[:, :length], logits) if task.processors else logits
        if task.do_sample:
            best, token = scores.amax(-1), draw(scores, task.generators)
        else:
            best, token = scores.max(dim=-1)
        finite = best.isfinite()
        if scores is not logits and not task.allow_nonfinite:
            finite = finite & logits.amax(-1).isfinite()
        finite = finite | done
        if may_end:
            token = torch.where(done, task.pad_id, token)
        ids[:, length] = token
        length += 1
        if task.record is not None:
            task.record.step(out, logits, scores)
        del out
        if may_end:
            done = done | finished(task, ids[:, :length], token)
        # the only place of a step that waits for the device
        if task.streamer is None:
            sound, over = torch.stack([finite.all(), done.all()]).tolist()
            rows_over = None
        else:
            sounds, rows_over, tokens = torch.stack([finite.long(), done.long(), token]).tolist()
            sound, over = all(sounds), all(rows_over)
        if not sound:
            raise not_finite(step, finite, logits, scores)
        if rows_over is not None:
            _stream(task.streamer, tokens, rows_over)
        if over:
            break
    return length


def check_finite(finite: Tensor, step: int, logits: Tensor, scores: Tensor) -> None:
    """Raise the error that fits where a row (rows,) is not finite."""
    if not bool(finite.all()):
        raise not_finite(step, finite, logits, scores)


def deliver(task: Task, token: Tensor, done: Tensor) -> None:
    """Give the streamer, if there is one, one step's tokens (rows,) and the rows that are finished."""
    if task.streamer is not None:
        _stream(task.streamer, token.tolist(), done.tolist())


def finished(task: Task, ids: Tensor, token: Tensor) -> Tensor:
    """The rows (rows,) that the newest token finishes."""
    stopped = None
    if task.criteria:
        kept = task.record.scores if task.record is not None else None
        stopped = task.criteria(ids, None if kept is None else tuple(kept))
    if task.eos is None:
        return torch.zeros_like(token, dtype=torch.bool) if stopped is None else stopped
    ended = (token[:, None] == task.eos).any(1)
    return ended if stopped is None else ended | stopped


def draw(scores: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One token a row (rows,) by the probabilities of the scores (rows, vocabulary)."""
    # one uniform number a row, looked up in the summed probabilities: noise for a whole vocabulary, which
    # torch.multinomial draws, takes a millisecond a row on a CPU
    exact = torch.float32 if scores.device.type == "mps" else torch.float64
    sums = scores.softmax(-1).to(exact).cumsum(-1)  # cumsum(dtype=...) is ten times slower on a CPU
    total = sums[:, -1:]
    point = total * _uniform(scores.shape[0], generators, exact, scores.device)
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, point, right=True)[:, 0].clamp(max=scores.shape[1] - 1)


def _uniform(
    rows: int, generators: list[torch.Generator], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Numbers (rows, 1) from 0 to 1, from torch's generator, from one for all rows, or from one a row."""
    if len(generators) > 1:
        return torch.cat([torch.rand(1, 1, generator=g, dtype=dtype, device=device) for g in generators])
    generator = generators[0] if generators else None
    return torch.rand(rows, 1, generator=generator, dtype=dtype, device=device)


def repeat(forward: Forward, out: Any, times: int) -> Any:
    """Go on with each row `times` times, from one reading of the prompt."""
    rows = forward.rows
    index = torch.arange(rows, device=forward.prompt_ids.device).repeat_interleave(times)
    forward.select(index)
    for name, value in select_rows(dict(out.items()), index, rows).items():
        setattr(out, name, value)
    return out


def _stream(streamer: Any, tokens: list[int], rows_over: list[int]) -> None:
    streamer.put(torch.tensor(tokens))
    end_row = getattr(streamer, "end_row", None)
    if end_row is not None:
        for row, over in enumerate(rows_over):
            if over:
                end_row(row)


def not_finite(step: int, finite: Tensor, logits: Tensor, scores: Tensor) -> Exception:
    row = int((~finite).nonzero()[0])
    wrong = logits[row].isnan() | (logits[row] == torch.inf)
    if bool(wrong.any()):
        token = int(wrong.nonzero()[0])
        return NonFiniteLogitsError(
            f"logits must be finite, but are {logits[row, token].item()} at step {step}, row {row} (first at "
            f"token id {token}): the weights or the prompt's vectors hold NaN or infinity, or the dtype "
            "overflows (load in bfloat16 or float32 instead of float16)"
        )
    if not bool(logits[row].isfinite().any()):
        return NonFiniteLogitsError(f"logits must be finite, but all are -inf at step {step}, row {row}")
    if bool(scores[row].isnan().any() | (scores[row] == torch.inf).any()):
        return GenerationError(
            f"scores must stay finite, but the settings made them NaN or infinite at step {step}, row {row}: "
            "a temperature or penalty is too extreme, or a processor is wrong"
        )
    return GenerationError(
        f"at least one token must be allowed, but the settings rule out all at step {step}, row {row}: "
        "loosen suppress_tokens, bad_words_ids, prefix_allowed_tokens_fn or the like"
    )
