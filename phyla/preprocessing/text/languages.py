"""Translation tokenizers: a language code stands before or after each text, another one for targets."""

from typing import Any

from phyla.errors import TokenizerInputError, nearest

from .layout import Layout, template
from .more_pieces import PythonShiftedPieces, PythonSpacedPieces
from .tokens import SpecialTokens


class Languages(SpecialTokens):
    """`src_lang` and `tgt_lang` say which code texts and targets get; `codes` are those there are."""

    codes: list[str] = []
    default_code = "en_XX"
    code_first = False
    framed_types = True
    _code: str | tuple[str, bool] | None

    def _take_languages(self, settings: dict) -> None:
        given = settings.get("additional_special_tokens") or []
        settings["additional_special_tokens"] = [*self.codes, *(t for t in given if str(t) not in self.codes)]
        for name in ("src_lang", "tgt_lang"):
            code = settings.get(name)
            if code is not None and code not in map(str, settings["additional_special_tokens"]):
                raise TokenizerInputError(
                    f"{name} must be a language code, but is {code!r}.{nearest(code, self.codes)}"
                )

    @property
    def src_lang(self) -> Any:  # a string; None where a kind lets texts have no code
        """The code of the texts."""
        return self.__dict__.get("_src_lang") or self.default_code

    @src_lang.setter
    def src_lang(self, code: Any) -> None:
        self._src_lang = code
        self._use(self.src_lang)

    @property
    def layout(self) -> Layout:
        """Where the code in force stands."""
        code = f"={self.__dict__.get('_code') or self.src_lang}"
        code_first = self.code_first and not self.__dict__.get("legacy_behaviour")
        single, pair = (
            (f"{code} A eos", f"{code} A B eos") if code_first else (f"A eos {code}", f"A B eos {code}")
        )
        return Layout(single, pair, "framed" if self.framed_types else "plain")

    def _use(self, code: Any) -> None:
        """Put this code with the texts that follow."""
        if self.__dict__.get("_code") == code:
            return
        self._code = code
        backend = self.__dict__.get("_tokenizer")
        if backend is not None and self.__dict__.get("_special_tokens_map") is not None:
            backend.post_processor = template(self, self.layout)

    def set_src_lang_special_tokens(self, src_lang: str) -> None:
        """Texts in this language follow."""
        self._use(src_lang)

    set_tgt_lang_special_tokens = set_src_lang_special_tokens

    def _switch_to_input_mode(self) -> None:
        self._use(self.src_lang)

    def _switch_to_target_mode(self) -> None:
        self._use(self.tgt_lang)

    def _build_translation_inputs(self, raw_inputs, return_tensors, src_lang, tgt_lang, **options):
        """Inputs of a translation, with the id that the answer must begin with."""
        if src_lang is None or tgt_lang is None:
            raise TokenizerInputError("a translation needs src_lang and tgt_lang")
        self.src_lang = src_lang
        inputs = self.__call__(raw_inputs, add_special_tokens=True, return_tensors=return_tensors, **options)
        inputs["forced_bos_token_id"] = self.convert_tokens_to_ids(tgt_lang)
        return inputs


class PythonLanguagePieces(Languages, PythonShiftedPieces):
    """Shifted pieces with language codes behind them, then the mask token."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        first = len(self.sp_model) + self.offset
        self._front_ids |= {code: first + i for i, code in enumerate(self.codes)}
        self._front_ids["<mask>"] = first + len(self.codes)
        self._front_tokens = {index: token for token, index in self._front_ids.items()}
        self._take_languages(settings)

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.sp_model) + self.offset + len(self.codes) + 1


class PythonSpacedLanguagePieces(PythonLanguagePieces):
    """The same; decoded text has a space before each run of special tokens."""

    convert_tokens_to_string = PythonSpacedPieces.convert_tokens_to_string


class PythonAddedLanguagePieces(Languages, PythonShiftedPieces):
    """Shifted pieces; the mask token and the language codes are added tokens behind them."""

    extra_ids_at_end = 0

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self._take_languages(settings)
