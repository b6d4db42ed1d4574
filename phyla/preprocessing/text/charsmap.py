"""The character map of SentencePiece models: a double-array trie and the texts it points to."""

import struct

from tokenizers import normalizers

from phyla.errors import TokenizerFileError


def charsmap_normalizer(charsmap: bytes, where: str = "the SentencePiece model") -> normalizers.Precompiled:
    """The normaliser of a SentencePiece character map, checked in full first.

    The Rust code behind it aborts on indices that point outside; raises TokenizerFileError naming `where`.
    """
    problem = _charsmap_problem(charsmap)
    if problem:
        raise TokenizerFileError(f"{where} is not a SentencePiece file: its character map {problem}")
    try:
        return normalizers.Precompiled(charsmap)
    except Exception as error:
        raise TokenizerFileError(
            f"{where} is not a SentencePiece file: its character map cannot be read: {error}"
        ) from error


def _charsmap_problem(charsmap: bytes) -> str:
    if len(charsmap) < 4:
        return "is cut short"
    (trie_bytes,) = struct.unpack_from("<I", charsmap)
    if trie_bytes % 4 or trie_bytes > len(charsmap) - 4 or not trie_bytes:
        return f"claims a trie of {trie_bytes} bytes, but has {len(charsmap) - 4}"
    units = struct.unpack_from(f"<{trie_bytes // 4}I", charsmap, 4)
    texts = charsmap[4 + trie_bytes :]
    try:
        texts.decode()
    except UnicodeDecodeError:
        return "has texts that are not UTF-8"
    count, size = len(units), len(texts)
    for i, unit in enumerate(units):
        if unit >> 31:
            start = unit & 0x7FFFFFFF
            if start >= size or texts[start] & 0xC0 == 0x80:
                return f"points to text {start} of {size}"
        elif (i ^ ((unit >> 10) << ((unit & 0x200) >> 6))) | 0xFF >= count:
            return f"points outside its trie at unit {i}"
    return ""
