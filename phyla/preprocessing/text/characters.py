"""Tokenizers in Python whose tokens are bytes or characters."""

import functools
import json
import re
from pathlib import Path

from phyla.errors import ArgumentError, TokenizerFileError, TokenizerInputError, require

from .byte_level import read_vocabulary
from .jsonfile import read_json, write_json, write_text
from .slow import PreTrainedTokenizer
from .table import FromTable
from .tokens import LIST_ROLE, AddedToken
from .translated_pieces import ended
from .wordpiece import read_lines


class PythonBytes(FromTable, PreTrainedTokenizer):
    """The bytes of a text, behind fixed special tokens."""

    front: tuple[str, ...] = ()  # roles in the order of their ids
    errors = "replace"

    def _load(self, settings: dict, given: dict) -> None:
        self._offset = len(self.front)
        fixed: dict[int, AddedToken | str] = {}
        for index, role in enumerate(self.front):
            token = settings[role]
            fixed[index] = AddedToken(token) if isinstance(token, str) else token
        settings["added_tokens_decoder"] = {**fixed, **(settings.get("added_tokens_decoder") or {})}

    @property
    def vocab_size(self) -> int:
        """The number of bytes."""
        return 256

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        base = {self._convert_id_to_token(i + self._offset): i + self._offset for i in range(256)}
        return {**base, **self._added_tokens_encoder}

    def _tokenize(self, text: str) -> list[str]:
        return list(map(chr, text.encode()))

    def _convert_token_to_id(self, token: str) -> int | None:
        return ord(token) + self._offset if len(token) == 1 else self.unk_token_id

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index - self._offset)

    def _raw(self, token: str) -> bytes:
        return token.encode() if token in self._added_tokens_encoder else bytes([ord(token)])

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return b"".join(map(self._raw, tokens)).decode(errors=self.errors)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Nothing: bytes need no vocabulary file."""
        return ()


class PythonSentinelBytes(PythonBytes):
    """Bytes with an end token and sentinels `<extra_id_0>`, ... behind them."""

    errors = "ignore"

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self.offset = self._offset
        count, tokens = settings["extra_ids"], settings.get(LIST_ROLE)
        if count > 0 and tokens is None:
            settings[LIST_ROLE] = [f"<extra_id_{i}>" for i in range(count)]
        elif count > 0 and tokens:
            found = len({str(token) for token in tokens if "extra_id" in str(token)})
            if found != count:
                raise ArgumentError(
                    f"extra_ids ({count}) must be the number of <extra_id_...> tokens in"
                    f" additional_special_tokens ({found})"
                )
        settings["extra_ids"] = self.extra_ids = 0

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        front = {str(self.convert_ids_to_tokens(i)): i for i in range(self._offset)}
        return {**front, **super().get_vocab()}

    def _convert_token_to_id(self, token: str) -> int | None:
        return ord(token) + self._offset if len(token) == 1 else None

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Each sequence with one end token, unless it has it already."""
        return [index for ids in (token_ids_0, token_ids_1) if ids is not None for index in ended(self, ids)]


class Rewriter:
    """Rewrites runs of bytes (as two hexadecimal digits each) by rules, the longest first."""

    def __init__(self, rules: dict[str, str]):
        self.rules = {tuple(old.split(" ")): new.split(" ") for old, new in rules.items()}
        self.starts = {run[:end] for run in self.rules for end in range(1, len(run) + 1)}

    def __call__(self, tokens: list[str]) -> list[str]:
        """The rewritten bytes; what is no byte stays."""
        written, start = [], 0
        while start < len(tokens):
            best, end = [tokens[start]], start + 1
            for stop in range(start + 1, len(tokens) + 1):
                run = tuple(tokens[start:stop])
                if run in self.rules:
                    best, end = self.rules[run], stop
                if run not in self.starts:
                    break
            written += best
            start = end
        return written


