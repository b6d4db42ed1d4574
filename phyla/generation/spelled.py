"""The bytes of each token of a tokenizer in Python, as the grammar engine wants them."""

from typing import Any

from phyla.errors import GenerationError
from phyla.preprocessing.text.byte_level import PythonByteLevel, letter_bytes


class Spelled:
    """A tokenizer as bytes by id; texts are cut greedily into the longest tokens.

    Raises GenerationError for vocabularies whose tokens have no bytes of their own (pieces of words, whose
    spaces stand between tokens).
    """

    def __init__(self, tokenizer: Any, size: int, ends: tuple[int, ...]) -> None:
        special = {i for i in tokenizer.all_special_ids if i is not None} | set(ends)
        special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        words = {i: word for word, i in tokenizer.get_vocab().items() if 0 <= i < size}
        if any(word.startswith("##") for word in words.values()):
            raise GenerationError(
                "a grammar needs tokens that are bytes of the text, but those of a "
                f"{type(tokenizer).__name__} have their spaces between them"
            )
        added = set(tokenizer.added_tokens_decoder)
        spell = _letters if isinstance(tokenizer, PythonByteLevel) else _piece
        letters = letter_bytes()
        self.tokens = [b""] * size
        for i, word in words.items():
            whole = i in special or i in added
            self.tokens[i] = word.encode() if whole else spell(word, letters)
        self.eos_token_id, self.bos_token_id = ends[0], tokenizer.bos_token_id
        self.special_token_ids = sorted(i for i in special if i < size)
        plain = ((text, i) for i, text in enumerate(self.tokens) if text and i not in special)
        self.ids: dict[bytes, int] = {}
        for text, i in plain:
            self.ids.setdefault(text, i)
        self.longest = max(map(len, self.ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids whose bytes make the text; bytes that no token has are left out."""
        rest = text.encode() if isinstance(text, str) else text
        found, at = [], 0
        while at < len(rest):
            for length in range(min(self.longest, len(rest) - at), 0, -1):
                token = self.ids.get(rest[at : at + length])
                if token is not None:
                    found.append(token)
                    at += length
                    break
            else:
                at += 1
        return found


def _letters(word: str, letters: dict[str, int]) -> bytes:
    return b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in word)


def _piece(word: str, letters: dict[str, int]) -> bytes:
    if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
        return bytes([int(word[3:5], 16)])
    return word.replace("\u2581", " ").encode()
