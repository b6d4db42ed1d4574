"""English number words as digits: `two hundred and five` is `205`, `twenty first` is `21st`."""

import re
from collections.abc import Iterator
from fractions import Fraction

from .english import ONES, TENS

_ZEROS = {"o", "oh", "zero"}
_ONES = {word: value for value, word in enumerate(ONES) if value}
_TENS = {word: 10 * value for value, word in enumerate(TENS, 2)}
_SCALES = {
    "hundred": 100,
    **{
        word: 1000**power
        for power, word in enumerate(
            [
                "thousand",
                "million",
                "billion",
                "trillion",
                "quadrillion",
                "quintillion",
                "sextillion",
                "septillion",
                "octillion",
                "nonillion",
                "decillion",
            ],
            1,
        )
    },
}
_ONES_ENDED = {
    **{("sixes" if word == "six" else f"{word}s"): (value, "s") for word, value in _ONES.items()},
    **{
        f"{word}{'h' if word.endswith('t') else 'th'}": (value, "th")
        for word, value in _ONES.items() if value > 3 and value not in (5, 12)
    },
    "zeroth": (0, "th"), "first": (1, "st"), "second": (2, "nd"), "third": (3, "rd"), "fifth": (5, "th"),
    "twelfth": (12, "th"),
}  # fmt: skip
_TENS_ENDED = {
    **{word.replace("y", "ies"): (value, "s") for word, value in _TENS.items()},
    **{word.replace("y", "ieth"): (value, "th") for word, value in _TENS.items()},
}
_SCALES_ENDED = {f"{word}{end}": (value, end) for word, value in _SCALES.items() for end in ("s", "th")}
_SIGNS = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
_COINS = {"pound": "£", "euro": "€", "dollar": "$", "cent": "¢"}
_COINS |= {f"{word}s": sign for word, sign in _COINS.items()}
_PREFIXES = {*_SIGNS.values(), *_COINS.values()}
_PERCENT = {"per", "percent"}
_LINKS = {"and", "double", "triple", "point"}
_KNOWN = {
    *_ZEROS, *_ONES, *_ONES_ENDED, *_TENS, *_TENS_ENDED, *_SCALES, *_SCALES_ENDED, *_SIGNS, *_COINS,
    *_PERCENT, *_LINKS,
}  # fmt: skip
_DECIMALS = {*_ONES, *_TENS, *_ZEROS}
_NUMBER = re.compile(r"\d+(\.\d+)?")


def _is_number(word: str | None) -> bool:
    return word is not None and _NUMBER.fullmatch(word) is not None


