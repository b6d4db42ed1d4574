"""The engine: one synchronous `step` that serves all requests, and the ways to wait for them."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import _copied
from phyla.blocks.flat import ALIKE, Pages, joined
from phyla.blocks.matmul import rows_alike
from phyla.errors import AdapterError, ArgumentError, GenerationError, QueueFull
from phyla.generation.config import GenerationConfig
from phyla.generation.engine.admit import paged_request
from phyla.generation.engine.asking import Asked, parted, read_whole
from phyla.generation.engine.captured import paged_steps
from phyla.generation.engine.feed import Feed, log, typed
from phyla.generation.engine.lanes import lane_request
from phyla.generation.engine.order import in_order
from phyla.generation.engine.pages import PagePool
from phyla.generation.engine.picking import keeps_state, pick, seed_of
from phyla.generation.engine.request import GenerationOutput, Handle, Row, Status, stopped
from phyla.generation.engine.room import enough_memory, paged_memory
from phyla.generation.engine.schedule import Scheduler
from phyla.generation.engine.setups import Apart, Setup, by_setup, groups_of, in_force, tokens_of
from phyla.generation.engine.teams import Beams, Guided, show
from phyla.generation.loop import generate
from phyla.generation.plan import context_length, merge_config
from phyla.generation.transcribe import transcribe


class Engine:
    """Serves many requests at once on one model: `submit`, then `step`, or wait for a handle.

    max_batch_tokens: tokens of one step. max_requests: texts that are written at once. page_size: positions a
    page. max_memory: bytes for keys and values (default: a quarter of the machine's, or what max_requests of
    the model's context need, if that is less). max_queue_size: requests that may wait; one more is a
    QueueFull. share_prefixes: equal beginnings of prompts are read and kept once. share_generated: what was
    generated is such a beginning, too (a dialogue that goes on): bits may then depend on who read it.

    Each text's tokens are those that it has alone, whatever else is served: in float32 on a CPU, to the bit,
    where all products go through phyla's own maps (docs/generation.md says which models that are).
    """

    def __init__(
        self, model: Any, *, max_batch_tokens: int = 256, max_requests: int = 64, page_size: int = 32,
        max_memory: int | None = None, max_queue_size: int | None = None, share_prefixes: bool = True,
        share_generated: bool = False,
    ) -> None:  # fmt: skip
        for name, value in (("max_batch_tokens", max_batch_tokens), ("max_requests", max_requests),
                            ("page_size", page_size), ("max_queue_size", max_queue_size)):  # fmt: skip
            if value is not None and value < 1:
                raise ArgumentError(f"{name} must be at least 1, but is {value}")
        if not getattr(model, "can_generate", lambda: False)():
            raise GenerationError(
                f"the engine needs a model that generates text from token ids, but {type(model).__name__} is "
                "none: load the checkpoint as AutoModelForCausalLM or AutoModelForSeq2SeqLM"
            )
        self.encoder = bool(getattr(model.config, "is_encoder_decoder", False))
        self.prefix = "decoder_" if self.encoder else ""
        model.pack()
        self.model, self.context = model, context_length(model.config)
        # None where every text has a call and a memory of its own
        self.cache = paged_memory(model, self.prefix, page_size, max_memory, max_requests, self.context)
        own = getattr(model.generate, "__func__", generate)
        if own not in (generate, transcribe) and own.__module__.startswith("phyla."):
            raise GenerationError(
                f"{type(model).__name__} generates in a way of its own (sound, several passages, a canvas), "
                "which has no single steps: call its generate"
            )
        count, paged, share, window = 1, False, False, None
        self.recorded = None
        if self.cache is not None:
            self.recorded = paged_steps(model, self.cache)
            count, window = self.cache.count, self.cache.window
            paged = any(isinstance(slot, Pages) for slot in self.cache.slots)
            share = share_prefixes and not self.cache.has_states
        self.pool = PagePool(count, page_size)
        self.scheduler = Scheduler(
            self.pool, max_batch_tokens, max_requests, share, paged, window, share and share_generated
        )
        self.max_queue_size, self.steps, self.tokens_read = max_queue_size, 0, 0
        self.lock = threading.RLock()
        self.submitted = 0
        self.open: set[Handle] = set()
        self.parted: set[frozenset[Setup]] = set()  # setups that do not go together in a step
        self.drafts: dict[Any, Any] = {}  # of requests that speculate, by model and settings

    def submit(
        self, prompt: Any = None, generation_config: GenerationConfig | None = None, *,
        seed: int | None = None, logits_processor: list | None = None, stopping_criteria: list | None = None,
        prefix_allowed_tokens_fn: Any = None, tokenizer: Any = None, grammar: Any = None,
        adapter_names: Any = None, assistant_model: Any = None, assistant_tokenizer: Any = None,
        assistant_adapter: str | None = None, candidate_generator: Any = None,
        negative_prompt_ids: Any = None, truncate: str | None = None, streamer: Any = None,
        use_model_defaults: bool | None = None, **settings: Any,
    ) -> Handle:  # fmt: skip
        """Take one request: a list of token ids, or a tensor (S) or (1, S); the rest as `generate` has it.

        settings: fields of GenerationConfig, and inputs of the model for this text (images, sound, vectors).
        adapter_names: an adapter, a composition or "__base__"; None keeps what is active now, to the end.
        streamer: is told by whoever runs the steps; an error of its own ends the request.
        Raises QueueFull where too many wait, and what `generate` raises for settings and prompts.
        """
        with self.lock:
            if not self.has_place():
                raise QueueFull(
                    f"at most {self.max_queue_size} requests may wait (max_queue_size), and as many do: step "
                    "the engine, or wait for a handle, before submitting more"
                )
            config = merge_config(self.model, generation_config, use_model_defaults)
            fields, named = parted(self.model, config, settings)
            config.update(**fields)
            config.validate()
            asked = Asked(
                prompt, generation_config, fields, named, config, seed_of(seed, config), logits_processor,
                stopping_criteria, prefix_allowed_tokens_fn, tokenizer, grammar, adapter_names,
                assistant_model, assistant_tokenizer, assistant_adapter, candidate_generator,
                negative_prompt_ids, truncate, use_model_defaults,
            )  # fmt: skip
            handle = self._begun(asked)
            self.submitted += 1
            handle.feed = None if streamer is None else Feed(streamer)
            self.open.add(handle)
            if handle.limit == 0:
                for number in range(len(handle.rows), config.num_return_sequences or 1):
                    handle.rows.append(replace(handle.rows[0], number=number))
                for row in handle.rows:
                    row.reason = "length"
                handle.status = Status.RUNNING  # a streamer is told the prompt
                self._end(handle, Status.FINISHED)
                return handle
            for row in [*handle.rows[:1], *handle.shadows]:
                if not row.told:
                    self.scheduler.add(row)
            return handle

    def _begun(self, asked: Asked) -> Handle:
        """A request in pages where it can stand there, else as a call of its own."""
        with enough_memory():
            if self.cache is not None:
                try:
                    return paged_request(self, asked)
                except Apart as reason:
                    log.debug("a request goes on by itself: %s", reason)
            return lane_request(self, asked)

    def step(self) -> list[Handle]:
        """Compute the next tokens of as many texts as fit; the handles that got one or ended."""
        with self.lock:
            self._guess()
            placed = self.scheduler.plan()
            lanes, told, broken = list(self.scheduler.lanes), dict[Handle, None](), None
            if not placed and not lanes:
                return []
            if placed:
                try:
                    logits, rows, broken = self._all(placed)
                    logits, rows = self._together(logits, rows, told)
                    logits, rows = self._forked(logits, rows)
                    self._choose(logits, rows, told)
                except BaseException as error:
                    self._break_off(placed, error)
                    raise
            for row in lanes:
                self._walk(row, told)
            for handle in told:
                self._stream(handle)
            self.steps += 1
            if broken is not None:
                raise broken
            return list(told)

    def _guess(self) -> None:
        """Let the drafts of rows that speculate propose candidates."""
        asked: dict[Any, list[Row]] = {}
        for row in self.scheduler.running:
            left = row.handle.limit - len(row.tokens) - 1
            if row.draft is not None and row.done >= row.fixed and row.pending and left > 0:
                asked.setdefault(row.draft, []).append(row)
        for draft, rows in asked.items():
            most = [row.handle.limit - len(row.tokens) - 1 for row in rows]
            try:
                found = draft.propose(rows, most)
            except Exception as error:
                for handle in {row.handle for row in rows}:
                    self._fail(handle, error, "a draft")
                continue
            for row, guess in zip(rows, found, strict=True):
                row.guess = guess

    def _fail(self, handle: Handle, error: Exception, what: str) -> None:
        """End a request for what the code of its caller did."""
        if not handle.finished:
            self._end(handle, Status.FAILED, typed(error, f"{what} of {handle.request_id}"))

    def _walk(self, row: Row, told: dict[Handle, None]) -> None:
        """Take a row with a call of its own a step further."""
        lane, handle = row.lane, row.handle
        if handle.finished:
            return
        told[handle] = None
        try:
            more = lane.step(self.model)
            if not handle.finished:  # what it runs may cancel it
                lane.tell(handle)
        except BaseException as error:
            if not isinstance(error, Exception):
                self._end(handle, Status.FAILED, error)
                raise
            self._fail(handle, error, "a step")
            return
        if handle.finished:
            return
        if handle.tokens:
            handle.mark_first()
        if not more:
            lane.finish(handle)
            self._end(handle, Status.FINISHED)

    def _stream(self, handle: Handle) -> None:
        """Tell the streamer of a request what is new."""
        if handle.feed is None or handle.finished or not handle.rows:
            return
        try:
            handle.feed.tell(handle)
        except Exception as error:
            self._fail(handle, error, "the streamer")

    def _move(self, row: Row) -> None:
        """Let a request that was begun in pages go on by itself: its model told so at the first step."""
        handle, asked = row.handle, row.handle.asked
        for own in [*handle.shadows, *handle.rows]:
            self._over(own)
        handle.shadows, handle.status = [], Status.WAITING
        try:
            with in_force(self.model, handle.setup):
                lane_request(self, asked, handle)
        except Exception as error:
            self._fail(handle, error, "the prompt")
            return
        self.scheduler.waiting.appendleft(handle.rows[0])

    def _break_off(self, placed: list, error: BaseException) -> None:
        """Undo what a step has begun for these; an error ends them, an interrupt those that it tore alone."""
        self.scheduler.undo([row for row, _ in placed])
        for row, _ in placed:
            torn = row.team is not None and row.team.torn
            if (torn or isinstance(error, Exception)) and not row.handle.finished:
                self._end(row.handle, Status.FAILED, error)

    def _all(self, placed: list) -> tuple[Tensor, list[Row], Exception | None]:
        """As `_run`, of all setups of adapters at once or each in turn, and the first error.

        An error ends the rows of its setup alone.
        """
        scores: list[Tensor] = []
        rows: list[Row] = []
        broken: Exception | None = None
        assert self.cache is not None
        with torch.inference_mode():
            for source, target in self.scheduler.copies:
                self.cache.copy_page(source, target)
        if self.cache.has_states:
            for row in {row for row, _ in placed if row.guess}:
                row.before = (row.done, _copied(row.text.states))
        groups = deque(groups_of(self.model, placed, self.cache.plain, self.parted))
        while groups:
            setup, group = groups.popleft()
            try:
                found, ended = self._apart(group, setup)
            except Exception as error:
                if setup.each and isinstance(error, AdapterError):
                    self.parted.add(frozenset(setup.each))
                    groups.extend(by_setup(group).items())
                    continue
                self._break_off(group, error)
                broken = broken or error
                continue
            scores.append(found)
            rows += ended
            for row, part in group:
                row.done = part.start + part.length
        return (torch.cat(scores) if scores else torch.empty(0, 0)), rows, broken

    def _apart(self, placed: list, setup: Setup) -> tuple[Tensor, list[Row]]:
        """As `_run`, with prompts that hold more than ids read one by one."""
        whole = [pair for pair in placed if pair[0].given is not None and pair[1].start == 0]
        if not whole:
            return self._run(placed, setup)
        scores, rows, moved = list[Tensor](), list[Row](), list[Row]()
        for row, part in whole:
            try:
                with torch.inference_mode(), rows_alike(), in_force(self.model, setup):
                    found = read_whole(self.model, row, self.cache, part.text)
            except Apart:
                moved.append(row)
                continue
            except Exception as error:
                self._break_off([(row, part)], error)
                continue
            self.tokens_read += part.length
            if part.length == len(row.ids):
                scores.append(found.float())
                rows.append(row)
        for row in moved:
            self._move(row)
        others = [pair for pair in placed if pair[0].given is None or pair[1].start]
        if others:
            found, ended = self._run(others, setup)
            scores.append(found)
            rows += ended
        return (torch.cat(scores) if scores else torch.empty(0, 0)), rows

    def _run(self, placed: list, setup: Setup) -> tuple[Tensor, list[Row]]:
        """Scores (rows, V) of the texts that have been read to their end, and those.

        A text with candidates behind its end comes once for each of them as well.
        """
        device = self.model.device
        assert self.cache is not None
        parts = joined([part for _, part in placed])
        placed = [(row, part) for (row, _), part in zip(placed, parts, strict=True)]
        ids = [i for row, part in placed for i in row.slice(part.start, part.start + part.length)]
        places = [p + row.shift for row, part in placed for p in range(part.start, part.start + part.length)]
        ended = [(row, part) for row, part in placed if part.start + part.length >= len(row.ids)]
        self.tokens_read += len(ids)
        tokens = tokens_of(setup, placed, device)
        with torch.inference_mode(), rows_alike(), in_force(self.model, setup, tokens):
            fill, none = [0] * (-len(ids) % ALIKE), -len(ended) % ALIKE
            watched = any(row.watched for row, _ in placed)
            if self.recorded is not None and tokens is None and not watched:
                scores = self.recorded(parts, ids, places)
                if scores is not None:  # a token of each
                    return scores[[part.begin for _, part in ended]], [row for row, _ in ended]
            self.cache.place(parts, device, len(fill))
            last = torch.tensor([part.end - 1 for _, part in ended] + [0] * none, device=device)
            inputs: dict[str, Any] = {
                f"{self.prefix}input_ids": torch.tensor([ids + fill], device=device),
                f"{self.prefix}position_ids": torch.tensor([places + fill], device=device),
            }
            if watched:
                inputs["output_hidden_states"] = True
            if self.encoder:
                inputs["encoder_outputs"] = (parts[0].text.memory,)
            out = self.model(
                **inputs, past_key_values=self.cache, use_cache=True, return_dict=True,
                logits_to_keep=last if len(ended) else 1,
            )  # fmt: skip
            if watched:
                show(placed, getattr(out, f"{self.prefix}hidden_states"))
            return out.logits[0, : len(ended)].float(), [row for row, _ in ended]

    def _together(
        self, logits: Tensor, rows: list[Row], told: dict[Handle, None]
    ) -> tuple[Tensor, list[Row]]:
        """What is left to choose from once rows that go on together have been served: beams choose here."""
        if all(row.team is None for row in rows):
            return logits, rows
        ready: list[Row] = []
        scores: list[Tensor] = []
        for row, own in zip(rows, logits, strict=True):
            team = row.team
            if team is None or (team.hold(row, own) and isinstance(team, Guided)):
                ready.append(row if team is None else team.row)
                scores.append(own if team is None else team.mixed())
            elif len(team.held) == len(team.rows):
                told[row.handle] = None
                self._follow(team)
        return (torch.stack(scores) if scores else logits[:0]), ready

    def _follow(self, team: Any) -> None:
        """Let the beams of a text, or its candidates, grow by a token, or end."""
        handle = team.handle
        try:
            with torch.no_grad():
                more = team.advance(self.scheduler)
        except Exception as error:
            self._fail(handle, error, "a processor or criterion")
            return
        if handle.finished:
            return
        if not more:
            handle.rows = team.outcome()
            self._end(handle, Status.FINISHED)
        elif handle.feed is not None and isinstance(team, Beams):
            try:
                handle.feed.settle(handle, team.state, team.settings.returned)
            except Exception as error:
                self._fail(handle, error, "the streamer")

    def _choose(self, logits: Tensor, rows: list[Row], told: dict[Handle, None]) -> None:
        """The next token of each row; with candidates, as many as are the row's own choice."""
        numbers: dict[Row, list[int]] = {}
        for number, row in enumerate(rows):
            numbers.setdefault(row, []).append(number)
        guesses = {row: row.guess[: len(own) - 1] for row, own in numbers.items() if row.guess}
        going, ahead = list(numbers), 0
        while going:
            at = [numbers[row][ahead] for row in going]
            chosen = pick(going, logits if len(at) == len(logits) else logits[at])
            self._deliver(going, chosen, told)
            going = [
                row for row, token in zip(going, chosen, strict=True)
                if len(guesses.get(row, ())) > ahead and guesses[row][ahead] == token and row.reason is None
            ]  # fmt: skip
            ahead += 1
        for row, guess in guesses.items():
            self._checked(row, guess)

    def _checked(self, row: Row, guess: list[int]) -> None:
        """Forget the candidates of a row that were not taken."""
        row.guess, before, row.before = [], row.before, None
        if row.reason is not None:
            return
        start = row.done - len(guess)  # of what the row has got now
        taken = sum(a == b for a, b in zip(guess, row.ids[start:], strict=False))
        matched = min(taken, len(row.ids) - start - 1)
        if row.draft is not None:
            try:
                row.draft.learn(row, len(guess), matched)
            except Exception as error:
                self._fail(row.handle, error, "a draft")
                return
        if matched < len(guess):
            if before is None:
                row.done = len(row.ids) - 1
            else:
                row.done, row.text.states = before

    def _deliver(self, rows: list[Row], chosen: list, told: dict[Handle, None]) -> None:
        for row, token in zip(rows, chosen, strict=True):
            handle = row.handle
            told[handle] = None
            if handle.finished:
                continue
            if isinstance(token, Exception):
                self._end(handle, Status.FAILED, token)
                continue
            handle.mark_first()
            row.ids.append(token)
            try:
                reason = stopped(row)
            except Exception as error:
                self._fail(handle, error, "a criterion")
                continue
            if handle.finished:  # what a caller brings may cancel
                continue
            row.reason = reason
            if row.reason is not None:
                self._over(row)
            if row.team is not None:
                row.team.follow(self.scheduler)
            if row.reason is not None and all(r.reason is not None for r in handle.rows):
                self._end(handle, Status.FINISHED)

    def _over(self, row: Row) -> None:
        """Give back the memory of a row that is done with."""
        self.scheduler.drop(row)
        if row.draft is not None:
            row.draft.forget(row)

    def _forked(self, logits: Tensor, rows: list[Row]) -> tuple[Tensor, list[Row]]:
        """With the other texts of each prompt that has just been read; they go on from the same pages."""
        index, grown = list(range(len(rows))), list(rows)
        for place, row in enumerate(rows):
            wanted = row.handle.config.num_return_sequences or 1
            for number in range(len(row.handle.rows), wanted):
                made = self.scheduler.forked(row, number)
                if row.team is not None:
                    row.team.forked(made, self.scheduler)
                row.handle.rows.append(made)
                try:
                    if keeps_state(row):
                        row.handle.prepare(made)
                except Exception as error:
                    self._fail(row.handle, error, "a processor")
                    break
                grown.append(made)
                index.append(place)
        return (logits if len(grown) == len(rows) else logits[index]), grown

    def _end(self, handle: Handle, status: Status, error: BaseException | None = None) -> None:
        if handle.feed is not None and error is None:
            try:
                handle.feed.end(handle)
            except Exception as raised:
                status = Status.FAILED
                error = typed(raised, f"the streamer of {handle.request_id}")
        handle.close(status, error)
        for row in [*handle.shadows, *handle.rows]:
            if row.reason is None:
                self._over(row)
        handle.rows = handle.rows or handle.shadows[:1]
        handle.shadows, handle.asked = [], None
        for row in handle.rows:
            row.reason = row.reason or ("cancelled" if status == Status.CANCELLED else "error")
        if handle.rows and handle.rows[0].lane is not None:
            self.scheduler.drop(handle.rows[0])
            handle.rows[0].lane.close()
        self.open.discard(handle)
        if handle.feed is not None and error is not None:
            handle.feed.fail(error)

    def cancel(self, handle: Handle) -> None:
        """Stop a request and free its memory; nothing where it is over."""
        with self.lock:
            if not handle.finished:
                self._end(handle, Status.CANCELLED)

    def advance(self, handle: Handle, seen: int | None = None) -> None:
        """One step, unless the handle is over or has more than `seen` tokens meanwhile."""
        with self.lock:
            if handle.finished or (seen is not None and len(handle.tokens) > seen):
                return
            count = len(self.open)
            try:
                moved = self.step()
            except Exception:
                if handle.error is None and len(self.open) < count:
                    return  # it has ended others, whose callers are told
                raise
            if not moved and self.scheduler.idle and not handle.finished:
                raise GenerationError(f"{handle.request_id} is not known to this engine: it was closed")

    def generate(
        self, prompts: Iterable[Any], generation_config: GenerationConfig | None = None, *,
        seeds: Sequence[int] | None = None, progress: bool = False, ahead: int | None = None,
        tokenizer: Any = None, **settings: Any,
    ) -> Iterator[GenerationOutput]:  # fmt: skip
        """Results of prompts, in their order, as soon as the first is there; endless iterables are fine.

        A prompt is a list of ids, or a dict of what `submit` takes for it alone (inputs, settings, adapters).

        ahead: prompts taken before the first of them is done (default: twice max_requests). progress: count
        them on stderr.
        """
        each = {"generation_config": generation_config, "tokenizer": tokenizer, **settings}
        return in_order(self, prompts, each, seeds, progress, ahead or 2 * self.scheduler.most_rows)

    def has_place(self) -> bool:
        """Whether one more request may wait."""
        return self.max_queue_size is None or len(self.scheduler.waiting) < self.max_queue_size

    async def stream(self, prompt: Any, *arguments: Any, **settings: Any) -> AsyncIterator[int]:
        """The tokens of one request (arguments as `submit`) as they come; several may run at once."""
        handle = self.submit(prompt, *arguments, **settings)
        sent = 0
        try:
            while True:
                while sent < len(handle.tokens):
                    sent += 1
                    yield handle.tokens[sent - 1]
                if handle.finished:
                    break
                await asyncio.to_thread(self.advance, handle, sent)
            if handle.error is not None:
                raise handle.error
        finally:
            self._leave(handle)

    def _leave(self, handle: Handle) -> None:
        """Cancel a request; where a step goes on, a thread waits for its end, not the caller's event loop."""
        if self.lock.acquire(blocking=False):
            try:
                self.cancel(handle)
            finally:
                self.lock.release()
        else:
            threading.Thread(target=self.cancel, args=(handle,), daemon=True).start()

    def close(self) -> None:
        """Cancel all requests and free the memory."""
        with self.lock:
            for handle in list(self.open):
                self.cancel(handle)
            self.pool.clear()
            if self.cache is not None:
                self.cache.drop()
            for draft in self.drafts.values():
                draft.engine.close()
            self.drafts.clear()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *about: Any) -> None:
        self.close()
