"""Chat templates: messages to prompt text, run in a sandbox under budgets of time, size and memory."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import NamedTuple

from jinja2 import TemplateSyntaxError
from jinja2 import exceptions as jinja_errors

from phyla.errors import ArgumentError, TemplateError, TokenizerInputError
from phyla.preprocessing.text.json_schema import get_json_schema
from phyla.preprocessing.text.template_budget import Budget, Refusal, active
from phyla.preprocessing.text.template_rewrite import MARKS
from phyla.preprocessing.text.template_sandbox import TemplateEnvironment

__all__ = ["Rendered", "get_json_schema", "render"]

_MAX_TEMPLATE = 1 << 18  # characters; the longest public ones have about 20,000
_MAX_TAGS = 5000  # what takes time to compile; the public ones have some hundreds
_MAX_DEPTH = 64


class Rendered(NamedTuple):
    """The prompt, and the (start, end) characters of it that stood in `{% generation %}` blocks."""

    text: str
    assistant_spans: list[tuple[int, int]]


def render(
    template: str,
    messages: Sequence[Mapping[str, object]],
    tools: Sequence[object] | None = None,
    documents: Sequence[Mapping[str, object]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    variables: Mapping[str, object] | None = None,
    special_tokens: Mapping[str, object] | None = None,
    source: str = "the chat template",
) -> Rendered:
    """The prompt that `template` (Jinja) makes of messages [{"role": ..., "content": ...}, ...].

    `tools` are functions (see `get_json_schema`) or their schemas, `documents` dicts, `special_tokens` the
    tokenizer's by public name; `variables` are for the template too and win over them. The template sees
    copies. `source` names the template in errors. With `continue_final_message` the text ends where the last
    message does. A template gets about 0.3 s, 10^6 steps, 4 MB of text plus 8 times the input, and 40 MB of
    memory. Raises TemplateError with the line, ArgumentError for wrong messages, TokenizerInputError for
    wrong documents.
    """
    if add_generation_prompt and continue_final_message:
        raise ArgumentError("add_generation_prompt and continue_final_message exclude each other")
    copier = _Copier()
    chat = copier.messages(messages)
    given = {
        **{name: copier.copy(_token_text(token), name) for name, token in (special_tokens or {}).items()},
        **{name: copier.variable(value, name) for name, value in (variables or {}).items()},
        "messages": chat,
        "tools": copier.tools(tools),
        "documents": copier.documents(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    text = _run(_compiled(template, source), given, Budget(copier.values, copier.size), source)
    text, spans = _take_marks(text)
    if continue_final_message:
        text = text[: _end_of_last_message(text, chat, source)]
        spans = [(start, min(end, len(text))) for start, end in spans if start < len(text)]
    return Rendered(text, spans)


@functools.cache
def _environment() -> TemplateEnvironment:
    return TemplateEnvironment()


def _compiled(template: str, source: str):
    if not isinstance(template, str):
        raise TemplateError(
            f"{source} must be a Jinja template as text, but is {template!r:.80}; set chat_template to one"
        )
    if len(template) > _MAX_TEMPLATE:
        raise TemplateError(f"{source} has {len(template)} characters; {_MAX_TEMPLATE} are allowed")
    if template.count("{%") + template.count("{{") > _MAX_TAGS:
        raise TemplateError(f"{source} has more than {_MAX_TAGS} tags")
    try:
        return _compile(template)
    except TemplateSyntaxError as error:  # also unknown filters and tests
        raise TemplateError(f"{source}, line {error.lineno}: {error.message}") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        raise TemplateError(f"{source} cannot be compiled: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=64)
def _compile(template: str):
    return _environment().from_string(template)


def _run(compiled, given: dict[str, object], budget: Budget, source: str) -> str:
    token = active.set(budget)
    chunks: list[str] = []
    size = 0
    output = compiled.root_render_func(compiled.new_context(given))
    try:
        for chunk in output:
            chunks.append(chunk)
            size += len(chunk) if chunk.isascii() else 4 * len(chunk)
            budget.step()
            if size > budget.max_text:
                line = compiled.get_corresponding_lineno(output.gi_frame.f_lineno)
                raise TemplateError(
                    f"{source}, line {line}: its output is longer than the {budget.max_text} bytes allowed"
                )
        return "".join(chunks)
    except TemplateError:
        raise
    except Refusal as refusal:
        raise TemplateError(f"{_place(compiled, refusal, source)}: {refusal}") from None
    except jinja_errors.SecurityError as error:
        raise TemplateError(
            f"{_place(compiled, error, source)}: not allowed in a template: {error}"
        ) from error
    except jinja_errors.UndefinedError as error:
        raise TemplateError(f"{_place(compiled, error, source)}: {error}") from error
    except RecursionError as error:
        raise TemplateError(f"{_place(compiled, error, source)}: it calls itself too deeply") from error
    except Exception as error:  # whatever an operation of the template raises is the template's
        raise TemplateError(f"{_place(compiled, error, source)}: {type(error).__name__}: {error}") from error
    finally:
        active.reset(token)


def _place(compiled, error: BaseException, source: str) -> str:
    """The source with the line of the innermost part of the template that ran."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals is compiled.root_render_func.__globals__:
            line = compiled.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return source if line is None else f"{source}, line {line}"


