"""Text while it is generated, for one row or many, with the public names.

A streamer gets the prompt (rows, length) and then each step's tokens (rows,) through `put`, and `end` at the
end.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from queue import Empty, Queue
from typing import Any

from phyla.errors import ArgumentError

_HALF = "\N{REPLACEMENT CHARACTER}"
_KEEP, _SHRINK_AT = (
    8,
    32,
)  # tokens of context for the decoder, and how many gather before older ones are let go


class BaseStreamer:
    """What `generate` tells a streamer."""

    def put(self, value: Any) -> None:
        """Take the prompt ids (rows, length) first, then the ids of each step (rows,), as a CPU tensor."""
        raise NotImplementedError(f"{type(self).__name__} must define put(value)")

    def end(self) -> None:
        """Take note that all rows are finished."""
        raise NotImplementedError(f"{type(self).__name__} must define end()")

    def end_row(self, row: int) -> None:
        """Take note that `row` is finished: what follows for it is padding."""

    def fail(self, error: BaseException) -> None:
        """Take note that generation stopped with an error, which its caller gets."""


class RowText(str):
    """A piece of text that knows the `row` of the batch it belongs to."""

    row: int = 0

    def __new__(cls, text: str, row: int = 0) -> "RowText":
        piece = super().__new__(cls, text)
        piece.row = row
        return piece


class SettledText:
    """The text of a growing list of tokens, given out as soon as later tokens cannot change it.

    Held back: the start of a character whose bytes have not all come and, where the tokenizer tidies spaces
    before punctuation, the last word.
    """

    def __init__(self, decode: Callable[[list[int]], str], tidies: bool = False):
        self.decode, self.tidies = decode, tidies
        self.ids: list[int] = []
        self.given = 0  # characters of decode(ids) that were given out

    def add(self, ids: list[int]) -> str:
        """The text that settled with these tokens, maybe empty."""
        self.ids += ids
        text = self.decode(self.ids)
        end = self._settled(text)
        piece = text[self.given : end]
        self.given = max(self.given, end)
        if len(self.ids) >= _SHRINK_AT:
            self._shrink(text)
        return piece

    def flush(self) -> str:
        """The rest, settled or not."""
        piece = self.decode(self.ids)[self.given :] if self.ids else ""
        self.ids, self.given = [], 0
        return piece

    def _settled(self, text: str) -> int:
        """How many characters of `text` no later token can change."""
        # an unfinished character has three bytes at most; more signs than that are really in the text
        whole = max(len(text.rstrip(_HALF)), len(text) - 3)
        if not self.tidies:
            return whole
        return max(text.rfind(" ", 0, whole), self.given)

    def _shrink(self, text: str) -> None:
        """Let go of old tokens if the rest decodes to the same end of the text, held back part included."""
        held = len(text) - self.given
        for keep in range(_KEEP, 2 * _KEEP):  # a cut inside a character or word is no good: try the next one
            tail = self.decode(self.ids[-keep:])
            if len(tail) > held and text.endswith(tail):
                self.ids, self.given = self.ids[-keep:], len(tail) - held
                return


class TextStreamer(BaseStreamer):
    """Print text as soon as it settles; of several rows, each line as it gets whole, with the row's number.

    `on_text(row, text, is_end)` takes the text instead of printing, for any number of rows. `skip_prompt`
    leaves out the prompt; further options go to `tokenizer.decode`. Subclasses override `on_finalized_text`
    (one row) or `on_row_text` (any number).
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False,
                 on_text: Callable[[int, str, bool], None] | None = None, **decode_kwargs: Any):  # fmt: skip
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.on_text = on_text
        self.decode_kwargs = decode_kwargs
        self._reset()

    def _reset(self) -> None:
        self.next_tokens_are_prompt = True
        self.texts: list[SettledText] = []
        self.open_rows: set[int] = set()
        self.lines: dict[int, str] = {}

    def put(self, value: Any) -> None:
        """Take prompt ids (rows, length) or (length,), then one id a row (rows,)."""
        rows = value.tolist()
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            rows = rows if value.ndim == 2 else [rows]
            self.texts = [SettledText(self._decode, self._tidies()) for _ in rows]
            self.open_rows = set(range(len(rows)))
            if self.skip_prompt:
                return
        elif len(rows) != len(self.texts):
            if len(self.texts) != 1:
                raise ArgumentError(
                    f"a step must bring one token for each of {len(self.texts)} rows, not {len(rows)}"
                )
            rows = [rows]  # several tokens at once for a single row
        for row in sorted(self.open_rows):
            ids = rows[row] if isinstance(rows[row], list) else [rows[row]]
            self._give(row, self.texts[row].add(ids), False)

    def end_row(self, row: int) -> None:
        """Give out the rest of one row of several; what is put for it afterwards is left out."""
        if len(self.texts) > 1 and row in self.open_rows:
            self.open_rows.discard(row)
            self._give(row, self.texts[row].flush(), True)

    def end(self) -> None:
        """Give out the rest of all rows."""
        for row in sorted(self.open_rows):
            self._give(row, self.texts[row].flush(), True)
        self._reset()

    def fail(self, error: BaseException) -> None:
        """Forget what was held back."""
        self._reset()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take the text of a single row."""
        sys.stdout.write(text + "\n" if stream_end else text)
        sys.stdout.flush()

    def on_row_text(self, row: int, text: str, stream_end: bool = False) -> None:
        """Take the text of one row of several: print the lines that are whole."""
        text = self.lines.pop(row, "") + text
        *whole, rest = text.split("\n")
        for line in [*whole, rest] if stream_end else whole:
            sys.stdout.write(f"[{row}] {line}\n")
        sys.stdout.flush()
        if not stream_end:
            self.lines[row] = rest

    def _give(self, row: int, text: str, stream_end: bool) -> None:
        if not text and not stream_end:
            return
        if self.on_text is not None:
            self.on_text(row, text, stream_end)
        elif len(self.texts) == 1:
            self.on_finalized_text(text, stream_end)
        else:
            self.on_row_text(row, text, stream_end)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, **self.decode_kwargs)

    def _tidies(self) -> bool:
        asked = self.decode_kwargs.get("clean_up_tokenization_spaces")
        return bool(
            getattr(self.tokenizer, "clean_up_tokenization_spaces", False) if asked is None else asked
        )


class TextDiffusionStreamer(TextStreamer):
    """Print text that is written from noise: what a block says at each step, as a draft in yellow that the
    next one takes the place of, and the block when it is finished.

    sleep_time: seconds to wait behind each draft. Subclasses override `on_draft_text`, or set `_takes_logits`
    to be given the scores (rows, C, V) as `logits` in place of ids. A terminal is needed for drafts to go.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, sleep_time: float | None = None,
        **decode_kwargs: Any,
    ):  # fmt: skip
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.sleep_time = sleep_time
        self._takes_logits = False
        self._has_draft = False

    def put_draft(self, value: Any = None, **others: Any) -> None:
        """Take the ids (rows, C) or (C,) of an unfinished block."""
        rows = value.tolist()
        rows = rows if value.ndim == 2 else [rows]
        self._clear_draft()
        self.on_draft_text([self._decode(ids) for ids in rows])
        if self.sleep_time is not None:
            time.sleep(self.sleep_time)

    def on_draft_text(self, texts: list[str]) -> None:
        """Take what each row of an unfinished block says."""
        lines = texts if len(texts) == 1 else [f"[{row}] {text}" for row, text in enumerate(texts)]
        # remember the place of the cursor, then write in yellow
        sys.stdout.write("\0337\033[33m" + "\n".join(lines) + "\033[0m")
        sys.stdout.flush()
        self._has_draft = True

    def put(self, value: Any) -> None:
        """Take the prompt, then finished blocks (rows, C), in place of the draft."""
        self._clear_draft()
        super().put(value)

    def end(self) -> None:
        """Give out the rest of all rows."""
        self._clear_draft()
        super().end()

    def fail(self, error: BaseException) -> None:
        """Forget the draft and what was held back."""
        self._clear_draft()
        super().fail(error)

    def _clear_draft(self) -> None:
        if self._has_draft:
            sys.stdout.write("\0338\033[J")  # back to the place of the cursor; nothing stays behind it
            sys.stdout.flush()
            self._has_draft = False


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


