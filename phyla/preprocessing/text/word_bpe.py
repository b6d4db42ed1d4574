"""Byte-pair encoding of words in Python: pieces end a word with `</w>`, or go on with `@@`."""

import importlib
import re
import unicodedata
from pathlib import Path
from typing import Any

from phyla.errors import ArgumentError, TokenizerFileError, TokenizerInputError, require

from . import moses
from .byte_level import Merger, PythonByteLevel, read_vocabulary
from .english import spoken
from .jsonfile import write_json, write_text
from .slow import PreTrainedTokenizer
from .table import FromTable
from .tweets import normalized_tweet, normalized_word
from .word_end import END_OF_WORD, text_mender
from .wordpiece import BasicTokenizer, read_lines

_PLAIN_PUNCTUATION = str.maketrans(
    "，、”“∶：？《》）！（；１」「０３２５６９７８４～’━〈〉【】％", ',,""::?"")!(;1""03256978' + "4~'-<>[]%"
)
_DASHES = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
_RUNS = re.compile(r"""(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|\\+|\/+|\*+|\[+|\]+|}+|{+|\|+|_+)""")


def plain_punctuation(text: str) -> str:
    """The text with ASCII punctuation for full-width and typographic characters."""
    text = re.sub(r"[。．]\s*", ". ", text)
    return text.translate(_PLAIN_PUNCTUATION).replace("…", "...")


def printed(text: str) -> str:
    """The text without control and unassigned characters."""
    return "".join(char for char in text if not unicodedata.category(char).startswith("C"))


