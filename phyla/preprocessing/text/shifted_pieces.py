"""SentencePiece tokenizers in Python with fixed tokens before or behind the pieces, and what comes with
them.
"""

import unicodedata
from pathlib import Path
from typing import Any

from phyla.errors import ArgumentError, MissingFileError, TokenizerFileError, TokenizerInputError, nearest

from .files import write_lines
from .languages import Languages
from .layout import Layout
from .more_pieces import PythonShiftedPieces
from .pieces import SPACE, PieceModel, PrefixByHand, PythonPieces
from .tokens import LIST_ROLE, AddedToken
from .wordpiece import read_lines, read_vocabulary


class PythonUnusedPieces(PythonShiftedPieces):
    """Pieces behind special and unused tokens."""

    extra_ids_at_end = 0

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether the model file is still there."""
        return Path(self.vocab_file).is_file()

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Zeros; a pair has one more than it has tokens, as it always had."""
        types = super().create_token_type_ids_from_sequences(token_ids_0, token_ids_1)
        return types if token_ids_1 is None else [*types, 0]


class PythonMonolingualPieces(PythonPieces):
    """Pieces of a multilingual model that one language uses, numbered by a word list."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        path = settings.get("monolingual_vocab_file")
        if path is None:
            raise TokenizerFileError(
                f"{type(self).__name__} needs monolingual_vocab_file (dict.txt), but got none"
            )
        roles = ("bos_token", "pad_token", "eos_token", "unk_token", "sep_token", "cls_token")
        tokens = dict.fromkeys(str(settings[role]) for role in roles)
        for line in read_lines(path):
            tokens.setdefault(line.split()[0])
        tokens.setdefault(str(settings["mask_token"]))
        self._ids = {token: index for index, token in enumerate(tokens)}
        self._tokens = list(tokens)

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self._tokens)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids[self.unk_token])

    def _convert_id_to_token(self, index: int) -> str | None:
        return self._tokens[index] if 0 <= index < len(self._tokens) else None

    convert_tokens_to_string = PythonShiftedPieces.convert_tokens_to_string

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the model file and the word list; returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        return self._copy_vocabulary(Path(save_directory), prefix, ["vocab_file", "monolingual_vocab_file"])


class PythonCodeLanguagePieces(Languages, PythonShiftedPieces):
    """Shifted pieces with codes of natural and programming languages behind them; the code may be missing."""

    code_lists: dict[str, list[str]] = {}
    default_codes: dict[str, str] = {}
    extra_ids_at_end = 0

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        kind = self.language_codes
        if kind not in self.code_lists:
            raise ArgumentError(f"language_codes must be one of {list(self.code_lists)}, but is {kind!r}")
        codes = self.code_lists[kind]
        first = len(self.sp_model) + self.offset
        self.lang_code_to_id = {code: first + i for i, code in enumerate(codes)}
        self._front_ids |= self.lang_code_to_id
        if kind not in self.default_codes:  # these have a mask token too
            self._front_ids["<mask>"] = first + len(codes)
        self._front_tokens = {index: token for token, index in self._front_ids.items()}
        for name in ("src_lang", "tgt_lang"):
            settings[name] = self._full(settings[name])
            setattr(self, name, settings[name])
        self.codes = codes
        self._take_languages(settings)
        self._code = self._src_lang

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        mask = self.language_codes not in self.default_codes
        return len(self.sp_model) + self.offset + len(self.lang_code_to_id) + int(mask)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        base = {str(self.convert_ids_to_tokens(i)): i for i in range(self.vocab_size)}
        return {**base, **self._added_tokens_encoder}

    def prepare_seq2seq_batch(self, src_texts, src_lang="en_XX", tgt_texts=None, tgt_lang="python", **more):  # type: ignore[override]
        """Inputs and labels of a batch of source and target texts."""
        langs = {"src_lang": self._full(src_lang), "tgt_lang": self._full(tgt_lang)}
        return super().prepare_seq2seq_batch(src_texts, tgt_texts, **langs, **more)

    def _full(self, lang: str | None) -> str | None:
        named = f"__{lang}__"
        return named if any(named in codes for codes in self.code_lists.values()) else lang

    @property
    def src_lang(self) -> str | None:
        """The code of the texts, if any."""
        return self.__dict__.get("_src_lang")

    @src_lang.setter
    def src_lang(self, code: str | None) -> None:
        code = self._full(code)
        self._src_lang = code or self.default_codes.get(self.language_codes)
        self._use(self._src_lang)

    @property
    def layout(self) -> Layout:
        """The text, the end, the code in force where there is one."""
        code = self.__dict__.get("_code")
        end = "eos" if code is None else f"eos ={code}"
        return Layout(f"A {end}", f"A B {end}", "framed")

    def _use(self, code: str | None) -> None:
        code = self._full(code)
        table = self.__dict__.get("lang_code_to_id")
        if code is not None and table is not None and code not in table:
            raise UnknownLanguageError(
                f"the language must be one of {list(table)}, but is {code!r}.{nearest(code, table)}"
            )
        self._code = code

    def set_src_lang_special_tokens(self, src_lang: str | None) -> None:
        """Texts in this language follow."""
        self._use(src_lang)

    set_tgt_lang_special_tokens = set_src_lang_special_tokens

    def _build_translation_inputs(self, raw_inputs, return_tensors, src_lang, tgt_lang, **options):
        """Inputs of a translation, with the id that the answer must begin with."""
        return super()._build_translation_inputs(
            raw_inputs, return_tensors, src_lang, self._full(tgt_lang), **options
        )


class UnknownLanguageError(TokenizerInputError, KeyError):
    """A language that the tokenizer has no code for."""

    __str__ = Exception.__str__


class SpokenLanguages(Languages):
    """Texts get `code A end`, targets `end code A end`; calls may name the languages, and pad by default."""

    call_options: tuple[str, ...] = ("src_lang", "tgt_lang")

    def _code_of(self, lang: str) -> str:
        return lang if "__" in lang else f"__{lang}__"

    @property
    def src_lang(self) -> str:
        """The code of the texts."""
        return self.__dict__["_src_lang"]

    @src_lang.setter
    def src_lang(self, lang: str) -> None:
        self._src_lang = self._code_of(lang)
        self._use(self._src_lang)

    @property
    def tgt_lang(self) -> str:
        """The code of the targets."""
        return self.__dict__["_tgt_lang"]

    @tgt_lang.setter
    def tgt_lang(self, lang: str) -> None:
        self._tgt_lang = self._code_of(lang)
        self._use(self._tgt_lang, target=True)

    @property
    def layout(self) -> Layout:
        """Where the code in force stands."""
        code, target = self.__dict__.get("_code") or (self.tgt_lang, True)
        start = f"eos ={code}" if target else f"={code}"
        return Layout(f"{start} A eos", f"{start} A B eos", "framed")

    def _use(self, code: str, target: bool = False) -> None:
        from .layout import template

        if self.__dict__.get("_code") == (code, target):
            return
        self._code = (code, target)
        if "init_kwargs" in self.__dict__:
            self.init_kwargs["tgt_lang" if target else "src_lang"] = code
        backend = self.__dict__.get("_tokenizer")
        if backend is not None and self.__dict__.get("_special_tokens_map") is not None:
            backend.post_processor = template(self, self.layout)

    def set_src_lang_special_tokens(self, src_lang: str) -> None:
        """Texts in this language follow."""
        self._use(src_lang)

    def set_tgt_lang_special_tokens(self, lang: str) -> None:
        """Targets in this language follow."""
        self._use(lang, target=True)

    def _switch_to_target_mode(self) -> None:
        self._use(self.tgt_lang, target=True)

    def __call__(self, *texts, padding=True, pad_to_multiple_of=2, src_lang=None, tgt_lang=None, **options):
        """Model inputs as of every tokenizer; `src_lang` and `tgt_lang` stay for later calls."""
        if src_lang is not None:
            self.src_lang = src_lang
        if tgt_lang is not None:
            self.tgt_lang = tgt_lang
        return super().__call__(*texts, padding=padding, pad_to_multiple_of=pad_to_multiple_of, **options)  # type: ignore[misc]

    def _build_translation_inputs(self, raw_inputs, return_tensors, src_lang, tgt_lang, **options):
        """Inputs of a translation, with the id that the answer must begin with."""
        tgt = None if tgt_lang is None else self._code_of(tgt_lang)
        return super()._build_translation_inputs(raw_inputs, return_tensors, src_lang, tgt, **options)


class PythonSpokenLanguagePieces(SpokenLanguages, PrefixByHand):
    """Pieces one id up behind a padding token, with codes of spoken languages."""

    def _load(self, settings: dict, given: dict) -> None:
        settings["legacy"] = False
        super()._load(settings, given)
        settings.pop("legacy")
        roles = ("pad_token", "unk_token", "bos_token", "eos_token")
        front = {
            i: AddedToken(settings[role], special=True) if isinstance(settings[role], str) else settings[role]
            for i, role in enumerate(roles)
        }
        settings["added_tokens_decoder"] = {**front, **(settings.get("added_tokens_decoder") or {})}
        self.src_lang, self.tgt_lang = settings["src_lang"], settings["tgt_lang"]

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        base = {str(self.convert_ids_to_tokens(i)): i for i in range(1, self.vocab_size + 1)}
        return {**base, **self.added_tokens_encoder}

    def _convert_token_to_id(self, token: str) -> int:
        index = self.sp_model.id_of(token)
        return index + 1 if index else self.unk_token_id

    def _convert_id_to_token(self, index: int) -> str | None:
        return super()._convert_id_to_token(index - 1)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens: pieces joined, with blocks as spaces."""
        text = "".join(tokens)
        text = text.removeprefix(SPACE) if self.add_prefix_space else text
        return text.replace(SPACE, " ").strip()


