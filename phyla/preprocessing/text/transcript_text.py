"""Transcripts as they are compared with each other: lower case, no marks, one way to write numbers and words
(OpenAI's Whisper, appendix C of arXiv:2212.04356).
"""

import re
import unicodedata

from .transcript_numbers import digits

_LETTERS = {
    "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ß": "ss", "ẞ": "SS", "đ": "d", "Đ": "D",
    "ð": "d", "Ð": "D", "þ": "th", "Þ": "th", "ł": "l", "Ł": "L",
}  # fmt: skip
_SHORT = {
    r"\bwon't\b": "will not", r"\bcan't\b": "can not", r"\blet's\b": "let us", r"\bain't\b": "aint",
    r"\by'all\b": "you all", r"\bwanna\b": "want to", r"\bgotta\b": "got to", r"\bgonna\b": "going to",
    r"\bi'ma\b": "i am going to", r"\bimma\b": "i am going to", r"\bwoulda\b": "would have",
    r"\bcoulda\b": "could have", r"\bshoulda\b": "should have", r"\bma'am\b": "madam",
    r"\bmr\b": "mister ", r"\bmrs\b": "missus ", r"\bst\b": "saint ", r"\bdr\b": "doctor ",
    r"\bprof\b": "professor ", r"\bcapt\b": "captain ", r"\bgov\b": "governor ", r"\bald\b": "alderman ",
    r"\bgen\b": "general ", r"\bsen\b": "senator ", r"\brep\b": "representative ", r"\bpres\b": "president ",
    r"\brev\b": "reverend ", r"\bhon\b": "honorable ", r"\basst\b": "assistant ", r"\bassoc\b": "associate ",
    r"\blt\b": "lieutenant ", r"\bcol\b": "colonel ", r"\bjr\b": "junior ", r"\bsr\b": "senior ",
    r"\besq\b": "esquire ", r"'d been\b": " had been", r"'s been\b": " has been", r"'d gone\b": " had gone",
    r"'s gone\b": " has gone", r"'d done\b": " had done", r"'s got\b": " has got", r"n't\b": " not",
    r"'re\b": " are", r"'s\b": " is", r"'d\b": " would", r"'ll\b": " will", r"'t\b": " not",
    r"'ve\b": " have",
    r"'m\b": " am",
}  # fmt: skip


def _plain(char: str, keep: str) -> str:
    if char in keep:
        return char
    if char in _LETTERS:
        return _LETTERS[char]
    kind = unicodedata.category(char)
    return "" if kind == "Mn" else " " if kind[0] in "MSP" else char


def _without_diacritics(text: str, keep: str = "") -> str:
    return "".join(_plain(char, keep) for char in unicodedata.normalize("NFKD", text))


def _without_symbols(text: str) -> str:
    normal = unicodedata.normalize("NFKC", text)
    return "".join(" " if unicodedata.category(char)[0] in "MSP" else char for char in normal)


def _without_brackets(text: str) -> str:
    return re.sub(r"\(([^)]+?)\)", "", re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower()))


def basic(text: str, remove_diacritics: bool = False) -> str:
    """Text of any language in lower case without brackets, marks and symbols."""
    text = _without_brackets(text)
    text = (_without_diacritics if remove_diacritics else _without_symbols)(text).lower()
    return re.sub(r"\s+", " ", text)


def english(text: str, spellings: dict[str, str]) -> str:
    """English text; `spellings` gives words their one spelling."""
    text = re.sub(r"\b(hmm|mm|mhm|mmm|uh|um)\b", "", _without_brackets(text))
    text = re.sub(r"\s+'", "'", text)
    for short, long in _SHORT.items():
        text = re.sub(short, long, text)
    text = re.sub(r"(\d),(\d)", r"\1\2", text)
    text = re.sub(r"\.([^0-9]|$)", r" \1", text)
    text = digits(_without_diacritics(text, keep=".%$¢€£"))
    text = " ".join(spellings.get(word, word) for word in text.split())
    text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)
    return re.sub(r"\s+", " ", re.sub(r"([^0-9])%", r"\1 ", text))
