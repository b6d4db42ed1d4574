"""Japanese words with bytes for the rest, of a model that sees a prefix in both directions."""

from phyla.errors import TokenizerInputError

from .base import CallOptions
from .batch import BatchEncoding
from .japanese_kinds import READ, PythonByteBackedWords

_REPEAT = "<|bagoftoken|>"


class PythonPrefixedWords(PythonByteBackedWords):
    """`bos prefix sep text`, with token type 1 up to the separator."""

    call_options: tuple[str, ...] = ("prefix_text", "add_sep_token")

    def prepare_for_tokenization(
        self,
        text: str,
        is_split_into_words: bool = False,
        prefix_text: str | None = None,
        add_sep_token: bool | None = None,
        **options,
    ) -> tuple[str, dict]:
        """The text with its prefix, the separator between them (unless the text has it) and a start token."""
        start, between = (token if token in self.vocab else "" for token in (self.bos_token, self.sep_token))
        if add_sep_token is None:
            add_sep_token = self.sep_token is not None and self.sep_token not in text
        return f"{start}{prefix_text or ''}{between if add_sep_token else ''}{text}", options

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """1 before the first sequence's separator, 0 from there on."""
        separator = self.vocab.get(self.sep_token)
        prefix = token_ids_0.index(separator) if separator in token_ids_0 else 0
        return [1] * prefix + [0] * (len(token_ids_0) + len(token_ids_1 or ()) - prefix)

    def _batch_encode_plus(self, batch, options: CallOptions) -> BatchEncoding:
        pairs = bool(batch) and isinstance(batch[0], tuple)
        if pairs and not all(isinstance(part, str) for pair in batch for part in pair):
            raise TokenizerInputError("a pair is a prefix and a text: both must be strings")
        if pairs:
            batch = [self.sep_token.join(pair) for pair in batch]
        return super()._batch_encode_plus(batch, options)

    def _convert_id_to_token(self, index: int) -> str:
        return self.ids_to_tokens[index][0]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; a mark of repetition writes what is before it three times more."""
        words: list[str] = []
        raw = bytearray()
        for token in [*tokens, ""]:
            if token.startswith("<|byte") and token.endswith("|>"):
                raw.append(int(token[6:-2]))
                continue
            if raw:
                words.append(raw.decode(errors="replace"))
                raw.clear()
            if token == _REPEAT:
                words += words[-1:] * 3
            else:
                words.append(self._shown(token))
        return "".join(words)

    def _shown(self, token: str) -> str:
        if token.startswith("<|emoji") and token.endswith("|>"):
            return self.emoji["emoji_inv"][token]
        if token.startswith("<|") and token.endswith("|>"):
            return ""
        return READ.get(token, token)
