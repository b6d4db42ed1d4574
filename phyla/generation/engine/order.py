"""Results of many prompts in their order, and a line on stderr that counts them."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from phyla.errors import QueueFull
from phyla.generation.engine.request import GenerationOutput, Handle


def in_order(
    engine: Any, prompts: Iterable[Any], each: dict[str, Any], seeds: Sequence[int] | None, progress: bool,
    ahead: int,
) -> Iterator[GenerationOutput]:  # fmt: skip
    """As `Engine.generate`; `each`: the arguments of `submit` that all prompts have."""
    source, waiting = enumerate(iter(prompts)), deque[Handle]()
    bar = Progress(prompts) if progress else None
    more = True
    try:
        while True:
            while more and len(waiting) < ahead and engine.has_place():
                number, prompt = next(source, (0, None))
                more = prompt is not None
                if more:
                    seed = None if seeds is None else seeds[number]
                    own = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
                    waiting.append(_submitted(engine, {"seed": seed, **each, **own}))
            if not waiting and not more:
                return
            if not waiting:
                _make_room(engine)
            while waiting and waiting[0].finished:
                handle = waiting.popleft()
                if handle.error is not None:
                    raise handle.error
                if bar is not None:
                    bar.update()
                yield from handle.outputs()
            if waiting and not waiting[0].finished:
                engine.advance(waiting[0])
    finally:
        for handle in waiting:
            engine.cancel(handle)
        if bar is not None:
            bar.close()


def _submitted(engine: Any, given: dict[str, Any]) -> Handle:
    """The request, as soon as there is a place: other threads may have taken the one that was seen."""
    while True:
        try:
            return engine.submit(**given)
        except QueueFull:
            _make_room(engine)


def _make_room(engine: Any) -> None:
    """A step for the requests of others, which fill the queue; their callers are told of their errors."""
    with engine.lock:
        count = len(engine.open)
        try:
            engine.step()
        except Exception:
            if len(engine.open) == count:
                raise


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
