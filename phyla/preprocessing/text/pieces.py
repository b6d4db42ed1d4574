"""SentencePiece tokenizers of the Python kind (Llama, Gemma, T5, ...): SentencePiece's own pieces and
decoding.
"""

from dataclasses import replace
from pathlib import Path

from phyla.errors import TokenizerFileError

from .charsmap import charsmap_normalizer
from .prefix_map import LongestPrefixes
from .sentencepiece_model import ModelType, PieceType, read_sentencepiece
from .sentencepiece_tokenizer import from_sentencepiece
from .slow import PreTrainedTokenizer
from .table import FromTable
from .viterbi import UnigramPieces

SPACE = "▁"


class PieceModel:
    """A SentencePiece model as its own library behaves: text to pieces, pieces to text."""

    def __init__(self, path, add_dummy_prefix: bool | None = None):
        self.model = read_sentencepiece(path)
        spec = self.model.normalizer
        self.prefix = spec.add_dummy_prefix if add_dummy_prefix is None else add_dummy_prefix
        self.strips = self.prefix or spec.remove_extra_whitespaces
        self.strips_all = spec.remove_extra_whitespaces
        kept = [piece for _, piece in self.model.of_type(PieceType.USER_DEFINED)]
        self._rewrite = (
            LongestPrefixes(spec.precompiled_charsmap, kept) if spec.precompiled_charsmap else None
        )
        if spec.precompiled_charsmap:
            charsmap_normalizer(spec.precompiled_charsmap, str(path))  # raises where the map is damaged
        plain = replace(self.model, normalizer=replace(spec, precompiled_charsmap=b""))
        self.backend = from_sentencepiece(plain, match_control=False, add_dummy_prefix=add_dummy_prefix)
        unigram = self.model.trainer.model_type == ModelType.UNIGRAM
        self.unigram = UnigramPieces(self.model) if unigram else None
        self.pieces = self.model.pieces
        self.ids = {piece: index for index, piece in reversed(list(enumerate(self.pieces)))}
        self.types = self.model.types
        self.unk_id = self.model.unk_id
        self.unk_surface = " ⁇ "

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> list[str]:
        """The pieces of a text; an unknown stretch is a piece with its own characters."""
        if self._rewrite is not None:
            text = self._rewrite(text)
        if self.unigram is not None:
            return self.unigram(self.backend.normalizer.normalize_str(text))
        encoding = self.backend.encode(text, add_special_tokens=False)
        if self.unk_id not in encoding.ids:
            return encoding.tokens
        normal = self.backend.normalizer.normalize_str(text)
        return self._with_surfaces(encoding, normal)

    def _with_surfaces(self, encoding, normal: str) -> list[str]:
        """Put back the characters of unknown stretches, which lie between the known pieces of the normalised
        text.
        """
        tokens, place = [], 0
        ids, names = encoding.ids, encoding.tokens
        for i, (index, name) in enumerate(zip(ids, names)):
            if index != self.unk_id:
                place = normal.find(name, place) + len(name) if name in normal[place:] else place
                tokens.append(name)
                continue
            following = names[i + 1] if i + 1 < len(names) else None
            end = len(normal) if following is None else self._next(normal, place, following)
            tokens.append(normal[place:end] or name)
            place = end
        return tokens

    @staticmethod
    def _next(normal: str, place: int, name: str) -> int:
        found = normal.find(name, place + 1)
        return len(normal) if found < 0 else found

    def id_of(self, piece: str) -> int:
        """The id of a piece, or of the unknown piece."""
        return self.ids.get(piece, self.unk_id)

    def decode(self, pieces: list[str]) -> str:
        """The text of pieces: bytes joined, blocks made spaces, the space that encoding put first
        taken off.
        """
        text, raw, seen = "", bytearray(), False
        for piece in pieces:
            index = self.ids.get(piece, self.unk_id)
            kind = self.types[index]
            if kind == PieceType.BYTE and index != self.unk_id:
                raw.append(int(piece[3:5], 16))
                continue
            if raw:
                text += _bytes_text(bytes(raw))
                raw.clear()
            if kind == PieceType.CONTROL:
                continue
            if index == self.unk_id:
                text += self.unk_surface if piece == self.pieces[index] else piece.replace(SPACE, " ")
                continue
            if not seen and not text and self.strips and piece.startswith(SPACE):
                piece = piece[1:]
                seen = not self.strips_all
            text += piece.replace(SPACE, " ")
        return text + _bytes_text(bytes(raw))


def _bytes_text(raw: bytes) -> str:
    """UTF-8 text of bytes, with one replacement character for each byte that is none."""
    text = ""
    while raw:
        try:
            return text + raw.decode()
        except UnicodeDecodeError as error:
            text += raw[: error.start].decode() + "\ufffd"
            raw = raw[error.start + 1 :]
    return text


