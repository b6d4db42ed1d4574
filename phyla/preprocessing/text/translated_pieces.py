"""SentencePiece tokenizers in Python whose ids stand in a vocabulary of their own, or which have masks, codes
or numbers of their own.
"""

import re
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path

from phyla.errors import ArgumentError, TokenizerFileError, TokenizerInputError, nearest

from .assemble import Assembly
from .byte_level import read_vocabulary
from .jsonfile import write_json
from .languages import Languages
from .layout import Layout
from .pieces import SPACE, PieceModel, PrefixByHand, PythonPieces
from .prefixed import Prefixed
from .slow import PreTrainedTokenizer
from .spelled_numbers import spelled
from .table import FromTable
from .tokens import AddedToken

_ODD_SPACES = dict.fromkeys(map(ord, "\u2009\u200a\u202f\u2005\u3000\u2002\u2008\u2003\ufffc\x84"), " ")
_CODE = re.compile(">>.+<<")
_UNPRINTED = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160), 160, 173, 8203])


class PythonSweptPieces(PythonPieces):
    """Pieces of a text without unprinted characters, with plain spaces and composed (NFC)."""

    bare_names: tuple[str, ...] = ()  # checkpoints whose padding is the unknown token and start the end token

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        bare = any(name in str(settings.get("name_or_path")) for name in self.bare_names)
        for role, value in {"pad_token": "<pad>", "bos_token": "<s>"}.items():
            if settings.get(role) is None:
                other = settings["unk_token" if role == "pad_token" else "eos_token"]
                settings[role] = other if bare else value

    def preprocess_text(self, text: str) -> str:
        """The text as the model was trained on it."""
        return unicodedata.normalize("NFC", text.translate(_UNPRINTED).translate(_ODD_SPACES))

    def _tokenize(self, text: str) -> list[str]:
        return self.sp_model.encode(self.preprocess_text(text))

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """The text as it is."""
        return out_string

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are, with a space before each run of them."""
        return self._spaced(tokens)

    def encode_fast(self, text: str | list[str], return_tensors=False):
        """The ids of a text, or of several, without special tokens."""
        rows = [
            [self.sp_model.id_of(p) for p in self._tokenize(t)]
            for t in ([text] if isinstance(text, str) else text)
        ]
        ids = rows[0] if isinstance(text, str) else rows
        if return_tensors is True or return_tensors == "pt":
            import torch

            return torch.tensor(ids)
        return ids

    def decode_fast(self, token_ids: int | list[int]) -> str:
        """The text of ids by the pieces alone."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.sp_model.decode([self.sp_model.pieces[i] for i in ids])


class CanonicalText(PrefixByHand):
    """Text without ASCII punctuation and extra spaces; decoded text has a space before each run of special
    tokens.
    """

    def _load(self, settings: dict, given: dict) -> None:
        settings["legacy"] = self.legacy = False
        self.add_prefix_space = True
        super()._load(settings, given)

    def remove_punctuation(self, text: str) -> str:
        """The text without ASCII punctuation."""
        return text.translate(str.maketrans("", "", string.punctuation))

    def canonicalize_text(self, text: str, *, keep_punctuation_exact_string: str | None = None) -> str:
        """The text without punctuation (but for one string) and with single spaces."""
        kept = keep_punctuation_exact_string
        parts = text.split(kept) if kept else [text]
        return " ".join((kept or "").join(map(self.remove_punctuation, parts)).split())

    def tokenize(self, text: str, pair=None, add_special_tokens: bool = False, **options) -> list[str]:
        """The tokens of a text; added tokens stay whole."""
        tokens = PythonPieces.tokenize(self, SPACE + text.replace(SPACE, " "), **options)
        if len(tokens) > 1 and tokens[0] == SPACE and tokens[1] in self.all_special_tokens:
            tokens = tokens[1:]
        return tokens

    def _tokenize(self, text: str) -> list[str]:
        guard = str(self.unk_token)
        tokens = self.sp_model.encode(guard + self.canonicalize_text(text))
        length = len(self.sp_model.encode(guard))
        return tokens[length:] if len(tokens) >= length else tokens

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Each sequence with one end token, unless it has it already."""
        return [index for ids in (token_ids_0, token_ids_1) if ids is not None for index in ended(self, ids)]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return self.spaced_text(tokens)


def ended(tokenizer, ids: list[int]) -> list[int]:
    """Ids with one end token, unless they have it already."""
    return ids if ids and ids[-1] == tokenizer.eos_token_id else ids + [tokenizer.eos_token_id]


class PythonSpokenPieces(PythonPieces):
    """Characters of a text, with its numbers spelled in English where `normalize` says so."""

    call_options: tuple[str, ...] = ("normalize",)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """Spell numbers; put a space before words that are split already."""
        normalize = options.pop("normalize", self.normalize)
        text = " " + text if is_split_into_words else text
        return (spelled(text) if normalize else text), options

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are, with a space before each run of them."""
        return self.spaced_text(tokens)


