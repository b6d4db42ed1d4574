"""BERT's text handling in Python: BasicTokenizer, WordpieceTokenizer and the tokenizers made of both."""

import unicodedata
from pathlib import Path

from phyla.errors import TokenizerFileError

from .files import write_lines
from .jsonfile import read_text
from .slow import PreTrainedTokenizer
from .table import FromTable

_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def read_vocabulary(path) -> dict[str, int]:
    """One token a line, numbered from 0."""
    return {line: index for index, line in enumerate(read_lines(path))}


def read_lines(path) -> list[str]:
    """The lines of a text file, ended by newlines only."""
    text = read_text(Path(path))
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def words_of(text: str) -> list[str]:
    """The words of a text, cut at white space."""
    return text.split()


def is_whitespace(char: str) -> bool:
    """Whether BERT takes a character for a space."""
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def is_control(char: str) -> bool:
    """Whether BERT drops a character."""
    return char not in "\t\n\r" and unicodedata.category(char).startswith("C")


def is_punctuation(char: str) -> bool:
    """Whether BERT makes a character a word of its own: all ASCII that is not letter, digit or space, and
    Unicode P.
    """
    code = ord(char)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")


def is_cjk(code: int) -> bool:
    """Whether a code point is a Chinese character (not kana, not hangul)."""
    return any(low <= code <= high for low, high in _CJK)


class _CharMap(dict):
    """A table for `str.translate` that asks a function once for each character."""

    def __init__(self, rule):
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def _cleaned(char: str) -> str:
    if ord(char) in (0, 0xFFFD) or is_control(char):
        return ""
    return " " if is_whitespace(char) else char


_CLEAN = _CharMap(_cleaned)
_SPACE_CJK = _CharMap(lambda char: f" {char} " if is_cjk(ord(char)) else char)
_CUT_PUNCTUATION = _CharMap(lambda char: f"\0{char}\0" if is_punctuation(char) else char)


class BasicTokenizer:
    """Words and punctuation of a text: cleans it, puts spaces around Chinese characters, lowers case, strips
    accents.

    `strip_accents` None follows `do_lower_case`; words in `never_split` stay as they are.
    """

    def __init__(
        self,
        do_lower_case=True,
        never_split=None,
        tokenize_chinese_chars=True,
        strip_accents=None,
        do_split_on_punc=True,
    ):
        self.do_lower_case = do_lower_case
        self.never_split = set(never_split or ())
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.strip_accents = strip_accents
        self.do_split_on_punc = do_split_on_punc

    def tokenize(self, text: str, never_split=None) -> list[str]:
        """The words and punctuation marks of a text."""
        kept = self.never_split.union(never_split or ())
        text = self._clean_text(text)
        if self.tokenize_chinese_chars:
            text = text.translate(_SPACE_CJK)
        parts = []
        for word in words_of(unicodedata.normalize("NFC", text)):
            if word not in kept:
                strip = self.strip_accents
                if self.do_lower_case:
                    word = word.lower()
                    strip = strip is not False
                if strip:
                    word = self._run_strip_accents(word)
            parts += self._run_split_on_punc(word, kept)
        return words_of(" ".join(parts))

    @staticmethod
    def _run_strip_accents(text: str) -> str:
        return "".join(
            char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn"
        )

    def _run_split_on_punc(self, text: str, never_split=None) -> list[str]:
        if not self.do_split_on_punc or (never_split and text in never_split):
            return [text]
        return [part for part in text.translate(_CUT_PUNCTUATION).split("\0") if part]

    @staticmethod
    def _clean_text(text: str) -> str:
        return text.translate(_CLEAN)


class WordpieceTokenizer:
    """Greedy longest-match pieces of words that are already split by spaces; continuations begin with
    `##`.
    """

    def __init__(self, vocab, unk_token: str, max_input_chars_per_word: int = 100):
        self.vocab = vocab
        self.unk_token = unk_token
        self.max_input_chars_per_word = max_input_chars_per_word

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text; a word that no pieces spell becomes the unknown token."""
        return [piece for word in words_of(text) for piece in self._pieces(word)]

    def _pieces(self, word: str) -> list[str]:
        if len(word) > self.max_input_chars_per_word:
            return [self.unk_token]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self.vocab), None)
            if end is None:
                return [self.unk_token]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces


class PythonWordPiece(FromTable, PreTrainedTokenizer):
    """BERT's tokenizer in Python."""

    def _load(self, settings: dict, given: dict) -> None:
        path = settings.get("vocab_file")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs vocab_file (vocab.txt), but got none")
        self.vocab = read_vocabulary(path)
        self.ids_to_tokens = {index: token for token, index in self.vocab.items()}
        self.do_basic_tokenize = settings.get("do_basic_tokenize", True)
        if self.do_basic_tokenize:
            self.basic_tokenizer = BasicTokenizer(
                do_lower_case=settings["do_lower_case"],
                never_split=settings.get("never_split"),
                tokenize_chinese_chars=settings["tokenize_chinese_chars"],
                strip_accents=settings.get("strip_accents"),
            )
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocab, str(settings["unk_token"]))

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.vocab, **self._added_tokens_encoder}

    def _tokenize(self, text: str, split_special_tokens: bool = False) -> list[str]:
        if not self.do_basic_tokenize:
            return self.wordpiece_tokenizer.tokenize(text)
        pieces = []
        kept = self.all_special_tokens if not split_special_tokens else None
        for word in self.basic_tokenizer.tokenize(text, never_split=kept):
            pieces += (
                [word]
                if word in self.basic_tokenizer.never_split
                else self.wordpiece_tokenizer.tokenize(word)
            )
        return pieces

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.vocab.get(token, self.vocab.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str | None:
        return self.ids_to_tokens.get(index, self.unk_token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens: continuations joined to their words."""
        return " ".join(tokens).replace(" ##", "").strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.txt; returns its path."""
        name = next(iter(self.vocab_files_names.values()))
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        return (write_lines(path, sorted(self.vocab, key=self.vocab.__getitem__)),)
