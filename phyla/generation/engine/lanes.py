"""Texts with memory of their own: calls of `generate` that go on one step of the model at a time.

What has no place in pages (a strategy that looks at states, a model that reads a text as a whole, adapters
that look at rows) is right here too, beside the paged texts, but not faster than `generate`.
"""

from typing import Any

from torch import Tensor

from phyla.errors import ArgumentError
from phyla.generation.call import Call, begin
from phyla.generation.engine.admit import check_pages, pages_of
from phyla.generation.engine.asking import Asked, one_prompt
from phyla.generation.engine.request import Handle, Row
from phyla.generation.engine.setups import Setup, in_force, with_setup
from phyla.generation.prompt import main_input


class Told:
    """A streamer that keeps the tokens of each row of a call."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.over: set[int] = set()
        self.begun = False

    def put(self, value: Tensor) -> None:
        """The prompt (rows, length), then one token a row (rows,)."""
        if not self.begun:
            self.begun, self.rows = True, [[] for _ in range(len(value))]
            return
        for number, token in enumerate(value.tolist()):
            if number not in self.over:
                self.rows[number].append(token)

    def end_row(self, row: int) -> None:
        """What follows for a row is padding."""
        self.over.add(row)

    def end(self) -> None:
        """Nothing."""


class Lane:
    """One request's call: `step` takes it further. pages: how many of the engine's it stands for.

    They are held, so that the memory of all texts together stays within the engine's, but not written.
    """

    def __init__(self, call: Call, told: Told, setup: Setup, pages: int) -> None:
        self.call, self.told, self.setup, self.pages = call, told, setup, pages
        self.count = len(call.task.given) * (1 if call.beams is None else call.beams.returned)
        self.running = self.left = False

    def step(self, model: Any) -> bool:
        """One step of the model; whether there is more to come."""
        advance = self.call.advance
        self.running = True
        try:
            with self.call.mode(), in_force(model, self.setup, copied=True):
                if model._modules.get("adapters") is None:
                    return advance()
                return model._generate_with_adapters(lambda _: advance(), (), {})
        finally:
            self.running = False
            if self.left:
                self.close()

    def close(self) -> None:
        """Let go of the call's memory; nothing where that is done."""
        self.left = True
        # a processor may cancel the request that it serves, a streamer one that is ending
        if not self.running and hasattr(self, "call"):
            self.call.steps.close()
            del self.call

    def tell(self, handle: Handle) -> None:
        """Give the texts of the request what they have got, with its chances where these are kept."""
        record = self.call.task.record
        scores = record.scores if record is not None and self.call.beams is None else None
        for row, tokens in zip(handle.rows, self.told.rows, strict=False):
            row.ids += tokens[len(row.tokens) :]
            if row.number in self.told.over:
                row.reason = self._reason(row)
            while scores and len(row.logprobs) < min(len(scores), len(tokens)):
                step = len(row.logprobs)
                row.logprobs.append(float(scores[step][row.number].log_softmax(-1)[tokens[step]]))

    def _reason(self, row: Row) -> str:
        ends = self.call.task.eos
        if ends is not None and row.tokens and row.ids[-1] in ends.tolist():
            return "eos"
        return "length" if len(row.tokens) >= row.handle.limit else "stop"

    def finish(self, handle: Handle) -> None:
        """Say why each text ended, and keep what is asked back of its steps."""
        found, task = self.call.found, self.call.task
        for row in handle.rows:
            row.reason = self._reason(row)
            if self.call.beams is not None:
                row.score = float(found.scores[row.number])
            elif handle.keep and task.record is not None:
                both = (task.record.logits or (), task.record.scores or ())
                row.kept = [(a[row.number], b[row.number]) for a, b in zip(*both, strict=True)]


def lane_request(engine: Any, asked: Asked, handle: Handle | None = None) -> Handle:
    """A request as a call of its own; `handle` is that of one which was begun in pages.

    Raises what `generate` raises for settings and prompts.
    """
    model, told = engine.model, Told()
    prompt, inputs = one_prompt(model, asked.prompt, asked.named)
    if prompt is not None:
        inputs[main_input(model)] = prompt
    inputs |= asked.for_generate()
    setup, call = with_setup(
        model, asked.adapter_names, lambda **given: begin(model, streamer=told, **given), **inputs
    )
    texts = len(call.task.given) // call.task.repeats
    if texts != 1 and not getattr(setup.active, "children", ()):
        raise ArgumentError(f"a request must be one text, but its inputs have {texts} rows")
    ids: list[int] = call.task.given[0].tolist()
    positions, wide = call.forward.length, len(call.task.given) * (call.config.num_beams or 1)
    pages = wide * pages_of(engine, positions)
    check_pages(engine, pages, f"{positions} positions of {wide} rows")
    lane = Lane(call, told, setup, pages)
    if handle is None:
        handle = Handle(engine, engine.submitted, ids, call.config, call.task.limit, setup)
    handle.rows = [Row(handle, number, list(ids), len(ids)) for number in range(lane.count)]
    for row in handle.rows:
        row.lane = lane
    return handle