class MaskedEnds(Assembly):
    """One end token after one or two sequences; masks of special tokens go by the ids themselves."""

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens one sequence or a pair gets."""
        return 1

    def _special_token_mask(self, ids: list[int]) -> list[int]:
        special = set(self.all_special_ids) - {self.unk_token_id}
        return [int(index in special) for index in ids]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others."""
        if already_has_special_tokens:
            return self._special_token_mask(token_ids_0)
        return [*self._special_token_mask(token_ids_0 + (token_ids_1 or [])), 1]


def with_placeholders(settings: dict, owner: str) -> None:
    """Complete `additional_special_tokens` by the sentence mask and the unused tokens `<unk_2>`, ...."""
    given, mask, offset = (
        settings.get("additional_special_tokens"),
        settings["mask_token_sent"],
        settings["offset"],
    )
    if given is not None and not isinstance(given, list):
        found = type(given).__name__
        raise TokenizerInputTypeError(
            f"{owner}: additional_special_tokens must be a list, but is {given!r} ({found})"
        )
    first = [] if mask is None or (given and mask in given) else [mask]
    tokens = [*first, *(given or [])]
    start = 2 if given is None else len(tokens)
    tokens += [f"<unk_{i}>" for i in range(start, offset if given is None else offset - 1)]
    if len(set(map(str, tokens))) != len(tokens):
        raise ArgumentError(f"{owner}: additional_special_tokens must not hold a token twice: {tokens}")
    settings["additional_special_tokens"] = tokens


class TokenizerInputTypeError(TokenizerInputError, TypeError):
    """A setting of the wrong type."""