def _take_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks of generation blocks, and the characters between each pair."""
    start_mark, end_mark = MARKS
    if start_mark not in text:
        return text.replace(end_mark, ""), []
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    written = 0
    for i, section in enumerate(text.split(start_mark)):
        inside, mark, after = section.partition(end_mark)
        if i and inside:
            spans.append((written, written + len(inside)))
        after = after.replace(end_mark, "") if mark else ""
        parts += [inside, after]
        written += len(inside) + len(after)
    return "".join(parts), spans


def _end_of_last_message(text: str, chat: list, source: str) -> int:
    content = chat[-1].get("content") if chat else None
    if isinstance(content, (list, tuple)):
        texts = [part["text"] for part in content if isinstance(part, dict) and "text" in part]
        content = texts[-1] if texts else None
    if not isinstance(content, str):
        raise ArgumentError("continue_final_message needs text in the last message, but it has none")
    start = text.rfind(content.strip())
    if start < 0:
        raise ArgumentError(
            f"continue_final_message needs the last message in the prompt, "
            f"but {source} leaves out or changes {content.strip()[:60]!r}"
        )
    # Spaces at the end of the message stay where the template keeps them.
    kept = content.lstrip()
    return start + len(kept if text.startswith(kept, start) else content.strip())


class _Opaque:
    """Stands for a value that is no plain data (an image, an array): templates cannot reach into it."""

    __slots__ = ("_name",)

    def __init__(self, name: str):
        self._name = name

    def __str__(self) -> str:
        return f"<{self._name}>"

    __repr__ = __str__


class _Copier:
    """Copies of plain data, counting values and bytes of text on the way."""

    def __init__(self):
        self.values = self.size = 0

    def copy(self, value, where: str, depth: int = 0):
        self.values += 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            text = str.__str__(value)
            self.size += len(text) if text.isascii() else 4 * len(text)
            return text
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        if depth >= _MAX_DEPTH:
            raise ArgumentError(f"{where} is nested deeper than {_MAX_DEPTH} levels, or holds itself")
        if isinstance(value, Mapping):
            return {self._key(key, where): self.copy(entry, where, depth + 1) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.copy(entry, where, depth + 1) for entry in value]
        if isinstance(value, (tuple, set, frozenset)):
            return tuple(self.copy(entry, where, depth + 1) for entry in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return self.copy(fields, where, depth + 1)
        return _Opaque(type(value).__name__)

    def _key(self, key, where: str):
        if key is None or isinstance(key, (bool, int, float)):
            return key
        if isinstance(key, str):
            self.size += len(key)
            return str.__str__(key)
        raise ArgumentError(f"{where} must have texts as keys, but has {key!r:.60}")

    def messages(self, messages) -> list:
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
            raise ArgumentError(
                f"messages must be a list of dicts with 'role' and 'content', not {type(messages).__name__}"
            )
        copied = [self.copy(message, f"messages[{i}]") for i, message in enumerate(messages)]
        for i, message in enumerate(copied):
            if not isinstance(message, dict):
                raise ArgumentError(
                    f"messages[{i}] must be a dict with 'role' and 'content', not "
                    f"{type(messages[i]).__name__}"
                )
            if "role" not in message:
                raise ArgumentError(f"messages[{i}] lacks 'role'; it has {sorted(map(str, message))}")
        return copied

    def tools(self, tools) -> list | None:
        if tools is None:
            return None
        if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
            raise ArgumentError(
                f"tools must be a list of functions or JSON schemas, but is {type(tools).__name__}"
            )
        found = []
        for i, tool in enumerate(tools):
            if not isinstance(tool, Mapping):
                if not (inspect.isfunction(tool) or inspect.ismethod(tool)):
                    raise ArgumentError(
                        f"tools[{i}] must be a function or a JSON schema, but is {type(tool).__name__}"
                    )
                tool = get_json_schema(tool)
            found.append(self.copy(tool, f"tools[{i}]"))
        return found

    def documents(self, documents) -> list | None:
        if documents is None:
            return None
        for i, document in enumerate(documents):
            if not isinstance(document, Mapping):
                raise TokenizerInputError(
                    f"documents[{i}] must be a dict with 'title' and 'text', but is {type(document).__name__}"
                )
        return [self.copy(document, f"documents[{i}]") for i, document in enumerate(documents)]

    def variable(self, value, where: str):
        # A function that the caller hands over is the caller's to answer for.
        return value if isinstance(value, FunctionType) else self.copy(value, where)


def _token_text(token):
    if token is None or isinstance(token, (str, list, tuple)):
        return [_token_text(entry) for entry in token] if isinstance(token, (list, tuple)) else token
    return str(token)
