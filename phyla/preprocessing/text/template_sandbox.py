"""Where chat templates run: Jinja's immutable sandbox, closed lists of what may be called, a budget."""

import functools
import json
import re
from datetime import datetime
from operator import eq, ge, gt, le, lt, ne
from types import BuiltinMethodType, FunctionType, MethodType

from jinja2 import Undefined, pass_context, pass_environment
from jinja2.ext import loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from phyla.preprocessing.text.template_budget import Refusal, active
from phyla.preprocessing.text.template_growth import FILTER_CHECKS, check_braces, check_method, check_operator
from phyla.preprocessing.text.template_rewrite import (
    BUILT,
    COMPARE,
    COMPARED,
    CONCAT,
    KEY,
    LITERAL,
    MARK,
    MARKS,
    SEARCHED,
    TURNS,
    Generation,
    Rewriter,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STR_METHODS = _names(
    "capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha "
    "isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join "
    "ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition "
    "rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
)
_DICT_METHODS = frozenset(("get", "items", "keys", "values", "copy"))
# Type -> names of its attributes that templates may reach.
_ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (str, _STR_METHODS),
    (dict, _DICT_METHODS),
    (list, frozenset(("index", "count", "copy"))),
    (tuple, frozenset(("index", "count"))),
    (int, frozenset(("bit_length",))),
    (float, frozenset(("is_integer",))),
    (Macro, frozenset(("name", "arguments", "catch_kwargs", "catch_varargs", "caller"))),
    (Cycler, frozenset(("next", "reset", "current"))),
)
# Filters that look at the outside of a nested value only.
_SHALLOW_FILTERS = _names(
    "batch count d default first items last length list map reject rejectattr reverse select selectattr slice"
)
_DEEP_FILTERS = _names(
    "abs capitalize center dictsort e escape float forceescape format groupby indent int lower max min "
    "replace round safe sort string title trim truncate unique upper urlencode wordcount"
)
_COMPARISONS = {"eq": eq, "ne": ne, "lt": lt, "lteq": le, "gt": gt, "gteq": ge}
_COMPARING_TESTS = frozenset(
    (
        "eq",
        "equalto",
        "==",
        "ne",
        "!=",
        "lt",
        "lessthan",
        "<",
        "le",
        "<=",
        "gt",
        "greaterthan",
        ">",
        "ge",
        ">=",
        "in",
    )
)
_CONTAINERS = (list, tuple, dict)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates; a Budget must be active while one runs."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
            finalize=_finalize,
            optimized=False,  # constants must not be reckoned where no budget runs
            cache_size=0,
        )
        self.filters = {
            **{
                name: _counted(name, function)
                for name, function in self.filters.items()
                if name in _SHALLOW_FILTERS | _DEEP_FILTERS
            },
            **_OWN_FILTERS,
        }
        self.tests = {name: _counted_test(name, function) for name, function in self.tests.items()}
        functions = {
            "range": _range,
            "dict": _dict,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.globals = {**functions, "namespace": Namespace, "cycler": Cycler, "joiner": Joiner}
        self._functions = frozenset(functions.values())

    def _generate(self, source, name, filename, defer_init=False):
        return super()._generate(Rewriter().visit(source), name, filename, defer_init)

    def is_safe_attribute(self, obj, attr, value) -> bool:
        if attr.startswith("_"):
            return False
        if isinstance(obj, (Namespace, LoopContext, Undefined)):
            return True
        return next((attr in names for kind, names in _ATTRIBUTES if isinstance(obj, kind)), False)

    def is_safe_callable(self, obj) -> bool:
        if isinstance(obj, BuiltinMethodType):
            return self.is_safe_attribute(obj.__self__, obj.__name__, obj)
        if isinstance(obj, MethodType):
            return isinstance(obj.__self__, (Cycler, LoopContext))
        # Functions only come in as globals or from the caller.
        return obj in (Namespace, Cycler, Joiner) or isinstance(
            obj, (FunctionType, Macro, LoopContext, Joiner, BlockReference, Undefined)
        )

    def unsafe_undefined(self, obj, attribute):
        raise Refusal(f"attribute {attribute!r} of a {type(obj).__name__} is not allowed in a template")

    def getattr(self, obj, attribute):
        if type(obj) is dict and attribute not in _DICT_METHODS and not attribute.startswith("_"):
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value):
        """Jinja's safe stand-in for str.format, which also refuses wide results."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None
        text = value.__self__

        def checked(*args, **kwargs):
            check_braces(active.get(), text, args, kwargs)
            return safe(*args, **kwargs)

        return checked

    def getitem(self, obj, argument):
        if isinstance(argument, tuple):
            active.get().walk(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context, operator, left, right):
        budget = active.get()
        budget.step()
        check_operator(budget, operator, left, right)
        return self.binop_table[operator](left, right)

    def call(__self, __context, __obj, *args, **kwargs):
        budget = active.get()
        budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and isinstance(__obj, BuiltinMethodType):
            if __obj.__name__ == "join":
                return _join_texts(budget, owner, *args, **kwargs)
            budget.step(len(owner) >> 10)
            check_method(budget, owner, __obj.__name__, args, kwargs)
        elif isinstance(__obj, LoopContext) and args:
            args = (_turns(args[0]), *args[1:])
        elif owner is not None and not isinstance(owner, (dict, Cycler)):
            # index, count and loop.changed compare their arguments with values.
            budget.step(len(owner) >> 6 if isinstance(owner, (list, tuple)) else 1)
            for arg in args:
                budget.walk(arg)
        return budget.result(super().call(__context, __obj, *args, **kwargs))


@pass_context
def _finalize(_context, value):
    budget = active.get()
    text = budget.string(value)
    budget.step(1 + (len(text) >> 12))
    # Counted for every expression, as only the compiled code knows which of them a macro or block collects.
    budget.collect(len(text) if text.isascii() else 4 * len(text))
    return text


def _counted(name: str, function):
    """A filter of Jinja's that counts, refuses what would grow too large, and measures nested values."""
    check = FILTER_CHECKS.get(name)
    deep = name in _DEEP_FILTERS
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def counted(*args, **kwargs):
        budget = active.get()
        budget.step()
        if deep:
            for value in (*args[skip:], *kwargs.values()):
                if isinstance(value, (*_CONTAINERS, Namespace)):
                    budget.text(budget.walk(value))
                else:
                    budget.number(value)
        if check is not None:
            check(budget, *args[skip:], **kwargs)
        return budget.result(function(*args, **kwargs))

    return counted


