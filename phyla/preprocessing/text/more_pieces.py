"""SentencePiece tokenizers in Python whose texts are cleaned first, or whose ids are not those of the
model file.
"""

import re
import unicodedata

from .pieces import SPACE, PieceModel, PythonPieces
from .wordpiece import BasicTokenizer


class PythonSpacedPieces(PythonPieces):
    """Pieces as SentencePiece gives them; decoded text has a space before each run of special tokens."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are."""
        return self.spaced_text(tokens)


def cleaned(text: str, remove_space: bool, keep_accents: bool, lower: bool) -> str:
    """A text with plain quotes, and as asked without extra spaces, accents and capitals."""
    if remove_space:
        text = " ".join(text.split())
    text = text.replace("``", '"').replace("''", '"')
    if not keep_accents:
        text = "".join(
            char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char)
        )
    return text.lower() if lower else text


def before_comma(model: PieceModel, piece: str) -> list[str]:
    """The pieces of the number before a comma, and the comma."""
    pieces = model.encode(piece[:-1].replace(SPACE, ""))
    if piece[0] != SPACE and pieces[0][0] == SPACE:
        pieces = pieces[1:] if len(pieces[0]) == 1 else [pieces[0][1:], *pieces[1:]]
    return [*pieces, piece[-1]]


class PythonCleanedPieces(PythonSpacedPieces):
    """Cleaned text (see `cleaned`); a comma after a digit is a piece of its own."""

    def _tokenize(self, text: str) -> list[str]:
        pieces = []
        for piece in self.sp_model.encode(self._clean(text)):
            if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
                pieces += before_comma(self.sp_model, piece)
            else:
                pieces.append(piece)
        return pieces

    def _clean(self, text: str) -> str:
        return cleaned(text, self.remove_space, self.keep_accents, self.do_lower_case)


class PythonTightPieces(PythonCleanedPieces):
    """Cleaned text; decoded text has nothing between special tokens and no space after the unknown token."""

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=False,
        use_source_tokenizer=False,
    ) -> str:
        text = super()._decode(
            token_ids, skip_special_tokens, clean_up_tokenization_spaces, spaces_between_special_tokens
        )
        return text if spaces_between_special_tokens else text.replace("<unk> ", "<unk>")


def split_at_added(tokenizer, token_ids, skip_special_tokens: bool) -> list[str]:
    """The texts between added tokens, and these."""
    parts: list[str] = []
    current: list[str] = []
    for token in tokenizer.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens):
        if token not in tokenizer._added_tokens_encoder:
            current.append(token)
            continue
        if current:
            parts.append(tokenizer.convert_tokens_to_string(current))
            current = []
        parts.append(token)
    return [*parts, tokenizer.convert_tokens_to_string(current)] if current else parts


class PythonJoinedPieces(PythonCleanedPieces):
    """Cleaned text; decoded text is the pieces joined, with blocks as spaces and nothing between added
    tokens.
    """

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return "".join(tokens).replace(SPACE, " ").strip()

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=True,
        use_source_tokenizer=False,
    ) -> str:
        text = "".join(split_at_added(self, token_ids, skip_special_tokens))
        return self._cleaned(text, clean_up_tokenization_spaces)


class PythonBracketPieces(PythonSpacedPieces):
    """Decoded text has a space around added tokens, but none before `[SEP]` and `[MASK]`."""

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=True,
        use_source_tokenizer=False,
    ) -> str:
        parts = split_at_added(self, token_ids, skip_special_tokens)
        text = "".join(parts)
        if spaces_between_special_tokens:
            text = re.sub(r" (\[(?:MASK|SEP)\])", r"\1", " ".join(parts))
        return self._cleaned(text, clean_up_tokenization_spaces)


class PythonShiftedPieces(PythonPieces):
    """Ids of the model file moved up behind fixed tokens, as fairseq numbered them; a mask token may
    stand last.
    """

    front: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>")
    offset = 1
    extra_ids_at_end = 1

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self._front_ids = {token: index for index, token in enumerate(self.front)}
        if self.extra_ids_at_end:
            self._front_ids["<mask>"] = len(self.sp_model) + self.offset
        self._front_tokens = {index: token for token, index in self._front_ids.items()}

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.sp_model) + self.offset + self.extra_ids_at_end

    def _convert_token_to_id(self, token: str) -> int:
        if token in self._front_ids:
            return self._front_ids[token]
        index = self.sp_model.id_of(token)
        return index + self.offset if index else self.unk_token_id

    def _convert_id_to_token(self, index: int) -> str | None:
        if index in self._front_tokens:
            return self._front_tokens[index]
        return super()._convert_id_to_token(index - self.offset)

    def convert_tokens_to_string(self: PythonPieces, tokens: list[str]) -> str:
        """The text of tokens: pieces joined, with blocks as spaces."""
        return "".join(tokens).replace(SPACE, " ").strip()


class PythonPaddedPieces(PythonShiftedPieces):
    """Shifted ids with made-up words behind the model file's."""

    extra_ids_at_end = 7

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        first = len(self.sp_model) + self.offset
        del self._front_ids["<mask>"]
        self._front_ids |= {f"<madeupword{i}>": first + i for i in range(self.extra_ids_at_end)}
        self._front_tokens = {index: token for token, index in self._front_ids.items()}


class PythonWholePieces(PythonPieces):
    """Decoded by SentencePiece alone, which drops special tokens."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return self.sp_model.decode(tokens)


class PythonPunctuatedPieces(PythonSpacedPieces):
    """Where `split_by_punct` says so, punctuation is cut off first."""

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """Put a space before words that are split already."""
        prefix = options.pop("add_prefix_space", False)
        return (" " + text if is_split_into_words or prefix else text), options

    def _tokenize(self, text: str) -> list[str]:
        if not self.split_by_punct:
            return self.sp_model.encode(text)
        return [
            piece
            for part in BasicTokenizer()._run_split_on_punc(text)
            for piece in self.sp_model.encode(part)
        ]


class PythonFrontedPieces(PythonShiftedPieces):
    """Shifted ids without a mask token of their own; decoded text has a space before each run of
    special tokens.
    """

    extra_ids_at_end = 0
    convert_tokens_to_string = PythonSpacedPieces.convert_tokens_to_string

    @property
    def vocab_size(self) -> int:
        """The size of the model file."""
        return len(self.sp_model)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        base = {str(self._convert_id_to_token(i)): i for i in range(self.vocab_size + self.offset)}
        return {**base, **self._added_tokens_encoder}
