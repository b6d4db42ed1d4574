"""Tokenizers of Chinese text that jieba cuts into words first."""

from phyla.errors import TokenizerFileError, require

from .base import CallOptions
from .batch import BatchEncoding
from .fast_kinds import FastPieces
from .files import write_lines
from .more_pieces import PythonJoinedPieces
from .slow import PreTrainedTokenizer
from .table import FromTable
from .tokens import AddedToken
from .wordpiece import read_vocabulary

_MARKS = str.maketrans(" \n", "\u2582\u2583")  # spaces and line ends, so that pieces can have spaces between


def _jieba():
    return require("jieba", "chinese", "cutting Chinese into words")


def _unmarked(text: str) -> str:
    return text.replace(" ", "").replace("\u2582", " ").replace("\u2583", "\n")


class PythonMarkedWords(PythonJoinedPieces):
    """Unigram pieces; decoded text has only the spaces that marks stand for."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        _jieba()

    def _decode(self, *args, **options) -> str:
        return _unmarked(PreTrainedTokenizer._decode(self, *args, **options))


class FastMarkedWords(FastPieces):
    """The same on Rust, of words that jieba cuts."""

    def _load(self, settings: dict, given: dict) -> None:
        _jieba()
        mask = settings["mask_token"]
        if not isinstance(given.get("mask_token"), AddedToken):
            settings["mask_token"] = AddedToken(str(mask), lstrip=True, normalized=False, special=True)

    def _batch_encode_plus(self, batch, options: CallOptions) -> BatchEncoding:
        texts = [
            " ".join(word.translate(_MARKS) for word in _jieba().cut(text, cut_all=False)) for text in batch
        ]
        return super()._batch_encode_plus(texts, options)

    def _decode(self, *args, **options) -> str:
        return _unmarked(super()._decode(*args, **options))


class PythonChineseWords(FromTable, PreTrainedTokenizer):
    """Words that jieba cuts, in the longest tokens of a word list."""

    longest_word = 200

    def _load(self, settings: dict, given: dict) -> None:
        _jieba()
        path = settings.get("vocab_file")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs vocab_file (vocab.txt), but got none")
        words = read_vocabulary(path)
        self._written = {" ": settings["space_token"], "\n": settings["line_token"]}
        for char, token in self._written.items():
            if token not in words:
                raise TokenizerFileError(f"{path} must hold {token!r}, which stands for {char!r}")
            words[char] = words.pop(token)
        self._unknown = settings["unk_token"]  # an AddedToken where the settings hold one
        self.encoder = dict(sorted(words.items(), key=lambda pair: pair[1]))
        self._words_by_id = {index: token for token, index in self.encoder.items()}

    @property
    def bod_token_id(self) -> int:
        """The id of the token that begins a document."""
        return self.encoder[self.bod_token]

    @property
    def eod_token_id(self) -> int:
        """The id of the token that ends a document."""
        return self.encoder[self.eod_token]

    @property
    def newline_id(self) -> int:
        """The id of a line end."""
        return self.encoder["\n"]

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.encoder, **self._added_tokens_encoder}

    def check(self, token: str) -> bool:
        """Whether the vocabulary holds a token."""
        return token in self.encoder

    def _pieces_of(self, word: str) -> list[str]:
        if len(word) > self.longest_word:
            return [self._unknown]
        pieces, start = [], 0
        while start < len(word):
            end = next((e for e in range(len(word), start, -1) if word[start:e] in self.encoder), None)
            pieces.append(self._unknown if end is None else word[start:end])
            start = start + 1 if end is None else end
        return pieces

    def _tokenize(self, text: str) -> list[str]:
        return [piece for word in _jieba().cut(text, cut_all=False) for piece in self._pieces_of(word)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.encoder.get(token, self.encoder.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str:
        return self._words_by_id.get(index, self.unk_token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return "".join(tokens)

    def _checked_ids(self, ids, skip_invalid: bool) -> list[int]:
        return super()._checked_ids([i for i in ids if not isinstance(i, int) or i >= 0], skip_invalid)

    def _decode(self, token_ids, *args, **options) -> str:
        dropped = {self.pad_token_id, self.eos_token_id, self.bos_token_id}
        return super()._decode([i for i in token_ids if i not in dropped], *args, **options)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.txt; returns its path."""
        from pathlib import Path

        path = Path(save_directory) / (f"{filename_prefix}-vocab.txt" if filename_prefix else "vocab.txt")
        names = {**self._written, " ": "</_>", "\n": "</n>"}
        lines = [names.get(token, token) for token in self.encoder]
        order = sorted(range(len(lines)), key=list(self.encoder.values()).__getitem__)
        return (write_lines(path, (lines[i] for i in order)),)