def _counted_test(name: str, function):
    comparing = name in _COMPARING_TESTS

    @functools.wraps(function)
    def counted(*args, **kwargs):
        budget = active.get()
        budget.step()
        if comparing and sum(isinstance(value, _CONTAINERS) for value in args) > 1:
            for value in args:
                budget.walk(value)
        return function(*args, **kwargs)

    return counted


def _turns(values):
    """The values of a loop, one step each."""
    step = active.get().step
    for value in values:
        step()
        yield value


def _concat(values: tuple) -> str:
    budget = active.get()
    texts = [budget.string(value) for value in values]
    length = sum(map(len, texts))
    budget.text(length if all(map(str.isascii, texts)) else 4 * length)
    return "".join(texts)


def _join_texts(budget, separator: str, values) -> str:
    texts = []
    for value in values:
        budget.step()
        texts.append(value)
    if not all(isinstance(text, str) for text in texts):
        raise Refusal("it joins values that are not texts")
    length = sum(map(len, texts)) + len(separator) * len(texts)
    budget.text(length if separator.isascii() and all(map(str.isascii, texts)) else 4 * length)
    return separator.join(texts)


@pass_environment
def _join(environment, values, d="", attribute=None):
    budget = active.get()
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return _join_texts(budget, budget.string(d), (budget.string(value) for value in values))


@pass_environment
def _sum(environment, values, attribute=None, start=0):
    budget = active.get()
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    total = start
    for value in values:
        budget.step()
        check_operator(budget, "+", total, value)
        total = total + value
    return total


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as json.dumps writes it, without the HTML escapes of Jinja's own filter."""
    budget = active.get()
    if not (
        indent is None
        or (isinstance(indent, int) and indent <= 64)
        or (isinstance(indent, str) and len(indent) <= 64)
    ):
        raise Refusal("it indents JSON by more than 64 characters")
    budget.text(budget.walk(value))
    return budget.result(
        json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
    )


def _key(value):
    if value is not None and not isinstance(value, (str, int, float, Undefined)):
        raise Refusal(f"it uses a {type(value).__name__} as the key of a dict")
    return value


def _compare(sides: tuple, operator: str):
    left, right = sides
    if isinstance(left, _CONTAINERS) and isinstance(right, _CONTAINERS):
        budget = active.get()
        budget.walk(left)
        budget.walk(right)
    return _COMPARISONS[operator](left, right)


def _compared(value):
    if isinstance(value, _CONTAINERS):
        active.get().walk(value)
    return value


def _searched(value):
    if isinstance(value, (str, list, tuple, range)):
        active.get().step(1 + (len(value) >> (12 if isinstance(value, str) else 6)))
    return value


def _built(value):
    return active.get().result(value)


def _literal(size: int) -> str:
    active.get().collect(size)
    return ""


def _range(*args):
    found = range(*args)
    if len(found) > 100_000:
        raise Refusal(f"it makes a range of {len(found)}; 100000 is allowed")
    return found


def _dict(*args, **kwargs):
    found = dict(*args, **kwargs)
    for key in found:
        _key(key)
    return found


def _raise_exception(message):
    raise Refusal(f"it says: {message}")


def _strftime_now(format):
    if len(format) > 1000 or re.search(r"%[^a-zA-Z%]*\d", format):
        raise Refusal("it asks for a date in a format with widths, or longer than 1000 characters")
    return datetime.now().strftime(format)


def _mark(index: int) -> str:
    return MARKS[index]


_OWN_FILTERS = {
    "join": _join,
    "sum": _sum,
    "tojson": _tojson,
    TURNS: _turns,
    CONCAT: _concat,
    BUILT: _built,
    KEY: _key,
    COMPARE: _compare,
    COMPARED: _compared,
    SEARCHED: _searched,
    LITERAL: _literal,
    MARK: _mark,
}