class _Reader:
    """Reads words one by one; `value` is the number so far: an int while it can grow, else text."""

    def __init__(self, words: list[str]):
        self.words = words
        self.prefix: str | None = None
        self.value: int | str | None = None
        self.skip = False

    def __iter__(self) -> Iterator[str]:
        for i, word in enumerate(self.words):
            if self.skip:
                self.skip = False
                continue
            self.before = self.words[i - 1] if i else None
            self.after = self.words[i + 1] if i + 1 < len(self.words) else None
            yield from self._read(word)
        yield from self._flush()

    def _out(self, text) -> str:
        text = (self.prefix or "") + str(text)
        self.prefix = self.value = None
        return text

    def _flush(self) -> Iterator[str]:
        if self.value is not None:
            yield self._out(self.value)

    def _read(self, word: str) -> Iterator[str]:
        bare = word[1:] if word[0] in _PREFIXES else word
        if _is_number(bare):
            yield from self._digits(word, bare)
        elif word not in _KNOWN:
            yield from self._flush()
            yield self._out(word)
        elif word in _ZEROS:
            self.value = f"{self.value or ''}0"
        elif word in _ONES:
            self.value = self._plus_ones(_ONES[word])
        elif word in _ONES_ENDED:
            ones, end = _ONES_ENDED[word]
            yield self._out(f"{self._plus_ones(ones)}{end}")
        elif word in _TENS:
            self.value = self._plus_tens(_TENS[word])
        elif word in _TENS_ENDED:
            tens, end = _TENS_ENDED[word]
            yield self._out(f"{self._plus_tens(tens)}{end}")
        elif word in _SCALES:
            yield from self._scale(_SCALES[word])
        elif word in _SCALES_ENDED:
            yield from self._scale_ended(*_SCALES_ENDED[word])
        elif word in _SIGNS:
            yield from self._flush()
            if self.after in _KNOWN or _is_number(self.after):
                self.prefix = _SIGNS[word]
            else:
                yield self._out(word)
        elif word in _COINS:
            if self.value is None:
                yield self._out(word)
            else:
                self.prefix = _COINS[word]
                yield self._out(self.value)
        elif word in _PERCENT:
            yield from self._percent(word)
        else:
            yield from self._link(word)

    def _digits(self, word: str, bare: str) -> Iterator[str]:
        if isinstance(self.value, str) and self.value.endswith("."):
            self.value += word
            return
        yield from self._flush()
        self.prefix = word[0] if bare != word else self.prefix
        fraction = Fraction(bare)
        self.value = fraction.numerator if fraction.denominator == 1 else bare

    def _plus_ones(self, ones: int) -> int | str:
        value = self.value
        if value is None:
            return ones
        if isinstance(value, str) or self.before in _ONES:
            if self.before in _TENS and ones < 10:
                return str(value)[:-1] + str(ones)
            return f"{value}{ones}"
        fits = value % (10 if ones < 10 else 100) == 0
        return value + ones if fits else f"{value}{ones}"

    def _plus_tens(self, tens: int) -> int | str:
        if self.value is None:
            return tens
        if isinstance(self.value, str) or self.value % 100:
            return f"{self.value}{tens}"
        return self.value + tens

    def _scaled(self, scale: int) -> int | None:
        """The value so far times the scale; None where this is no whole number."""
        if isinstance(self.value, str) or self.value == 0:
            try:
                product = Fraction(self.value) * scale
            except ValueError:
                return None
            return product.numerator if product.denominator == 1 else None
        thousands, rest = divmod(int(self.value or 0), 1000)
        return thousands * 1000 + rest * scale

    def _scale(self, scale: int) -> Iterator[str]:
        if self.value is None:
            self.value = scale
            return
        scaled = self._scaled(scale)
        if scaled is None:
            yield self._out(self.value)
            self.value = scale
        else:
            self.value = scaled

    def _scale_ended(self, scale: int, end: str) -> Iterator[str]:
        if self.value is None:
            yield self._out(f"{scale}{end}")
            return
        scaled = self._scaled(scale)
        if scaled is None:
            yield self._out(self.value)
            yield self._out(f"{scale}{end}")
        else:
            yield self._out(f"{scaled}{end}")

    def _percent(self, word: str) -> Iterator[str]:
        if self.value is None:
            yield self._out(word)
        elif word == "percent":
            yield self._out(f"{self.value}%")
        elif self.after == "cent":
            yield self._out(f"{self.value}%")
            self.skip = True
        else:
            yield self._out(self.value)
            yield self._out(word)

    def _link(self, word: str) -> Iterator[str]:
        if self.after not in _KNOWN and not _is_number(self.after):
            yield from self._flush()
            yield self._out(word)
        elif word == "and":
            if self.before not in _SCALES:
                yield from self._flush()
                yield self._out(word)
        elif word == "point":
            if self.after in _DECIMALS or _is_number(self.after):
                self.value = f"{self.value or ''}."
        elif self.after in _ONES or self.after in _ZEROS:
            digit = str(_ONES.get(str(self.after), 0))
            self.value = f"{self.value or ''}{digit * (2 if word == 'double' else 3)}"
            self.skip = True
        else:
            yield from self._flush()
            yield self._out(word)


def _prepared(text: str) -> str:
    """`and a half` as `point five` behind a number; letters and digits apart, but for ordinal ends."""
    parts = re.split(r"\band\s+a\s+half\b", text)
    kept = []
    for i, part in enumerate(parts):
        if not part.strip():
            continue
        kept.append(part)
        if i < len(parts) - 1:
            last = part.rsplit(maxsplit=2)[-1]
            kept.append("point five" if last in _DECIMALS or last in _SCALES else "and a half")
    text = re.sub(r"([a-z])([0-9])", r"\1 \2", " ".join(kept))
    text = re.sub(r"([0-9])([a-z])", r"\1 \2", text)
    return re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", text)


def digits(text: str) -> str:
    """Text in lower case with its number words as digits."""
    text = " ".join(_Reader(_prepared(text).split()))
    text = re.sub(
        r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b", lambda m: f"{m[1]}{m[2]}.{int(m[3]):02d}", text
    )
    text = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda m: f"¢{int(m[1])}", text)
    return re.sub(r"\b1(s?)\b", r"one\1", text)