class PythonRewrittenBytes(PythonSentinelBytes):
    """Bytes rewritten by the rules of a file, which give many languages shorter texts."""

    def _load(self, settings: dict, given: dict) -> None:
        path = settings.get("vocab_file")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs vocab_file (byte_maps.json), but got none")
        self.byte_maps = read_json(Path(path))
        for name in ("decompose_map", "merge_map"):
            if not isinstance(self.byte_maps.get(name), dict):
                raise TokenizerFileError(f"{path} must have the rules {name}")
        decompose, merge = self.byte_maps["decompose_map"], self.byte_maps["merge_map"]
        self._forth = Rewriter(decompose), Rewriter(merge)
        self._back = tuple(Rewriter({new: old for old, new in rules.items()}) for rules in (merge, decompose))
        super()._load(settings, given)

    def morphological_encode(self, indices: list[str]) -> list[str]:
        """Bytes rewritten by the rules."""
        return self._forth[1](self._forth[0](indices))

    def morphological_decode(self, indices: list[str]) -> list[str]:
        """The bytes before `morphological_encode`."""
        return self._back[1](self._back[0](indices))

    def _tokenize(self, text: str) -> list[str]:
        return self.morphological_encode([f"{byte:02x}" for byte in text.encode()])

    def _convert_token_to_id(self, token: str) -> int | None:
        return int(token, 16) + self._offset if len(token) == 2 else None

    def _convert_id_to_token(self, index: int) -> str:
        return f"{index - self._offset:02x}"

    def _raw(self, token: str) -> bytes:
        return token.encode() if token in self._added_tokens_encoder else bytes.fromhex(token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return super().convert_tokens_to_string(self.morphological_decode(tokens))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the rules; returns the file's path."""
        name = self.vocab_files_names["vocab_file"]
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        return (write_text(path, json.dumps(self.byte_maps, indent=2, ensure_ascii=False)),)


_CODE_POINTS = 0x110000


@functools.cache
def _all_characters() -> dict[str, int]:
    return {chr(code): code for code in range(_CODE_POINTS)}


class CharacterError(TokenizerInputError):
    """A token that is not one character."""


class PythonCodePoints(FromTable, PreTrainedTokenizer):
    """The Unicode code points of a text; special tokens stand in the private area."""

    names: dict[int, str] = {}  # what the special code points are called

    @property
    def vocab_size(self) -> int:
        """The number of code points."""
        return _CODE_POINTS

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**_all_characters(), **self._added_tokens_encoder}

    def __len__(self) -> int:
        """The size of the vocabulary with added tokens."""
        return _CODE_POINTS + sum(len(token) != 1 for token in self._added_tokens_encoder)

    def _id_limit(self) -> int:
        return max(_CODE_POINTS, *(i + 1 for i in self._added_tokens_decoder))

    def _add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        known = self._added_tokens_encoder
        if all(str(token) in known for token in new_tokens):
            return 0
        return super()._add_tokens(new_tokens, special_tokens)

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        if len(token) != 1:
            raise CharacterError(f"a token must be one character, but is {token!r}")
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.names.get(index) or chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return "".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Nothing: code points need no vocabulary file."""
        return ()


class PythonLetters(FromTable, PreTrainedTokenizer):
    """The characters of a text, numbered by a JSON file."""

    def _load(self, settings: dict, given: dict) -> None:
        path = settings.get("vocab_file")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs vocab_file (vocab.json), but got none")
        self.vocab = self._read(path)
        self._use(self.vocab)

    def _read(self, path) -> dict:
        return read_vocabulary(path)

    def _use(self, encoder: dict[str, int]) -> None:
        self.encoder = encoder
        self._letters_by_id = {index: token for token, index in encoder.items()}

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self._letters_by_id)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.encoder, **self._added_tokens_encoder}

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.encoder.get(token, self.encoder.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str | None:
        return self._letters_by_id.get(index)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json; returns its path."""
        name = self.vocab_files_names["vocab_file"]
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        return (write_json(path, self.vocab),)


class PythonSpeechLetters(PythonLetters):
    """Letters or phonemes for speech synthesis, with blanks between them where `add_blank` says so."""

    call_options: tuple[str, ...] = ("normalize",)

    def normalize_text(self, input_string: str) -> str:
        """The text in lower case, but for the tokens of the vocabulary."""
        known = [*self.encoder, *self._added_tokens_encoder]
        text, place = "", 0
        while place < len(input_string):
            word = next((w for w in known if w and input_string.startswith(w, place)), None)
            text += input_string[place].lower() if word is None else word
            place += 1 if word is None else len(word)
        return text

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """Normalise the text; romanise or phonemise it where the settings say so."""
        normalize = options.pop("normalize", None)
        normalize = self.normalize if normalize is None else normalize
        if normalize:
            text = self.normalize_text(text)
        if self.language == "ron":
            text = text.replace("ț", "ţ")
        if self.is_uroman and not text.isascii():
            text = require("uroman", "uroman", "romanising a text").Uroman().romanize_string(text)
        if self.phonemize:
            phonemizer = require("phonemizer", "phonemizer", "turning text into phonemes")
            text = phonemizer.phonemize(
                text,
                language="en-us",
                backend="espeak",
                strip=True,
                preserve_punctuation=True,
                with_stress=True,
            )
            text = re.sub(r"\s+", " ", text)
        elif normalize:
            text = "".join(char for char in text if char in self.encoder).strip()
        return text, options

    def _tokenize(self, text: str) -> list[str]:
        letters = list(text)
        if not self.add_blank:
            return letters
        blank = str(self._convert_id_to_token(0))
        return [blank, *(token for letter in letters for token in (letter, blank))]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens, without the blanks."""
        return "".join(tokens[1::2] if self.add_blank and len(tokens) > 1 else tokens)


class PythonResidues(FromTable, PreTrainedTokenizer):
    """Every token of a word list is found in a text, with or without spaces around it."""

    def _load(self, settings: dict, given: dict) -> None:
        path = settings.get("vocab_file")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs vocab_file (vocab.txt), but got none")
        self.all_tokens = [line.strip() for line in read_lines(path)]
        self._ids = {token: index for index, token in enumerate(self.all_tokens)}

    def _index_splits(self) -> None:
        super()._index_splits()
        if "all_tokens" in self.__dict__:
            known = {*self.all_tokens, *self._added_tokens_encoder} - {""}
            self._splitter = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))))

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.all_tokens)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self._ids, **self._added_tokens_encoder}

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or of the unknown token."""
        return self._ids.get(token, self._ids.get(self.unk_token))

    def id_to_token(self, index: int) -> str:
        """The token of an id, or the unknown token."""
        return self.all_tokens[index] if 0 <= index < len(self.all_tokens) else self.unk_token

    _convert_token_to_id = token_to_id
    _convert_id_to_token = id_to_token

    def _tokenize(self, text: str) -> list[str]:
        return text.split()

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`cls A eos`, or `cls A eos B eos`; one sequence may go without an end."""
        if self.eos_token_id is not None:
            return super().build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        if token_ids_1 is not None:
            raise TokenizerInputError("a pair needs an eos_token between its parts, but there is none")
        return [self.cls_token_id, *token_ids_0]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.txt; returns its path."""
        path = Path(save_directory) / (f"{filename_prefix}-vocab.txt" if filename_prefix else "vocab.txt")
        return (write_text(path, "\n".join(self.all_tokens)),)
