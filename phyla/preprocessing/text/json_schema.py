"""Tools for chat templates: a JSON schema from a function's type hints and its Google-style docstring."""

import inspect
import json
import re
import types
import typing

from phyla.errors import ArgumentError

_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_SECTION = re.compile(
    r"^[ \t]*(Args|Returns|Raises):[ \t]*$|^[ \t]*(Args|Returns|Raises):[ \t]*(?=\S)", re.MULTILINE
)
_ARGUMENT = re.compile(r"^[ \t]*(\w+):[ \t]*", re.MULTILINE)
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE | re.DOTALL)


def get_json_schema(func) -> dict:
    """The tool description of a function, in the form that chat templates take.

    Every parameter needs a type hint and a line under `Args:` in the docstring; a line that ends in
    `(choices: ["a", "b"])` gives the values allowed. Raises ArgumentError naming the function and the
    parameter.
    """
    name = getattr(func, "__name__", type(func).__name__)
    doc = inspect.getdoc(func)
    if not doc:
        raise ArgumentError(f"a tool needs a docstring to be described by, but {name} has none")
    description, arguments, returns = _sections(doc.strip())
    schema, result = _signature(func, name)
    for argument, entry in schema["properties"].items():
        if argument not in arguments:
            raise ArgumentError(
                f"the docstring of tool {name} must describe argument {argument!r} under 'Args:'"
            )
        text = arguments[argument]
        choices = _CHOICES.search(text)
        if choices:
            entry["enum"] = _choices(choices.group(1), name, argument)
            text = text[: choices.start()].strip()
        entry["description"] = text
    function = {"name": name, "description": description, "parameters": schema}
    if result is not None:
        function["return"] = {**result, "description": returns} if returns is not None else result
    return {"type": "function", "function": function}


def _choices(text: str, name: str, argument: str) -> list[str]:
    try:
        return [choice.strip() for choice in json.loads(text)]
    except (ValueError, AttributeError, TypeError) as error:
        raise ArgumentError(
            f"the choices of argument {argument!r} of tool {name} must be a JSON list of texts: {text!r}"
        ) from error


def _sections(doc: str) -> tuple[str, dict[str, str], str | None]:
    """Description, text by argument, and what is returned."""
    heads = list(_SECTION.finditer(doc))
    bodies: dict[str, str] = {}
    for i, head in enumerate(heads):
        end = heads[i + 1].start() if i + 1 < len(heads) else len(doc)
        bodies.setdefault(head.group(1) or head.group(2), doc[head.end() : end])
    description = doc[: heads[0].start()] if heads else doc
    returns = bodies.get("Returns")
    return (
        description.strip(),
        _arguments(bodies.get("Args", "")),
        returns.strip() if returns is not None else None,
    )


def _arguments(body: str) -> dict[str, str]:
    lines = "\n".join(line for line in body.split("\n") if line.strip())
    starts = list(_ARGUMENT.finditer(lines))
    found = {}
    for i, start in enumerate(starts):
        end = starts[i + 1].start() if i + 1 < len(starts) else len(lines)
        found[start.group(1)] = re.sub(r"\s*\n+\s*", " ", lines[start.end() : end].strip())
    return found


def _signature(func, name: str) -> tuple[dict, dict | None]:
    """The schema of the parameters and that of the result."""
    required = []
    for parameter in inspect.signature(func).parameters.values():
        if parameter.annotation is inspect.Parameter.empty:
            raise ArgumentError(f"argument {parameter.name!r} of tool {name} needs a type hint")
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    properties = {
        key: _type(hint, f"{key!r} of tool {name}") for key, hint in typing.get_type_hints(func).items()
    }
    result = properties.pop("return", None)
    schema: dict = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema, result


def _type(hint, where: str) -> dict:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        return _plain_type(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(args, where)
    if origin is typing.Literal:
        kinds = sorted({_TYPES.get(type(value), "object") for value in args})
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(args)}
    if origin is list:
        return {"type": "array", "items": _type(args[0], where)} if args else {"type": "array"}
    if origin is tuple:
        if len(args) == 1 or ... in args:
            raise ArgumentError(f"{where} is a tuple of one type or of any length: use list instead")
        return (
            {"type": "array", "prefixItems": [_type(arg, where) for arg in args]}
            if args
            else {"type": "array"}
        )
    if origin is dict:
        values = {"additionalProperties": _type(args[1], where)} if len(args) == 2 else {}
        return {"type": "object", **values}
    raise ArgumentError(f"the type hint {hint} of {where} has no JSON schema")


def _plain_type(hint) -> dict:
    if hint is typing.Any:
        return {}
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    # Known by name, so that describing a tool loads neither library.
    named = f"{getattr(hint, '__module__', '')}.{getattr(hint, '__qualname__', '')}"
    return {"type": {"PIL.Image.Image": "image", "torch.Tensor": "audio"}.get(named, "object")}


def _union(args: tuple, where: str) -> dict:
    parts = [_type(arg, where) for arg in args if arg is not type(None)]
    if len(parts) == 1:
        found = dict(parts[0])
    elif all(isinstance(part.get("type"), str) for part in parts):
        found = {"type": sorted(part["type"] for part in parts)}
    else:
        found = {"anyOf": parts}
    if type(None) in args:
        found["nullable"] = True
    return found
