"""Numbers and dates in the cells of tables and in questions about them (TAPAS, arXiv:2004.02349,
appendix).
"""

import datetime
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from .english import ONES

Value = float | tuple[float | None, float | None, float | None]  # a number, or year, month and day

_PATTERNS = (
    ("%B", "m"), ("%Y", "y"), ("%Ys", "y"), ("%b %Y", "ym"), ("%B %Y", "ym"), ("%B %d", "md"),
    ("%b %d", "md"), ("%d %b", "md"), ("%d %B", "md"), ("%B %d, %Y", "ymd"), ("%d %B %Y", "ymd"),
    ("%m-%d-%Y", "ymd"),
    ("%Y-%m-%d", "ymd"), ("%Y-%m", "ym"), ("%d %b %Y", "ymd"), ("%b %d, %Y", "ymd"), ("%d.%m.%Y", "ymd"),
    ("%A, %b %d", "md"), ("%A, %B %d", "md"),
)  # fmt: skip
_FIELDS = {"%A": r"\w+", "%B": r"\w+", "%Y": r"\d{4}", "%b": r"\w{3}", "%d": r"\d{1,2}", "%m": r"\d{1,2}"}
_NUMBER = re.compile(r"((^|\s)[+-])?((\.\d+)|(\d+(,\d\d\d)*(\.\d*)?))")
_WORDS = ONES[:13]
_ORDINALS = [
    "zeroth",
    "first",
    "second",
    "third",
    "fourth",
    "fith",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
_YEARS = range(1700, 2017)


def _compiled(pattern: str) -> re.Pattern:
    regex = pattern.replace(".", r"\.").replace("-", r"\-").replace(" ", r"\s+")
    for field, digits in _FIELDS.items():
        regex = regex.replace(field, digits)
    return re.compile(f"^{regex}$")


_DATES = tuple((pattern, parts, _compiled(pattern)) for pattern, parts in _PATTERNS)


def _date(text: str) -> Value | None:
    text = re.sub(r"Sept\b", "Sep", text)
    for pattern, parts, regex in _DATES:
        if not regex.match(text):
            continue
        try:
            date = datetime.datetime.strptime(text, pattern).date()
        except ValueError:
            continue
        if date.year in _YEARS:
            year, month, day = (
                float(getattr(date, name)) if name[0] in parts else None for name in ("year", "month", "day")
            )
            return (year, month, day)
    return None


def _number(text: str) -> float | None:
    ending = next((end for end in ("st", "nd", "rd", "th") if text.endswith(end)), "")
    try:
        value = float(text.removesuffix(ending).replace(",", ""))
    except ValueError:
        return None
    return None if math.isnan(value) or value == math.inf else value


def _runs(text: str, most: int) -> Iterator[tuple[int, int]]:
    """The spans of up to `most` words."""
    starts: list[int] = []
    for i, char in enumerate(text):
        if not char.isalnum():
            continue
        if i == 0 or not text[i - 1].isalnum():
            starts.append(i)
        if i + 1 == len(text) or not text[i + 1].isalnum():
            yield from ((start, i + 1) for start in starts[-most:])


def values_of(text: str) -> list[Value]:
    """The numbers and dates of a text, longest spans first where they overlap, in the order of the text."""
    text = " ".join(text.lower().split())
    found: dict[tuple[int, int], list[Value]] = {}
    for match in _NUMBER.finditer(text):
        number = _number(match.group())
        if number is not None:
            found[match.span()] = [number]
    for span in _runs(text, 1):
        if span in found:
            continue
        word = text[slice(*span)]
        number = _number(word)
        values: list[Value] = [] if number is None else [number]
        values += [float(words.index(word)) for words in (_WORDS, _ORDINALS) if word in words]
        if values:
            found[span] = values
    for span in _runs(text, 5):
        date = _date(text[slice(*span)])
        if date is not None:
            found.setdefault(span, []).append(date)
    kept: dict[tuple[int, int], list[Value]] = {}
    for span in sorted(found, key=lambda s: (s[1] - s[0], -s[0]), reverse=True):
        if not any(a <= span[0] and span[1] <= b for a, b in kept):
            kept[span] = found[span]
    return [value for span in sorted(kept) for value in kept[span]]


def column_values(cells: Iterable[str], least: float = 0.7) -> dict[int, Value]:
    """Row to value, where 70 % of a column's cells have values of one kind (dates before numbers)."""
    rows = {i: values_of(cell) for i, cell in enumerate(cells)}
    kinds = Counter(kind for values in rows.values() for kind in {isinstance(v, tuple) for v in values})
    most = max(kinds.values(), default=0)
    if not most or most < len(rows) * least:
        return {}
    dates = kinds.get(True, 0) == most
    chosen = {i: [v for v in values if isinstance(v, tuple) == dates] for i, values in rows.items()}
    return {i: values[0] for i, values in chosen.items() if values}


def sort_key(values: Iterable[Value]) -> Callable | None:
    """How values compare, or None: numbers as they are, dates by the parts that all of them have."""
    values = list(values)
    if len({isinstance(value, tuple) for value in values}) != 1:
        return None
    if not isinstance(values[0], tuple):
        return lambda value: value
    parts = [i for i in range(3) if all(isinstance(v, tuple) and v[i] is not None for v in values)]
    return (lambda value: tuple(value[i] for i in parts)) if parts else None
