"""Byte-level BPE in Python (GPT-2, RoBERTa, BART, Qwen2, CLIP, ...): the pieces are cut by Rust,
merged here.
"""

import functools
import heapq
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

from phyla.errors import TokenizerFileError

from .jsonfile import read_json, write_json, write_text
from .slow import PreTrainedTokenizer
from .table import FromTable
from .wordpiece import read_lines

WORD_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
DIGIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def byte_letters() -> dict[int, str]:
    """The printable character that stands for each byte: itself where printable, else from U+0100 on."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in kept}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(kept))
    return letters


@functools.cache
def letter_bytes() -> dict[str, int]:
    """The byte that each of `byte_letters` stands for."""
    return {letter: byte for byte, letter in byte_letters().items()}


def from_letters(text: str, errors: str = "replace") -> str:
    """The text whose UTF-8 bytes the characters stand for (`byte_letters`); others are kept."""
    table = letter_bytes()
    raw = bytearray()
    for char in text:
        byte = table.get(char)
        raw += char.encode() if byte is None else bytes((byte,))
    return raw.decode("utf-8", errors=errors)


def read_vocabulary(path) -> dict[str, int]:
    """Token to id from a JSON object."""
    vocab = read_json(Path(path))
    for token, index in vocab.items():
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise TokenizerFileError(f"{path}: the id of {token!r} must be a whole number, but is {index!r}")
    if len(set(vocab.values())) != len(vocab):
        seen: dict[int, str] = {}
        for token, index in vocab.items():
            if index in seen:
                raise TokenizerFileError(f"{path} gives {seen[index]!r} and {token!r} the same id {index}")
            seen[index] = token
    return vocab


def read_merges(path, limit: int | None = None) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, without its version line."""
    lines = read_lines(path)
    start = 1 if lines and lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[start:], start + 1):
        parts = line.split(" ")
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
        elif line.strip():
            raise TokenizerFileError(
                f"{path}, line {number}: a merge is two pieces with a space between, but is {line!r}"
            )
    return merges if limit is None else merges[:limit]


class Merger:
    """Byte-pair merges of one word at a time, in time n log n, with a cache for short words."""

    def __init__(self, merges: Sequence[tuple[str, ...]], suffix: str = ""):
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.suffix = suffix
        self.kept: dict[str, list[str]] = {}

    def __call__(self, word: str) -> list[str]:
        """The pieces of a word; the suffix is put to its last character first."""
        found = self.kept.get(word)
        if found is None:
            found = self._merge(word)
            if len(word) <= 64 and len(self.kept) < 50_000:
                self.kept[word] = found
        return found

    def _merge(self, word: str) -> list[str]:
        parts = list(word)
        if not parts:
            return []
        parts[-1] += self.suffix
        after = [*range(1, len(parts)), -1]
        before = list(range(-1, len(parts) - 1))
        queue: list[tuple[int, int, str, str]] = []

        def offer(left: int) -> None:
            right = after[left]
            if right != -1:
                rank = self.ranks.get((parts[left], parts[right]))
                if rank is not None:
                    heapq.heappush(queue, (rank, left, parts[left], parts[right]))

        for i in range(len(parts) - 1):
            offer(i)
        while queue:
            _, left, first, second = heapq.heappop(queue)
            right = after[left]
            if right == -1 or parts[left] != first or parts[right] != second:
                continue  # one side was merged since
            parts[left] += parts[right]
            parts[right] = ""
            after[left] = after[right]
            if after[right] != -1:
                before[after[right]] = left
            if before[left] != -1:
                offer(before[left])
            offer(left)
        return [part for part in parts if part]


class PythonByteLevel(FromTable, PreTrainedTokenizer):
    """GPT-2's tokenizer in Python, and those that cut texts otherwise."""

    call_options: tuple[str, ...] = ("add_prefix_space",)
    pattern = WORD_PATTERN
    suffix = ""
    prefix_always = True

    def _load(self, settings: dict, given: dict) -> None:
        vocab_file, merges_file = settings.get("vocab_file"), settings.get("merges_file")
        if vocab_file is None or merges_file is None:
            raise TokenizerFileError(
                f"{type(self).__name__} needs vocab_file and merges_file, but got {vocab_file}, {merges_file}"
            )
        self.encoder = read_vocabulary(vocab_file)
        self.ids_to_tokens = {index: token for token, index in self.encoder.items()}
        self.merges = read_merges(merges_file)
        self._merger = Merger(self.merges, self.suffix)
        self._cutter = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(self.pattern), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.encoder)

    @property
    def bpe_ranks(self) -> dict[tuple[str, ...], int]:
        """Merge to rank."""
        return self._merger.ranks

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.encoder, **self._added_tokens_encoder}

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """Put a space before the text where words are split or `add_prefix_space` says so."""
        prefix = options.pop("add_prefix_space", getattr(self, "add_prefix_space", False))
        if (is_split_into_words or prefix) and (self.prefix_always or (text and not text[0].isspace())):
            text = " " + text
        return text, options

    def _tokenize(self, text: str) -> list[str]:
        return [piece for word, _ in self._cutter.pre_tokenize_str(text) for piece in self._merger(word)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.encoder.get(token, self.encoder.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str | None:
        return self.ids_to_tokens.get(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; bytes that are not UTF-8 go by the setting `errors`."""
        return from_letters("".join(tokens), getattr(self, "errors", "replace") or "replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt; returns their paths."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        names = self.vocab_files_names
        merges = "".join(f"{left} {right}\n" for left, right in self.merges)
        return (
            write_json(folder / (prefix + names["vocab_file"]), self.encoder),
            write_text(folder / (prefix + names["merges_file"]), "#version: 0.2\n" + merges),
        )


class PythonComposedByteLevel(PythonByteLevel):
    """Qwen2's tokenizer in Python: composes Unicode first and cuts digits singly."""

    pattern = DIGIT_PATTERN
    call_options = ()

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """Compose the text (NFC)."""
        return unicodedata.normalize("NFC", text), options

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=False,
        use_source_tokenizer=False,
    ) -> str:
        return super()._decode(
            token_ids, skip_special_tokens, clean_up_tokenization_spaces, spaces_between_special_tokens
        )
