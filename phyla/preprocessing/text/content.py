"""What people wrote kept apart from what the template wrote, so that text cannot pose as a control token."""

import re
from collections.abc import Iterable
from typing import Any

# Private-use characters around a number stand in for a control token's spelling until the text is rendered.
_OPEN, _CLOSE = "\ue000", "\ue001"
_PLACE = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class PlainContent:
    """Replaces each control token that a conversation's strings spell by a place, and finds the places again.

    tokens: the spellings of the control tokens. Roles and keys are the caller's and are left alone.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.spellings = sorted({t for t in tokens if t}, key=len, reverse=True)
        # The characters of the places themselves are spelled too: a text that holds them stays what it is.
        known = [*map(re.escape, self.spellings), _OPEN, _CLOSE]
        self.pattern = re.compile("|".join(known))
        self.found: list[str] = []

    def hide(self, value: Any, key: str = "") -> Any:
        """The conversation with places for control tokens in its strings."""
        if isinstance(value, str):
            return value if key in ("role", "type") else self.pattern.sub(self._place, value)
        if isinstance(value, dict):
            return {k: self.hide(v, k) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(v, key) for v in value]
        return value

    def _place(self, match: re.Match) -> str:
        self.found.append(match.group())
        return f"{_OPEN}{len(self.found) - 1}{_CLOSE}"

    def show(self, text: str) -> str:
        """The rendered text as it would be without places."""
        return _PLACE.sub(lambda m: self._spelled(int(m[1])), text)

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """The rendered text in parts, and of each whether a person wrote it."""
        parts = _PLACE.split(text)
        pieces = [(self._spelled(int(p)) if i % 2 else p, bool(i % 2)) for i, p in enumerate(parts)]
        return [piece for piece in pieces if piece[0]]

    def _spelled(self, number: int) -> str:
        return self.found[number] if number < len(self.found) else ""