class PythonPieces(FromTable, PreTrainedTokenizer):
    """A SentencePiece tokenizer in Python whose ids are those of the model file."""

    def _load(self, settings: dict, given: dict) -> None:
        path = settings.get("vocab_file")
        if path is None:
            names = ", ".join(self.vocab_files_names.values())
            raise TokenizerFileError(f"{type(self).__name__} needs vocab_file ({names}), but got none")
        self.sp_model = PieceModel(path, self._dummy_prefix(settings))

    def _dummy_prefix(self, settings: dict) -> bool | None:
        return None

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.sp_model)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        if not hasattr(self, "_base_vocab"):
            self._base_vocab = {str(self._convert_id_to_token(i)): i for i in range(self.vocab_size)}
        return {**self._base_vocab, **self._added_tokens_encoder}

    def _tokenize(self, text: str) -> list[str]:
        return self.sp_model.encode(text)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.sp_model.id_of(token)

    def _convert_id_to_token(self, index: int) -> str | None:
        return self.sp_model.pieces[index] if 0 <= index < len(self.sp_model) else None

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are."""
        text = ""
        current: list[str] = []
        special = set(self.all_special_tokens)
        for token in tokens:
            if token in special:
                text += self.sp_model.decode(current) + token
                current = []
            else:
                current.append(token)
        return (text + self.sp_model.decode(current)).strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the model file; returns its path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        return self._copy_vocabulary(Path(save_directory), prefix, ["vocab_file"])

    def spaced_text(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are, with a space before each run of them."""
        return self._spaced(tokens).strip()

    def _spaced(self, tokens: list[str]) -> str:
        special = set(self.all_special_tokens)
        text, after_special = "", False
        current: list[str] = []
        for token in tokens:
            if token in special:
                if not after_special:
                    text += " "
                text += self.sp_model.decode(current) + token
                after_special, current = True, []
            else:
                current.append(token)
                after_special = False
        return text + self.sp_model.decode(current)


class PrefixByHand(PythonPieces):
    """Llama's and T5's newer text handling: with `legacy=False` the space before a text is put here, once,
    not by SentencePiece, which would put one after every special token too.
    """

    def _dummy_prefix(self, settings: dict) -> bool | None:
        self.legacy = True if settings.get("legacy") is None else settings["legacy"]
        settings["legacy"] = self.legacy
        return None if self.legacy else False

    def tokenize(self, text: str, pair=None, add_special_tokens: bool = False, **options) -> list[str]:
        """The tokens of a text; added tokens stay whole."""
        if self.legacy or not isinstance(text, str) or not text:
            return super().tokenize(text, **options)
        text = text.replace(SPACE, " ")
        if self.add_prefix_space:
            text = SPACE + text
        tokens = super().tokenize(text, **options)
        if len(tokens) > 1 and tokens[0] == SPACE and tokens[1] in self.all_special_tokens:
            tokens = tokens[1:]
        return tokens

    def _tokenize(self, text: str) -> list[str]:
        if self.legacy or not text.startswith((SPACE, " ")):
            return self.sp_model.encode(text)
        # SentencePiece would strip the spaces at the start: something must stand before them.
        guard = str(self.unk_token)
        length = len(self.sp_model.encode(guard))
        tokens = self.sp_model.encode(guard + text)
        return tokens[length:] if len(tokens) >= length else tokens


class PythonPrefixedPieces(PrefixByHand):
    """Llama's tokenizer in Python."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are, in the older format with a space before."""
        tokens = list(tokens)
        if tokens and tokens[0].startswith(SPACE) and self.add_prefix_space:
            tokens[0] = tokens[0][1:]
        special = set(self.all_special_tokens)
        text, after_special = "", False
        current: list[str] = []
        for i, token in enumerate(tokens):
            if token in special:
                if not after_special and i and self.legacy:
                    text += " "
                text += self.sp_model.decode(current) + token
                after_special, current = True, []
            else:
                if after_special and i == 1 and self.add_prefix_space and not token.startswith(SPACE):
                    text += " "
                current.append(token)
                after_special = False
        return text + self.sp_model.decode(current)


class PythonPlainPieces(PythonPieces):
    """Gemma's tokenizer in Python: added tokens of any kind stand as they are in decoded text."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        text = ""
        current: list[str] = []
        for token in tokens:
            if token in self._added_tokens_encoder:
                text += self.sp_model.decode(current) + token
                current = []
            else:
                current.append(token)
        return text + self.sp_model.decode(current)

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=False,
        use_source_tokenizer=False,
    ) -> str:
        parts, current = [], []
        special = set(self.all_special_ids) if skip_special_tokens else ()
        for index in token_ids:
            if index in special:
                continue
            added = self._added_tokens_decoder.get(index)
            if added is None:
                current.append(self.sp_model.pieces[index])
                continue
            if current:
                parts.append(self.sp_model.decode(current))
            parts.append(added.content)
            current = []
        if current:
            parts.append(self.sp_model.decode(current))
        return (" " if spaces_between_special_tokens else "").join(parts).replace(SPACE, " ")


class PythonSentinelPieces(PrefixByHand):
    """T5's tokenizer in Python, with sentinel tokens `<extra_id_0>` ... counted down from the end of the
    vocabulary.
    """

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        from .sentinels import sentinel, with_sentinels

        names = with_sentinels(settings, type(self).__name__)
        count, size = settings["extra_ids"], len(self.sp_model)
        table = {size - 1 + count - i: sentinel(name) for i, name in enumerate(names)}
        settings["added_tokens_decoder"] = {**table, **(settings.get("added_tokens_decoder") or {})}

    def get_sentinel_tokens(self) -> list[str]:
        """The sentinel tokens."""
        return [token for token in self.additional_special_tokens if token.startswith("<extra_id_")]

    def get_sentinel_token_ids(self) -> list[int]:
        """The ids of the sentinel tokens."""
        return [self.convert_tokens_to_ids(token) for token in self.get_sentinel_tokens()]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Each sequence with one end token, unless it has it already."""
        first = self._ended(token_ids_0)
        return first if token_ids_1 is None else first + self._ended(token_ids_1)

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self.eos_token_id else ids + [self.eos_token_id]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special tokens stand as they are with a space before."""
        tokens = list(tokens)
        if tokens and tokens[0].startswith(SPACE) and self.add_prefix_space:
            tokens[0] = tokens[0][1:]
        return self.spaced_text(tokens)