class PythonOffsetPieces(MaskedEnds, PythonPieces):
    """Ids of the model file moved up behind masks and unused tokens."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        with_placeholders(settings, type(self).__name__)
        front = [settings["pad_token"], settings["eos_token"]]
        if settings["mask_token_sent"] is not None:
            front += [settings["mask_token_sent"], settings["mask_token"]]
        front += [f"<unk_{i}>" for i in range(2, self.offset)]
        table = {i: AddedToken(str(token), special=True) for i, token in enumerate(front)}
        settings["added_tokens_decoder"] = {**(settings.get("added_tokens_decoder") or {}), **table}

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.sp_model) + self.offset

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {
            str(self.convert_ids_to_tokens(i)): i for i in range(self.vocab_size)
        } | self._added_tokens_encoder

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.id_of(token) + self.offset

    def _convert_id_to_token(self, index: int) -> str | None:
        return super()._convert_id_to_token(index if index < self.offset else index - self.offset)


class PythonListedPieces(PythonPieces):
    """Pieces whose ids a JSON file lists."""

    model_key = "spm_file"

    def _load(self, settings: dict, given: dict) -> None:
        names = (self.model_key, "vocab_file")
        if any(settings.get(name) is None for name in names):
            raise TokenizerFileError(f"{type(self).__name__} needs {' and '.join(names)}")
        self.sp_model = PieceModel(settings[self.model_key])
        self.encoder = read_vocabulary(settings["vocab_file"])
        self._tokens_by_id = {index: token for token, index in self.encoder.items()}

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.encoder, **self._added_tokens_encoder}

    def _convert_token_to_id(self, token: str) -> int:
        return self.encoder.get(token, self.encoder[self.unk_token])

    def _convert_id_to_token(self, index: int) -> str | None:
        return self._tokens_by_id.get(index, self.unk_token)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary and copy the model file; returns their paths."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        vocab = write_json(folder / (prefix + self.vocab_files_names["vocab_file"]), self.encoder)
        return (vocab, *self._copy_vocabulary(folder, prefix, [self.model_key]))


class PythonCodedPieces(Languages, PythonListedPieces):
    """Listed pieces with the language codes `__en__`, ... behind them; a code stands before each text."""

    code_lists: dict[str, list[str]] = {}
    code_first = True
    framed_types = False

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        kind = settings["language_codes"]
        if kind not in self.code_lists:
            raise ArgumentError(f"language_codes must be one of {list(self.code_lists)}, but is {kind!r}")
        codes = self.code_lists[kind]
        size = len(self.encoder)
        self.lang_code_to_token = {code: f"__{code}__" for code in codes}
        self.lang_code_to_id = {code: size + i for i, code in enumerate(codes)}
        self.lang_token_to_id = {f"__{code}__": index for code, index in self.lang_code_to_id.items()}
        self.id_to_lang_token = {index: token for token, index in self.lang_token_to_id.items()}
        self.get_lang_id(self.src_lang)

    def get_lang_token(self, lang: str) -> str:
        """The token of a language code."""
        if lang not in self.lang_code_to_token:
            hint = nearest(lang, self.lang_code_to_token)
            raise LanguageCodeError(f"the language must be one of the codes, but is {lang!r}.{hint}")
        return self.lang_code_to_token[lang]

    def get_lang_id(self, lang: str) -> int:
        """The id of a language code."""
        return self.lang_token_to_id[self.get_lang_token(lang)]

    @property
    def layout(self) -> Layout:
        """The code in force, the text, the end."""
        code = f"={self.get_lang_token(self.__dict__.get('_code') or self.src_lang)}"
        return Layout(f"{code} A eos", f"{code} A B eos", "plain")

    def _convert_token_to_id(self, token: str) -> int:
        known = self.lang_token_to_id.get(token)
        return super()._convert_token_to_id(token) if known is None else known

    def _convert_id_to_token(self, index: int) -> str | None:
        known = self.id_to_lang_token.get(index)
        return super()._convert_id_to_token(index) if known is None else known

    def _id_limit(self) -> int:
        return max(super()._id_limit(), len(self.encoder) + len(self.lang_code_to_id))

    def _use(self, code: str) -> None:
        self._code = code
        if "lang_code_to_token" in self.__dict__:
            self.get_lang_token(code)

    def _build_translation_inputs(self, raw_inputs, src_lang, tgt_lang, **options):  # type: ignore[override]
        """Inputs of a translation, with the id that the answer must begin with."""
        if src_lang is None or tgt_lang is None:
            raise TokenizerInputError("a translation needs src_lang and tgt_lang")
        self.src_lang = src_lang
        inputs = self(raw_inputs, add_special_tokens=True, **options)
        inputs["forced_bos_token_id"] = self.get_lang_id(tgt_lang)
        return inputs


class LanguageCodeError(TokenizerInputError, KeyError):
    """A language that the tokenizer has no code for."""

    __str__ = Exception.__str__


class PythonUpperPieces(Prefixed, PythonListedPieces):
    """Listed pieces of transcripts: a target language may stand first; decoded text may be in capitals."""

    lang_lists: dict[str, list[str]] = {}

    def _load(self, settings: dict, given: dict) -> None:
        target = settings["tgt_lang"]
        super()._load(settings, given)
        self.lang_code_to_id: dict[str, int] = {}
        if self.lang_codes is None:
            return
        if self.lang_codes not in self.lang_lists:
            raise ArgumentError(
                f"lang_codes must be one of {list(self.lang_lists)}, but is {self.lang_codes!r}"
            )
        self.langs = self.lang_lists[self.lang_codes]
        self.lang_tokens = [f"<lang:{lang}>" for lang in self.langs]
        self.lang_code_to_id = {
            lang: self.sp_model.id_of(token) for lang, token in zip(self.langs, self.lang_tokens)
        }
        settings["additional_special_tokens"] = self.lang_tokens + (
            settings["additional_special_tokens"] or []
        )
        self.tgt_lang = self.langs[0] if target is None else target

    @property
    def prefix_tokens(self) -> list[int]:
        """The ids before each text."""
        code = self.__dict__.get("_tgt_lang")
        return (
            [] if code is None or not self.__dict__.get("lang_code_to_id") else [self.lang_code_to_id[code]]
        )

    @property
    def tgt_lang(self) -> str | None:
        """The language of the texts."""
        return self.__dict__.get("_tgt_lang")

    @tgt_lang.setter
    def tgt_lang(self, lang: str | None) -> None:
        table = self.__dict__.get("lang_code_to_id")
        if table is not None and lang not in table:
            raise LanguageCodeError(f"tgt_lang must be one of {list(table)}, but is {lang!r}")
        self._tgt_lang = lang

    def set_tgt_lang_special_tokens(self, tgt_lang: str) -> None:
        """Texts in this language follow."""
        self.tgt_lang = tgt_lang

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are with a space behind."""
        special = set(self.all_special_tokens)
        text = ""
        current: list[str] = []

        def flush() -> str:
            decoded = self.sp_model.decode(current)
            return decoded.upper() if self.do_upper_case else decoded

        for token in tokens:
            if token in special:
                text += flush() + token + " "
                current.clear()
            else:
                current.append(token)
        return (text + flush()).strip()


