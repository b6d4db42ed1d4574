"""Tokenizers of connectionist temporal classification: letters or phonemes, one for each frame, with
repetitions.
"""

from collections.abc import Mapping
from itertools import groupby

from phyla.errors import ArgumentError, TokenizerFileError, nearest, require

from .batch import BatchEncoding
from .characters import PythonLetters
from .jsonfile import read_json
from .tokens import AddedToken


class CtcOutput(dict):
    """Decoded text with offsets, by name or as attributes."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def runs(tokens: list[str], group: bool) -> list[tuple[str, int, int]]:
    """Tokens with the frames at which they start and end; equal neighbours are one where `group`."""
    lengths = (
        [(token, len(list(same))) for token, same in groupby(tokens)] if group else [(t, 1) for t in tokens]
    )
    found, end = [], 0
    for token, length in lengths:
        found.append((token, end, end + length))
        end += length
    return found


def word_offsets(letters: list[dict], space: str) -> list[dict]:
    """The words between spaces, with the frames at which they start and end."""
    words = []
    for is_space, group in groupby(letters, key=lambda letter: letter["char"] == space):
        if not is_space:
            run = list(group)
            text = "".join(letter["char"] for letter in run)
            words.append(
                {"word": text, "start_offset": run[0]["start_offset"], "end_offset": run[-1]["end_offset"]}
            )
    return words


class Delimiters(PythonLetters):
    """`word_delimiter_token` stands between words."""

    @property
    def word_delimiter_token(self) -> str | None:
        """The token between words."""
        token = self.__dict__.get("_word_delimiter_token")
        return None if token is None else str(token)

    @word_delimiter_token.setter
    def word_delimiter_token(self, value: str | None) -> None:
        self._word_delimiter_token = value

    @property
    def word_delimiter_token_id(self) -> int | None:
        """The id of the token between words."""
        token = self.word_delimiter_token
        return None if token is None else self.convert_tokens_to_ids(token)

    @word_delimiter_token_id.setter
    def word_delimiter_token_id(self, value) -> None:
        self._word_delimiter_token = self.convert_tokens_to_ids(value)

    def _convert_id_to_token(self, index: int) -> str:
        return self._letters_by_id.get(index, self.unk_token)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """Put a space before words that are split already."""
        return (" " + text if is_split_into_words else text), options

    def batch_decode(self, sequences, skip_special_tokens=False, clean_up_tokenization_spaces=None, **more):  # type: ignore[override]
        """The texts of a list of ids; with offsets, one output of lists."""
        rows = [
            self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **more) for row in sequences
        ]
        if rows and isinstance(rows[0], CtcOutput):
            return CtcOutput({key: [row[key] for row in rows] for key in rows[0]})
        return rows

    def _kept_tokens(self, token_ids, skip_special_tokens: bool) -> list[str]:
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens)
        return tokens if isinstance(tokens, list) else [tokens]


class PythonCtcLetters(Delimiters):
    """Letters with a token between words; a nested vocabulary has one table for each language."""

    decode_options: tuple[str, ...] = (
        "group_tokens",
        "spaces_between_special_tokens",
        "output_char_offsets",
        "output_word_offsets",
    )

    def __init__(self, *files, **settings):
        super().__init__(*files, **settings)
        self._add_long_tokens()

    def _read(self, path) -> dict:
        return read_json(path) if not isinstance(path, dict) else path

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        if self.target_lang is not None:
            self._use(self._table_of(self.target_lang))

    def _use(self, encoder: dict) -> None:
        if all(isinstance(index, int) for index in encoder.values()):
            super()._use(encoder)
        elif self.target_lang is None and not all(isinstance(table, Mapping) for table in encoder.values()):
            raise TokenizerFileError(
                f"{self.vocab_file} must give each token an id, or each language such a table"
            )
        else:
            self.encoder = encoder
            self._letters_by_id = {}

    def _table_of(self, lang: str) -> dict[str, int]:
        table = self.vocab.get(lang)
        if not isinstance(table, Mapping):
            languages = [name for name, value in self.vocab.items() if isinstance(value, Mapping)]
            raise ArgumentError(
                f"target_lang must be one of the languages {languages}, but is {lang!r}."
                f"{nearest(lang, languages)}"
            )
        return dict(table)

    def set_target_lang(self, target_lang: str) -> None:
        """Texts in this language follow (nested vocabularies only)."""
        self._use(self._table_of(target_lang))
        self.target_lang = target_lang
        self.init_kwargs["target_lang"] = target_lang
        self._add_long_tokens()

    def _add_long_tokens(self) -> None:
        long = [AddedToken(t, rstrip=True, lstrip=True, normalized=False) for t in self.encoder if len(t) > 1]
        for token in long:
            self.add_tokens(token)

    def _add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        return super()._add_tokens(
            [AddedToken(t, normalized=False) if isinstance(t, str) else t for t in new_tokens], special_tokens
        )

    def _tokenize(self, text: str) -> list[str]:
        text = text.upper() if self.do_lower_case else text
        return list(text.replace(" ", str(self.word_delimiter_token)))

    def convert_tokens_to_string(  # type: ignore[override]
        self,
        tokens: list[str],
        group_tokens: bool = True,
        spaces_between_special_tokens: bool = False,
        output_char_offsets: bool = False,
        output_word_offsets: bool = False,
    ) -> dict:
        """The text of frames, and the offsets of its letters and words where asked for."""
        if not tokens:
            return {"text": "", "char_offsets": [], "word_offsets": []}
        space = self.replace_word_delimiter_char
        letters = [
            {
                "char": space if token == self.word_delimiter_token else token,
                "start_offset": a,
                "end_offset": b,
            }
            for token, a, b in runs(tokens, group_tokens)
            if token != self.pad_token
        ]
        text = (" " if spaces_between_special_tokens else "").join(str(letter["char"]) for letter in letters)
        text = text.strip().lower() if self.do_lower_case else text.strip()
        return {
            "text": text,
            "char_offsets": letters if output_char_offsets else None,
            "word_offsets": word_offsets(letters, space) if output_word_offsets else None,
        }

    def _decode(  # type: ignore[override]
        self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None, **options
    ):
        result = self.convert_tokens_to_string(self._kept_tokens(token_ids, skip_special_tokens), **options)
        text = self._cleaned(result["text"], clean_up_tokenization_spaces)
        if options.get("output_char_offsets") or options.get("output_word_offsets"):
            found = {
                "text": text,
                "char_offsets": result["char_offsets"],
                "word_offsets": result["word_offsets"],
            }
            return CtcOutput({key: value for key, value in found.items() if value is not None})
        return text


class PythonWaves(Delimiters):
    """The older tokenizer that takes raw speech (numbers of samples) and decodes frames."""

    def __call__(  # type: ignore[override]
        self,
        raw_speech,
        padding=False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors=None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """`input_values` of one recording or a batch, each perhaps with mean 0 and variance 1."""
        import numpy

        batched = isinstance(raw_speech, numpy.ndarray) and raw_speech.ndim > 1
        if batched and raw_speech.ndim > 2:
            raise ArgumentError(
                f"raw_speech must be (samples) or (batch, samples), but is {raw_speech.shape}"
            )
        nested = isinstance(raw_speech, (list, tuple)) and isinstance(
            raw_speech[0], (numpy.ndarray, tuple, list)
        )
        waves = [numpy.asarray(wave) for wave in (raw_speech if batched or nested else [raw_speech])]
        if self.do_normalize:
            waves = [(wave - wave.mean()) / numpy.sqrt(wave.var() + 1e-5) for wave in waves]
        return self.pad(
            BatchEncoding({"input_values": waves}),
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=self.return_attention_mask,
            return_tensors=return_tensors,
            verbose=verbose,
        )

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of frames."""
        letters = [token for token, _ in groupby(tokens) if token != self.pad_token]
        text = "".join(" " if letter == self.word_delimiter_token else letter for letter in letters).strip()
        return text.lower() if self.do_lower_case else text

    def _decode(self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None, **more) -> str:  # type: ignore[override]
        text = self.convert_tokens_to_string(self._kept_tokens(token_ids, skip_special_tokens))
        return self._cleaned(text, clean_up_tokenization_spaces)


