"""JSON files of a checkpoint, read under limits of size, depth and digits, with the place of a fault in its
error."""

import json
import os
import re
from collections import Counter
from pathlib import Path

from phyla.checkpoints.paths import open_regular, read_exactly
from phyla.errors import ConfigError, CorruptFileError, PhylaError

MAX_BYTES = 64 << 20
MAX_DEPTH = 64
MAX_DIGITS = 64

# Not one pattern for a whole string: its engine would need a hundred times the text's memory for one full of
# escapes.
_TOKEN = re.compile(rb'\\.|["\[{\]}]|[0-9]{%d,}' % (MAX_DIGITS + 1), re.DOTALL)


def read_json(
    path: str | os.PathLike,
    error: type[PhylaError] = ConfigError,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    kind: type = dict,
):
    """The JSON object (or the list, with kind=list) in a file.

    Raises `error`, naming path:line:column, if it is anything else, and MissingFileError if there is no such
    file.
    """
    value = parse_json(read_bytes(path, error, max_bytes), str(path), error, max_depth)
    if not isinstance(value, kind):
        wanted = "a JSON object" if kind is dict else "a JSON list"
        raise error(f"{path} must hold {wanted}, but holds {_kind(value)}")
    return value


def read_bytes(
    path: str | os.PathLike, error: type[PhylaError] = ConfigError, max_bytes: int = MAX_BYTES
) -> bytes:
    """All bytes of a regular file of at most `max_bytes`; raises `error` or MissingFileError."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise error(f"{path} must be at most {max_bytes} bytes, but has {size}")
            data = bytearray(size)
            read_exactly(file, memoryview(data), 0, path)
    except CorruptFileError as fault:
        if issubclass(error, CorruptFileError):
            raise
        raise error(str(fault)) from fault
    return bytes(data)


def parse_json(
    data: bytes,
    where: str,
    error: type[PhylaError] = ConfigError,
    max_depth: int = MAX_DEPTH,
    unique_keys: bool = False,
):
    """The value of JSON text in UTF-8; raises `error` naming `where:line:column`, or the key that stands
    twice if keys must be unique."""
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    try:
        text = data.decode()
    except UnicodeDecodeError as fault:
        place = _place(data, fault.start)
        raise error(
            f"{where}:{place}: JSON must be UTF-8, but byte {fault.start} is 0x{data[fault.start]:02x}"
        ) from fault
    _check_limits(data, where, error, max_depth)

    def pairs(items: list[tuple[str, object]]) -> dict:
        found = dict(items)
        if len(found) != len(items):
            twice = Counter(key for key, _ in items).most_common(1)[0][0]
            raise error(
                f"{where}: every key may stand once in an object, but {twice[:200]!r} stands there twice"
            )
        return found

    try:
        return json.loads(text, object_pairs_hook=pairs if unique_keys else None)
    except json.JSONDecodeError as fault:
        raise error(f"{where}:{fault.lineno}:{fault.colno}: this is not JSON: {fault.msg}") from fault


def _check_limits(data: bytes, where: str, error: type[PhylaError], max_depth: int) -> None:
    depth, inside_string = 0, False
    for match in _TOKEN.finditer(data):
        first = data[match.start()]
        if first == 0x22:
            inside_string = not inside_string
        elif inside_string or first == 0x5C:
            continue
        elif first in b"[{":
            depth += 1
            if depth > max_depth:
                place = _place(data, match.start())
                raise error(f"{where}:{place}: JSON may nest at most {max_depth} deep, but nests deeper here")
        elif first in b"]}":
            depth -= 1
        else:
            place, count = _place(data, match.start()), match.end() - match.start()
            raise error(f"{where}:{place}: a number may have at most {MAX_DIGITS} digits, but has {count}")


def _place(data: bytes, offset: int) -> str:
    line_start = data.rfind(b"\n", 0, offset) + 1
    return str(data.count(b"\n", 0, offset) + 1) + f":{offset - line_start + 1}"


def _kind(value: object) -> str:
    names = {
        list: "a list",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
