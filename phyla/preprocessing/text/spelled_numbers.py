"""Numbers of a text in English words, as speech synthesis says them."""

import re

_ONES = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_UNITS = (
    "", "thousand", "million", "billion", "trillion", "quadrillion", "quintillion", "sextillion",
    "septillion", "octillion", "nonillion", "decillion",
)  # fmt: skip
_CURRENCIES = {
    "$": "dollars", "€": "euros", "£": "pounds", "¢": "cents", "¥": "japanese yen", "﷼": "saudi riyal",
    "₹": "indian rupees", "₽": "russian rubles", "฿": "thai baht", "₺": "turkish liras",
    "₴": "ukrainian hryvnia", "₣": "swiss francs", "₡": "costa rican colon", "₱": "philippine peso",
    "₪": "israeli shekels", "₮": "mongolian tögrög", "₩": "south korean won", "₦": "nigerian naira",
    "₫": "vietnamese Đồng",
}  # fmt: skip
_SIGNS = "".join(rf"\{sign}?" for sign in "$€£¢¥₹₽฿₺₴₣₡₱₪₮₩₦₫﷼")
_NUMBER = re.compile(rf"(?<!\w)(-?{_SIGNS}\d+(?:\.\d{{1,2}})?%?)(?!\w)")


def below_thousand(number: int) -> str:
    """A number from 1 to 999 in words."""
    hundreds, rest = divmod(number, 100)
    words = []
    if hundreds:
        words.append(f"{_ONES[hundreds]} hundred" + (" and" if rest else ""))
    if 10 < rest < 20:
        words.append(_TEENS[rest - 10])
    else:
        words += [word for word in (_TENS[rest // 10], _ONES[rest % 10]) if word]
    return " ".join(words)


def _whole(digits: str) -> str:
    """Groups of three digits in words; nothing for 0."""
    digits = digits.zfill(3 * ((len(digits) - 1) // 3 + 1))
    groups = [int(digits[i : i + 3]) for i in range(0, len(digits), 3)]
    units = _UNITS[len(groups) - 1 :: -1] if groups else ()
    said = [(below_thousand(group), unit) for group, unit in zip(groups, units) if group]
    return " ".join(f"{words} {unit}".strip() for words, unit in said)


def _said(number: str) -> str:
    whole, _, decimals = number.partition(".") if "." in number else (number, "", "00")
    currency = ""
    for sign, name in _CURRENCIES.items():
        if whole.removeprefix("-").startswith(sign):
            currency, whole = f" {name}", whole.replace(sign, "", 1)
            break
    minus = "minus " if whole.startswith("-") else ""
    percent = " percent" if "%" in whole + decimals else ""
    text = minus + _whole(whole.removeprefix("-").replace("%", ""))
    decimals = decimals.replace("%", "")
    if decimals != "00":
        text += " point " + " ".join(_ONES[int(digit)] if digit != "0" else "zero" for digit in decimals)
    return text + percent + currency


def spelled(text: str) -> str:
    """The text with its numbers, percentages and sums of money in words."""
    text = re.sub(r"\d+,\d+", lambda match: match.group().replace(",", ""), text)
    return re.sub(" +", " ", _NUMBER.sub(lambda match: _said(match.group(1)), text))
