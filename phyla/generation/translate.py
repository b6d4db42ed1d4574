"""Drafts of a model with another tokenizer: by way of the text, or of the words that both vocabularies have.

Timor et al. 2025, "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous
Vocabularies".
"""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.generation.config import GenerationConfig
from phyla.generation.drafts import Proposal, Schedule, Schedules, proposal_of
from phyla.generation.forward import Forward
from phyla.generation.logits import NEVER
from phyla.generation.prompt import read_prompt
from phyla.generation.rewind import rewind, snapshot
from phyla.generation.search import draw
from phyla.generation.task import Task


class _Reader:
    """One row's draft: the ids that its model has read, in its own vocabulary."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.ids: list[int] = []
        self.forward: Forward | None = None

    def scores(self, ids: list[int]) -> Tensor:
        """Scores (1, vocabulary) of what follows `ids`; what was read before of them is not read again."""
        device = next(self.model.parameters()).device
        text = torch.tensor([ids], device=device)
        same = 0
        for mine, theirs in zip(self.ids, ids[:-1], strict=False):
            if mine != theirs:
                break
            same += 1
        forward = self.forward
        if forward is None or same == 0:
            prompt = read_prompt(self.model, None, {"input_ids": text}, GenerationConfig())
            forward = self.forward = Forward(self.model, prompt, len(ids) + 64, True, pad_id=0)
        elif forward.fed > same:
            rewind(forward, text[:, : same + 1], snapshot(forward))
        self.ids = ids
        return forward.logits(forward(text))


class RetoldDraft:
    """Candidates by way of the text: the draft reads and writes text, which the model's tokenizer reads
    again.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, own_tokenizer: Any, task: Task, schedule: Schedule,
        mask: Tensor | None,
    ):  # fmt: skip
        self.model, self.tokenizer, self.own = model, tokenizer, own_tokenizer
        self.task, self.schedules = task, Schedules(schedule, len(task.ids))
        self.padding = padding_of(mask, task)
        self.readers = [_Reader(model) for _ in range(task.ids.shape[0])]

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """The text that the draft would write, in the model's tokens."""
        rows = [
            self._retell(i, ids[i, self.padding[i] : length].tolist())[: most[i]] if on else []
            for i, (length, on) in enumerate(zip(lengths, going, strict=True))
        ]
        return None if not any(rows) else proposal_of(rows, self.task.pad_id, ids.device)

    def _retell(self, row: int, ids: list[int]) -> list[int]:
        reader, schedule = self.readers[row], self.schedules.rows[row]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        mine = list(self.own(text, add_special_tokens=False)["input_ids"])
        if not mine:
            return []
        begun = len(mine)
        end = getattr(self.own, "eos_token_id", None)
        for _ in range(int(schedule.count)):
            scores = reader.scores(mine)
            token = int(scores.argmax(-1))
            if token == end:
                break
            mine = [*mine, token]
            if schedule.threshold and float(scores.softmax(-1)[0, token]) < schedule.threshold:
                break
        whole = self.own.decode(mine, skip_special_tokens=True)
        heard = self.own.decode(mine[:begun], skip_special_tokens=True)
        told = text + whole[len(heard) :] if whole.startswith(heard) else whole
        before, after = (list(self.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (text, told))
        if after[: len(before)] == before:
            return after[len(before) :]
        return list(self.tokenizer(told[len(text) :], add_special_tokens=False)["input_ids"])

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Adapt the schedule."""
        self.schedules.learn(drafted, matched, going)


class MappedDraft:
    """Candidates among the words that both vocabularies have, drawn with the chances that the draft gives
    them.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, own_tokenizer: Any, task: Task, schedule: Schedule,
        mask: Tensor | None, vocabulary: int,
    ):  # fmt: skip
        self.model, self.tokenizer, self.own = model, tokenizer, own_tokenizer
        self.task, self.vocabulary = task, vocabulary
        self.schedules = Schedules(schedule, len(task.ids))
        self.padding = padding_of(mask, task)
        self.readers = [_Reader(model) for _ in range(task.ids.shape[0])]
        self.pairs = shared_words(tokenizer, own_tokenizer, vocabulary)
        self.ours = torch.tensor(list(self.pairs), dtype=torch.long, device=task.ids.device)
        self.theirs = torch.tensor(list(self.pairs.values()), dtype=torch.long, device=task.ids.device)
        self.told: list[tuple[list[int], list[int]]] = [([], []) for _ in self.readers]

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """Tokens that the draft draws."""
        if not self.pairs:
            return None
        rows, chances = [], []
        for i, (length, on) in enumerate(zip(lengths, going, strict=True)):
            count = min(most[i], int(self.schedules.rows[i].count))
            drawn, given = self._draft(i, ids[i, :length], count) if on else ([], [])
            rows.append(drawn)
            chances.append(given)
        if not any(rows):
            return None
        made = proposal_of(rows, self.task.pad_id, ids.device)
        table = torch.zeros(*made.ids.shape, self.vocabulary, device=ids.device)
        for i, given in enumerate(chances):
            if given:
                table[i, : len(given)] = torch.cat(given)
        made.chances = table
        return made

    def _draft(self, row: int, ids: Tensor, most: int) -> tuple[list[int], list[Tensor]]:
        task, text = self.task, ids[None]
        mine = self._own_ids(row, ids[self.padding[row] :].tolist())
        generators = task.generators[row : row + 1] if len(task.generators) > 1 else task.generators
        least = self.schedules.rows[row].threshold
        drawn: list[int] = []
        given: list[Tensor] = []
        for _ in range(most):
            own = self.readers[row].scores(mine)
            scores = own.new_full((1, self.vocabulary), NEVER)
            scores[:, self.ours] = own[:, self.theirs]
            scores = self._processed(row, text, scores)
            if not bool(scores.isfinite().any()):
                break
            chance = scores.softmax(-1)
            token = draw(scores, generators)
            drawn.append(int(token))
            given.append(chance)
            text = torch.cat([text, token[:, None]], 1)
            mine = [*mine, self.pairs[drawn[-1]]]
            unsure = least and float(chance[0, drawn[-1]]) < least
            if unsure or (task.eos is not None and bool((token == task.eos).any())):
                break
        return drawn, given

    def _processed(self, row: int, text: Tensor, scores: Tensor) -> Tensor:
        """One row's scores: processors know the rows of the whole batch, so that all are shown this one."""
        if not self.task.processors:
            return scores
        rows = len(self.task.ids)
        return self.task.processors(text.expand(rows, -1), scores.expand(rows, -1))[row : row + 1]

    def _own_ids(self, row: int, ids: list[int]) -> list[int]:
        """The row's ids in the draft's vocabulary: those told before stay, new ones go by word or by text."""
        known, mine = self.told[row]
        if known and ids[: len(known)] == known:
            fresh = ids[len(known) :]
        else:
            fresh, mine = ids, []
        if fresh and all(i in self.pairs for i in fresh):
            mine = mine + [self.pairs[i] for i in fresh]
        else:
            text = self.tokenizer.decode(fresh, skip_special_tokens=True)
            mine = mine + list(self.own(text, add_special_tokens=False)["input_ids"])
        self.told[row] = (ids, mine)
        return mine

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Adapt the schedule."""
        self.schedules.learn(drafted, matched, going)


def shared_words(tokenizer: Any, own: Any, vocabulary: int) -> dict[int, int]:
    """Ids of the model's vocabulary and those of the draft's for the same words, whatever their space."""
    ours, theirs = tokenizer.get_vocab(), own.get_vocab()
    signs: list[Any] = [_space(tokenizer), _space(own)]
    if None not in signs and signs[0] != signs[1]:
        theirs = {
            (signs[0] + word[len(signs[1]) :] if word.startswith(signs[1]) else word): i
            for word, i in theirs.items()
        }
    return {i: theirs[word] for word, i in ours.items() if word in theirs and i < vocabulary}


def _space(tokenizer: Any) -> str | None:
    ids = tokenizer(" ", add_special_tokens=False)["input_ids"]
    words = tokenizer.convert_ids_to_tokens(ids) if len(ids) else []
    return words[0][0] if words and words[0] else None


def padding_of(mask: Tensor | None, task: Task) -> list[int]:
    """How many ids of padding stand in front of each row."""
    if mask is None:
        return [0] * task.ids.shape[0]
    front = mask[:, : task.start].argmax(1).repeat_interleave(task.repeats)
    return front.tolist()
