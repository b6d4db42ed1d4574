"""A line on stderr that counts results."""

import sys
from typing import Any


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
