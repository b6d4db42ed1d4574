"""What groups of post-processing methods share: they stand among the bases of an image processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar


class PostProcessing:
    """Methods that a row of the table adds to its class, where the processor's settings are attributes."""

    if TYPE_CHECKING:
        row: ClassVar[Any]

        def __getattr__(self, name: str) -> Any: ...
