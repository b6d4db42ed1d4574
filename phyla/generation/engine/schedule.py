"""Who takes part in the next step, with which tokens: a budget, pages that may run out, old before new."""

from collections import deque
from dataclasses import replace

import torch

from phyla.blocks.cache import _copied
from phyla.blocks.flat import GONE, Segment, Text, joined
from phyla.generation.engine.pages import PagePool, page_keys
from phyla.generation.engine.request import Row, Status


class Scheduler:
    """Rows that wait and rows that run; `plan` picks the segments of a step.

    A text grows by whole pages while its prompt is read, so that what a step computes for it depends on
    nothing but its own ids. When pages run out, the newest running row gives its own back and waits again;
    what it had generated is kept, and read anew as it was written: token by token.
    """

    def __init__(
        self, pool: PagePool, most_tokens: int, most_rows: int, share: bool, paged: bool,
        window: int | None = None, keep_generated: bool = False,
    ) -> None:  # fmt: skip
        self.pool, self.most_tokens, self.most_rows = pool, most_tokens, most_rows
        self.share, self.paged, self.window = share, paged, window
        self.keep_generated = keep_generated  # pages of generated tokens are known, too
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.lanes: list[Row] = []  # rows with a call of their own, which a step takes further one by one
        self.copies: list[tuple[int, int]] = []  # pages (from, to) to copy before the step
        self.fresh: list[int] = []  # pages that this step makes known
        self.preempted = 0
        self.shared = 0  # positions that were there already

    def add(self, row: Row) -> None:
        """Let a row wait for its turn."""
        if self.share and row.given is None and row.lane is None and row.watched != "text":
            row.keys = page_keys(row.handle.setup.root, row.ids[: row.fixed - 1], self.pool.size)
        self.waiting.append(row)

    def plan(self) -> list[tuple[Row, Segment]]:
        """The segments of the next step, in order of their tokens."""
        self.copies, self.fresh = [], []
        for row in self.running:
            self._slide(row)
        parts: list[tuple[Row, int, int]] = []
        budget = self.most_tokens
        for row in list(self.running):  # those that write first: they wait least
            if row.pending == 1 and budget and row in self.running and self._grow(row, 1, parts):
                parts.append((row, row.done, 1))
                budget -= 1
        for row in list(self.running):
            if row.pending > 1 and row in self.running:
                budget -= self._read(row, budget, parts)
        active = sum(not row.held for row in self.running)  # the others' memory can be taken
        active += sum(row.lane.count for row in self.lanes)
        while self.waiting and budget > 0 and active < self.most_rows:
            row = self.waiting[0]
            if row.lane is not None:
                if row.lane.pages > self.pool.available and (self.running or self.lanes):
                    break
                self._open(self.waiting.popleft())
                active, budget = active + row.lane.count, budget - row.fixed
                continue
            needed = self.span(row.pending) if self.paged else 0
            if active and needed > self.pool.available:
                break
            self.waiting.popleft()
            self._admit(row)
            active += 1
            budget -= self._read(row, budget, parts)
        return self._placed(parts)

    def span(self, length: int) -> int:
        """How many pages a text of that length has at once, at most."""
        size, pages = self.pool.size, -(-length // self.pool.size)
        if self.window is None:
            return pages
        return min(pages, -(-self.window // size) + -(-max(self.most_tokens, size) // size) + 1)

    def _slide(self, row: Row) -> None:
        """Give back the pages that no later position of a row sees."""
        if self.window is None:
            return
        pages = row.text.pages
        over = min(max(row.done - self.window + 1, 0) // self.pool.size, len(pages))
        while over and pages[over - 1] != GONE:
            over -= 1
            self.pool.release(pages[over])
            pages[over] = GONE

    def _open(self, row: Row) -> None:
        """Let a row with a call of its own begin; its pages stand for the memory that it takes elsewhere."""
        row.handle.status = Status.RUNNING
        row.text.pages = [self.pool.take() for _ in range(row.lane.pages)]
        self.lanes.append(row)

    def _admit(self, row: Row) -> None:
        row.handle.status = Status.RUNNING
        self.running.append(row)
        for key in row.keys:
            page = self.pool.find(key)
            if page is None:
                break
            row.text.pages.append(self.pool.share(page))
            row.done += self.pool.size
            row.named += 1
            self.shared += self.pool.size

    def _read(self, row: Row, budget: int, parts: list[tuple[Row, int, int]]) -> int:
        """Take what the budget allows of a row's unread ids; how many those are."""
        done, taken = row.done, 0
        end = row.done + row.pending
        while done < end:
            count = self._next(row, done)
            # a step is never empty: a page larger than the whole budget goes alone
            if count > budget - taken and (parts or taken) and not (row.given is not None and budget > 0):
                break
            if not self._grow(row, done + count - row.done, parts):
                break
            parts.append((row, done, count))
            done, taken = done + count, taken + count
            self._name(row, done)
        return taken

    def _next(self, row: Row, done: int) -> int:
        """How many ids from `done` on are read as one: to the end of the page, generated ones singly.

        What is no list of ids is read as a whole.
        """
        if done >= row.fixed:
            return 1
        if row.given is not None:
            return row.fixed
        return min(self.pool.size - done % self.pool.size, row.fixed - done)

    def _name(self, row: Row, done: int) -> None:
        while row.named < len(row.keys) and (row.named + 1) * self.pool.size <= done:
            page = row.text.pages[row.named]
            if self.pool.find(row.keys[row.named]) is None:
                self.pool.name(page, row.keys[row.named])
                self.fresh.append(page)
            row.named += 1

    def _grow(self, row: Row, count: int, parts: list[tuple[Row, int, int]]) -> bool:
        """Make room for `count` ids behind those that are done; False where the row lost its own turn."""
        if not self.paged:
            return True
        size, pages = self.pool.size, row.text.pages
        at = row.done // size
        if row.done % size and at < len(pages) and self.pool.owners[pages[at]] > 1:
            if not self._free_one(row, parts):
                return False
            copy = self.pool.take()  # others own it as well: write into a copy
            self.copies.append((pages[at], copy))
            self.pool.release(pages[at])
            pages[at] = copy
        while len(pages) * size < row.done + count:
            if not self._free_one(row, parts):
                return False
            pages.append(self.pool.take())
        return True

    def _free_one(self, row: Row, parts: list[tuple[Row, int, int]]) -> bool:
        """See to a free page, by sending away the newest row that is not in this step, else this one."""
        while not self.pool.available:
            busy = {id(other) for other, _, _ in parts}
            others = [r for r in self.running if id(r) not in busy and r is not row]
            idle = [r for r in others if r.held and r.text.pages]
            if idle:  # their scores are known: they need their memory last
                self.preempt(idle[-1])
                continue
            newer = others and self.running.index(others[-1]) > self.running.index(row)
            if not newer:
                if id(row) not in busy and len(self.running) > 1:
                    self.preempt(row)
                return False
            self.preempt(others[-1])
        return True

    def preempt(self, row: Row) -> None:
        """Take a row's memory; it waits before all others, or, where it is held, for `resume`."""
        self.release(row)
        self.running.remove(row)
        if not row.held:
            self.waiting.appendleft(row)
        self.preempted += 1

    def resume(self, row: Row) -> None:
        """Let a row that was held go on."""
        row.held = False
        if row not in self.running and row not in self.waiting:
            self.waiting.appendleft(row)

    def release(self, row: Row) -> None:
        """Give a row's memory back."""
        for page in row.text.pages:
            if page != GONE:
                self.pool.release(page)
        row.text = Text(memory=row.handle.memory)
        row.done = row.named = 0
        row.guess = []

    def undo(self, rows: list[Row]) -> None:
        """A step of these rows that broke off made no page known, and left states that nobody knows."""
        for row in rows:
            if row in self.running:
                self.preempt(row)
        for page in self.fresh:
            self.pool.forget(page)
            if page in self.pool.idle:
                del self.pool.idle[page]
                self.pool.free.append(page)
        self.fresh = []

    def forked(self, row: Row, number: int) -> Row:
        """Another text from the same ids: it shares the pages until one of them writes."""
        pages = [page if page == GONE else self.pool.share(page) for page in row.text.pages]
        text = Text(pages, row.text.memory)
        text.states = {slot: _copied(kept) for slot, kept in row.text.states.items()}
        text.crossed = dict(row.text.crossed)
        made = replace(row, number=number, ids=list(row.ids), text=text, logprobs=list(row.logprobs))
        made.kept = list(row.kept)
        made.guess, made.keys = [], list(row.keys)
        if row.generator is not None and number != row.number:
            made.generator = torch.Generator(row.generator.device)
            made.generator.manual_seed(row.generator.initial_seed() + number)
        if row in self.running:
            self.running.append(made)
        elif not row.held:
            self.waiting.appendleft(made)
        return made

    def drop(self, row: Row) -> None:
        """A row that is over, or given up."""
        for rows in (self.running, self.lanes, self.waiting):
            if row in rows:
                rows.remove(row)
                break
        if self.keep_generated and row.given is None and not row.held and row.lane is None:
            self._name_all(row)
        self.release(row)

    def _name_all(self, row: Row) -> None:
        """Make all full pages of a row known."""
        whole = row.ids[: min(row.done, len(row.ids) - 1)]
        keys = page_keys(row.handle.setup.root, whole, self.pool.size)
        for page, key in zip(row.text.pages, keys, strict=False):
            if page != GONE:
                self.pool.name(page, key)

    def _placed(self, parts: list[tuple[Row, int, int]]) -> list[tuple[Row, Segment]]:
        segments = joined([Segment(row.text, 0, count, start) for row, start, count in parts])
        return [(row, part) for (row, _, _), part in zip(parts, segments, strict=True)]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.running or self.lanes or self.waiting)
