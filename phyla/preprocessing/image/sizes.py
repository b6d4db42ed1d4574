"""Sizes as settings say them, and the (height, width) that each resizing rule makes of a picture's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from phyla.errors import ArgumentError

KINDS = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"longest_edge"},
    {"max_height", "max_width"},
)


def size_dict(
    size: Any, square: bool = True, max_size: int | None = None, what: str = "size", height_first: bool = True
) -> dict[str, int]:
    """A size as a dictionary: an integer is a square or the shortest edge, a pair is (height, width).

    Raises ArgumentError for keys that do not belong together.
    """
    if isinstance(size, Mapping):
        found = dict(size)
    elif isinstance(size, int):
        if square and max_size is not None:
            raise ArgumentError(
                f"{what} is the integer {size} for a square, so max_size={max_size} cannot hold too"
            )
        found = {"height": size, "width": size} if square else {"shortest_edge": size}
        if max_size is not None:
            found["longest_edge"] = max_size
    elif isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2:
        found = dict(zip(("height", "width") if height_first else ("width", "height"), size))
    elif size is None and max_size is not None and not square:
        found = {"longest_edge": max_size}
    else:
        raise ArgumentError(
            f"{what} must be an integer, a pair (height, width) or a dictionary, but is {size!r}"
        )
    if set(found) not in KINDS:
        kinds = "; ".join(" and ".join(sorted(kind)) for kind in KINDS)
        raise ArgumentError(f"{what} must have the keys {kinds}; but it has {sorted(found)}")
    return found


def pair(size: Mapping[str, int], what: str = "size") -> tuple[int, int]:
    """(height, width) of a size dictionary that has both."""
    if "height" not in size or "width" not in size:
        raise ArgumentError(f"{what} must have the keys height and width here, but has {sorted(size)}")
    return size["height"], size["width"]


def shortest_edge(own: tuple[int, int], short: int, longest: int | None = None) -> tuple[int, int]:
    """(height, width) with the shorter edge `short`, the longer cut down to `longest` (torchvision's way)."""
    height, width = own
    small, large = min(own), max(own)
    new_small, new_large = short, int(short * large / small)
    if longest is not None:
        if longest <= short:
            raise ArgumentError(f"max_size must be greater than the shortest edge {short}, but is {longest}")
        if new_large > longest:
            new_small, new_large = int(longest * new_small / new_large), longest
    return (new_large, new_small) if width <= height else (new_small, new_large)


def bounded_edges(
    own: tuple[int, int], short: int, longest: int | None = None, keep_tall: bool = True
) -> tuple[int, int]:
    """(height, width) with the shorter edge `short` unless the longer would pass `longest`.

    A picture whose shorter edge fits already keeps its size; a tall one only with `keep_tall`.
    """
    height, width = own
    exact: float | None = None
    if longest is not None:
        small, large = float(min(own)), float(max(own))
        if large / small * short > longest:
            exact = longest * small / large
            short = round(exact)
    if min(own) == short and (keep_tall or width >= height):
        return height, width
    scale = short if exact is None else exact
    if width < height:
        return int(scale * height / width), short
    return short, int(scale * width / height)


def within(own: tuple[int, int], max_height: int, max_width: int) -> tuple[int, int]:
    """(height, width) of the largest picture of the same aspect inside a box."""
    scale = min(max_height / own[0], max_width / own[1])
    return int(own[0] * scale), int(own[1] * scale)


def fitted(own: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture scaled to touch the target from inside, the other edge rounded up."""
    by_width, by_height = target[1] / own[1], target[0] / own[0]
    if by_width < by_height:
        return min(math.ceil(own[0] * by_width), target[0]), target[1]
    return target[0], min(math.ceil(own[1] * by_height), target[1])


def best_resolution(own: tuple[int, int], possible: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The (height, width) that keeps most of a picture's pixels, and of those the one that wastes least."""
    best, kept, wasted = None, 0, math.inf
    for height, width in possible:
        scale = min(width / own[1], height / own[0])
        area = min(int(own[1] * scale) * int(own[0] * scale), own[0] * own[1])
        if area > kept or (area == kept and height * width - area < wasted):
            best, kept, wasted = (height, width), area, height * width - area
    if best is None:
        raise ArgumentError("image_grid_pinpoints must list at least one (height, width)")
    return best
