"""How large the results of string methods, operators and filters can get, reckoned before they are made."""

import re
import string
from collections.abc import Callable

from phyla.preprocessing.text.template_budget import Budget, Refusal

_WIDE = 10_000  # characters that one placeholder of a format may be widened to
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_ITEM = 64  # bytes of a short string and of the reference to it
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d+)?(?:\.(\*|\d+))?")


def replaced(text: str, old: str, new: str) -> int:
    """Bytes that `text.replace(old, new)` takes at most."""
    return _bytes(text, new, length=len(text) + text.count(old) * max(0, len(new) - len(old)))


def _bytes(*texts: str, length: int) -> int:
    # Strings take 1, 2 or 4 bytes a character, by their largest one.
    return length * (1 if all(text.isascii() for text in texts) else 4)


def _splits(text: str, sep, limit) -> int:
    if sep is None:
        count = len(text) // 2 + 1
    elif isinstance(sep, str) and sep:
        count = text.count(sep) + 1
    else:
        count = 1
    if isinstance(limit, int) and limit >= 0:
        count = min(count, limit + 1)
    return count * _ITEM + len(text)


def _argument(args: tuple, kwargs: dict, position: int, name: str, default=None):
    return args[position] if len(args) > position else kwargs.get(name, default)


def _number(value, default: int = 0) -> int:
    return value if isinstance(value, int) else default


def check_method(budget: Budget, text: str, name: str, args: tuple, kwargs: dict) -> None:
    """Refuse a string method whose result would be too large."""
    if name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        budget.text(replaced(text, args[0], args[1]))
    elif name in ("center", "ljust", "rjust", "zfill"):
        budget.text(4 * _number(_argument(args, kwargs, 0, "width")))
    elif name == "expandtabs":
        budget.text(len(text) + text.count("\t") * _number(_argument(args, kwargs, 0, "tabsize", 8)))
    elif name in ("split", "rsplit"):
        budget.list(_splits(text, _argument(args, kwargs, 0, "sep"), _argument(args, kwargs, 1, "maxsplit")))
    elif name == "splitlines":
        budget.list((sum(map(text.count, _LINE_ENDS)) + 1) * _ITEM + len(text))


def check_braces(budget: Budget, text: str, args: tuple, kwargs: dict) -> None:
    """Refuse `text.format(...)` with a result too large."""
    widest = max((budget.walk(value) + 32 for value in (*args, *kwargs.values())), default=0)
    size = len(text)
    try:
        for _, name, spec, _ in string.Formatter().parse(text):
            if name is not None:
                size += widest + _spec_width(spec or "")
    except ValueError:
        return  # the format itself is wrong; formatting says how
    budget.text(size)


def _spec_width(spec: str) -> int:
    if "{" in spec:
        raise Refusal("it takes the width of a format from a value")
    return sum(_checked_width(digits) for digits in re.findall(r"\d+", spec))


def _checked_width(digits: str) -> int:
    if len(digits) > 5 or int(digits) > _WIDE:
        raise Refusal(f"it formats to a width of {digits[:20]}; {_WIDE} is allowed")
    return int(digits)


def check_percent(budget: Budget, text: str, values) -> None:
    """Refuse `text % values` with a result too large."""
    parts = values if isinstance(values, tuple) else (values,)
    widest = max((budget.walk(value) + 32 for value in parts), default=0)
    size = len(text)
    for match in _PERCENT.finditer(text):
        if "*" in match.groups():
            raise Refusal("it takes the width of a format from a value")
        size += widest + sum(_checked_width(digits) for digits in match.groups() if digits)
    budget.text(size)


def check_operator(budget: Budget, operator: str, left, right) -> None:
    """Refuse `left operator right` with a result too large or too slow."""
    budget.number(left)
    budget.number(right)
    if operator == "%" and isinstance(left, str):
        check_percent(budget, left, right)
    elif operator == "*":
        for text, count in ((left, right), (right, left)):
            if isinstance(text, (str, bytes)) and isinstance(count, int):
                budget.text(len(text) * (1 if isinstance(text, bytes) or text.isascii() else 4) * count)
            elif isinstance(text, (list, tuple)) and isinstance(count, int):
                budget.list(len(text) * 8 * count)
    elif operator == "+":
        if isinstance(left, str) and isinstance(right, str):
            budget.text(_bytes(left, right, length=len(left) + len(right)))
        elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            budget.list(8 * (len(left) + len(right)))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * max(0, right) > 4096:
            raise Refusal(f"it raises a number to the power of {right}")


def _check_indent(budget: Budget, text, width=4, *_args, **_kwargs) -> None:
    text = budget.string(text)
    size = len(width) if isinstance(width, str) else _number(width)
    budget.text(4 * (len(text) + (sum(map(text.count, _LINE_ENDS)) + 2) * size))


def _check_center(budget: Budget, text, width=80) -> None:
    budget.text(4 * _number(width))


def _check_count(budget: Budget, values, count=0, *_args, **_kwargs) -> None:
    budget.list(_ITEM * _number(count))


def _check_round(budget: Budget, value, precision=0, *_args, **_kwargs) -> None:
    if abs(_number(precision)) > 300:
        raise Refusal(f"it rounds to {precision} digits")


def _check_words(budget: Budget, text) -> None:
    budget.list(len(budget.string(text)) * 32)


def _check_list(budget: Budget, value) -> None:
    if isinstance(value, str):
        budget.list(len(value) * (8 if value.isascii() else 80))


def _check_replace(budget: Budget, text, old, new, *_args, **_kwargs) -> None:
    budget.text(replaced(*map(budget.string, (text, old, new))))


def _check_format(budget: Budget, text, *args, **kwargs) -> None:
    check_percent(budget, budget.string(text), args or tuple(kwargs.values()))


# Checks of filters; each takes the filter's own arguments.
FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "indent": _check_indent,
    "center": _check_center,
    "batch": _check_count,
    "slice": _check_count,
    "round": _check_round,
    "title": _check_words,
    "wordcount": _check_words,
    "list": _check_list,
    "replace": _check_replace,
    "format": _check_format,
}
