"""Tokenizers of Japanese text: MeCab, Sudachi or Juman++ cut words; or the longest tokens of a word list with
bytes, emoji and marks for the rest.
"""

import json
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import regex  # type: ignore[import-untyped]

from phyla.errors import ArgumentError, TokenizerFileError, nearest, require

from .files import write_lines
from .jsonfile import read_json, write_text
from .pieces import PieceModel
from .slow import PreTrainedTokenizer
from .table import FromTable
from .wordpiece import BasicTokenizer, WordpieceTokenizer, read_lines, read_vocabulary

_EXTRA = "japanese"


def _mecab(mecab_dic: str | None = "unidic_lite", mecab_option: str | None = None):
    fugashi = require("fugashi", _EXTRA, "cutting Japanese into words with MeCab")
    option = mecab_option or ""
    if mecab_dic is not None:
        known = ("ipadic", "unidic_lite", "unidic")
        if mecab_dic not in known:
            raise ArgumentError(
                f"mecab_dic must be one of {known}, but is {mecab_dic!r}.{nearest(mecab_dic, known)}"
            )
        folder = require(mecab_dic, _EXTRA, "MeCab's dictionary").DICDIR
        if not os.path.isdir(folder):
            raise TokenizerFileError(
                f"{folder} must hold the dictionary {mecab_dic}, but is missing: download it"
            )
        option = f'-d "{folder}" -r "{os.path.join(folder, "mecabrc")}" {option}'
    tagger = fugashi.GenericTagger(option)
    return lambda text: [word.surface for word in tagger(text)]


def _sudachi(
    sudachi_split_mode: str = "A",
    sudachi_config_path=None,
    sudachi_resource_dir=None,
    sudachi_dict_type: str = "core",
    sudachi_projection: str | None = None,
):
    sudachi = require("sudachipy", _EXTRA, "cutting Japanese into words with Sudachi")
    if sudachi_split_mode not in ("A", "B", "C"):
        raise ArgumentError(f"sudachi_split_mode must be A, B or C, but is {sudachi_split_mode!r}")
    dictionary = sudachi.Dictionary(
        config_path=sudachi_config_path, resource_dir=sudachi_resource_dir, dict=sudachi_dict_type
    )
    mode = getattr(sudachi.Tokenizer.SplitMode, sudachi_split_mode)
    make = getattr(dictionary, "tokenizer", None) or dictionary.create  # the older name
    cutter = make(mode, projection=sudachi_projection)
    return lambda text: [word.surface() for word in cutter.tokenize(text)]


def _jumanpp():
    juman = require("rhoknp", _EXTRA, "cutting Japanese into words with Juman++").Jumanpp()
    return lambda text: [word.text for word in juman.apply_to_sentence(text.strip()).morphemes]


_CUTTERS: dict[str, Callable[..., Callable[[str], list[str]]]] = {
    "mecab": _mecab,
    "sudachi": _sudachi,
    "jumanpp": _jumanpp,
}


class JapaneseWords:
    """Words of a text, composed (NFKC) and perhaps in lower case, as one of the cutters gives them."""

    def __init__(self, kind: str, lower: bool, never_split, settings: dict):
        settings = dict(settings)
        self.lower = lower
        self.never_split = list(never_split or ())
        self.normalize = settings.pop("normalize_text", True)
        self.trim = settings.pop("trim_whitespace", False)
        self._words = _CUTTERS[kind](**settings)

    def tokenize(self, text: str, never_split=None) -> list[str]:
        """The words of a text."""
        kept = {*self.never_split, *(never_split or ())}
        words = self._words(unicodedata.normalize("NFKC", text) if self.normalize else text)
        words = [word.lower() if self.lower and word not in kept else word for word in words]
        return [word.strip() for word in words if word.strip()] if self.trim else words


