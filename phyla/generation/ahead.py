"""Drafts by heads of the model itself that guess further tokens (multi-token prediction)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.cache import Cache
from phyla.blocks.context import Context
from phyla.errors import GenerationError
from phyla.generation.drafts import Guesses, Proposal, fitted, padding_in_front
from phyla.generation.forward import Forward
from phyla.generation.task import Task


class Ears:
    """Hears what modules give out while a model is called: as a context around each call, in order."""

    def __init__(self, modules: Sequence[nn.Module]):
        self.modules = list(modules)
        self.calls: list[list[Tensor]] = []
        self.hooks: list[Any] = []

    def __enter__(self) -> None:
        self.calls.append([])
        self.hooks = [module.register_forward_hook(self._hear) for module in self.modules]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _hear(self, module: nn.Module, given: Any, out: Any) -> None:
        self.calls[-1].append(out if isinstance(out, Tensor) else out.last_hidden_state)

    def take(self, newest: bool = False) -> Tensor:
        """States (rows, positions, modules * D) of all calls since the last time, or of the newest alone."""
        calls, self.calls = self.calls[-1:] if newest else self.calls, []
        return torch.cat([torch.cat(call, -1) for call in calls], 1)


class Tail:
    """States of the newest positions of each row, right-aligned, that a draft has not read for good."""

    def __init__(self, states: Tensor):
        self.states, self.counts = states, [states.shape[1]] * len(states)

    def add(self, states: Tensor, counts: Sequence[int], going: Sequence[bool]) -> None:
        """Put the first counts[r] states (rows, s, D) of each row that is `going` behind its own."""
        sums = [a + b if on else 0 for a, b, on in zip(self.counts, counts, going, strict=True)]
        made = states.new_zeros(len(states), max(sums), states.shape[2])
        for row, (old, new, on) in enumerate(zip(self.counts, counts, going, strict=True)):
            if on:
                made[row, made.shape[1] - new - old : made.shape[1] - new] = self._last(old)[row]
                made[row, made.shape[1] - new :] = states[row, :new]
        self.states, self.counts = made, sums

    def keep(self, count: int) -> None:
        """Forget all but the newest `count` states of each row."""
        self.states, self.counts = self._last(count), [min(n, count) for n in self.counts]

    def real(self) -> Tensor:
        """Which places (rows, width) hold a state."""
        width, device = self.states.shape[1], self.states.device
        return torch.arange(width, device=device) >= width - torch.tensor(self.counts, device=device)[:, None]

    def _last(self, count: int) -> Tensor:
        return self.states[:, self.states.shape[1] - count :]


class HeadsDraft:
    """One token from each head, which reads the model's states and the tokens behind them.

    Head k reads the token k + 1 places behind a state, and the states of head k - 1. Its newest k places rest
    on tokens that were guessed: they are read anew at the next step, all heads at once.
    """

    def __init__(
        self, model: Any, heads: nn.ModuleList, task: Task, vocabulary: int, mask: Tensor | None = None
    ):
        self.model, self.heads, self.task, self.vocabulary = model, heads, task, vocabulary
        rows = len(task.ids)
        self.cache = Cache.of(heads, rows, task.ids.shape[1])
        self.ears = Ears([model.backbone])
        self.tail: Tail | None = None
        device = task.ids.device
        self.seen = torch.zeros(rows, 0, dtype=torch.bool, device=device)  # what of the heads' memory is text
        self.lead = padding_in_front(mask, task)

    @classmethod
    def beside(cls, forward: Forward, heads: nn.ModuleList, task: Task, vocabulary: int) -> "HeadsDraft":
        """The draft that hears what `forward` computes; GenerationError where a prompt has no ids."""
        if forward.hidden_positions:
            raise GenerationError("use_mtp needs a prompt of token ids alone: its heads read their vectors")
        draft = cls(forward.model, heads, task, vocabulary, forward.mask)
        forward.ears = draft.ears
        return draft

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """At most one token a head, drawn or best, of each row until it ends."""
        if self.tail is None:
            self.tail = Tail(self.ears.take().repeat_interleave(self.task.repeats, 0))
        states = self.tail.states
        limits = [min(n, len(self.heads)) if on else 0 for n, on in zip(most, going, strict=True)]
        if not any(limits):
            return None
        width, used = states.shape[1], self.cache.length
        ends = torch.tensor(lengths, device=ids.device)[:, None]
        at = ends - width + torch.arange(width, device=ids.device)  # of the token behind each state
        tokens = ids.gather(1, at.clamp(0, ids.shape[1] - 1))
        self.seen = torch.cat([self.seen, self.tail.real() & (at > self.lead)], 1)
        guesses = Guesses(self.task, ids, lengths, limits)
        for depth, head in enumerate(self.heads):
            ctx = self._context(at - self.lead + depth, used)
            states = head(states, self.model.backbone.embed(tokens, None, None, ctx), ctx)
            if depth >= max(limits):  # what it has read stays, but its token is not asked for
                tokens = nn.functional.pad(tokens[:, 1:], (0, 1))
                continue
            token = guesses.add(self._scores(states))
            tokens = torch.cat([tokens[:, 1:], token[:, None]], 1)
        self._settle(used + width)
        return guesses.proposal()

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Take the model's states behind the last token and the candidates that were right."""
        self.take(self.ears.take(newest=True), matched, going)

    def take(self, states: Tensor, matched: list[int], going: list[bool]) -> None:
        """Likewise, of states (rows, s, D) that came from elsewhere."""
        assert self.tail is not None
        self.tail.add(states, [n + 1 for n in matched], going)

    def _context(self, positions: Tensor, used: int) -> Context:
        mask = None if bool(self.seen.all()) else self.seen
        return Context(
            positions=positions.clamp(min=0), length=positions.shape[1], start=used, attention_mask=mask,
            cache=self.cache, implementation=self.model.implementation,
        )  # fmt: skip

    def _scores(self, states: Tensor) -> Tensor:
        scores = self.model.head.scores(states[:, -1:])[:, 0]
        return fitted(scores if scores.dtype == torch.float64 else scores.float(), self.vocabulary)

    def _settle(self, read: int) -> None:
        """Forget what rests on guesses; its states are to be read again."""
        assert self.tail is not None
        guessed = min(len(self.heads) - 1, self.tail.states.shape[1])
        self.cache.length = read
        self.cache.truncate(read - guessed)
        self.seen = self.seen[:, : read - guessed]
        self.tail.keep(guessed)
