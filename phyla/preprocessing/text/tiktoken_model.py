"""Tokenizers built from tiktoken files: one line a token, its bytes in base64 and its rank."""

import base64
import binascii
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from phyla.errors import TokenizerFileError
from phyla.preprocessing.text.sentencepiece_model import read_bytes

# How cl100k_base and Llama 3 cut text into words.
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MAX_RANK = 1 << 24
_MAX_TOKEN = 1 << 12  # bytes


def byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level vocabularies write for each byte (GPT-2, 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in alphabet]
    alphabet.update({byte: chr(256 + i) for i, byte in enumerate(hidden)})
    return alphabet


def read_tiktoken(path: str | os.PathLike) -> dict[bytes, int]:
    """Ranks by token bytes; raises MissingFileError or TokenizerFileError naming path and line."""
    path = Path(path)
    ranks: dict[bytes, int] = {}
    for i, line in enumerate(read_bytes(path, "tiktoken").splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split()
        try:
            if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 8:
                raise ValueError("a line is a base64 token and its rank")
            token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
        except (ValueError, binascii.Error) as error:
            raise TokenizerFileError(f"{path} is not a tiktoken file: line {i}: {error}") from error
        if token in ranks or not token or len(token) > _MAX_TOKEN or rank > _MAX_RANK:
            raise TokenizerFileError(
                f"{path} is not a tiktoken file: line {i} repeats a token or is out of bounds"
            )
        ranks[token] = rank
    if not ranks:
        raise TokenizerFileError(f"{path} is not a tiktoken file: it has no tokens")
    if len(set(ranks.values())) != len(ranks):
        raise TokenizerFileError(f"{path} is not a tiktoken file: two tokens share a rank")
    return ranks


def rank_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Merges in the order of the rank they make, then of the left and the right part's rank."""
    ranked: list[tuple[int, int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left = ranks.get(token[:cut])
            if left is not None:
                right = ranks.get(token[cut:])
                if right is not None:
                    ranked.append((rank, left, right, token[:cut], token[cut:]))
    ranked.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in ranked]


def from_tiktoken(
    path: str | os.PathLike,
    pattern: str = CL100K_PATTERN,
    special_tokens: Mapping[str, int] | Iterable[str] = (),
    add_prefix_space: bool = False,
) -> Tokenizer:
    """A byte-level BPE tokenizer from mergeable ranks.

    `special_tokens` are names (numbered on from the last rank) or ids by name.
    Raises MissingFileError, or TokenizerFileError naming path and line, or the special token with a taken id.
    """
    ranks = read_tiktoken(path)
    alphabet = byte_alphabet()
    text = {token: "".join(map(alphabet.__getitem__, token)) for token in ranks}
    vocab = {text[token]: rank for token, rank in ranks.items()}
    names = list(special_tokens)
    if isinstance(special_tokens, Mapping):
        # Ids may leave gaps, which only the vocabulary itself can hold.
        used = set(vocab.values())
        for name, number in special_tokens.items():
            if number in used or name in vocab:
                raise TokenizerFileError(
                    f"special token {name!r} cannot have id {number}: {path} has the token or the id"
                )
            vocab[name] = number
            used.add(number)
    merges = [(text[left], text[right]) for left, right in rank_merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer
