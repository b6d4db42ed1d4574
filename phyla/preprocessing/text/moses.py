"""Moses tokenisation through sacremoses, which an extra brings."""

import functools

from phyla.errors import require


def _sacremoses(why: str):
    return require("sacremoses", "moses", why)


@functools.cache
def punctuation_normalizer(lang: str):
    """A function that gives texts of a language plain punctuation."""
    return _sacremoses("normalising punctuation").MosesPunctNormalizer(lang=lang).normalize


@functools.cache
def word_tokenizer(lang: str):
    """Moses' tokenizer of a language."""
    return _sacremoses("cutting texts into words").MosesTokenizer(lang=lang)


@functools.cache
def word_joiner(lang: str):
    """Moses' detokenizer of a language."""
    return _sacremoses("joining words to texts").MosesDetokenizer(lang=lang)
