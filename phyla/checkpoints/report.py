"""What loading found: missing, unexpected and mismatched tensors, with the nearest names."""

import logging
from dataclasses import dataclass, field

from phyla.errors import nearest

logger = logging.getLogger("phyla")


@dataclass
class LoadReport:
    """Public names by what became of them. `fresh` are parameters that got random values."""

    source: str
    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def public(self) -> dict[str, list]:
        """The dictionary that `output_loading_info=True` returns."""
        return {
            "missing_keys": self.missing,
            "unexpected_keys": self.unexpected,
            "mismatched_keys": self.mismatched,
            "error_msgs": [],
        }

    def describe_missing(self) -> str:
        """One line for each missing tensor with the nearest name that the file has."""
        return self._lines(self.missing, self.unexpected)

    def describe_unexpected(self) -> str:
        """One line for each tensor without a place, with the nearest name that the model has."""
        return self._lines(self.unexpected, self.names)

    @staticmethod
    def _lines(names: list[str], others: list[str]) -> str:
        shown = [f"  {n}{nearest(n, others, 1)}" for n in names[:20]]
        if len(names) > 20:
            shown.append(f"  and {len(names) - 20} more")
        return "\n".join(shown)

    def warn(self, model: str) -> None:
        """Say once what a user should know."""
        if self.missing:
            logger.warning(
                "%s from %s: %d tensors are not in the file and start with random values; "
                "train them before use:\n%s",
                model, self.source, len(self.missing), self.describe_missing(),
            )  # fmt: skip
        if self.unexpected:
            logger.warning(
                "%s from %s: %d tensors of the file have no place in the model and were left out:\n%s",
                model, self.source, len(self.unexpected), self.describe_unexpected(),
            )  # fmt: skip
        if self.mismatched:
            lines = "\n".join(f"  {n}: file {a}, model {b}" for n, a, b in self.mismatched[:20])
            logger.warning(
                "%s from %s: tensors of another shape start with random values:\n%s",
                model,
                self.source,
                lines,
            )