class PythonTwoSidedPieces(MaskedEnds, FromTable, PreTrainedTokenizer):
    """One piece model for sources and one for targets; their ids stand in one vocabulary or in two."""

    def _load(self, settings: dict, given: dict) -> None:
        for key in ("source_spm", "target_spm", "vocab"):
            path = settings.get(key)
            if path is None or not Path(path).is_file():
                raise TokenizerFileError(f"{type(self).__name__} needs {key}, but finds {path}")
        self.encoder = read_vocabulary(settings["vocab"])
        for role in ("unk_token", "pad_token"):
            if str(settings[role]) not in self.encoder:
                raise VocabularyKeyError(f"{settings['vocab']} must hold the {role} {settings[role]!s}")
        self.target_encoder = (
            read_vocabulary(settings["target_vocab_file"]) if self.separate_vocabs else self.encoder
        )
        self._tokens_by_id = {index: token for token, index in self.target_encoder.items()}
        self.supported_language_codes = [
            t for t in self.encoder if t.startswith(">>") and t.endswith("<<") and not self.separate_vocabs
        ]
        self.spm_source, self.spm_target = PieceModel(self.source_spm), PieceModel(self.target_spm)
        self.current_spm, self.current_encoder = self.spm_source, self.encoder
        self._punctuation: Callable[[str], str] | None = None

    def normalize(self, text: str) -> str:
        """The text with plain punctuation."""
        from .moses import punctuation_normalizer

        if self._punctuation is None:
            self._punctuation = punctuation_normalizer(self.source_lang or "en")
        return self._punctuation(text) if text else ""

    @property
    def vocab_size(self) -> int:
        """The size of the source vocabulary without added tokens."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every source token."""
        return {**self.encoder, **self._added_tokens_encoder}

    get_src_vocab = get_vocab

    def get_tgt_vocab(self) -> dict:
        """Text to id of every target token."""
        return {**self.target_encoder, **self.added_tokens_decoder}

    def remove_language_code(self, text: str) -> tuple[list[str], str]:
        """The code `>>...<<` that a text begins with, and the text without codes."""
        match = _CODE.match(text)
        return ([match.group()] if match else []), _CODE.sub("", text)

    def _tokenize(self, text: str) -> list[str]:
        code, text = self.remove_language_code(text)
        return code + self.current_spm.encode(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.current_encoder.get(token, self.current_encoder[self.unk_token])

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens_by_id.get(index, self.unk_token)

    def _switch_to_input_mode(self) -> None:
        self.current_spm, self.current_encoder = self.spm_source, self.encoder

    def _switch_to_target_mode(self) -> None:
        self.current_spm, self.current_encoder = self.spm_target, self.target_encoder

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of target tokens (or source tokens); special tokens stand with a space behind."""
        model = self.spm_source if self.__dict__.get("_decode_use_source_tokenizer") else self.spm_target
        special = set(self.all_special_tokens)
        text = ""
        current: list[str] = []
        for token in tokens:
            if token in special:
                text += model.decode(current) + token + " "
                current = []
            else:
                current.append(token)
        return (text + model.decode(current)).replace(SPACE, " ").strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabularies and copy both models; returns their paths."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        names = self.vocab_files_names
        written = [write_json(folder / (prefix + names["vocab"]), self.encoder)]
        if self.separate_vocabs:
            written.append(write_json(folder / (prefix + names["target_vocab_file"]), self.target_encoder))
        return (*written, *self._copy_vocabulary(folder, prefix, ["source_spm", "target_spm"]))


class VocabularyKeyError(TokenizerFileError, KeyError):
    """A token that a vocabulary must hold."""

    __str__ = Exception.__str__
