"""The engine: one synchronous `step` that serves all requests, and the ways to wait for them."""

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.flat import ALIKE, FlatCache, Pages, joined
from phyla.blocks.matmul import rows_alike
from phyla.errors import ArgumentError, GenerationError, QueueFull
from phyla.generation.config import GenerationConfig
from phyla.generation.engine.pages import PagePool
from phyla.generation.engine.picking import check_names, check_settings, pick, prepare_row
from phyla.generation.engine.request import GenerationOutput, Handle, Row, Status, stopped
from phyla.generation.engine.schedule import Scheduler
from phyla.generation.engine.setups import Setup, by_setup, in_force, with_setup
from phyla.generation.plan import build_criteria, context_length, merge_config, new_token_limit
from phyla.generation.prompt import Prompt, accepted, read_prompt

_MOST_SHARE = 0.25  # of the machine's memory, unless max_memory says otherwise


class Engine:
    """Serves many requests at once on one model: `submit`, then `step`, or wait for a handle.

    max_batch_tokens: tokens of one step. max_requests: texts that are written at once. page_size: positions a
    page. max_memory: bytes for keys and values (default: a quarter of the machine's, or what max_requests of
    the model's context need, if that is less). max_queue_size: requests that may wait; one more is a
    QueueFull. share_prefixes: equal beginnings of prompts are read and kept once.

    Each text's tokens are those that it has alone, whatever else is served: in float32 on a CPU, to the bit,
    where all products go through phyla's own maps (docs/generation.md says which models that are).
    """

    def __init__(
        self, model: Any, *, max_batch_tokens: int = 256, max_requests: int = 64, page_size: int = 32,
        max_memory: int | None = None, max_queue_size: int | None = None, share_prefixes: bool = True,
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
        self.pool = PagePool(count, page_size)
        paged = any(isinstance(slot, Pages) for slot in self.cache.slots)
        share = share_prefixes and not self.cache.has_states
        self.scheduler = Scheduler(self.pool, max_batch_tokens, max_requests, share, paged, self.cache.window)
        self.max_queue_size, self.steps, self.tokens_read = max_queue_size, 0, 0
        self.lock = threading.RLock()
        self.submitted = 0
        self.open: set[Handle] = set()

    def _pages(self, size: int, most: int | None, rows: int) -> int:
        """How many pages the memory has room for."""
        probe = FlatCache(self.model, 1, size)
        each = 0
        for module in self.model.modules():
            slot = getattr(module, "slot", -1)
            if slot >= 0 and isinstance(probe.slots[slot], Pages):
                each += 2 * module.num_kv_heads * module.head_width * size * self.model.dtype.itemsize
        if not each:
            return 1
        room = int(_MOST_SHARE * _machine_memory()) if most is None else most
        count = room // each
        if self.context is not None and most is None:
            count = min(count, rows * -(-self.context // size))
        if count < 1:
            raise ArgumentError(f"max_memory must hold at least one page of {each} bytes, but is {most}")
        return count

    def submit(
        self, prompt: Any, generation_config: GenerationConfig | None = None, *,
        seed: int | None = None, logits_processor: list | None = None, stopping_criteria: list | None = None,
        prefix_allowed_tokens_fn: Any = None, tokenizer: Any = None, grammar: Any = None,
        adapter_names: Any = None, **settings: Any,
    ) -> Handle:  # fmt: skip
        """Take one request: a list of token ids, or a tensor (S) or (1, S); the rest as `generate` has it.

        adapter_names: an adapter, a composition or "__base__"; None keeps what is active now, to the end.
        Raises QueueFull where too many wait, and what `generate` raises for settings and prompts.
        """
        with self.lock:
            if self.max_queue_size is not None and len(self.scheduler.waiting) >= self.max_queue_size:
                raise QueueFull(
                    f"at most {self.max_queue_size} requests may wait (max_queue_size), and as many do: step "
                    "the engine, or wait for a handle, before submitting more"
                )
            config = merge_config(self.model, generation_config, None)
            check_names(settings)
            config.update(**settings)
            config.validate()
            check_settings(config)
            setup, read = with_setup(self.model, adapter_names, prompt, lambda: self._read(prompt, config))
            ids: list[int] = read.ids[0].tolist()
            given = any(settings.get(n) is not None for n in ("max_new_tokens", "max_length"))
            given = given or (generation_config is not None and generation_config.max_new_tokens is not None)
            limit = new_token_limit(config, read, self.context, given)
            self._check_room(len(ids), limit)
            handle = Handle(self, self.submitted, ids, config, limit, setup)
            if self.encoder:
                handle.memory = read.steady["encoder_outputs"].last_hidden_state
            handle.criteria = build_criteria(config, stopping_criteria or [], tokenizer)
            row = Row(handle, 0, list(ids), len(ids))
            row.text.memory = handle.memory
            if config.do_sample:
                row.generator = _generator(seed, self.model.device)
            prepare_row(self.model, row, logits_processor or [], prefix_allowed_tokens_fn, grammar, tokenizer)
            handle.rows.append(row)
            self.submitted += 1
            if limit == 0:
                row.reason, handle.status = "length", Status.FINISHED
                return handle
            self.open.add(handle)
            self.scheduler.add(row)
            return handle

    def _read(self, prompt: Any, config: GenerationConfig) -> Prompt:
        ids = prompt if isinstance(prompt, Tensor) else torch.as_tensor(prompt)
        ids = ids[None] if ids.dim() == 1 else ids
        if ids.dim() != 2 or len(ids) != 1:
            raise ArgumentError(f"a prompt must be one list of token ids, but has shape {tuple(ids.shape)}")
        mask = torch.ones_like(ids)  # one text has no padding, whatever its ids
        with torch.no_grad():
            return read_prompt(self.model, ids, {"attention_mask": mask}, config)

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
            placed = self.scheduler.plan()
            if not placed:
                return []
            try:
                logits, rows, broken = self._all(placed)
                logits, rows = self._forked(logits, rows)
                chosen = pick(rows, logits) if rows else []
            except BaseException as error:
                self._break_off(placed, error)
                raise
            self.steps += 1
            told = self._deliver(rows, chosen)
            if broken is not None:
                raise broken
            return told

    def _break_off(self, placed: list, error: BaseException) -> None:
        """Undo what a step has begun for these; an error ends them, an interrupt lets them wait."""
        self.scheduler.undo([row for row, _ in placed])
        if isinstance(error, Exception):
            for handle in {row.handle for row, _ in placed}:
                self._end(handle, Status.FAILED, error)

    def _all(self, placed: list) -> tuple[Tensor, list[Row], Exception | None]:
        """As `_run`, of each setup of adapters in turn, and the first error; it ends that setup's alone."""
        scores: list[Tensor] = []
        rows: list[Row] = []
        broken: Exception | None = None
        with torch.inference_mode():
            for source, target in self.scheduler.copies:
                self.cache.copy_page(source, target)
        for setup, group in by_setup(placed).items():
            try:
                found, ended = self._run(group, setup)
            except Exception as error:
                self._break_off(group, error)
                broken = broken or error
                continue
            scores.append(found)
            rows += ended
            for row, part in group:
                row.done = part.start + part.length
        return (torch.cat(scores) if scores else torch.empty(0, 0)), rows, broken

    def _run(self, placed: list, setup: Setup) -> tuple[Tensor, list[Row]]:
        """Scores (rows, V) of the texts that have been read to their end, and those."""
        device = self.model.device
        parts = joined([part for _, part in placed])
        placed = [(row, part) for (row, _), part in zip(placed, parts, strict=True)]
        ids = [i for row, part in placed for i in row.ids[part.start : part.start + part.length]]
        places = [p for part in parts for p in range(part.start, part.start + part.length)]
        ended = [(row, part) for row, part in placed if part.start + part.length == len(row.ids)]
        self.tokens_read += len(ids)
        with torch.inference_mode(), rows_alike(), in_force(self.model, setup):
            fill, none = [0] * (-len(ids) % ALIKE), -len(ended) % ALIKE
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

    def _deliver(self, rows: list[Row], chosen: list) -> list[Handle]:
        told: dict[Handle, None] = {}
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
                self.scheduler.drop(row)
                if all(r.reason is not None for r in handle.rows):
                    self._end(handle, Status.FINISHED)
        return list(told)

    def _forked(self, logits: Tensor, rows: list[Row]) -> tuple[Tensor, list[Row]]:
        """With the other texts of each prompt that has just been read; they go on from the same pages."""
        index, grown = list(range(len(rows))), list(rows)
        for place, row in enumerate(rows):
            wanted = row.handle.config.num_return_sequences or 1
            for number in range(len(row.handle.rows), wanted):
                made = self.scheduler.forked(row, number)
                row.handle.rows.append(made)
                grown.append(made)
                index.append(place)
        return (logits if len(grown) == len(rows) else logits[index]), grown

    def _end(self, handle: Handle, status: Status, error: BaseException | None = None) -> None:
        handle.close(status, error)
        for row in handle.rows:
            if row in self.scheduler.running or row in self.scheduler.waiting:
                self.scheduler.drop(row)
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
                        waiting.append(self.submit(
                            prompt, generation_config, seed=seed, tokenizer=tokenizer, **settings
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


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


class Progress:
    """Counts results on stderr, in one line."""

    def __init__(self, prompts: Any) -> None:
        self.total = f" of {len(prompts)}" if hasattr(prompts, "__len__") else ""
        self.count = 0

    def update(self) -> None:
        """One more is there."""
        self.count += 1
        sys.stderr.write(f"\r{self.count}{self.total} done")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        sys.stderr.write("\n")
