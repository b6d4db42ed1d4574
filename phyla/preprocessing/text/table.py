"""What one row of the table of tokenizer classes says, and the constructor that all classes of the table
share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from phyla.errors import ArgumentError

from .layout import PLAIN, Layout
from .tokens import ALL_ROLES, ROLES, AddedToken


@dataclass(frozen=True)
class Row:
    """One public tokenizer: its kind, vocabulary files, special tokens, layout and the defaults of its
    settings.

    `special`: role to text. `flags`: role to AddedToken flags for tokens given as text (`"*"`: all other
    roles); roles without flags stay text. `fast`, `python`: settings that only this class has or has
    otherwise.
    """

    kind: str
    files: dict[str, str]
    special: Mapping[str, str | None]
    layout: Layout = PLAIN
    settings: dict = field(default_factory=dict)
    flags: dict[str, dict] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    slow: bool = True
    fast: dict | None = field(default_factory=dict)
    python: dict = field(default_factory=dict)
    slow_class: dict = field(default_factory=dict)
    fast_class: dict = field(default_factory=dict)

    def defaults(self, fast: bool) -> dict:
        """The settings of the slow or the fast class."""
        return {**self.special, **self.settings, **((self.fast or {}) if fast else self.python)}

    def wrapped(self, settings: dict) -> dict:
        """The settings with texts of special tokens made AddedTokens where the row says so."""
        settings = dict(settings)
        for role in ROLES:
            flags = self.flags.get(role, self.flags.get("*"))
            if isinstance(settings.get(role), str) and flags is not None:
                settings[role] = AddedToken(settings[role], **{"normalized": True, **flags})
        return settings


class FromTable:
    """Constructor of the classes of the table: vocabulary files in order, then settings by name."""

    row: Row
    is_fast: bool

    def _load(self, settings: dict, given: dict) -> None:
        """Hook: complete the settings, and read the vocabulary where Python needs it."""

    def __init__(self, *files, **settings):
        row, fast = type(self).row, type(self).is_fast
        names = list(row.files)
        if len(files) > len(names):
            raise ArgumentError(
                f"{type(self).__name__} takes the files {', '.join(names)}, but got {len(files)} of them"
            )
        given = {**dict(zip(names, files)), **settings}
        merged = row.wrapped({**row.defaults(fast), **given})
        for name in (*names, *(n for n in row.defaults(fast) if n not in ALL_ROLES)):
            object.__setattr__(self, name, merged.get(name))
        self._load(merged, given)
        super().__init__(**merged)
