"""The border to the Rust library: files are checked before they pass it, and its panics become typed
errors.
"""

import contextlib
from pathlib import Path

from tokenizers import Regex, Tokenizer

from phyla.errors import TokenizerFileError, TokenizerInputError, nearest

from .base import check_unicode
from .jsonfile import parse_json, read_text

_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_MAX_ID = 2**31
_MAX_PATTERN = 5_000


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a Rust library, which is no Exception."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def panics_as(make):
    """Turn a Rust panic inside the block into the exception that `make(message)` gives."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise make(str(error)) from None


def read_tokenizer(path: Path, shared_ids: bool = False) -> tuple[Tokenizer, dict]:
    """The tokenizer in a tokenizer.json, checked, and the JSON itself.

    `shared_ids` lets an added token have the id of another token of the vocabulary, as some public files do.

    Raises TokenizerFileError with the path and the JSON pointer of the field.
    """
    path = Path(path)
    text = read_text(path)
    data = parse_json(text, path)
    _check(data, path, shared_ids)
    try:
        with panics_as(lambda message: TokenizerFileError(f"{path} cannot be used: {message}")):
            return Tokenizer.from_str(text), data
    except TokenizerFileError:
        raise
    except Exception as error:
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            for pointer, pattern in patterns(data.get(part), f"/{part}"):
                _compile(pattern, f"{path}: {pointer}")
        raise TokenizerFileError(f"{path} is not a tokenizer that can be used: {error}") from error


def _check(data, path: Path, shared_ids: bool) -> None:
    if not isinstance(data, dict):
        raise TokenizerFileError(f"{path} must hold a JSON object, but holds a {type(data).__name__}")
    model = data.get("model")
    if not isinstance(model, dict):
        raise TokenizerFileError(f"{path}: /model must be an object, but is {model!r:.80}")
    kind = model.get("type")
    if kind is not None and kind not in _MODELS:
        raise TokenizerFileError(
            f"{path}: /model/type must be one of {', '.join(_MODELS)},"
            f" but is {kind!r}.{nearest(kind, _MODELS)}"
        )
    ids = _check_vocabulary(model.get("vocab"), path)
    _check_added(data.get("added_tokens"), {} if shared_ids else ids, path)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for pointer, pattern in patterns(data.get(part), f"/{part}"):
            check_pattern(pattern, f"{path}: {pointer}")


def _check_vocabulary(vocab, path: Path) -> dict:
    if not isinstance(vocab, dict):
        return {}
    ids = vocab.values()
    if not all(type(index) is int and 0 <= index < _MAX_ID for index in ids):
        token, index = next((t, i) for t, i in vocab.items() if type(i) is not int or not 0 <= i < _MAX_ID)
        raise TokenizerFileError(
            f"{path}: /model/vocab/{token} must be an id from 0 to {_MAX_ID - 1}, but is {index!r:.40}"
        )
    if len(set(ids)) != len(vocab):
        seen: dict[int, str] = {}
        for token, index in vocab.items():
            if index in seen:
                raise TokenizerFileError(
                    f"{path}: /model/vocab gives {seen[index]!r} and {token!r} the same id {index}"
                )
            seen[index] = token
    return vocab


def _check_added(added, vocab: dict, path: Path) -> None:
    if added is None:
        return
    if not isinstance(added, list):
        raise TokenizerFileError(f"{path}: /added_tokens must be a list, but is a {type(added).__name__}")
    seen: dict[int, str] = {}
    names: dict[int, str] | None = None
    for i, token in enumerate(added):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise TokenizerFileError(
                f"{path}: /added_tokens/{i} must be an object with `content`, but is {token!r:.80}"
            )
        index, text = token.get("id"), token["content"]
        if type(index) is not int or not 0 <= index < _MAX_ID:
            raise TokenizerFileError(
                f"{path}: /added_tokens/{i}/id must be from 0 to {_MAX_ID - 1}, but is {index!r:.40}"
            )
        if seen.setdefault(index, text) != text:
            raise TokenizerFileError(
                f"{path}: /added_tokens gives {seen[index]!r} and {text!r} the same id {index}"
            )
        if vocab and vocab.get(text) != index:
            names = {i: t for t, i in vocab.items()} if names is None else names
            if index in names and names[index] != text:
                raise TokenizerFileError(
                    f"{path}: /added_tokens/{i} and /model/vocab give {text!r} and {names[index]!r}"
                    f" the same id {index}"
                )


def patterns(node, pointer: str):
    """JSON pointer and text of every regular expression below a node."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "Regex" and isinstance(value, str):
                yield f"{pointer}/Regex", value
            else:
                yield from patterns(value, f"{pointer}/{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from patterns(value, f"{pointer}/{i}")


def _compile(pattern: str, where: str) -> None:
    try:
        with panics_as(TokenizerFileError):
            Regex(pattern)
    except Exception as error:
        raise TokenizerFileError(
            f"{where} is not a regular expression: {error} (in {pattern[:80]!r})"
        ) from error


def check_pattern(pattern: str, where: str) -> None:
    """Raise TokenizerFileError for a regular expression that is too long to be trusted.

    Exponential ones need no check: the library gives up after 10^7 steps of one match, which `encode_batch`
    reports.
    """
    if len(pattern) > _MAX_PATTERN:
        raise TokenizerFileError(
            f"{where} has {len(pattern)} characters; a pattern may have at most {_MAX_PATTERN}"
        )


def encode_batch(
    tokenizer: Tokenizer, inputs: list, add_special_tokens: bool, is_pretokenized: bool, name: str
):
    """`Tokenizer.encode_batch` whose faults are TokenizerInputError or TokenizerFileError."""
    try:
        return tokenizer.encode_batch(
            inputs, add_special_tokens=add_special_tokens, is_pretokenized=is_pretokenized
        )
    except BaseException as error:
        if is_panic(error):
            raise TokenizerFileError(
                f"the tokenizer.json of {name} cannot handle this text: {error}; a pattern in its"
                " pre_tokenizer or normalizer that repeats a repeat, such as (a+)+, takes exponential time"
            ) from None
        if not isinstance(error, Exception):
            raise
        for i, item in enumerate(inputs):
            _check_item(item, f"text[{i}]")
        raise TokenizerInputError(f"{name} cannot encode this: {error}") from error


def _check_item(item, name: str) -> None:
    if isinstance(item, str):
        check_unicode(item, name)
    elif isinstance(item, (list, tuple)):
        for i, part in enumerate(item):
            _check_item(part, f"{name}[{i}]")
    else:
        raise TokenizerInputError(f"{name} must be a string, but is {item!r:.80} ({type(item).__name__})")