_END = object()


class TextIteratorStreamer(TextStreamer):
    """Text to iterate over in another thread than the one that generates.

    Pieces are `RowText`: strings with a `row`. Waiting longer than `timeout` seconds raises queue.Empty; an
    error in `generate` is raised here too, so that the reader does not wait for ever.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ):
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: Queue = Queue()
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue the text of a single row."""
        self.on_row_text(0, text, stream_end)

    def on_row_text(self, row: int, text: str, stream_end: bool = False) -> None:
        """Queue the text of one row."""
        if text:
            self.text_queue.put(RowText(text, row))

    def end(self) -> None:
        """Queue the rest and the end."""
        super().end()
        self.text_queue.put(_END)

    def fail(self, error: BaseException) -> None:
        """Queue the error."""
        super().fail(error)
        self.text_queue.put(_Failure(error))

    def __iter__(self) -> Iterator[RowText]:
        return self

    def __next__(self) -> RowText:
        try:
            value = self.text_queue.get(timeout=self.timeout)
        except Empty:
            raise Empty(f"no text came within {self.timeout} seconds") from None
        return _piece(value, StopIteration)


class AsyncTextIteratorStreamer(TextStreamer):
    """Text to iterate over with `async for` while another thread generates; made inside a running event loop.

    Pieces are `RowText`. Waiting longer than `timeout` seconds raises TimeoutError; an error in `generate` is
    raised here too.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ):
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: asyncio.Queue = asyncio.Queue()
        self.timeout = timeout
        self.loop = asyncio.get_running_loop()

    def _queue(self, value: Any) -> None:
        self.loop.call_soon_threadsafe(self.text_queue.put_nowait, value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue the text of a single row."""
        self.on_row_text(0, text, stream_end)

    def on_row_text(self, row: int, text: str, stream_end: bool = False) -> None:
        """Queue the text of one row."""
        if text:
            self._queue(RowText(text, row))

    def end(self) -> None:
        """Queue the rest and the end."""
        super().end()
        self._queue(_END)

    def fail(self, error: BaseException) -> None:
        """Queue the error."""
        super().fail(error)
        self._queue(_Failure(error))

    def __aiter__(self) -> AsyncIterator[RowText]:
        return self

    async def __anext__(self) -> RowText:
        try:
            value = await asyncio.wait_for(self.text_queue.get(), timeout=self.timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no text came within {self.timeout} seconds") from None
        return _piece(value, StopAsyncIteration)


def _piece(value: Any, end: type[Exception]) -> RowText:
    if value is _END:
        raise end
    if isinstance(value, _Failure):
        raise value.error
    return value
