"""CLIP's tokenizer: lower-cased byte-level BPE whose words end in `</w>`."""

import importlib
import re

from .byte_level import PythonByteLevel, from_letters
from .fast import PreTrainedTokenizerFast
from .wordpiece import BasicTokenizer

WORD_END_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
END_OF_WORD = "</w>"


def text_mender():
    """ftfy's `fix_text` where installed, else None."""
    try:
        return importlib.import_module("ftfy").fix_text
    except ModuleNotFoundError:
        return None


class PythonWordEnd(PythonByteLevel):
    """CLIP's tokenizer in Python; texts are mended with ftfy where it is installed, else cleaned as BERT
    does.
    """

    pattern = (
        r"<\|startoftext\|>|<\|endoftext\|>|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )
    suffix = END_OF_WORD
    call_options = ()

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self._merger.kept.update({token: [token] for token in ("<|startoftext|>", "<|endoftext|>")})
        self._mend = text_mender()
        self._clean = BasicTokenizer(strip_accents=False, do_split_on_punc=False)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """The text as it is."""
        return text, options

    def _tokenize(self, text: str) -> list[str]:
        if self._mend is None:
            text = " ".join(self._clean.tokenize(text))
        else:
            text = re.sub(r"\s+", " ", self._mend(text)).strip().lower()
        return super()._tokenize(text)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens, with a space after each word."""
        return from_letters("".join(tokens), self.errors or "replace").replace(END_OF_WORD, " ").strip()


class WordEndDecoding(PreTrainedTokenizerFast):
    """Decoding of the fast CLIP tokenizer: a space after each word."""

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=True,
        use_source_tokenizer=False,
    ) -> str:
        text = super()._decode(token_ids, skip_special_tokens, False)
        suffix = getattr(self._tokenizer.model, "end_of_word_suffix", None) or END_OF_WORD
        return self._cleaned(text.replace(suffix, " ").strip(), clean_up_tokenization_spaces)