class InfillTokens:
    """The tokens around the parts of a text with a gap; each has its id too."""

    prefix_token: Any  # a string where there is one, else None
    middle_token: Any
    suffix_token: Any
    eot_token: str | None
    fill_token: str | None

    def _take_infill(self, settings: dict) -> None:
        names = [settings[f"{part}_token"] for part in ("prefix", "middle", "suffix", "eot")]
        extra = list(settings.get(LIST_ROLE) or [])
        settings[LIST_ROLE] = extra + [name for name in names if name is not None]

    def __getattr__(self, name: str):
        if name in ("prefix_id", "middle_id", "suffix_id", "eot_id"):
            token = self.__dict__.get(f"{name[:-3]}_token")
            return None if token is None else self.convert_tokens_to_ids(token)
        return super().__getattr__(name)  # type: ignore[misc]

    def _infill_needs(self) -> None:
        ids = {f"{part}_token": getattr(self, f"{part}_id") for part in ("prefix", "middle", "suffix")}
        missing = [name for name, index in ids.items() if index is None]
        if missing:
            raise TokenizerInputError(
                f"a text with a gap (a suffix, or {self.fill_token} in it) needs {', '.join(missing)}"
            )


class PythonInfillPieces(InfillTokens, PrefixByHand):
    """Pieces of a text, or of what stands before and after a gap."""

    call_options: tuple[str, ...] = ("suffix", "suffix_first")

    def _load(self, settings: dict, given: dict) -> None:
        settings["legacy"], self.add_prefix_space = False, True
        super()._load(settings, given)
        settings.pop("legacy")
        self._take_infill(settings)

    def tokenize(  # type: ignore[override]
        self, prefix: str, suffix: str | None = None, suffix_first: bool | None = False, **options
    ) -> list[str]:
        """The tokens of a text, or of a text with a gap: `prefix` before and `suffix` after it, or one text
        with `fill_token` in it.
        """
        if self.fill_token is not None and self.fill_token in prefix and suffix is None:
            prefix, suffix = prefix.split(self.fill_token)
        if prefix:
            prefix = SPACE + prefix.replace(SPACE, " ")
        if not suffix:
            tokens = PythonPieces.tokenize(self, prefix, **options)
            starts_special = len(tokens) > 1 and tokens[0] == SPACE and tokens[1] in self.all_special_tokens
            return tokens[1:] if starts_special else tokens
        self._infill_needs()
        before, after = self._tokenize(prefix), self._tokenize(suffix)
        first = self.suffix_first if suffix_first is None else suffix_first
        if first:
            return [self.prefix_token, self.suffix_token, *after, self.middle_token, *before]
        return [self.prefix_token, *before, self.suffix_token, *after, self.middle_token]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are."""
        tokens = list(tokens)
        if tokens and tokens[0].startswith(SPACE):
            tokens[0] = tokens[0][1:]
        special = set(self.all_special_tokens)
        text = ""
        current: list[str] = []
        for token in tokens:
            if token in special:
                text += self.sp_model.decode(current) + token
                current = []
            else:
                current.append(token)
        return text + self.sp_model.decode(current)


_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if chr(code) != "～"}
_MARKS = frozenset(",;:.?!~，；：。？！《》【】")


def _is_mark(char: str) -> bool:
    return "\u4e00" <= char <= "\u9fff" or char in _MARKS


class PythonCutPieces(PythonPieces):
    """Pieces cut again at Chinese characters, marks and numbers; ids by a word list."""

    def _load(self, settings: dict, given: dict) -> None:
        path = settings.get("sentencepiece_model_ckpt")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs sentencepiece_model_ckpt, but got none")
        self.sp_model = PieceModel(path)
        words = settings.get("vocab_file")
        self.vocab = dict(self.sp_model.ids) if words is None else read_vocabulary(words)
        self._words_by_id = {index: token for token, index in self.vocab.items()}

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.vocab, **self._added_tokens_encoder}

    def clean_text(self, text: str) -> str:
        """The text with ASCII for full-width characters."""
        return text.translate(_FULL_WIDTH)

    def _tokenize(self, text: str) -> list[str]:
        pieces = self.sp_model.encode(text)
        found = []
        for i, piece in enumerate(pieces):
            if piece != SPACE:
                found += self._cut_piece(piece)
            elif i and i + 1 < len(pieces) and not pieces[i + 1].startswith(SPACE):
                found.append(piece)
        return found

    @staticmethod
    def _cut_piece(piece: str) -> list[str]:
        parts, start = [], 0
        for i, char in enumerate(piece):
            if char == SPACE:
                continue
            if _is_mark(char):
                parts += [piece[start:i], char]
                start = i + 1
            elif i and char.isdigit() != piece[i - 1].isdigit():
                parts.append(piece[start:i])
                start = i
        kept = [part for part in parts if part not in ("", SPACE)]
        return kept + ([piece[start:]] if start < len(piece) else [])

    def get_offset_mapping(self, text: str | None) -> list[tuple[int, int]] | None:
        """The start and end in the text of each token."""
        if text is None:
            return None
        normal, origin = "", []
        for i, char in enumerate(text):
            char = _FULL_WIDTH.get(ord(char)) or unicodedata.normalize("NFKC", char)
            if not char.isspace() or len(char) != 1:
                normal += char
                origin += [i] * len(char)
        normal = normal.lower() if self.do_lower_case else normal
        offsets, place = [], 0
        for token in self.tokenize(text):
            token = token.removeprefix(SPACE)
            start = normal.index(token, place)
            place = start + len(token)
            offsets.append((origin[start], origin[place - 1] + 1))
        return offsets

    def build_offset_mapping_with_special_tokens(self, offset_mapping_0, offset_mapping_1=None) -> list:
        """Offsets with (0, 0) for the special tokens."""
        none = (0, 0)
        if offset_mapping_1 is None:
            return [none, *offset_mapping_0, none]
        return [none, *offset_mapping_0, none, none, *offset_mapping_1, none]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others."""
        if already_has_special_tokens and token_ids_1 is None:
            return [int(index in (self.sep_token_id, self.cls_token_id)) for index in token_ids_0]
        return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.vocab.get(token, self.vocab.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str:
        return self._words_by_id.get(index, self.unk_token)

    convert_tokens_to_string = PythonShiftedPieces.convert_tokens_to_string

    def convert_ids_to_string(self, ids: list[int]) -> str:
        """The text of ids."""
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the word list and copy the model file; returns their paths."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        model = Path(self.sentencepiece_model_ckpt)
        if not model.is_file():
            raise MissingFileError(f"{model} is gone, so it cannot be copied")
        words = folder / (prefix + self.vocab_files_names["vocab_file"])
        target = folder / "sentencepiece.bpe.model"
        target.write_bytes(model.read_bytes())
        return (write_lines(words, sorted(self.vocab, key=self.vocab.__getitem__)), str(target))
