"""Drafts that fill a block of blanks behind the last token at once (DFlash)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.cache import Cache
from phyla.errors import ArgumentError, GenerationError
from phyla.generation.ahead import Ears, Tail
from phyla.generation.drafts import Guesses, Proposal, fitted, padding_in_front
from phyla.generation.forward import Forward
from phyla.generation.task import Task

Lookup = Callable[[Tensor], Tensor]
_FACTS = ("block_size", "mask_token_id", "target_layer_ids")


class BlanksDraft:
    """A smaller model that reads states of some of the model's layers, and fills block_size - 1 blanks.

    It has neither a token table nor a vocabulary, but those of the model: `look` gives vectors (..., D) of
    ids, `score` scores (..., vocabulary) of states.
    """

    def __init__(
        self, assistant: Any, look: Lookup, score: Lookup, task: Task, vocabulary: int,
        mask: Tensor | None = None,
    ):  # fmt: skip
        self.assistant, self.task, self.vocabulary = assistant, task, vocabulary
        self.look, self.score, self.ears = look, score, Ears(())
        self.block, self.blank, _ = (getattr(assistant.config, name) for name in _FACTS)
        rows, device = len(task.ids), task.ids.device
        self.cache: Cache = assistant.new_cache(rows, task.ids.shape[1] + self.block)
        self.tail: Tail | None = None
        self.seen = torch.zeros(rows, 0, dtype=torch.bool, device=device)  # what of its memory is text
        # and where that stands in its row
        self.places = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self.lead = padding_in_front(mask, task)

    @classmethod
    def beside(cls, forward: Forward, assistant: Any, task: Task, vocabulary: int) -> "BlanksDraft":
        """The draft that hears what `forward` computes; GenerationError where a prompt has no ids."""
        if forward.hidden_positions:
            raise GenerationError('speculation_type="dflash" needs a prompt of token ids alone')
        model: Any = forward.model
        check_blanks(model, assistant)
        draft = cls(
            assistant,
            model.backbone.embed.vectors,
            model.get_output_embeddings(),
            task,
            vocabulary,
            forward.mask,
        )
        stack = model.backbone
        last = len(stack.layers) - 1  # whose states are normed, as in the model's hidden_states
        chosen = assistant.config.target_layer_ids
        forward.ears = draft.ears = Ears([stack if i == last else stack.layers[i] for i in chosen])
        return draft

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """A token for each blank, drawn or best, of each row until it ends."""
        if self.tail is None:
            self.tail = Tail(self.ears.take().repeat_interleave(self.task.repeats, 0))
        limits = [min(n, self.block - 1) if on else 0 for n, on in zip(most, going, strict=True)]
        if not any(limits):
            return None
        scores = self._scores(ids, lengths)[:, : max(limits)]
        guesses = Guesses(self.task, ids, lengths, limits)
        for blank in range(max(limits)):
            guesses.add(scores[:, blank])
        return guesses.proposal()

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Take the model's states behind the last token and the candidates that were right."""
        self.take(self.ears.take(newest=True), matched, going)

    def take(self, states: Tensor, matched: list[int], going: list[bool]) -> None:
        """Likewise, of states (rows, s, layers * D) that came from elsewhere."""
        assert self.tail is not None
        self.tail.add(states, [n + 1 for n in matched], going)

    def _scores(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Scores (rows, block - 1, vocabulary) of the blanks; what was read is kept, the blanks are not."""
        assert self.tail is not None
        given, device = self.tail.states, ids.device
        states = given.to(self.assistant.dtype)
        width = states.shape[1]
        ends = torch.tensor(lengths, device=device)[:, None] - self.lead  # of each row's text
        behind = torch.arange(self.block, device=device) - 1  # the last token stands in front of the blanks
        self.places = torch.cat([self.places, ends - 1 - width + torch.arange(width, device=device)], 1)
        self.seen = torch.cat([self.seen, self.tail.real() & (self.places[:, -width:] >= 0)], 1)
        blanks = torch.full((len(ids), self.block), self.blank, dtype=torch.long, device=device)
        blanks[:, 0] = ids.gather(1, torch.tensor(lengths, device=device)[:, None] - 1)[:, 0]
        places = torch.cat([self.places, ends + behind], 1)
        out = self.assistant.fill(
            self.look(blanks).to(states.dtype), states, places,
            nn.functional.pad(self.seen, (0, self.block), value=True), self.cache,
        )  # fmt: skip
        self.cache.truncate(self.seen.shape[1])
        self.tail.keep(0)
        scores = self.score(out[:, 1:].to(given.dtype))
        return fitted_all(scores if scores.dtype == torch.float64 else scores.float(), self.vocabulary)


def fitted_all(scores: Tensor, vocabulary: int) -> Tensor:
    """As `fitted`, of scores (rows, places, any)."""
    return fitted(scores.flatten(0, 1), vocabulary).unflatten(0, scores.shape[:2])


def check_blanks(model: Any, assistant: Any) -> None:
    """Raise ArgumentError for a draft that cannot read this model's states."""
    facts = {name: getattr(getattr(assistant, "config", None), name, None) for name in _FACTS}
    if any(value is None for value in facts.values()) or not hasattr(assistant, "fill"):
        raise ArgumentError(
            'speculation_type="dflash" needs an assistant_model that fills blocks (block_size, mask_token_id '
            f"and target_layer_ids), but it is {type(assistant).__name__}"
        )
    layers = getattr(getattr(model, "backbone", None), "layers", None)
    if (
        layers is None
        or max(facts["target_layer_ids"] or (0,)) >= len(layers)
        or assistant.width != model.width
    ):
        found = 0 if layers is None else len(layers)
        raise ArgumentError(
            f"assistant_model reads states of width {assistant.width} of layers {facts['target_layer_ids']}, "
            f"but {type(model).__name__} has {found} layers in one stack, of width {model.width}"
        )
