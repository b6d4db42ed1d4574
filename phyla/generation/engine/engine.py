"""The engine: one synchronous `step` that serves all requests, and the ways to wait for them."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import _copied
from phyla.blocks.flat import ALIKE, FlatCache, Pages, joined
from phyla.blocks.matmul import rows_alike
from phyla.errors import AdapterError, ArgumentError, GenerationError, QueueFull
from phyla.generation.config import GenerationConfig
from phyla.generation.engine.asking import (
    draft_of,
    is_whole,
    negative_ids,
    parted,
    read_request,
    read_whole,
)
from phyla.generation.engine.captured import paged_steps
from phyla.generation.engine.pages import PagePool
from phyla.generation.engine.picking import check_settings, keeps_state, pick, prepare_row
from phyla.generation.engine.progress import Progress
from phyla.generation.engine.request import GenerationOutput, Handle, Row, Status, stopped
from phyla.generation.engine.room import machine_memory, page_bytes
from phyla.generation.engine.schedule import Scheduler
from phyla.generation.engine.setups import Setup, by_setup, in_force, together, tokens_of, with_setup
from phyla.generation.engine.teams import Beams, Guided, beam_settings, guide
from phyla.generation.plan import build_criteria, context_length, merge_config, new_token_limit
from phyla.generation.prompt import Prompt, accepted

_MOST_SHARE = 0.25  # of the machine's memory, unless max_memory says otherwise


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
                            ("page_size", page_size)):  # fmt: skip
            if value < 1:
                raise ArgumentError(f"{name} must be at least 1, but is {value}")
        takes = accepted(model.forward) or frozenset()
        self.encoder = bool(getattr(model.config, "is_encoder_decoder", False))
        self.prefix = "decoder_" if self.encoder else ""
        missing = {f"{self.prefix}position_ids", "past_key_values", "logits_to_keep"} - takes
        if not getattr(model, "can_generate", lambda: False)() or missing:
            raise GenerationError(
                f"the engine needs a model that generates text from token ids, with {sorted(missing)} among "
                f"its inputs, but {type(model).__name__} is not such: use generate"
            )
        model.pack()
        self.model, self.context = model, context_length(model.config)
        count = self._pages(page_size, max_memory, max_requests)
        self.cache = FlatCache(model, count, page_size)
        self.recorded = paged_steps(model, self.cache)
        self.pool = PagePool(count, page_size)
        paged = any(isinstance(slot, Pages) for slot in self.cache.slots)
        share = share_prefixes and not self.cache.has_states
        self.scheduler = Scheduler(
            self.pool, max_batch_tokens, max_requests, share, paged, self.cache.window,
            share and share_generated,
        )  # fmt: skip
        self.max_queue_size, self.steps, self.tokens_read = max_queue_size, 0, 0
        self.lock = threading.RLock()
        self.submitted = 0
        self.open: set[Handle] = set()
        self.parted: set[frozenset[Setup]] = set()  # setups that do not go together in a step
        self.drafts: dict[Any, Any] = {}  # of requests that speculate, by model and settings

    def _pages(self, size: int, most: int | None, rows: int) -> int:
        """How many pages the memory has room for."""
        each = page_bytes(self.model, size)
        if not each:
            return 1
        room = int(_MOST_SHARE * machine_memory()) if most is None else most
        count = room // each
        if self.context is not None and most is None:
            count = min(count, rows * -(-self.context // size))
        if count < 1:
            raise ArgumentError(f"max_memory must hold at least one page of {each} bytes, but is {most}")
        return count

    def submit(
        self, prompt: Any = None, generation_config: GenerationConfig | None = None, *,
        seed: int | None = None, logits_processor: list | None = None, stopping_criteria: list | None = None,
        prefix_allowed_tokens_fn: Any = None, tokenizer: Any = None, grammar: Any = None,
        adapter_names: Any = None, assistant_model: Any = None, assistant_adapter: str | None = None,
        candidate_generator: Any = None, negative_prompt_ids: Any = None, truncate: str | None = None,
        use_model_defaults: bool | None = None, **settings: Any,
    ) -> Handle:  # fmt: skip
        """Take one request: a list of token ids, or a tensor (S) or (1, S); the rest as `generate` has it.

        settings: fields of GenerationConfig, and inputs of the model for this text (images, sound, vectors).
        adapter_names: an adapter, a composition or "__base__"; None keeps what is active now, to the end.
        Raises QueueFull where too many wait, and what `generate` raises for settings and prompts.
        """
        with self.lock:
            if self.max_queue_size is not None and len(self.scheduler.waiting) >= self.max_queue_size:
                raise QueueFull(
                    f"at most {self.max_queue_size} requests may wait (max_queue_size), and as many do: step "
                    "the engine, or wait for a handle, before submitting more"
                )
            config = merge_config(self.model, generation_config, use_model_defaults)
            fields, named = parted(self.model, config, settings)
            config.update(**fields)
            config.validate()
            given = {*fields, *(generation_config._given if generation_config is not None else ())}
            guided = config.guidance_scale not in (None, 1)
            drafted = any(x is not None for x in (assistant_model, assistant_adapter, candidate_generator))
            check_settings(config, drafted, guided)
            setup, read = with_setup(
                self.model, adapter_names,
                lambda: read_request(
                    self.model, prompt, named, config, tokenizer, truncate, self.context
                ),
            )  # fmt: skip
            asked = any(fields.get(n) is not None for n in ("max_new_tokens", "max_length"))
            asked = asked or (generation_config is not None and generation_config.max_new_tokens is not None)
            limit = new_token_limit(config, read, self.context, asked)
            handle, row = self._begun(read, config, limit, setup)
            handle.criteria = build_criteria(config, stopping_criteria or [], tokenizer)
            if config.do_sample:
                row.generator = _generator(seed, self.model.device)
            handle.prepare = partial(
                prepare_row, self.model, custom=logits_processor or [], allowed=prefix_allowed_tokens_fn,
                grammar=grammar, tokenizer=tokenizer,
            )  # fmt: skip
            handle.prepare(row)
            row.draft = draft_of(self, config, given, assistant_model, assistant_adapter, candidate_generator)
            negative = negative_ids(config, row.ids, negative_prompt_ids, self.encoder)
            beams = beam_settings(config)
            self.submitted += 1
            if limit == 0:
                row.reason, handle.status = "length", Status.FINISHED
                handle.rows.append(row)
                return handle
            if beams is not None:
                Beams(row, beams, self.model.device)
                handle.shadows.append(row)
            else:
                handle.rows.append(row)
            self.open.add(handle)
            self.scheduler.add(row)
            if negative is not None:
                self._check_room(len(negative), limit)
                self.scheduler.add(guide(handle, row, negative, config.guidance_scale))
            return handle

    def _begun(self, read: Prompt, config: GenerationConfig, limit: int, setup: Setup) -> tuple[Handle, Row]:
        """A request and its row, which nobody knows yet."""
        ids: list[int] = read.ids[0].tolist()
        self._check_room(read.positions, limit)
        handle = Handle(self, self.submitted, ids, config, limit, setup)
        if self.encoder:
            handle.memory = read.steady["encoder_outputs"].last_hidden_state
            handle.source = None if read.source_ids is None else read.source_ids[0].tolist()
        else:  # a decoder alone, on the states of an encoder that the caller has
            handle.memory = read.first.get("encoder_hidden_states")
        hidden = read.positions - len(ids)
        row = Row(handle, 0, [0] * hidden + ids, read.positions, hidden=hidden)
        row.text.memory = handle.memory
        row.given = read if is_whole(read) else None
        return handle, row

    def _check_room(self, length: int, limit: int) -> None:
        needed = self.scheduler.span(length + limit)
        if self.scheduler.paged and needed > self.pool.count:
            raise GenerationError(
                f"the memory has {self.pool.count} pages of {self.pool.size} positions, but {length} ids of "
                f"the prompt and {limit} new ones need {needed}: raise max_memory or ask for fewer tokens"
            )

    def step(self) -> list[Handle]:
        """Compute the next tokens of as many texts as fit; the handles that got one or ended."""
        with self.lock:
            self._guess()
            placed = self.scheduler.plan()
            if not placed:
                return []
            try:
                logits, rows, broken = self._all(placed)
                told: dict[Handle, None] = {}
                logits, rows = self._together(logits, rows, told)
                logits, rows = self._forked(logits, rows)
                self._choose(logits, rows, told)
            except BaseException as error:
                self._break_off(placed, error)
                raise
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
            for row, guess in zip(rows, draft.propose(rows, most), strict=True):
                row.guess = guess

    def _break_off(self, placed: list, error: BaseException) -> None:
        """Undo what a step has begun for these; an error ends them, an interrupt lets them wait."""
        self.scheduler.undo([row for row, _ in placed])
        if isinstance(error, Exception):
            for handle in {row.handle for row, _ in placed}:
                self._end(handle, Status.FAILED, error)

    def _all(self, placed: list) -> tuple[Tensor, list[Row], Exception | None]:
        """As `_run`, of all setups of adapters at once or each in turn, and the first error.

        An error ends the rows of its setup alone.
        """
        scores: list[Tensor] = []
        rows: list[Row] = []
        broken: Exception | None = None
        with torch.inference_mode():
            for source, target in self.scheduler.copies:
                self.cache.copy_page(source, target)
        if self.cache.has_states:
            for row in {row for row, _ in placed if row.guess}:
                row.before = (row.done, _copied(row.text.states))
        groups = deque(self._groups(placed))
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

    def _groups(self, placed: list) -> list[tuple[Setup, list]]:
        """What stands in a step, by the setups that must run apart."""
        groups = by_setup(placed)
        if len(groups) == 1 or not self.cache.plain or frozenset(groups) in self.parted:
            return list(groups.items())
        if any(row.given is not None and not part.start for row, part in placed):
            return list(groups.items())
        joint = together(self.model, list(groups))
        if joint is None:
            return list(groups.items())
        return [(joint, [pair for group in groups.values() for pair in group])]

    def _apart(self, placed: list, setup: Setup) -> tuple[Tensor, list[Row]]:
        """As `_run`, with prompts that hold more than ids read one by one."""
        whole = [pair for pair in placed if pair[0].given is not None and pair[1].start == 0]
        if not whole:
            return self._run(placed, setup)
        scores, rows = [], []
        with torch.inference_mode(), rows_alike(), in_force(self.model, setup):
            for row, part in whole:
                found = read_whole(self.model, row, self.cache, part.text)
                self.tokens_read += part.length
                if part.length == len(row.ids):
                    scores.append(found.float())
                    rows.append(row)
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
        parts = joined([part for _, part in placed])
        placed = [(row, part) for (row, _), part in zip(placed, parts, strict=True)]
        ids = [i for row, part in placed for i in row.slice(part.start, part.start + part.length)]
        places = [p + row.shift for row, part in placed for p in range(part.start, part.start + part.length)]
        ended = [(row, part) for row, part in placed if part.start + part.length >= len(row.ids)]
        self.tokens_read += len(ids)
        tokens = tokens_of(setup, placed, device)
        with torch.inference_mode(), rows_alike(), in_force(self.model, setup, tokens):
            fill, none = [0] * (-len(ids) % ALIKE), -len(ended) % ALIKE
            if self.recorded is not None and tokens is None:
                scores = self.recorded(parts, ids, places)
                if scores is not None:  # a token of each
                    return scores[[part.begin for _, part in ended]], [row for row, _ in ended]
            self.cache.place(parts, device, len(fill))
            last = torch.tensor([part.end - 1 for _, part in ended] + [0] * none, device=device)
            inputs: dict[str, Any] = {
                f"{self.prefix}input_ids": torch.tensor([ids + fill], device=device),
                f"{self.prefix}position_ids": torch.tensor([places + fill], device=device),
            }
            if self.encoder:
                inputs["encoder_outputs"] = (parts[0].text.memory,)
            out = self.model(
                **inputs, past_key_values=self.cache, use_cache=True, return_dict=True,
                logits_to_keep=last if len(ended) else 1,
            )  # fmt: skip
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

    def _follow(self, team: Beams) -> None:
        """Let the beams of a text grow by a token, or end."""
        handle = team.handle
        handle.mark_first()
        try:
            with torch.no_grad():
                more = team.advance(self.scheduler)
        except Exception as error:
            self._end(handle, Status.FAILED, error)
            return
        if not more:
            handle.rows = team.outcome()
            self._end(handle, Status.FINISHED)

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
            row.draft.learn(row, len(guess), matched)
        if matched < len(guess):
            if before is None:
                row.done = len(row.ids) - 1
            else:
                row.done, row.text.states = before

    def _deliver(self, rows: list[Row], chosen: list, told: dict[Handle, None]) -> None:
        for row, token in zip(rows, chosen, strict=True):
            handle = row.handle
            told[handle] = None
            if isinstance(token, Exception):
                self._end(handle, Status.FAILED, token)
                continue
            if handle.finished:
                continue
            handle.mark_first()
            row.ids.append(token)
            row.reason = stopped(row)
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
                if keeps_state(row):
                    row.handle.prepare(made)
                row.handle.rows.append(made)
                grown.append(made)
                index.append(place)
        return (logits if len(grown) == len(rows) else logits[index]), grown

    def _end(self, handle: Handle, status: Status, error: BaseException | None = None) -> None:
        handle.close(status, error)
        for row in [*handle.shadows, *handle.rows]:
            if row.reason is None:
                self._over(row)
        handle.rows = handle.rows or handle.shadows[:1]
        handle.shadows = []
        for row in handle.rows:
            row.reason = row.reason or ("cancelled" if status == Status.CANCELLED else "error")
        self.open.discard(handle)

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
            if not moved and not self.scheduler.running and not self.scheduler.waiting:
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
        most = ahead or 2 * self.scheduler.most_rows
        source, waiting, bar = (
            enumerate(iter(prompts)),
            deque[Handle](),
            Progress(prompts) if progress else None,
        )
        more = True
        try:
            while True:
                while more and len(waiting) < most and self._has_place():
                    number, prompt = next(source, (0, None))
                    more = prompt is not None
                    if more:
                        seed = None if seeds is None else seeds[number]
                        inputs = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
                        waiting.append(self.submit(
                            generation_config=generation_config, seed=seed, tokenizer=tokenizer,
                            **inputs, **settings,
                        ))  # fmt: skip
                if not waiting:
                    return
                while waiting and waiting[0].finished:
                    handle = waiting.popleft()
                    if handle.error is not None:
                        raise handle.error
                    if bar is not None:
                        bar.update()
                    yield from handle.outputs()
                if waiting and not waiting[0].finished:
                    self.advance(waiting[0])
        finally:
            for handle in waiting:
                self.cancel(handle)
            if bar is not None:
                bar.close()

    def _has_place(self) -> bool:
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
            self.cancel(handle)

    def close(self) -> None:
        """Cancel all requests and free the memory."""
        with self.lock:
            for handle in list(self.open):
                self.cancel(handle)
            self.pool.clear()
            self.cache.drop()
            for draft in self.drafts.values():
                draft.engine.close()
            self.drafts.clear()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *about: Any) -> None:
        self.close()


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    """A row's own generator: without a seed from torch's global one, so that manual_seed repeats a run."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ArgumentError(f"seed must be an integer, but is {seed!r}")
    return torch.Generator(device).manual_seed(seed)
