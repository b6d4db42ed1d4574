"""Drafts that guess all tokens from the place of the last one, over keys and values that the model keeps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.ahead import Ears
from phyla.generation.blanks import Lookup
from phyla.generation.drafts import Guesses, Proposal, Schedule, Schedules, fitted, padding_in_front
from phyla.generation.forward import Forward
from phyla.generation.task import Task

Shared = dict[str, tuple[Tensor, Tensor]]


def is_one_place(assistant: Any) -> bool:
    """Whether a draft model guesses from one place."""
    return getattr(getattr(assistant, "head_spec", None), "task", None) == "token-drafting"


class OnePlaceDraft:
    """A smaller model that reads the vector of the newest token beside the states before it.

    It keeps no memory: it attends to the keys and values of the model's last layer of each kind. The states
    that it gives stand in for the model's at the next guess.
    """

    def __init__(
        self, assistant: Any, look: Lookup, keys: Callable[[], tuple[Shared, Tensor | None]], task: Task,
        schedule: Schedule, vocabulary: int,
    ):  # fmt: skip
        """look: vectors (..., D) of ids; keys: the model's keys and values, and what of them is text."""
        self.assistant, self.look, self.keys = assistant, look, keys
        self.task, self.vocabulary = task, vocabulary
        self.schedules = Schedules(schedule, len(task.ids))
        self.ears = Ears(())
        self.states: Tensor | None = None  # (rows, 1, D) before the last token
        self.lead = padding_in_front(None, task)

    @classmethod
    def beside(
        cls, forward: Forward, assistant: Any, task: Task, schedule: Schedule, vocabulary: int
    ) -> "OnePlaceDraft":
        """The draft that hears what `forward` computes, and reads its memory."""
        layers, model = check_one_place(forward, assistant), forward.model
        stack: Any = model.backbone

        def keys() -> tuple[Shared, Tensor | None]:
            slots: Any = forward.cache.slots  # type: ignore[union-attr]
            mask = None if forward.mask is None else forward.mask[:, : forward.fed]
            return {kind: slots[layer.attn.slot].read() for kind, layer in layers.items()}, mask

        draft = cls(assistant, stack.embed.vectors, keys, task, schedule, vocabulary)
        draft.lead = padding_in_front(forward.mask, task)
        forward.ears = draft.ears = Ears([stack])
        return draft

    def propose(self, ids: Tensor, lengths: list[int], going: list[bool], most: list[int]) -> Proposal | None:
        """Tokens of the draft, drawn or best, of each row until it ends."""
        if self.states is None:
            self.states = self.ears.take()[:, -1:].repeat_interleave(self.task.repeats, 0)
        states = self.states
        guesses = Guesses(self.task, ids, lengths, self.schedules.limits(most, going))
        ends = torch.tensor(lengths, device=ids.device)[:, None]
        shared, mask = self.keys()
        dtype = self.assistant.dtype
        shared = {kind: (k.to(dtype), v.to(dtype)) for kind, (k, v) in shared.items()}
        token = ids.gather(1, ends - 1)[:, 0]
        while any(guesses.open):
            out = self.assistant(
                inputs_embeds=torch.cat((self.look(token[:, None]), states), -1).to(dtype),
                position_ids=ends - 1 - self.lead, attention_mask=mask, shared_kv_states=shared,
            )  # fmt: skip
            states = out.last_hidden_state.to(states.dtype)
            token = guesses.add(fitted(out.logits[:, -1].float(), self.vocabulary))
        return guesses.proposal() if guesses.tokens else None

    def learn(self, drafted: list[int], matched: list[int], going: list[bool]) -> None:
        """Take the model's states before each row's newest token, and adapt the schedule."""
        states = self.ears.take(newest=True)
        at = torch.tensor(matched, device=states.device).clamp(max=states.shape[1] - 1)
        self.states = states[torch.arange(len(states), device=states.device), at][:, None]
        self.schedules.learn(drafted, matched, going)


def check_one_place(forward: Forward, assistant: Any) -> dict[str, Any]:
    """The model's last layer of each kind that makes keys; ArgumentError where the draft cannot read them."""
    model: Any = forward.model
    if forward.hidden_positions:
        raise GenerationError(f"{type(assistant).__name__} needs a prompt of token ids alone")
    own, theirs = model.config.get_text_config(), assistant.config.get_text_config()
    first = getattr(own, "first_borrower", None)
    kinds = list(getattr(own, "layer_types", None) or ())[:first]
    needed = set(theirs.layer_types)
    if first is None or not needed <= set(kinds) or assistant.config.backbone_hidden_size != model.width:
        raise ArgumentError(
            f"{type(assistant).__name__} reads keys of {sorted(needed)} and states of width "
            f"{assistant.config.backbone_hidden_size}, which {type(model).__name__} does not keep"
        )
    return {kind: model.backbone.layers[len(kinds) - 1 - kinds[::-1].index(kind)] for kind in needed}
