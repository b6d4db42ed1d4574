"""Grammars: what a text may be, for `generate(..., grammar=..., tokenizer=...)`.

The parsing is llguidance's (Earley over a lexer of derivatives, a mask in some microseconds), an extra:
`pip install phyla[grammar]`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from phyla.errors import ArgumentError, GenerationError, require


def engine() -> Any:
    """The module of the grammar engine."""
    return require("llguidance", "grammar", "decoding by a grammar")


# blanks as json.dumps puts them, which models have seen most
_BLANKS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """A set of texts, one of which a generated text shall be; made by the methods below.

    Raises GenerationError, with the place, where the rules do not parse. inner: what a text that could end
    may turn into with one token.
    """

    inner: "Grammar | None" = None

    def __init__(self, rules: str, told: str):
        self.rules, self.told = rules, told
        matcher = engine().LLMatcher
        failed, messages = matcher.validate_grammar_with_warnings(rules)
        if failed:
            raise GenerationError(f"{told} is no grammar: {messages[0].strip()}")

    def __repr__(self) -> str:
        return f"Grammar({self.told})"

    @classmethod
    def choices(cls, texts: Iterable[str]) -> "Grammar":
        """One of some texts."""
        known = [texts] if isinstance(texts, str) else list(texts)
        if not known or not all(isinstance(text, str) and text for text in known):
            raise ArgumentError(f"choices must be at least one text, none of them empty, but are {known!r}")
        options = " | ".join(json.dumps(text, ensure_ascii=False) for text in known)
        return cls._of_rules(f"start: {options}", f"choices of {len(known)}")

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Texts that a regular expression matches whole; no groups that look around, no back references."""
        return cls(engine().LLMatcher.grammar_from_regex(pattern), f"regex {pattern!r}")

    @classmethod
    def json(cls, schema: Any = None, whitespace: bool = False) -> "Grammar":
        """JSON that a JSON Schema allows: a dict, its text, or a class that gives it as pydantic's do.

        Without a schema any object. Blanks are where json.dumps puts them; `whitespace` allows any.
        """
        give = getattr(schema, "model_json_schema", None)
        found = {"type": "object"} if schema is None else give() if give is not None else schema
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except ValueError as error:
                raise GenerationError(f"the JSON Schema is not JSON: {error}") from error
        if not isinstance(found, (dict, bool)):
            raise ArgumentError(
                "a JSON Schema must be a dict, its text or a class with model_json_schema(), but is a "
                f"{type(found).__name__}"
            )
        options = {**_BLANKS, "whitespace_flexible": whitespace}
        rules = engine().LLMatcher.grammar_from_json_schema(json.dumps(found), overrides=options)
        return cls(rules, "the JSON Schema")

    @classmethod
    def ebnf(cls, rules: str) -> "Grammar":
        """Rules in EBNF as Lark writes them; the text is a `start`."""
        return cls._of_rules(rules, "the EBNF")

    @classmethod
    def gbnf(cls, rules: str) -> "Grammar":
        """Rules as llama.cpp writes them; the text is a `root`."""
        reader = require("llguidance.gbnf_to_lark", "grammar", "decoding by a grammar")
        try:
            lark = reader.any_to_lark(rules)
        except reader.GbnfToLarkError as error:
            raise GenerationError(f"the GBNF is no grammar: {error}") from error
        return cls._of_rules(lark, "the GBNF")

    @classmethod
    def tools(
        cls, tools: Sequence[Any], begin: str = "<tool_call>\n", end: str = "\n</tool_call>",
        most: int = 1, trigger: str | None = None,
    ) -> "Grammar":  # fmt: skip
        """Calls of `tools`, from one to `most`: each is `begin`, JSON with a name and its arguments, `end`.

        tools: functions with documented arguments, or their schemas, as apply_chat_template takes them.
        trigger: how `begin` begins; the text is free then, with no call or up to `most` of them in it: a
        call comes where the trigger does, and nowhere else.
        """
        from phyla.preprocessing.text.json_schema import get_json_schema

        kinds = []
        for tool in tools:
            schema = get_json_schema(tool) if callable(tool) else tool
            function = schema.get("function", schema) if isinstance(schema, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise ArgumentError(f"a tool must be a function or a schema with a name, but is {tool!r}")
            fields = {
                "name": {"const": function["name"]},
                "arguments": function.get("parameters") or {"type": "object"},
            }
            kinds.append(
                {
                    "type": "object",
                    "properties": fields,
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
        if not kinds or most < 1:
            raise ArgumentError("tools must be at least one, and `most` at least 1")
        body = json.dumps({"x-guidance": _BLANKS, "anyOf": kinds})
        if trigger is not None:
            free = _triggered(body, begin, end, most, trigger)
            made = cls._of_rules(free, f"text with {len(kinds)} tools")
            made.inner = cls.tools(tools, begin, end)
            return made
        edges = [json.dumps(text, ensure_ascii=False) for text in (begin, end)]
        rules = (
            f"start: call (/\\n/ call){{0,{most - 1}}}\n" if most > 1 else "start: call\n"
        ) + f"call: {edges[0]} body {edges[1]}\nbody: %json {body}\n"
        return cls._of_rules(rules, f"calls of {len(kinds)} tools")

    @classmethod
    def _of_rules(cls, rules: str, told: str) -> "Grammar":
        return cls(engine().LLMatcher.grammar_from_lark(rules), told)


def _triggered(body: str, begin: str, end: str, most: int, trigger: str) -> str:
    """Rules of free text in which a trigger begins a call, `most` times at most."""
    if not trigger or not begin.startswith(trigger):
        raise ArgumentError(f"trigger must be how begin begins ({begin!r}), but is {trigger!r}")
    rest, close, mark = (
        json.dumps(t, ensure_ascii=False) for t in (begin[len(trigger) :], end, trigger)
    )  # fmt: skip
    call = f"lead {rest} body {close}" if begin != trigger else f"lead body {close}"
    names = ["start", *(f"after_{n}" for n in range(1, most + 1))]
    lines = [f"{now}: {call} {then} | FREE" for now, then in pairwise(names)]
    anything, escaped = "(?s:.*)", re.escape(trigger).replace("/", "\\/")
    return "\n".join([
        *lines, f"{names[-1]}: FREE", f"lead[suffix={mark}]: /{anything}/",
        f"FREE: /{anything}/ & ~/{anything}{escaped}{anything}/", f"body: %json {body}",
    ])  # fmt: skip


def read_grammar(given: Any) -> Grammar:
    """A grammar, or the JSON Schema of one."""
    return given if isinstance(given, Grammar) else Grammar.json(given)


_WORDS: WeakKeyDictionary = WeakKeyDictionary()


def words_of(tokenizer: Any, size: int, ends: tuple[int, ...]) -> Any:
    """The engine's view of a tokenizer for a model of `size` tokens that stops at `ends`; kept for later."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    known = _WORDS.setdefault(tokenizer, {})
    key = (size, ends, len(tokenizer))
    if key not in known and backend is None:
        if not hasattr(tokenizer, "added_tokens_decoder"):
            raise GenerationError(f"a grammar needs a tokenizer, but this is a {type(tokenizer).__name__}")
        from phyla.generation.spelled import Spelled

        module = engine()
        words = module.TokenizerWrapper(Spelled(tokenizer, size, ends))
        known[key] = module.LLTokenizer(words, n_vocab=size, eos_token=list(ends))
    elif key not in known:
        state = json.loads(backend.to_str())
        state["padding"] = state["truncation"] = None
        known[key] = engine().LLTokenizer(json.dumps(state), n_vocab=size, eos_token=list(ends))
    return known[key]