class PythonPhonemes(Delimiters):
    """Phonemes, which espeak makes of texts where `do_phonemize` says so."""

    call_options: tuple[str, ...] = ("phonemizer_lang", "do_phonemize")
    decode_options: tuple[str, ...] = (
        "group_tokens", "filter_word_delimiter_token", "spaces_between_special_tokens", "output_char_offsets",
    )  # fmt: skip

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        if self.do_phonemize:
            self.init_backend(self.phonemizer_lang)

    @property
    def phone_delimiter_token(self) -> str | None:
        """The token between phonemes."""
        token = self.__dict__.get("_phone_delimiter_token")
        return None if token is None else str(token)

    @phone_delimiter_token.setter
    def phone_delimiter_token(self, value: str | None) -> None:
        self._phone_delimiter_token = value

    @property
    def phone_delimiter_token_id(self) -> int | None:
        """The id of the token between phonemes."""
        token = self.phone_delimiter_token
        return None if token is None else self.convert_tokens_to_ids(token)

    @phone_delimiter_token_id.setter
    def phone_delimiter_token_id(self, value) -> None:
        self._phone_delimiter_token = self.convert_tokens_to_ids(value)

    def init_backend(self, phonemizer_lang: str) -> None:
        """Make the phonemiser of a language."""
        backends = require("phonemizer.backend", "phonemizer", "turning text into phonemes").BACKENDS
        if self.phonemizer_backend not in backends:
            raise ArgumentError(
                f"phonemizer_backend must be one of {sorted(backends)}, but is {self.phonemizer_backend!r}"
            )
        self.backend = backends[self.phonemizer_backend](phonemizer_lang, language_switch="remove-flags")

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "backend"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.do_phonemize:
            self.init_backend(self.phonemizer_lang)

    def _add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        return super()._add_tokens(
            [
                AddedToken(t, normalized=True, special=special_tokens) if isinstance(t, str) else t
                for t in new_tokens
            ],
            special_tokens,
        )

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, phonemizer_lang=None, do_phonemize=None, **options
    ) -> tuple[str, dict]:
        """Take the call's settings, which stay; put a space before words that are split already."""
        if do_phonemize is not None:
            self.do_phonemize = do_phonemize
        if phonemizer_lang is not None:
            self.phonemizer_lang = phonemizer_lang
            self.init_backend(phonemizer_lang)
        return (" " + text if is_split_into_words else text), {}

    def phonemize(self, text: str, phonemizer_lang: str | None = None) -> str:
        """The phonemes of a text, with the delimiters between them."""
        if phonemizer_lang is not None and phonemizer_lang != self.phonemizer_lang:
            self.init_backend(phonemizer_lang)
        separators = require("phonemizer.separator", "phonemizer", "turning text into phonemes")
        word = "" if self.word_delimiter_token is None else f"{self.word_delimiter_token} "
        separator = separators.Separator(phone=self.phone_delimiter_token, word=word, syllable="")
        return self.backend.phonemize([text], separator=separator)[0].strip()

    def _tokenize(self, text: str) -> list[str]:
        text = text.strip()
        if self.do_phonemize:
            text = self.phonemize(text.lower(), self.phonemizer_lang)
        return [phoneme for phoneme in text.split(" ") if phoneme.strip()]

    def convert_tokens_to_string(  # type: ignore[override]
        self,
        tokens: list[str],
        group_tokens: bool = True,
        spaces_between_special_tokens: bool = False,
        filter_word_delimiter_token: bool = True,
        output_char_offsets: bool = False,
    ) -> dict:
        """The phonemes of frames, and their offsets where asked for."""
        dropped = {self.pad_token, self.word_delimiter_token if filter_word_delimiter_token else None}
        phonemes = [
            {"char": token, "start_offset": a, "end_offset": b}
            for token, a, b in runs(tokens, group_tokens)
            if token not in dropped
        ]
        text = " ".join(str(phoneme["char"]) for phoneme in phonemes).strip()
        return {"text": text, "char_offsets": phonemes if output_char_offsets else None}

    def _decode(  # type: ignore[override]
        self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None, **options
    ):
        result = self.convert_tokens_to_string(self._kept_tokens(token_ids, skip_special_tokens), **options)
        text = self._cleaned(result["text"], clean_up_tokenization_spaces)
        if options.get("output_char_offsets"):
            return CtcOutput(text=text, char_offsets=result["char_offsets"])
        return text
