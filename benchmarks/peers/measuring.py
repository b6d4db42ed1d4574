"""What every measuring script shares; needs nothing but Python, so it runs in each peer's environment."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 4.0  # a measurement is repeated while it has taken less than this


def settings() -> dict[str, Any]:
    """What the runner asked for: task, model paths, lengths, threads, start time."""
    return json.loads(sys.argv[1])


def report(**values: float) -> None:
    """Hand measured values to the runner (seconds, tokens a second, bytes)."""
    print("RESULT " + json.dumps(values), flush=True)


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call after one to warm up; long calls are repeated less."""
    began = time.perf_counter()
    function()
    times: list[float] = []
    warm = time.perf_counter() - began
    spent = 0.0
    if warm > 2 * PATIENCE_SECONDS:
        return warm
    while len(times) < repeats and (spent < PATIENCE_SECONDS or not times):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
        spent += times[-1]
    return statistics.median(times)


def decode_rate(
    name: str, generate: Callable[[int], Any], new: int, batch: int, repeats: int
) -> dict[str, float]:
    """Tokens a second after the first, from the difference between `new` tokens and one, under a name.

    Empty where other work on the machine made one token take as long as all.
    """
    first = seconds(lambda: generate(1), repeats)
    whole = seconds(lambda: generate(new), repeats)
    return {name: (new - 1) * batch / (whole - first)} if whole > first else {}


def peak_bytes() -> int:
    """The most memory that this process has held so far (VmHWM)."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: peak memory is measured on Linux")


def prompt_ids(length: int, rows: int = 1) -> list[list[int]]:
    """Token ids that are the same for every peer and no special ones."""
    return [[1000 + (37 * position + 101 * row) % 20000 for position in range(length)] for row in range(rows)]


def since_start(asked: dict[str, Any]) -> float:
    """Seconds since the runner started this process."""
    return time.time() - asked["started"]


def limit_threads(count: int) -> None:
    """Let libraries that read the environment use `count` threads; call before importing them."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
