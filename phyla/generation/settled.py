"""Streaming from beams: what all candidates of a row share cannot change any more."""

from typing import Any

import torch


class SettledBeams:
    """Gives a streamer the tokens of each returned row (batch * returned) once they are settled, column by
    column.
    """

    def __init__(self, streamer: Any, batch: int, returned: int, pad_id: int):
        self.streamer, self.batch, self.returned, self.pad_id = streamer, batch, returned, pad_id
        self.given = 0  # columns
        self.over: set[int] = set()
        self.prefix: list[list[int]] = [[] for _ in range(batch)]
        self.final: list[list[list[int]] | None] = [None] * batch

    def candidates(self, row: int, texts: list[list[int]]) -> None:
        """Take note that a row will be, or begin with, one of these new tokens."""
        shared = []
        for column in zip(*texts, strict=False):
            if len(set(column)) > 1:
                break
            shared.append(column[0])
        self.prefix[row] = max(self.prefix[row], shared, key=len)

    def closed(self, row: int, texts: list[list[int]]) -> None:
        """Take note of the sequences of a row, best first."""
        if self.final[row] is None:
            self.final[row] = texts

    def flush(self) -> None:
        """Give what is settled in all rows."""
        lengths = [
            len(prefix) if final is None else None
            for prefix, final in zip(self.prefix, self.final, strict=True)
        ]
        open_lengths = [n for n in lengths if n is not None]
        whole = max((len(t) for final in self.final if final is not None for t in final), default=0)
        reach = min(open_lengths) if open_lengths else whole
        end_row = getattr(self.streamer, "end_row", None)
        while self.given < reach:
            column = []
            for prefix, final in zip(self.prefix, self.final, strict=True):
                for text in [prefix] * self.returned if final is None else final:
                    column.append(text[self.given] if self.given < len(text) else self.pad_id)
            self.streamer.put(torch.tensor(column))
            self.given += 1
            for row, final in enumerate(self.final):
                for i, text in enumerate(final or ()):
                    number = row * self.returned + i
                    if self.given >= len(text) and number not in self.over:
                        self.over.add(number)
                        if end_row is not None:
                            end_row(number)
