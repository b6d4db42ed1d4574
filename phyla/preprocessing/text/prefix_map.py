"""SentencePiece's character map as SentencePiece applies it: at each place the longest entry that matches.

The Rust library applies the same map to whole graphemes, which differs for piled-up accents. Format: a 32-bit
length, a double-array trie of that many bytes (Darts), and the replacements as zero-ended UTF-8.
"""

import re
import struct
from array import array

from phyla.errors import TokenizerFileError


class LongestPrefixes:
    """A function from text to text by a compiled character map; the texts of `kept` stay as they are."""

    def __init__(self, charsmap: bytes, kept=()):
        size = struct.unpack_from("<I", charsmap)[0] if len(charsmap) >= 4 else 0
        if size % 4 or not 0 < size <= len(charsmap) - 4:
            raise TokenizerFileError(
                f"a character map of {len(charsmap)} bytes must begin with its trie's length, but says {size}"
            )
        self.units = array("I", charsmap[4 : 4 + size])
        self.texts = charsmap[4 + size :]
        ordered = sorted(kept, key=len, reverse=True)
        self.kept = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        """The text with every longest match replaced."""
        if self.kept is None:
            return self._mapped(text)
        parts, end = [], 0
        for match in self.kept.finditer(text):
            parts += [self._mapped(text[end : match.start()]), match.group()]
            end = match.end()
        return "".join([*parts, self._mapped(text[end:])])

    def _mapped(self, text: str) -> str:
        raw, out, place = text.encode(), bytearray(), 0
        while place < len(raw):
            length, value = self._longest(raw, place)
            if length:
                out += self.texts[value : self.texts.index(b"\0", value)]
                place += length
                continue
            first = raw[place]
            width = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            out += raw[place : place + width]
            place += width
        return out.decode()

    def _longest(self, raw: bytes, place: int) -> tuple[int, int]:
        """Length and replacement of the longest entry at a place, or (0, 0)."""
        units, found, value = self.units, 0, 0
        unit = units[0]
        node = (unit >> 10) << ((unit & 0x200) >> 6)
        for i in range(place, len(raw)):
            node ^= raw[i]
            if node >= len(units):
                break
            unit = units[node]
            if unit & 0x800000FF != raw[i]:
                break
            node ^= (unit >> 10) << ((unit & 0x200) >> 6)
            if unit & 0x100 and node < len(units):
                found, value = i + 1 - place, units[node] & 0x7FFFFFFF
        return found, value
