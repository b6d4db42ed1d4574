"""What one run of a chat template may use up: steps, processor time, sizes of texts and lists, memory."""

import os
import sys
import time
from contextvars import ContextVar

from jinja2.utils import Namespace

# A run on n input values with b bytes of input text may use:
_STEPS, _STEPS_PER_VALUE = 1_000_000, 200
_SECONDS, _SECONDS_PER_VALUE = 0.3, 100e-6
_TEXT_BYTES, _TEXT_PER_BYTE = 4 << 20, 8  # one text, and all of the output
_LIST_BYTES, _LIST_PER_BYTE = 16 << 20, 64  # one list, or all texts collected for macros and set blocks
_MEMORY_BYTES, _MEMORY_PER_BYTE = 40 << 20, 64  # growth of the process
_CHECK_EVERY = 512  # steps between looks at the clock
_MEMORY_CHECK_EVERY = 8 << 20  # bytes made between looks at the memory
_MAX_BITS = 4096

active: ContextVar["Budget"] = ContextVar("chat template budget")


class Refusal(Exception):
    """A template did what it may not; becomes a TemplateError with the line."""


class Budget:
    """Counts what a running template does and raises Refusal when it is too much."""

    def __init__(self, values: int = 0, size: int = 0):
        self.max_steps = _STEPS + _STEPS_PER_VALUE * values
        self.seconds = _SECONDS + _SECONDS_PER_VALUE * values
        self.max_text = _TEXT_BYTES + _TEXT_PER_BYTE * size
        self.max_list = _LIST_BYTES + _LIST_PER_BYTE * size
        self.max_memory = _MEMORY_BYTES + _MEMORY_PER_BYTE * size
        self.steps = self.made = self.collected = 0
        self.next_check = _CHECK_EVERY
        self.next_memory_check = _MEMORY_CHECK_EVERY
        # Of this thread only: a busy machine must not fail a good template.
        self.deadline = time.thread_time() + self.seconds
        self.memory_before = _resident()

    def step(self, count: int = 1) -> None:
        """Count `count` steps of work."""
        self.steps += count
        if self.steps >= self.next_check:
            if self.steps > self.max_steps:
                raise Refusal(f"it takes more than {self.max_steps} steps; look for a loop that does not end")
            if time.thread_time() > self.deadline:
                raise Refusal(
                    f"it runs for more than {self.seconds:.1f} s; look for a loop that does not end"
                )
            self.next_check = self.steps + _CHECK_EVERY

    def text(self, size: int) -> None:
        """Make room for a text of `size` bytes."""
        if size > self.max_text:
            raise Refusal(f"it makes a text of {size} bytes; {self.max_text} are allowed for this input")
        self._make(size)

    def list(self, size: int) -> None:
        """Make room for a list or dict that takes `size` bytes."""
        if size > self.max_list:
            raise Refusal(f"it makes a list of {size} bytes; {self.max_list} are allowed for this input")
        self._make(size)

    def collect(self, size: int) -> None:
        """Put `size` bytes more into what macros and blocks collect."""
        self.collected += size
        if self.collected > self.max_list:
            raise Refusal(f"its macros and blocks collect more than {self.max_list} bytes of text")

    def _make(self, size: int) -> None:
        self.made += size
        self.step(1 + (size >> 12))
        if self.made > self.next_memory_check:
            self.next_memory_check = self.made + _MEMORY_CHECK_EVERY
            grown = _resident() - self.memory_before
            if grown > self.max_memory:
                raise Refusal(
                    f"it keeps {grown} bytes of memory; {self.max_memory} are allowed for this input"
                )

    def result(self, value):
        """Count a value that was just made, and give it back."""
        if isinstance(value, str):
            self.text(sys.getsizeof(value))
        elif isinstance(value, (list, tuple, dict)):
            self.list(sys.getsizeof(value))
        elif isinstance(value, int):
            self.number(value)
        return value

    def number(self, value) -> None:
        """Refuse whole numbers that are slow to reckon with."""
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise Refusal(f"it makes a number of {value.bit_length()} bits; {_MAX_BITS} are allowed")

    def walk(self, value) -> int:
        """Count every value inside a nested one, shared ones each time; gives the characters of its texts."""
        size = 0
        stack = [value]
        while stack:
            value = stack.pop()
            self.step()
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, dict):
                stack.extend(value.keys())
                stack.extend(value.values())
            elif isinstance(value, (list, tuple, set, frozenset)):
                stack.extend(value)
            elif isinstance(value, Namespace):
                stack.extend(object.__getattribute__(value, "_Namespace__attrs").values())
            else:
                self.number(value)
        return size

    def string(self, value) -> str:
        """`str(value)`, refused where a nested value would make a text too long."""
        if isinstance(value, str):
            return value
        if isinstance(value, (list, tuple, dict, set, frozenset, Namespace)):
            self.text(self.walk(value))
        else:
            self.number(value)
        return self.result(str(value))


def _resident() -> int:
    """Bytes of memory that the process holds now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
