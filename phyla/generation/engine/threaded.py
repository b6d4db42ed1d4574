"""The engine behind a thread, under the public names of continuous batching."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from phyla.errors import GenerationError
from phyla.generation.config import CompileConfig, GenerationConfig
from phyla.generation.engine.engine import Engine
from phyla.generation.engine.request import GenerationOutput, Handle, Status
from phyla.generation.engine.room import machine_memory, page_bytes


@dataclass
class ContinuousBatchingConfig:
    """Settings of the engine under their public names.

    page_size, num_blocks (pages), max_batch_tokens, max_memory_percent (a part of the machine's),
    max_requests_per_batch, allow_block_sharing, max_queue_size (0: any number), return_logprobs and seed take
    effect. The others say how the public engine pads, compiles and schedules: they are read and kept.
    """

    page_size: int = 32
    num_blocks: int | None = None
    max_batch_tokens: int | None = None
    max_memory_percent: float | None = None
    max_requests_per_batch: int | None = None
    max_blocks_per_request: int | None = None
    allow_block_sharing: bool = True
    use_async_batching: bool | None = None
    use_cuda_graph: Any = None
    q_padding_interval_size: int = 0
    kv_padding_interval_size: int = 0
    varlen_compile_config: CompileConfig | None = None
    decode_compile_config: CompileConfig | None = None
    default_compile_level: int = 0
    scheduler_type: str = "fifo"
    safety_margin: float | None = None
    return_logprobs: bool = False
    seed: int | None = None
    auto_switch_to_flash: bool = True
    cpu_offload_space: float = 0.0
    cpu_offload_space_safety_threshold: float = 0.8
    max_queue_size: int = 0
    per_request_processors: bool = True
    drop_unsupported_processors: bool = False
    disable_nccl_graph_mixing: bool = True
    cpu_group_timeout: float = 300.0

    def settings(self, model: Any) -> dict[str, Any]:
        """The arguments of an Engine."""
        named = {"max_batch_tokens": self.max_batch_tokens, "max_requests": self.max_requests_per_batch}
        found: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        found |= {"page_size": self.page_size, "share_prefixes": self.allow_block_sharing}
        if self.num_blocks is not None:
            found["max_memory"] = self.num_blocks * max(page_bytes(model, self.page_size), 1)
        elif self.max_memory_percent is not None:
            found["max_memory"] = int(self.max_memory_percent * machine_memory())
        return found


class ThreadedEngine:
    """Requests of any thread to one engine, which a thread of its own steps while there are any."""

    def __init__(
        self, model: Any, generation_config: GenerationConfig | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
    ) -> None:  # fmt: skip
        self.model, self.generation_config = model, generation_config
        self.continuous_batching_config = continuous_batching_config or ContinuousBatchingConfig()
        most = self.continuous_batching_config.max_queue_size or None
        settings = self.continuous_batching_config.settings(model)
        self.engine = Engine(model, max_queue_size=most, **settings)
        self.results: queue.Queue[GenerationOutput] = queue.Queue()
        self.handlers: dict[str, tuple[Callable[[GenerationOutput], Any], Any]] = {}
        self.handles: dict[str, Handle] = {}
        self.streamed: dict[str, int] = {}
        self.counter, self.changed, self.stopping = 0, threading.Condition(), False
        self.thread: threading.Thread | None = None

    def is_running(self) -> bool:
        """Whether its thread runs."""
        return self.thread is not None and self.thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        if not self.is_running():
            self.stopping = False
            self.thread = threading.Thread(target=self._run, name="phyla-engine", daemon=True)
            self.thread.start()

    def stop(
        self, block: bool = True, timeout: float | None = None, keep_for_next_session: bool = False,
        hard_stop: bool = False,
    ) -> None:  # fmt: skip
        """End the thread once all requests are done, or at once with `hard_stop`, which cancels them."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        if hard_stop:
            for name in list(self.handles):
                self.cancel_request(name)
        if block and self.thread is not None:
            self.thread.join(timeout)
        self.model.__dict__["_continuous_batching"] = self if keep_for_next_session else None

    def destroy(self) -> None:
        """Give all memory back."""
        self.engine.close()

    def warmup(self) -> None:
        """Nothing: a first step is as fast as the others."""

    def add_request(
        self, input_ids: Any, request_id: str | None = None, max_new_tokens: int | None = None,
        streaming: bool = False, record_timestamps: bool = False, eos_token_id: Any = None, **settings: Any,
    ) -> str:  # fmt: skip
        """Take a request (`settings` as `Engine.submit`); its id.

        streaming: there is a result for each token, with all that came before it. Raises QueueFull where too
        many wait, GenerationError after `stop`.
        """
        given = {"max_new_tokens": max_new_tokens, "eos_token_id": eos_token_id, **settings}
        given = {name: value for name, value in given.items() if value is not None}
        if self.continuous_batching_config.return_logprobs:
            given["output_scores"] = True
        with self.changed:
            if self.stopping:
                raise GenerationError("the manager was stopped and takes no more requests: start it again")
            number, self.counter = self.counter, self.counter + 1
            name = f"req_{number}" if request_id is None else request_id
            if name in self.handles:
                raise GenerationError(f"request_id must be new, but {name!r} is running")
            if self.continuous_batching_config.seed is not None:
                given.setdefault("seed", self.continuous_batching_config.seed + number)
            handle = self.engine.submit(input_ids, self.generation_config, **given)
            handle.request_id = name
            self.handles[name] = handle
            if streaming:
                self.streamed[name] = 0
            self.changed.notify_all()
        return name

    def add_requests(
        self, inputs: Any, max_new_tokens: int | None = None, streaming: bool = False,
        record_timestamps: bool = False, **settings: Any,
    ) -> list[str]:  # fmt: skip
        """As `add_request`, of several prompts; their ids in order."""
        return [
            self.add_request(ids, None, max_new_tokens, streaming, record_timestamps, **settings)
            for ids in inputs
        ]

    def cancel_request(self, request_id: str) -> None:
        """Stop a request; what it has is its result."""
        handle = self.handles.get(request_id)
        if handle is not None:
            handle.cancel()
            with self.changed:
                self.changed.notify_all()

    def get_result(
        self, request_id: str | None = None, timeout: float | None = None
    ) -> GenerationOutput | None:
        """The next result, or None where none came in `timeout` seconds, or it is of another request."""
        if self.results.empty() and not self.is_running():
            return None
        try:
            found = self.results.get(timeout=timeout)
        except queue.Empty:
            return None
        if request_id is not None and found.request_id != request_id:
            self.results.put(found)
            return None
        return found

    def __iter__(self) -> Iterator[GenerationOutput]:
        """Results as they come, until the thread ends."""
        while self.is_running() or not self.results.empty():
            found = self.get_result(timeout=0.1)
            if found is not None:
                yield found

    def request_id_iter(self, request_id: str) -> Iterator[GenerationOutput]:
        """Results of one request, until it is over."""
        while self.is_running() or not self.results.empty():
            found = self.get_result(request_id, timeout=0.1)
            if found is not None:
                yield found
                if found.status not in (Status.WAITING, Status.RUNNING):
                    return

    def register_result_handler(self, request_id: str, callback: Callable[[GenerationOutput], Any]) -> None:
        """Call back with each result of a request, on the event loop that runs."""
        with self.changed:
            self.handlers[request_id] = (callback, asyncio.get_running_loop())

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self.handles and not self.stopping:
                    self.changed.wait()
                if not self.handles:
                    return
            try:
                self.engine.step()
            except Exception:
                # the requests of a step that failed say so; where none has ended, the next would fail too
                if not any(handle.finished for handle in list(self.handles.values())):
                    for handle in list(self.handles.values()):
                        handle.cancel()
            self._tell()

    def _tell(self) -> None:
        """Pass on what is new."""
        for name, handle in list(self.handles.items()):
            over, sent = handle.finished, self.streamed.get(name)
            if over or (sent is not None and len(handle.tokens) > sent):
                for output in handle.outputs():
                    self._give(name, output, over)
            if over:
                with self.changed:
                    del self.handles[name]
                    self.handlers.pop(name, None)
                    self.streamed.pop(name, None)
            elif sent is not None:
                self.streamed[name] = len(handle.tokens)

    def _give(self, name: str, output: GenerationOutput, over: bool) -> None:
        output.finish_reason = output.finish_reason if over else ""
        handler = self.handlers.get(name)
        if handler is None:
            self.results.put(output)
        else:
            callback, loop = handler
            try:
                loop.call_soon_threadsafe(callback, output)
            except RuntimeError:  # the loop was closed: whoever looks for results finds it
                self.results.put(output)


# its public name
ContinuousBatchingManager = type(
    "ContinuousBatchingManager", (ThreadedEngine,), {"__doc__": ThreadedEngine.__doc__}
)


def init_continuous_batching(
    model: Any, generation_config: GenerationConfig | None = None,
    continuous_batching_config: ContinuousBatchingConfig | None = None, workload_hints: Any = None,
) -> ThreadedEngine:  # fmt: skip
    """A manager of requests for the model; one that was kept goes on."""
    kept = model.__dict__.get("_continuous_batching")
    if kept is not None:
        return kept
    return ContinuousBatchingManager(model, generation_config, continuous_batching_config)


@contextmanager
def continuous_batching_context_manager(
    model: Any, generation_config: GenerationConfig | None = None, block: bool = True,
    timeout: float | None = None, continuous_batching_config: ContinuousBatchingConfig | None = None,
    persistent_manager: bool = False, warmup: bool = True, workload_hints: Any = None,
) -> Iterator[ThreadedEngine]:  # fmt: skip
    """A running manager, which is stopped at the end (and kept, with `persistent_manager`)."""
    manager = init_continuous_batching(model, generation_config, continuous_batching_config)
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(block, timeout, keep_for_next_session=persistent_manager)
        if not persistent_manager:
            manager.destroy()