class PythonJapaneseWords(FromTable, PreTrainedTokenizer):
    """Words by `word_tokenizer_type`, each in parts by `subword_tokenizer_type`."""

    def _load(self, settings: dict, given: dict) -> None:
        kinds = ("basic", *_CUTTERS)
        if self.word_tokenizer_type not in kinds:
            raise ArgumentError(
                f"word_tokenizer_type must be one of {kinds}, but is {self.word_tokenizer_type!r}"
            )
        parts = ("wordpiece", "character", "sentencepiece")
        if self.subword_tokenizer_type not in parts:
            raise ArgumentError(
                f"subword_tokenizer_type must be one of {parts}, but is {self.subword_tokenizer_type!r}"
            )
        self._pieces_model = None
        name = "spm_file" if self.subword_tokenizer_type == "sentencepiece" else "vocab_file"
        if settings.get(name) is None:
            raise TokenizerFileError(f"{type(self).__name__} needs {name}, but got none")
        if name == "spm_file":
            self._pieces_model = PieceModel(settings[name])
        else:
            self.vocab = read_vocabulary(settings[name])
            self.ids_to_tokens = {index: token for token, index in self.vocab.items()}
            self._parts_of = WordpieceTokenizer(self.vocab, str(settings["unk_token"]))
        self._unknown = str(settings["unk_token"])
        self._make_cutter()

    def _make_cutter(self) -> None:
        self.word_tokenizer: BasicTokenizer | JapaneseWords | None = None
        if not self.do_word_tokenize:
            return
        kind = self.word_tokenizer_type
        if kind == "basic":
            self.word_tokenizer = BasicTokenizer(
                do_lower_case=self.do_lower_case, never_split=self.never_split, tokenize_chinese_chars=False
            )
        else:
            own = getattr(self, f"{kind}_kwargs") or {}
            self.word_tokenizer = JapaneseWords(kind, self.do_lower_case, self.never_split, own)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "word_tokenizer"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make_cutter()

    def _tokenize(self, text: str) -> list[str]:
        words = [text]
        if self.word_tokenizer is not None:
            words = self.word_tokenizer.tokenize(text, never_split=self.all_special_tokens)
        return [part for word in words for part in self._parts(word)] if self.do_subword_tokenize else words

    def _parts(self, word: str) -> list[str]:
        if self.subword_tokenizer_type == "wordpiece":
            return self._parts_of.tokenize(word)
        if self._pieces_model is None:
            return [c if c in self.vocab else self._unknown for c in unicodedata.normalize("NFKC", word)]
        return self._number_pieces(self._pieces_model, word)

    @staticmethod
    def _number_pieces(model: PieceModel, word: str) -> list[str]:
        """Pieces of a cleaned word; a comma after a digit is a piece of its own."""
        from .more_pieces import before_comma, cleaned

        found = []
        for piece in model.encode(cleaned(word, True, True, False)):
            if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
                found += before_comma(model, piece)
            else:
                found.append(piece)
        return found

    @property
    def sp_model(self):
        """The SentencePiece model, where there is one."""
        return self._pieces_model

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.vocab) if self._pieces_model is None else len(self._pieces_model)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        if self._pieces_model is None:
            return {**self.vocab, **self._added_tokens_encoder}
        return {
            str(self.convert_ids_to_tokens(i)): i for i in range(self.vocab_size)
        } | self._added_tokens_encoder

    def _convert_token_to_id(self, token: str) -> int | None:
        if self._pieces_model is not None:
            return self._pieces_model.id_of(token)
        return self.vocab.get(token, self.vocab.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str | None:
        if self._pieces_model is None:
            return self.ids_to_tokens.get(index, self.unk_token)
        return self._pieces_model.pieces[index] if 0 <= index < len(self._pieces_model) else None

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        if self._pieces_model is not None:
            return self._pieces_model.decode(tokens)
        return " ".join(tokens).replace(" ##", "").strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.txt or copy the model file; returns its path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        if self._pieces_model is not None:
            return self._copy_vocabulary(Path(save_directory), prefix, ["spm_file"])
        path = Path(save_directory) / f"{prefix}{self.vocab_files_names['vocab_file']}"
        return (write_lines(path, sorted(self.vocab, key=self.vocab.__getitem__)),)


_WRITTEN = {
    " ": "<SP>",
    "\u3000": "<SP>",
    "\r\n": "<BR>",
    "\n": "<BR>",
    "\r": "<BR>",
    "\t": "<TAB>",
    "—": "ー",
    "−": "ー",
}
READ = {"<SP>": " ", "<BR>": "\n", "<TAB>": "\t", "<BLOCK>": "▀", "<KIGOU>": "ǀ", "<U2000U2BFF>": "‖"}
_BYTE = re.compile(r"<\|byte(\d+)\|>")
_DAYS = (
    r"(\d{1,2}|:|\d{1,2}時|\d{1,2}分|\(日\)|\(月\)|\(火\)|\(水\)|\(木\)|\(金\)|\(土\)|㈰|㈪|㈫|㈬|㈭|㈮|㈯)*"
)
_DAY = r"(0?[1-9]|[12][0-9]|3[01])日"
_MONEY = "千円|万円|千万円|円|千ドル|万ドル|千万ドル|ドル|千ユーロ|万ユーロ|千万ユーロ|ユーロ"
_CLEANED = (
    (r"(https?|ftp)(:\/\/[-_\.!~*\'()a-zA-Z0-9;\/?:\@&=\+$,%#]+)", "<URL>"),
    (r"[A-Za-z0-9\._+]*@[\-_0-9A-Za-z]+(\.[A-Za-z]+)*", "<EMAIL>"),
    (r"[\(]{0,1}[0-9]{2,4}[\)\-\(]{0,1}[0-9]{2,4}[\)\-]{0,1}[0-9]{3,4}", "<TEL>"),
    (rf"([12]\d{{3}}[/\-年])*(0?[1-9]|1[0-2])[/\-月]({_DAY}?)*{_DAYS}", "<DATE>"),
    (rf"(明治|大正|昭和|平成|令和|㍾|㍽|㍼|㍻|\u32ff)\d{{1,2}}年(0?[1-9]|1[0-2])月{_DAY}{_DAYS}", "<DATE>"),
)
# Each part takes all it can and gives nothing back: long runs of digits cost no more than their length.
_PRICE = regex.compile(
    r"(?:\d,\d{3}|[\d億])*+(?:\d,\d{3}|[\d万])*+(?:\d,\d{3}|[\d千])*+"
    rf"(?:{_MONEY})+(?:\(税込\)|\(税抜\)|\+tax)*"
)
_BLOCKS = dict.fromkeys([*range(0x2500, 0x2574), *range(0x2574, 0x2580), *range(0x2580, 0x25A0)], "<BLOCK>")


class PythonByteBackedWords(FromTable, PreTrainedTokenizer):
    """The tokens of the lowest ids that fit; bytes for the rest."""

    def _load(self, settings: dict, given: dict) -> None:
        for name in ("vocab_file", "emoji_file"):
            if settings.get(name) is None:
                raise TokenizerFileError(
                    f"{type(self).__name__} needs vocab_file and emoji_file; missing: {name}"
                )
        lines = read_lines(settings["vocab_file"])
        self.raw_vocab = {line: index for index, line in enumerate(lines)}
        self.ids_to_tokens = {
            i: [line] if line == "," or "," not in line else line.split(",") for i, line in enumerate(lines)
        }
        self.vocab = {word: index for index, words in self.ids_to_tokens.items() for word in words}
        self.emoji = read_json(Path(settings["emoji_file"]))
        self._longest = max(map(len, self.vocab))

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.raw_vocab)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.raw_vocab, **self._added_tokens_encoder}

    def clean_text(self, content: str) -> str:
        """The text with `<URL>`, `<EMAIL>`, `<TEL>`, `<DATE>`, `<PRICE>` and `<BLOCK>` for what they name."""
        for pattern, token in _CLEANED:
            content = re.sub(pattern, token, content)
        content = _PRICE.sub("<PRICE>", content)
        return re.sub("(<BLOCK>){2,}", "<BLOCK>", content.translate(_BLOCKS))

    def _tokenize(self, text: str) -> list[str]:
        for char, token in _WRITTEN.items():
            text = text.replace(char, token)
        for char, token in self.emoji["emoji"].items():
            text = text.replace(char, token)
        if self.do_clean_text:
            text = self.clean_text(text)
        tokens, place = [], 0
        while place < len(text):
            word = self._best(text, place)
            tokens += self._spelled(text[place]) if word is None else [word]
            place += 1 if word is None else len(word)
        return tokens

    def _best(self, text: str, place: int) -> str | None:
        """The token at a place: the longest name in brackets, else the lowest id of three characters."""
        end = min(len(text), place + self._longest + 1) if text[place] == "<" else place + 3
        found = []
        for stop in range(end, place, -1):
            word = text[place:stop]
            if word in self.vocab:
                if word[0] == "<" and len(word) > 2:
                    return word
                found.append(word)
        return min(found, key=self.vocab.__getitem__, default=None)

    @staticmethod
    def _spelled(char: str) -> list[str]:
        raw = char.encode()
        code = int.from_bytes(raw, "big")
        marks = ((0xC2A1, 0xC2BF), (0xC780, 0xC783), (0xCAB9, 0xCBBF), (0xCC80, 0xCDA2))
        if len(raw) == 2 and any(low <= code <= high for low, high in marks):
            return ["<KIGOU>"]
        if len(raw) == 3 and 0xE28080 <= code <= 0xE2B07F:
            return ["<U2000U2BFF>"]
        return [f"<|byte{byte}|>" for byte in raw]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.vocab.get(token, self.vocab.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str:
        word = self.ids_to_tokens[index][0]
        byte = _BYTE.fullmatch(word)
        if byte:
            return bytes([int(byte.group(1))]).decode(errors="replace")
        if word.startswith("<|emoji") and word.endswith("|>"):
            return self.emoji["emoji_inv"][word]
        return READ.get(word, word)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return "".join(tokens).strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the word list and the emoji; returns their paths."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        names = self.vocab_files_names
        return (
            write_lines(folder / (prefix + names["vocab_file"]), self.raw_vocab),
            write_text(folder / (prefix + names["emoji_file"]), json.dumps(self.emoji)),
        )
