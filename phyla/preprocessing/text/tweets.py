"""Tweets cut into words, emoticons and links (C. Potts' tokenizer of tweets), and normalised."""

import functools
import html.entities
import importlib
import re

_BALANCED = r"\([^\s()]*?\([^\s()]+\)[^\s()]*?\)"
_LINK = rf"""
  (?:https?:(?:/{{1,3}}|[a-z0-9%])|[a-z0-9.\-]+[.](?:[a-z]{{2,13}})/)
  (?:[^\s()<>{{}}\[\]]+|{_BALANCED}|\([^\s]+?\))+
  (?:{_BALANCED}|\([^\s]+?\)|[^\s`!()\[\]{{}};:'".,<>?«»“”‘’])
  |(?:(?<!@)[a-z0-9]+(?:[.\-][a-z0-9]+)*[.](?:[a-z]{{2,13}})\b/?(?!@))
"""
_PHONE = r"(?:(?:\+?[01][ *\-.\)]*)?(?:[\(]?\d{3}[ *\-.\)]*)?\d{3}[ *\-.\)]*\d{4})"
_MOUTH = r"[\)\]\(\[dDpP/\:\}\{@\|\\]"
_EMOTICON = rf"(?:[<>]?[:;=8][\-o\*\']?{_MOUTH}|{_MOUTH}[\-o\*\']?[:;=8][<>]?|<3)"
_PARTS = (
    _LINK,
    _PHONE,
    _EMOTICON,
    r"<[^>\s]+>",
    r"[\-]+>|<[\-]+",
    r"(?:@[\w_]+)",
    r"(?:\#+[\w_]+[\w\'_\-]*[\w_]+)",
    r"[\w.+-]+@[\w-]+\.(?:[\w-]\.?)+[\w-]",
    r"(?:[^\W\d_](?:[^\W\d_]|['\-_])+[^\W\d_])",
    r"(?:[+\-]?\d+[,/.:-]\d+[+\-]?)",
    r"(?:[\w_]+)",
    r"(?:\.(?:\s*\.){1,})",
    r"(?:\S)",
)
_REPEATED = re.compile(r"([^a-zA-Z0-9])\1{3,}")
_ENTITY = re.compile(r"&(#?(x?))([^&;\s]+);")
_MARKS = {"’": "'", "…": "..."}
_CUT = (
    ("cannot ", "can not "), ("n't ", " n't "), ("n 't ", " n't "), ("ca n't", "can't"), ("ai n't", "ain't"),
    ("'m ", " 'm "), ("'re ", " 're "), ("'s ", " 's "), ("'ll ", " 'll "), ("'d ", " 'd "),
    ("'ve ", " 've "),
    (" p . m .", "  p.m."), (" p . m ", " p.m "), (" a . m .", " a.m."), (" a . m ", " a.m "),
)  # fmt: skip


@functools.cache
def _words_pattern() -> re.Pattern:
    return re.compile(f"({'|'.join(_PARTS)})", re.VERBOSE | re.IGNORECASE)


def _entity(match: re.Match) -> str:
    number: int | None = None
    if not match.group(1):
        number = html.entities.name2codepoint.get(match.group(3))
    else:
        try:
            number = int(match.group(3), 16 if match.group(2) else 10)
            if 128 <= number <= 159:
                return bytes((number,)).decode("cp1252")
        except ValueError:
            number = None
    try:
        return "" if number is None else chr(number)
    except (ValueError, OverflowError):
        return ""


def tweet_words(text: str) -> list[str]:
    """The words, emoticons, links and marks of a tweet."""
    text = _REPEATED.sub(r"\1\1\1", _ENTITY.sub(_entity, text))
    return [match.group() for match in _words_pattern().finditer(text)]


@functools.cache
def _emoji_names():
    try:
        return importlib.import_module("emoji").demojize
    except ModuleNotFoundError:
        return None


def normalized_word(word: str) -> str:
    """`@USER` for users, `HTTPURL` for links, names for emoji, plain marks; other words as they are."""
    if word.startswith("@"):
        return "@USER"
    if word.lower().startswith(("http", "www")):
        return "HTTPURL"
    if len(word) == 1:
        name = _emoji_names()
        return _MARKS[word] if word in _MARKS else word if name is None else name(word)
    return word


def normalized_tweet(text: str) -> str:
    """A tweet with `@USER`, `HTTPURL`, names for emoji (where the package emoji is installed) and cut
    contractions.
    """
    for mark, plain in _MARKS.items():
        text = text.replace(mark, plain)
    text = " ".join(map(normalized_word, tweet_words(text)))
    for old, new in _CUT:
        text = text.replace(old, new)
    return " ".join(text.split())
