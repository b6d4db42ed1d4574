"""Where candidates for speculative decoding come from: the text itself, or a smaller model."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.forward import Forward
from phyla.generation.logits import NEVER
from phyla.generation.rewind import rewind, snapshot
from phyla.generation.search import draw, repeat
from phyla.generation.task import Task


@dataclass
class Proposal:
    """Candidate ids (rows, k) and, where they were drawn, the chances (rows, k, vocabulary) they were drawn
    by.
    """

    ids: Tensor
    chances: Tensor | None = None
    sure: list[float] = field(default_factory=list)


class Draft(Protocol):
    """A source of candidates."""

    def propose(self, ids: Tensor, live: Tensor, most: int) -> Proposal | None:
        """At most `most` candidates behind ids (rows, length); only rows of `live` (rows,) count."""

    def learn(self, drafted: int, matched: int) -> None:
        """Take note of how many of the candidates were right."""


class PromptLookup:
    """What followed the latest n-gram where the text had it before (Saxena 2023)."""

    def __init__(self, count: int, longest: int | None, pad_id: int):
        longest = longest or 2
        if count < 1 or longest < 1:
            raise GenerationError(
                "prompt_lookup_num_tokens and max_matching_ngram_size must be at least 1, but are "
                f"{count} and {longest}"
            )
        self.count, self.longest, self.pad_id = count, longest, pad_id

    def propose(self, ids: Tensor, live: Tensor, most: int) -> Proposal | None:
        """The continuation of the first earlier occurrence of the longest n-gram."""
        most = min(most, self.count)
        rows = [self._after(row, most) if on else None for row, on in zip(ids, live.tolist(), strict=True)]
        longest = max((len(r) for r in rows if r is not None), default=0)
        if longest == 0 or most < 1:
            return None
        found = torch.full((len(rows), longest), self.pad_id, dtype=torch.long, device=ids.device)
        for i, row in enumerate(rows):
            if row is not None:
                found[i, : len(row)] = row
        return Proposal(found)

    def _after(self, ids: Tensor, most: int) -> Tensor | None:
        length = len(ids)
        for size in range(min(self.longest, length - 1), 0, -1):
            match = (ids[:-1].unfold(0, size, 1) == ids[length - size :]).all(1)
            at = match.nonzero()
            if len(at):
                begin = int(at[0]) + size
                return ids[begin : begin + most]
        return None

    def learn(self, drafted: int, matched: int) -> None:
        """Nothing."""


@dataclass
class Schedule:
    """How many tokens a model drafts at once, and how sure it must be to go on.

    kind: "constant"; "heuristic_transient", two more after a whole success and one less otherwise;
    "heuristic",
    likewise and kept for later calls.
    """

    count: float
    kind: str
    threshold: float | None

    def __post_init__(self) -> None:
        kinds = ("constant", "heuristic", "heuristic_transient")
        if self.kind not in kinds:
            raise GenerationError(
                f"num_assistant_tokens_schedule must be one of {kinds}, but is {self.kind!r}"
            )
        if not self.count >= 1:
            raise GenerationError(f"num_assistant_tokens must be at least 1, but is {self.count}")

    def learn(self, drafted: int, matched: int) -> None:
        """Adapt the count."""
        if self.kind != "constant":
            self.count = self.count + 2 if matched == drafted else max(1.0, self.count - 1)


class ModelDraft:
    """A smaller model with the same vocabulary, which runs ahead (Leviathan et al. 2023)."""

    def __init__(self, forward: Forward, task: Task, schedule: Schedule, vocabulary: int):
        if forward.cache is None:
            raise GenerationError("a draft model needs use_cache=True and a cache, but has none")
        self.forward, self.task, self.schedule, self.vocabulary = forward, task, schedule, vocabulary
        self.read = False

    def propose(self, ids: Tensor, live: Tensor, most: int) -> Proposal | None:
        """Tokens of the draft, drawn or best, until it is unsure in all rows."""
        task, length = self.task, ids.shape[1]
        most = min(most, int(self.schedule.count))
        if most < 1:
            return None
        text = torch.cat([ids, ids.new_zeros(len(ids), most)], 1)
        chances, sure = [], []
        going = live
        if not self.read:
            out = self.forward(self.forward.prompt_ids)
            if task.repeats > 1:
                repeat(self.forward, out, task.repeats)
            self.read = True
        before = snapshot(self.forward)
        for step in range(most):
            scores = self.forward.logits(self.forward(text[:, : length + step]))
            if step == 0:
                before = snapshot(self.forward)
            scores = task.processors(text[:, : length + step], fitted(scores, self.vocabulary))
            chance = scores.softmax(-1)
            token = draw(scores, task.generators) if task.do_sample else scores.argmax(-1)
            text[:, length + step] = token
            if task.do_sample:
                chances.append(chance)
            picked = chance.gather(1, token[:, None])[:, 0]
            sure.append(picked)
            if self.schedule.threshold:
                going = going & (picked >= self.schedule.threshold)
            if task.eos is not None:
                going = going & ~(token[:, None] == task.eos).any(1)
            if not bool(going.any()):
                break
        rewind(self.forward, ids, before)
        drafted = text[:, length : length + len(sure)]
        return Proposal(drafted, torch.stack(chances, 1) if chances else None)

    def learn(self, drafted: int, matched: int) -> None:
        """Adapt the schedule."""
        self.schedule.learn(drafted, matched)


def fitted(scores: Tensor, vocabulary: int) -> Tensor:
    """Scores (rows, any) with as many columns as the vocabulary: padded tables differ in size."""
    missing = vocabulary - scores.shape[-1]
    return scores[:, :vocabulary] if missing <= 0 else nn.functional.pad(scores, (0, missing), value=NEVER)


def early_exit(model: nn.Module, layers: Any) -> nn.Module:
    """The model with its first `layers` layers alone, sharing its weights."""
    stack = getattr(model, "backbone", None)
    whole = getattr(stack, "layers", None)
    if stack is None or whole is None:
        raise GenerationError(
            f"assistant_early_exit needs a decoder of one stack of layers, which "
            f"{type(model).__name__} is not"
        )
    if not isinstance(layers, int) or isinstance(layers, bool) or not 0 < layers < len(whole):
        raise GenerationError(
            f"assistant_early_exit must be a layer number from 1 to {len(whole) - 1}, but is {layers!r}"
        )
    short = _twin(stack)
    short.layers = nn.ModuleList(list(whole)[:layers])
    twin = _twin(model)
    twin.backbone = short
    return twin


def _twin(module: nn.Module) -> Any:
    """A module of the same parts, whose list of parts is its own."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def explicit(assistant: Any, config: Any, given: Iterable[str]) -> Schedule:
    """The schedule that this call sets or, where it is silent, the draft's own generation configuration."""
    own = getattr(assistant, "generation_config", None) or GenerationConfig()
    names = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
    count, kind, threshold = (getattr(config if n in given else own, n) for n in names)
    return Schedule(count, kind, threshold)


def check_assistant(model: Any, assistant: Any, translated: bool) -> None:
    """Raise ArgumentError for a draft that cannot serve this model."""
    if not isinstance(assistant, nn.Module) or not hasattr(assistant, "config"):
        raise ArgumentError(f"assistant_model must be a model, but is a {type(assistant).__name__}")
    sizes: list[Any] = [getattr(_text(m), "vocab_size", None) for m in (model, assistant)]
    if not translated and None not in sizes and abs(sizes[0] - sizes[1]) > 1024:
        raise ArgumentError(
            f"assistant_model must have the vocabulary of the model ({sizes[0]} tokens), but has {sizes[1]}: "
            "pass tokenizer and assistant_tokenizer to translate between them"
        )


def _text(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
