"""Feeding a model step by step: the one place that knows its cache, masks and inputs, shared by all
strategies.
"""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import GenerationError
from phyla.generation.caches import new_cache
from phyla.generation.captured import Steps, steps_for
from phyla.generation.config import CompileConfig
from phyla.generation.prompt import ALONG_ROWS, Prompt, accepted, vocabulary_size

# inputs that a recorded step has buffers for, or that change nothing in it
_RECORDED = frozenset({
    "input_ids", "position_ids", "attention_mask", "logits_to_keep", "return_dict", "use_cache",
    "past_key_values",
})  # fmt: skip


class Forward:
    """Calls a model on the ids that it has not seen yet and keeps what it needs from step to step.

    `length` is the number of positions to make room for; `flags` are call options such as output_attentions;
    `memory` is the public kind of cache and its settings; `chunk` the most positions read at once.
    """

    def __init__(self, model: nn.Module, prompt: Prompt, length: int, use_cache: bool, pad_id: int,
                 flags: dict[str, bool] | None = None,
                 memory: tuple[str | None, Any] = (None, None), chunk: int | None = None):  # fmt: skip
        self.model, self.rows, self.memory = model, prompt.rows, memory
        self.chunk = chunk
        self.takes = accepted(model.forward)
        # a model may add what each of its steps needs besides (blanks to fill, ...)
        self.complete = getattr(model, "next_inputs", dict)
        self.prefix = "decoder_" if getattr(model.config, "is_encoder_decoder", False) else ""
        self.first: dict[str, Any] = dict(prompt.first)
        self.encoded = prompt.steady.get("encoder_outputs")  # one row a prompt, also when rows are repeated
        self.prompt_ids = prompt.ids
        self.hidden_positions = prompt.positions - prompt.ids.shape[1]  # prompt positions that have no id
        self.fed = 0  # ids that the cache holds
        self.length = length
        self.steps: Steps | None = None
        self.ears: Any = None  # a context around each call of the model, for who reads its states
        self.cache = None
        if use_cache:
            self.cache = prompt.cache if prompt.cache is not None else self._new_cache(length)
            if prompt.cache is not None:
                if hasattr(self.cache, "bind"):
                    self.cache.bind(model, prompt.rows, length)
                self.fed = self.cache.length
        if self.cache is None and "inputs_embeds" in self.first:
            raise GenerationError(
                f"a prompt of inputs_embeds needs use_cache=True and a {type(model).__name__} with a cache"
            )
        self.mask = None
        if prompt.mask is not None:
            self.mask = prompt.mask.new_ones(prompt.rows, length)
            self.mask[:, : prompt.positions] = prompt.mask
        if (
            getattr(getattr(model, "head_spec", None), "from_zero", False)
            and "position_ids" not in self.first
        ):
            real = prompt.ids.new_ones(prompt.rows, prompt.positions) if prompt.mask is None else prompt.mask
            self.first["position_ids"] = (real.cumsum(-1) - 1).clamp(min=0)
        self.steady = {**prompt.steady, **{k: True for k, v in (flags or {}).items() if v}}
        self.steady |= {
            "return_dict": True,
            "use_cache": self.cache is not None,
            "past_key_values": self.cache,
        }
        self.steady = {k: v for k, v in self.steady.items() if self._takes(k) and v is not None}
        size = vocabulary_size(model)
        # a padding id that the embedding does not know stands only in the output
        self.foreign_pad = pad_id if pad_id < 0 or (size is not None and pad_id >= size) else None

    def __call__(self, ids: Tensor, keep: int = 1) -> Any:
        """The model's output for the ids (rows, length) it has not seen; logits of the last `keep` positions
        at least.
        """
        for part in self._parts(ids):
            self._feed(part, 1)
        return self._feed(ids, keep)

    def _parts(self, ids: Tensor) -> Iterator[Tensor]:
        """What of a long prompt is read before its last chunk; inputs that have no positions forbid it."""
        chunk, self.chunk = self.chunk, None  # new ids after the prompt come at once
        whole = set(self.first) - {"position_ids", "token_type_ids"}
        if chunk is None or self.cache is None or whole or self.hidden_positions:
            return
        first = {k: v[..., v.shape[-1] - (ids.shape[1] - self.fed) :] for k, v in self.first.items()}
        start = self.fed
        for end in range(start + chunk, ids.shape[1], chunk):
            self.first = {k: v[..., self.fed - start : end - start] for k, v in first.items()}
            yield ids[:, :end]
        self.first = {k: v[..., self.fed - start :] for k, v in first.items()}

    def _feed(self, ids: Tensor, keep: int) -> Any:
        inputs = {**self.steady, **self.first}
        if "inputs_embeds" not in inputs or self.prefix:
            fresh = ids[:, self.fed :]
            if self.foreign_pad is not None:
                fresh = fresh.masked_fill(fresh == self.foreign_pad, 0)
            inputs[f"{self.prefix}input_ids"] = fresh
            if self.fed and fresh.shape[1] > 1 and not self._fits(inputs, fresh.shape[1]):
                self._widen(inputs, fresh.shape[1])
        if self.mask is not None:
            reach = ids.shape[1] + self.hidden_positions
            if reach > self.mask.shape[1]:
                self.mask = nn.functional.pad(self.mask, (0, reach), value=1)
            inputs[f"{self.prefix}attention_mask"] = self.mask[:, :reach]
        if self._takes("logits_to_keep"):
            inputs["logits_to_keep"] = keep
        out = self._replayed(inputs)
        if out is None:
            with self.ears or nullcontext():
                out = self.model(**self.complete(inputs))
        if self.cache is not None:
            self.fed = ids.shape[1]
            self._after_first(inputs)
        else:
            self._grow(inputs)
        return out

    def capture(self, new: int, settings: CompileConfig | None = None) -> None:
        """Let steps of one new id a row be recorded where that works; `new` ids at most are to come.

        settings: let them be compiled so.
        """
        self.steps = steps_for(self.model, self.cache, self.length, new, settings)

    def close(self, keep: bool = True) -> None:
        """The call is over; `keep`: nobody has its memory, so that later calls may use it."""
        if self.steps is not None:
            self.steps.close(keep)

    def _replayed(self, inputs: dict[str, Any]) -> Any:
        """The output of a recorded step for one new id a row, or None where there is none."""
        ids = inputs.get("input_ids")
        if (
            self.steps is None
            or not self.fed
            or ids is None
            or ids.shape[1] != 1
            or inputs.keys() - _RECORDED
        ):
            return None
        logits = self.steps(ids, inputs.get("position_ids"), self.mask)
        if logits is None:
            return None
        head: Any = self.model.head_spec
        return head.output(logits=logits, past_key_values=self.cache)

    def logits(self, out: Any) -> Tensor:
        """Scores of the token after the last position (rows, vocabulary), in float32 at least."""
        return _precise(out.logits[:, -1])

    def scores(self, out: Any, count: int) -> Tensor:
        """Scores of the tokens after each of the last `count` positions (rows, count, vocabulary)."""
        return _precise(out.logits[:, -count:])

    def select(self, index: Tensor) -> None:
        """Go on with the rows `index` (repeats allowed): beams, several sequences for one prompt."""
        if self.cache is not None:
            self.cache.reorder(index)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, index)
        rows, self.rows = self.rows, len(index)
        self.steady = {
            k: v if v is self.cache else select_rows(v, index, rows) for k, v in self.steady.items()
        }
        self.first = select_rows(self.first, index, rows)

    def truncate(self, ids: int) -> None:
        """Forget all ids from number `ids` on (rejected drafts)."""
        if self.cache is not None:
            self.cache.truncate(ids + self.hidden_positions)
            name = f"{self.prefix}position_ids"
            if name in self.first:
                self.first[name] = self.first[name] - (self.fed - ids)
            self.fed = ids

    def _fits(self, inputs: dict[str, Any], count: int) -> bool:
        """Whether there is a position for each of `count` new ids already (chunks of a prompt)."""
        places = inputs.get(f"{self.prefix}position_ids")
        return places is not None and places.shape[-1] == count

    def _widen(self, inputs: dict[str, Any], count: int) -> None:
        """Inputs of one new position for `count` of them: the types stay, the positions go on."""
        types, name = inputs.get("token_type_ids"), f"{self.prefix}position_ids"
        if types is not None and types.shape[1] == 1:
            inputs["token_type_ids"] = types.expand(-1, count)
        if name in inputs and inputs[name].shape[-1] == 1:
            inputs[name] = inputs[name] + torch.arange(count, device=inputs[name].device)
        for row in ALONG_ROWS:
            if row in inputs and inputs[row].shape[1] == 1:
                inputs[row] = inputs[row].expand(-1, count, *inputs[row].shape[2:])

    def _takes(self, name: str) -> bool:
        return self.takes is None or name in self.takes

    def _new_cache(self, length: int) -> Any:
        if getattr(self.model, "new_cache", None) is None:
            return None
        return new_cache(self.model, *self.memory, self.rows, length)

    def _after_first(self, inputs: dict[str, Any]) -> None:
        """Keep of the first step's inputs only those that every position has: types and positions of the next
        token.
        """
        types, places = inputs.get("token_type_ids"), inputs.get(f"{self.prefix}position_ids")
        self.first = {}
        if types is not None:
            self.first["token_type_ids"] = types[:, -1:]
        if places is not None:
            self.first[f"{self.prefix}position_ids"] = places[..., -1:] + 1
        for name in ALONG_ROWS:
            if name in inputs:
                self.first[name] = inputs[name][:, -1:]

    def _grow(self, inputs: dict[str, Any]) -> None:
        """Without a cache all inputs are fed again, one position longer."""
        types, places = inputs.get("token_type_ids"), inputs.get(f"{self.prefix}position_ids")
        if types is not None:
            self.first["token_type_ids"] = torch.cat([types, types[:, -1:]], dim=1)
        if places is not None:
            self.first[f"{self.prefix}position_ids"] = torch.cat([places, places[..., -1:] + 1], dim=-1)
        for name in ALONG_ROWS:
            if name in inputs:
                self.first[name] = torch.cat([inputs[name], inputs[name][:, -1:]], dim=1)


def _precise(scores: Tensor) -> Tensor:
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()


def select_rows(value: Any, index: Tensor, rows: int) -> Any:
    """`value` with the rows `index` of every tensor in it that has `rows` rows."""
    if isinstance(value, Tensor):
        return value.index_select(0, index) if value.ndim and value.shape[0] == rows else value
    if isinstance(value, dict):
        changed = {k: select_rows(v, index, rows) for k, v in value.items()}
        if type(value) is dict:
            return changed
        result = copy.copy(value)
        for k, v in changed.items():
            result[k] = v
        return result
    if type(value) in (tuple, list):
        return type(value)(select_rows(v, index, rows) for v in value)
    return value
