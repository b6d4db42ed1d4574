"""The loop of a peer's process: one line of JSON asks, one line answers. Needs nothing but Python."""

import json
import sys
import time
from itertools import pairwise
from typing import Any


def answer(**values: Any) -> None:
    """One answer."""
    print("RESULT " + json.dumps(values), flush=True)


def serve(peer: Any) -> None:
    """Answer {"do": method, "with": arguments} by what `peer`'s method returns, until the input ends."""
    answer(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(**getattr(peer, request["do"])(*request.get("with", ())))
        except Exception as error:  # the runner says it and goes on
            answer(failed=f"{type(error).__name__}: {str(error)[:300]}")


class Clock:
    """When each token of a call was chosen: `begin()`, then `tick()` at every token."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.began, self.ticks = time.perf_counter(), []

    def tick(self) -> None:
        self.ticks.append(time.perf_counter())

    def told(self, **more: Any) -> dict[str, Any]:
        """Seconds to the first token, and of each one after it."""
        times = [self.began, *self.ticks]
        steps = [after - before for before, after in pairwise(times)]
        return {"first": steps[0], "steps": steps[1:], **more}
