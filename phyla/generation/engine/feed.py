"""What the streamer of a request gets, and errors of code that a caller brings."""

import logging
from typing import Any

import torch

from phyla.errors import GenerationError, PhylaError
from phyla.generation.engine.request import Handle, Status
from phyla.generation.plan import pad_token
from phyla.generation.settled import SettledBeams

log = logging.getLogger("phyla.generation.engine")


class Feed:
    """Gives a streamer the prompt, then a token of every text of a request at a time, as `generate` does."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self.begun, self.given = False, 0  # columns
        self.over: set[int] = set()
        self.settled: SettledBeams | None = None
        self.closed = False  # what it is told may end the request

    def put(self, value: torch.Tensor) -> None:
        """Pass on a column of tokens (rows,)."""
        if not self.closed:
            self.streamer.put(value)

    def end_row(self, row: int) -> None:
        """Pass on that a row is finished."""
        pass_on = getattr(self.streamer, "end_row", None)
        if pass_on is not None and not self.closed:
            pass_on(row)

    def tell(self, handle: Handle) -> None:
        """Give what all texts have got."""
        self._begin(handle, len(handle.rows))
        if self.settled is not None:
            self.settled.closed(0, [row.tokens for row in handle.rows])
            self.settled.flush()
            return
        pad = pad_token(handle.config)
        while True:
            lengths = [len(row.ids) - row.fixed for row in handle.rows]
            at, pairs = self.given, list(zip(handle.rows, lengths, strict=True))
            waits = any(length <= at and row.reason is None for row, length in pairs)
            if waits or max(lengths, default=0) <= at:
                break
            column = [row.ids[row.fixed + at] if at < length else pad for row, length in pairs]
            self.given += 1
            self.put(torch.tensor(column))
            self._end_rows(handle, lengths)

    def settle(self, handle: Handle, state: Any, returned: int) -> None:
        """Give what no later step of a search over beams can change."""
        self._begin(handle, returned)
        if self.settled is None:
            self.settled = SettledBeams(self, 1, returned, pad_token(handle.config))
        state.tell(self.settled)
        self.settled.flush()

    def end(self, handle: Handle) -> None:
        """Give the rest, and the end."""
        if handle.rows and (handle.status == Status.RUNNING or self.begun):
            self.tell(handle)
        if not self.closed:
            self.closed = True
            self.streamer.end()

    def fail(self, error: BaseException) -> None:
        """It has failed; a streamer that knows no such thing gets the end."""
        self.closed = True
        try:
            fail = getattr(self.streamer, "fail", None)
            self.streamer.end() if fail is None else fail(error)
        except Exception:
            log.exception("a streamer failed while it was told of an error")

    def _begin(self, handle: Handle, rows: int) -> None:
        if not self.begun:
            self.begun = True
            self.put(torch.tensor([handle.prompt] * rows, dtype=torch.long))

    def _end_rows(self, handle: Handle, lengths: list[int]) -> None:
        for number, (row, length) in enumerate(zip(handle.rows, lengths, strict=True)):
            over = row.reason not in (None, "length")  # as generate, which ends all rows at the last column
            if over and length <= self.given and number not in self.over:
                self.over.add(number)
                self.end_row(number)


def typed(error: Exception, what: str) -> Exception:
    """An error of phyla's own for what the code of a caller raised."""
    if isinstance(error, PhylaError):
        return error
    made = GenerationError(f"{what} must not fail, but raised {type(error).__name__}: {error}")
    made.__cause__ = error
    return made
