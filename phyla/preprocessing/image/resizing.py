"""The rules by which a picture's (height, width) and the settings give the size to resize to."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

from phyla.errors import ArgumentError

from . import sizes
from .sizes import pair

Size = tuple[int, int]


def exact(own: Size, o: SimpleNamespace) -> Size:
    """The height and width of the setting."""
    return pair(o.size)


def squared(own: Size, o: SimpleNamespace) -> Size:
    """A square of `shortest_edge`, or height and width."""
    edge = o.size.get("shortest_edge")
    return pair(o.size) if edge is None else (edge, edge)


def edges(own: Size, o: SimpleNamespace) -> Size:
    """The shorter edge to `shortest_edge`, or height and width."""
    if "shortest_edge" in o.size:
        return sizes.shortest_edge(own, o.size["shortest_edge"])
    return pair(o.size)


def widened_edges(own: Size, o: SimpleNamespace) -> Size:
    """The shorter edge to 256/224 of `shortest_edge`, or height and width."""
    if "shortest_edge" in o.size:
        return sizes.shortest_edge(own, int((256 / 224) * o.size["shortest_edge"]))
    return pair(o.size)


def edges_over_crop(own: Size, o: SimpleNamespace) -> Size:
    """`edges`, with the size divided by `crop_pct`."""
    if o.crop_pct is None:
        return edges(own, o)
    if "shortest_edge" in o.size:
        return sizes.shortest_edge(own, int(o.size["shortest_edge"] / o.crop_pct))
    height, width = pair(o.size)
    if height == width:
        return sizes.shortest_edge(own, int(height / o.crop_pct))
    return int(height / o.crop_pct), int(width / o.crop_pct)


def floored(own: Size, o: SimpleNamespace) -> Size:
    """The own size, down to a multiple of `size_divisor`."""
    return own[0] // o.size_divisor * o.size_divisor, own[1] // o.size_divisor * o.size_divisor


def raised_edges(own: Size, o: SimpleNamespace) -> Size:
    """`edges`, up to a multiple of `size_divisor`."""
    height, width = edges(own, o)
    return math.ceil(height / o.size_divisor) * o.size_divisor, math.ceil(
        width / o.size_divisor
    ) * o.size_divisor


def smaller_edge(own: Size, o: SimpleNamespace) -> Size:
    """The shorter edge to the smaller of height and width."""
    return sizes.shortest_edge(own, min(pair(o.size)))


def longest_edge(own: Size, o: SimpleNamespace) -> Size:
    """The longer edge to `longest_edge`, or height and width."""
    if "longest_edge" not in o.size:
        return pair(o.size)
    longest = o.size["longest_edge"]
    if own[0] >= own[1]:
        return longest, int(longest * (own[1] * 1.0 / own[0]))
    return int(longest * (own[0] * 1.0 / own[1])), longest


def divisible_edges(own: Size, o: SimpleNamespace) -> Size:
    """The shorter edge to `shortest_edge`, the longer to at most 1333/800 of it, down to a multiple."""
    if "shortest_edge" not in o.size:
        raise ArgumentError(f"size must have the key shortest_edge here, but has {sorted(o.size)}")
    short = o.size["shortest_edge"]
    longest = int(1333 / 800 * short)
    scale = short / min(own)
    new: tuple[float, float] = (short, scale * own[1]) if own[0] < own[1] else (scale * own[0], short)
    if max(new) > longest:
        scale = longest / max(new)
        new = (scale * new[0], scale * new[1])
    height, width = (int(edge + 0.5) // o.size_divisor * o.size_divisor for edge in new)
    return height, width


def multiples(own: Size, o: SimpleNamespace) -> Size:
    """Height and width as multiples of `ensure_multiple_of`; the aspect kept, by the smaller change."""
    height, width = pair(o.size)
    by_height, by_width = height / own[0], width / own[1]
    if o.keep_aspect_ratio:
        by_height = by_width = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
    step = o.ensure_multiple_of
    return round(by_height * own[0] / step) * step, round(by_width * own[1] / step) * step


def between_edges(own: Size, o: SimpleNamespace) -> Size:
    """The longer edge down to `longest_edge`, then both up to `shortest_edge`; or height and width."""
    if not {"shortest_edge", "longest_edge"} <= set(o.size):
        return pair(o.size)
    (height, width), longest, short = own, o.size["longest_edge"], o.size["shortest_edge"]
    aspect = width / height
    if width >= height and width > longest:
        height, width = int(longest / aspect), longest
    elif height > width and height > longest:
        height, width = longest, int(longest * aspect)
    return max(height, short), max(width, short)


def whole_patches(own: Size, o: SimpleNamespace) -> Size:
    """Down into `longest_edge` (or height and width), then up to whole patches."""
    longest = o.size.get("longest_edge")
    limit = (longest, longest) if longest is not None else pair(o.size)
    patch = pair(o.patch_size, "patch_size")
    ratio = max(own[0] / limit[0], own[1] / limit[1])
    if ratio > 1:
        own = (math.floor(own[0] / ratio), math.floor(own[1] / ratio))
    return ((own[0] - 1) // patch[0] + 1) * patch[0], ((own[1] - 1) // patch[1] + 1) * patch[1]


def shrunk(own: Size, o: SimpleNamespace) -> Size:
    """Into height and width with the aspect kept; smaller pictures stay."""
    height, width = pair(o.size)
    if own[1] <= width and own[0] <= height:
        return own
    scale = min(height / own[0], width / own[1])
    return int(own[0] * scale), int(own[1] * scale)


def bounded(own: Size, o: SimpleNamespace) -> Size:
    """The shorter edge with the longer bounded, a box to fit in, or height and width."""
    size = o.size
    if "shortest_edge" in size and "longest_edge" in size:
        return sizes.bounded_edges(own, size["shortest_edge"], size["longest_edge"])
    if "max_height" in size and "max_width" in size:
        return sizes.within(own, size["max_height"], size["max_width"])
    return pair(size)


def any_kind(own: Size, o: SimpleNamespace) -> Size:
    """Whatever the keys of the size say."""
    if "shortest_edge" in o.size and "longest_edge" not in o.size:
        return sizes.shortest_edge(own, o.size["shortest_edge"])
    return bounded(own, o)


def bounded_blocks(own: Size, o: SimpleNamespace) -> Size:
    """`bounded`, and down to multiples of 16 where the edges are bounded."""
    if not {"shortest_edge", "longest_edge"} <= set(o.size):
        return bounded(own, o)
    new = sizes.bounded_edges(own, o.size["shortest_edge"], o.size["longest_edge"], keep_tall=False)
    return new[0] // 16 * 16, new[1] // 16 * 16


def divisible_bounded(own: Size, o: SimpleNamespace) -> Size:
    """The shorter edge with the longer bounded, or height and width; up to multiples of `size_divisor`."""
    if "shortest_edge" in o.size and "longest_edge" in o.size:
        size = sizes.shortest_edge(own, o.size["shortest_edge"], o.size["longest_edge"])
    else:
        size = pair(o.size)
    step = getattr(o, "size_divisor", 0)
    return (math.ceil(size[0] / step) * step, math.ceil(size[1] / step) * step) if step else size


def rounded_longest(own: Size, o: SimpleNamespace) -> Size:
    """The longer edge to `longest_edge`, both rounded."""
    if "longest_edge" not in o.size:
        raise ArgumentError(f"size must have the key longest_edge here, but has {sorted(o.size)}")
    scale = o.size["longest_edge"] * 1.0 / max(own)
    return int(own[0] * scale + 0.5), int(own[1] * scale + 0.5)


RULES: dict[str, Callable[[Size, SimpleNamespace], Size]] = {
    rule.__name__: rule
    for rule in (
        exact, squared, edges, widened_edges, edges_over_crop, floored, raised_edges, smaller_edge,
        longest_edge,
        divisible_edges, multiples, between_edges, whole_patches, shrunk, bounded, any_kind,
        bounded_blocks, divisible_bounded, rounded_longest,
    )
}  # fmt: skip


def by_area(own: Size, factor: int, least: int, most: int) -> Size:
    """Multiples of `factor` near the own size whose area lies in [least, most]."""
    height, width = own
    if height < factor or width < factor:
        raise ArgumentError(
            f"height and width must be at least {factor}, but the picture is {height} x {width}"
        )
    if max(own) / min(own) > 200:
        raise ArgumentError(f"the aspect ratio must be at most 200, but the picture is {height} x {width}")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > most:
        beta = math.sqrt(height * width / most)
        return math.floor(height / beta / factor) * factor, math.floor(width / beta / factor) * factor
    if rows * columns < least:
        beta = math.sqrt(least / (height * width))
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return rows, columns


def by_patch_count(own: Size, patch: int, most: int, eps: float = 1e-5) -> Size:
    """The largest whole-patch size of about the same aspect with at most `most` patches, by bisection."""

    def scaled(scale: float) -> Size:
        height, width = (max(patch, int(math.ceil(edge * scale / patch) * patch)) for edge in own)
        return height, width

    low, high = eps / 10, 100.0
    while high - low >= eps:
        scale = (low + high) / 2
        height, width = scaled(scale)
        if (height / patch) * (width / patch) <= most:
            low = scale
        else:
            high = scale
    return scaled(low)
