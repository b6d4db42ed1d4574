"""JSON files of tokenizers, read with limits and with errors that name file and place."""

import json
from pathlib import Path

from phyla.errors import MissingFileError, TokenizerFileError

MAX_BYTES = 512 * 2**20


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; raises MissingFileError or TokenizerFileError naming the path."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise TokenizerFileError(f"{path} has {size} bytes; a tokenizer file may have at most {MAX_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerFileError(f"{path} is not UTF-8 text: byte {error.start} ({error.reason})") from error


def parse_json(text: str, path: Path):
    """The value of JSON text read from `path`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise TokenizerFileError(
            f"{path} is not valid JSON: {error.msg} at {place} of {len(text)} characters"
        ) from error
    except RecursionError:
        raise TokenizerFileError(f"{path} is nested too deep to be a tokenizer file") from None


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    value = parse_json(read_text(path), path)
    if not isinstance(value, dict):
        raise TokenizerFileError(f"{path} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def write_json(path: Path, value, sort_keys: bool = True) -> str:
    """Write a value as indented JSON, all or nothing; returns the path as text."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> str:
    """Write text through a temporary file beside the target, so that a crash leaves no half file."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)
    return str(path)