class PythonWordBpe(FromTable, PreTrainedTokenizer):
    """Words of a text, each in pieces of which the last ends in `</w>`."""

    merge_lines = 0  # lines before the merges
    merge_fields: int | None = 2  # the words of a line that are the merge
    header = ""
    do_lower_case: Any = False

    def _load(self, settings: dict, given: dict) -> None:
        self.encoder = self._read_vocabulary(settings)
        self._tokens_by_id = {index: token for token, index in self.encoder.items()}
        path = settings.get("merges_file")
        self.merges = [] if path is None else self._read_merges(path)
        self._merger = Merger(self.merges, END_OF_WORD)

    def _read_vocabulary(self, settings: dict) -> dict[str, int]:
        for name in type(self).row.files:
            if settings.get(name) is None:
                files = ", ".join(type(self).row.files)
                raise TokenizerFileError(f"{type(self).__name__} needs {files}; missing: {name}")
        return read_vocabulary(settings["vocab_file"])

    def _read_merges(self, path) -> list[tuple[str, ...]]:
        return [tuple(line.split()[: self.merge_fields]) for line in read_lines(path)[self.merge_lines :]]

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

    def bpe(self, token: str) -> str:
        """The pieces of a word, with spaces between them."""
        return " ".join(self._pieces_of(token))

    def _pieces_of(self, word: str) -> list[str]:
        return self._merger(word)

    def _words(self, text: str) -> list[str]:
        return text.split()

    def _tokenize(self, text: str) -> list[str]:
        return [piece for word in self._words(text) if word for piece in self._pieces_of(word)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.encoder.get(token, self.encoder.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens_by_id.get(index, self.unk_token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens: a space where a word ends."""
        return "".join(tokens).replace(END_OF_WORD, " ").strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary and the merges; returns their paths."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        names = self.vocab_files_names
        paths = [write_json(folder / (prefix + names["vocab_file"]), self.encoder)]
        if self.merges:
            lines = "".join(" ".join(merge) + "\n" for merge in self._merger.ranks)
            paths.append(write_text(folder / (prefix + names["merges_file"]), self.header + lines))
        return tuple(paths)


class PythonCleanedWords(PythonWordBpe):
    """Words as BERT cuts them; or, where ftfy and spaCy are installed, mended text cut by spaCy."""

    merge_lines = 1
    header = "#version: 0.2\n"

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self.do_lower_case = True
        self._mend, self._english = text_mender(), None
        try:
            self._english = importlib.import_module("spacy.lang.en").English().tokenizer
        except ModuleNotFoundError:
            self._basic = BasicTokenizer(do_lower_case=True)

    def _words(self, text: str) -> list[str]:
        if self._english is None or self._mend is None:
            return self._basic.tokenize(text)
        text = _RUNS.sub(r" \1 ", self._mend(text).translate(_DASHES))
        text = re.sub(r"[^\S\n]+", " ", re.sub(r"\s*\n\s*", " \n ", text)).strip()
        return [token.text.lower() for token in self._english(text)]


class PythonBasicWords(PythonWordBpe):
    """Words as BERT cuts them, with capitals and accents."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self.do_lower_case = self.do_lowercase_and_remove_accent

    def _words(self, text: str) -> list[str]:
        cut = BasicTokenizer(do_lower_case=False, tokenize_chinese_chars=False, strip_accents=False)
        return cut.tokenize(text, never_split=self.all_special_tokens)


class PythonMosesWords(PythonWordBpe):
    """Words as Moses cuts them in a language; Chinese and Thai by packages of their own."""

    lang = "en"
    escape = False
    tidies = True  # plain punctuation, printed characters
    other_cutters: tuple[str, ...] = ()

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        moses.word_tokenizer(self.lang)  # says which extra brings it where it is missing

    def _tidy(self, text: str, lang: str) -> str:
        return printed(moses.punctuation_normalizer(lang)(plain_punctuation(text)))

    def _moses(self, text: str, lang: str) -> list[str]:
        if self.tidies:
            text = self._tidy(text, lang)
        return moses.word_tokenizer(lang).tokenize(
            text, aggressive_dash_splits=self.escape, return_str=False, escape=self.escape
        )

    def _words_in(self, text: str, lang: str) -> list[str]:
        if lang not in self.other_cutters:
            return self._moses(text, lang)
        if lang == "zh":
            jieba = require("jieba", "chinese", "cutting Chinese into words")
            return self._tidy(" ".join(jieba.cut(text)), lang).split()
        if lang == "th":
            cutter = require("pythainlp.tokenize", "thai", "cutting Thai into words")
            return cutter.word_tokenize(self._tidy(text, lang))
        mykytea = require("Mykytea", "japanese", "cutting Japanese into words")
        path = Path.home() / "local/share/kytea/model.bin"
        return list(mykytea.Mykytea(f"-model {path}").getWS(self._tidy(text, lang)))

    def _tokenize(self, text: str, lang: str | None = None, bypass_tokenizer: bool = False) -> list[str]:
        words = text.split() if bypass_tokenizer else self._words_in(text, lang or self.lang)
        if not bypass_tokenizer:
            words = self._normalized(words)
        return [piece for word in words if word for piece in self._pieces_of(word)]

    def _normalized(self, words: list[str]) -> list[str]:
        return words


class PythonBareWords(PythonMosesWords):
    """Moses' words of many languages, perhaps in lower case and without accents."""

    other_cutters = ("zh", "th", "ja")

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self.do_lower_case = self.do_lowercase_and_remove_accent

    def _normalized(self, words: list[str]) -> list[str]:
        if not self.do_lowercase_and_remove_accent:
            return words
        text = unicodedata.normalize("NFD", " ".join(words).lower())
        return "".join(c for c in text if unicodedata.category(c) != "Mn").lower().split(" ")


class PythonComposedWords(PythonMosesWords):
    """Moses' words of a text with plain quotes, composed (NFC), perhaps in lower case."""

    lang = "fr"

    def preprocess_text(self, text: str) -> str:
        """The text as the model was trained on it."""
        text = unicodedata.normalize("NFC", text.replace("``", '"').replace("''", '"'))
        return text.lower() if self.do_lowercase else text

    def _words_in(self, text: str, lang: str) -> list[str]:
        return super()._words_in(self.preprocess_text(text), lang)


class PythonEscapedWords(PythonMosesWords):
    """Moses' words with escapes, joined again by Moses."""

    escape = True
    tidies = False
    decode_lang = "en"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        words = "".join(t.replace(" ", "").replace(END_OF_WORD, " ") for t in tokens).split()
        return moses.word_joiner(self.decode_lang).detokenize(words)


class PythonTranslatedWords(PythonEscapedWords):
    """Moses' words of a source language, with one vocabulary for sources and one for targets."""

    tidies = True

    def _load(self, settings: dict, given: dict) -> None:
        langs = settings.get("langs")
        if not langs or len(langs) != 2:
            raise ArgumentError(f"langs must be two languages, source and target, but is {langs!r}")
        self.src_lang, self.tgt_lang = langs
        self.lang, self.decode_lang = langs
        super()._load(settings, given)
        self._target_encoder = read_vocabulary(settings["tgt_vocab_file"])
        self._tokens_by_id = {index: token for token, index in self._target_encoder.items()}

    def _read_vocabulary(self, settings: dict) -> dict[str, int]:
        path = settings.get("src_vocab_file")
        if path is None or settings.get("tgt_vocab_file") is None:
            raise TokenizerFileError(f"{type(self).__name__} needs src_vocab_file and tgt_vocab_file")
        return read_vocabulary(path)

    @property
    def src_vocab_size(self) -> int:
        """The size of the source vocabulary."""
        return len(self.encoder)

    @property
    def tgt_vocab_size(self) -> int:
        """The size of the target vocabulary."""
        return len(self._target_encoder)

    def get_src_vocab(self) -> dict[str, int]:
        """Text to id of every source token."""
        return self.get_vocab()

    def get_tgt_vocab(self) -> dict:
        """Id to text of every target token."""
        return {**self._tokens_by_id, **self.added_tokens_decoder}

    def _tokenize(self, text: str, lang: str | None = None, bypass_tokenizer: bool = False) -> list[str]:
        return super()._tokenize(
            text.lower() if self.do_lower_case else text, self.src_lang, bypass_tokenizer
        )

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write both vocabularies and the merges; returns their paths."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        names = self.vocab_files_names
        merges = "".join(" ".join(merge) + "\n" for merge in self._merger.ranks)
        return (
            write_json(folder / (prefix + names["src_vocab_file"]), self.encoder),
            write_json(folder / (prefix + names["tgt_vocab_file"]), self._target_encoder),
            write_text(folder / (prefix + names["merges_file"]), merges),
        )


class PythonContinuedWords(PythonWordBpe):
    """Words in pieces of which all but the last end in `@@`."""

    merge_lines = 1
    header = "#version: 0.2\n"

    def _words(self, text: str) -> list[str]:
        return re.findall(r"\S+\n?", text)

    def _pieces_of(self, word: str) -> list[str]:
        if len(word) == 1:
            return [word]
        *first, last = self._merger(word)
        return [*(f"{piece}@@" for piece in first), last[: -len(END_OF_WORD)]]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return " ".join(tokens).replace("@@ ", "").strip()


class PythonCountedWords(PythonContinuedWords):
    """Vocabulary and merges with counts, as fastBPE writes them."""

    merge_lines = 0
    merge_fields = -1

    def _read_vocabulary(self, settings: dict) -> dict[str, int]:
        for name in ("vocab_file", "merges_file"):
            if settings.get(name) is None:
                raise TokenizerFileError(
                    f"{type(self).__name__} needs vocab_file and merges_file; missing: {name}"
                )
        roles = ("bos_token", "pad_token", "eos_token", "unk_token")
        vocabulary = {str(settings[role]): index for index, role in enumerate(roles)}
        for number, line in enumerate(read_lines(settings["vocab_file"]), 1):
            word, space, _ = line.strip().rpartition(" ")
            if not space:
                raise TokenizerFileError(
                    f"{settings['vocab_file']}, line {number}: must be a token and its count, but is {line!r}"
                )
            vocabulary[word] = len(vocabulary)
        return vocabulary

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy both files; returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        return self._copy_vocabulary(Path(save_directory), prefix, ["vocab_file", "merges_file"])


class PythonTweetWords(PythonCountedWords):
    """Words of tweets; `normalization` replaces users, links and emoji first."""

    def normalizeTweet(self, tweet: str) -> str:
        """The tweet as the model was trained on it."""
        return normalized_tweet(tweet)

    def normalizeToken(self, token: str) -> str:
        """A word as the model was trained on it."""
        return normalized_word(token)

    def _words(self, text: str) -> list[str]:
        return super()._words(self.normalizeTweet(text) if self.normalization else text)


class PythonChatWords(PythonContinuedWords):
    """Lower-cased words without the punctuation at them; a line end is `__newln__`."""

    def _words(self, text: str) -> list[str]:
        return [part for word in super()._words(text) for part in self._parts(word)]

    @staticmethod
    def _parts(word: str) -> list[str]:
        word = re.sub("(')", r" \1 ", re.sub("([.,!?()])", r" \1", word))
        word = re.sub(r"\s{2,}", " ", word).replace("\n", " __newln__")
        return [part.lower() for part in word.split(" ") if part]

    def _convert_token_to_id(self, token: str) -> int | None:
        return super()._convert_token_to_id(token.lower())


class PythonTranscribedWords(PythonContinuedWords):
    """Words of transcripts; without merges it only decodes."""

    merge_lines = 0
    merge_fields = 2
    header = ""

    def _read_vocabulary(self, settings: dict) -> dict[str, int]:
        if settings.get("vocab_file") is None:
            raise TokenizerFileError(f"{type(self).__name__} needs vocab_file (vocab.json), but got none")
        return read_vocabulary(settings["vocab_file"])

    def _tokenize(self, text: str) -> list[str]:
        if not self.merges:
            raise TokenizerInputError(f"{type(self).__name__} without merges_file can only decode")
        words = (text.lower() if self.do_lower_case else text).split()
        return [piece for word in words for piece in self._pieces_of(word)]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return " ".join(tokens).replace("@@ ", "")


class PythonSpokenBytes(PythonByteLevel):
    """Byte-level BPE of English text with numbers and abbreviations spoken."""

    spaces = "[SPACE]"

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """The text as it is."""
        return text, options

    def _tokenize(self, text: str) -> list[str]:
        tokens = super()._tokenize(spoken(text))
        return [self.spaces if t == "Ġ" and self.spaces in self.encoder else t for t in tokens]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for start tokens (the mask leaves the end out), 0 for others."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
        start = [1] if self.add_bos_token else []
        mask = start + [0] * len(token_ids_0)
        return mask if token_ids_1 is None else mask + start + [0] * len(token_ids_1)

    def clean_up_tokenization(self, text: str) -> str:  # type: ignore[override]
        """The text with spaces for `[SPACE]` and `[STOP]` and without unknown tokens."""
        known = self.get_vocab()
        for token in (self.spaces, "[STOP]"):
            text = text.replace(token, " ") if token in known else text
        return text.replace(self.unk_token, "").replace("   ", " ").replace("  ", " ")


class PythonWholeWords(FromTable, PreTrainedTokenizer):
    """Moses' words of a word list, with numbers cut at commas and points."""

    def _load(self, settings: dict, given: dict) -> None:
        path = settings.get("vocab_file")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs vocab_file (vocab.txt), but got none")
        if settings.get("pretrained_vocab_file") is not None:
            raise TokenizerFileError("a pickled vocabulary can run code, so it is not read: give vocab.txt")
        self.sym2idx: dict[str, int] = {}
        for line in read_lines(path):
            self.sym2idx.setdefault(line.split()[0], len(self.sym2idx))
        self.idx2sym = list(self.sym2idx)
        unknown = next((token for token in ("<UNK>", "<unk>") if token in self.sym2idx), None)
        if unknown is None:
            raise TokenizerFileError(f"{path} must hold <unk>")
        self.unk_idx = self.sym2idx[unknown]
        self.do_lower_case = self.lower_case
        moses.word_tokenizer(self.language)  # says which extra brings it where it is missing

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.idx2sym)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.sym2idx, **self._added_tokens_encoder}

    def _tokenize(self, text: str, add_eos: bool = False, add_double_eos: bool = False) -> list[str]:
        text = text.strip().lower() if self.lower_case else text.strip()
        words = list(text) if self.delimiter == "" else self.moses_pipeline(text)
        if add_double_eos:
            return ["<S>", *words, "<S>"]
        return [*words, "<eos>"] if add_eos else words

    def moses_pipeline(self, text: str) -> list[str]:
        """The words of a text, with plain punctuation."""
        kept = self.all_special_tokens if self.never_split is None else self.never_split
        words = moses.word_tokenizer(self.language).tokenize(
            moses.punctuation_normalizer(self.language)(text),
            aggressive_dash_splits=True,
            return_str=False,
            escape=False,
            protected_patterns=kept,
        )
        return [part for word in words for part in re.sub(r"(?<=\d)[,.](?=\d)", r" @\g<0>@ ", word).split()]

    def _convert_token_to_id(self, token: str) -> int:
        return self.sym2idx.get(token, self.unk_idx)

    def _convert_id_to_token(self, index: int) -> str:
        return self.idx2sym[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        text = moses.word_joiner(self.language).detokenize(tokens)
        return text.replace(" @,@ ", ",").replace(" @.@ ", ".").strip()
