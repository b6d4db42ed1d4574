"""English text as it is spoken: numbers, sums of money and abbreviations in words."""

import re

# by their values, from 0 and from 20 on
ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = (
    (10**15, "quadrillion"),
    (10**12, "trillion"),
    (10**9, "billion"),
    (10**6, "million"),
    (1000, "thousand"),
)
_ABBREVIATIONS = {
    "mrs": "misess", "mr": "mister", "dr": "doctor", "st": "saint", "co": "company", "jr": "junior",
    "maj": "major", "gen": "general", "drs": "doctors", "rev": "reverend", "lt": "lieutenant",
    "hon": "honorable", "sgt": "sergeant", "capt": "captain", "esq": "esquire", "ltd": "limited",
    "col": "colonel", "ft": "fort",
}  # fmt: skip


def in_words(number: int) -> str:
    """A number in English words."""
    if number < 20:
        return f"minus {in_words(-number)}" if number < 0 else ONES[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return TENS[tens - 2] + (f"-{ONES[rest]}" if rest else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{ONES[hundreds]} hundred" + (f" {in_words(rest)}" if rest else "")
    if number >= 10**18:
        return "number out of range"
    scale, name = next(pair for pair in _SCALES if number >= pair[0])
    count, rest = divmod(number, scale)
    return f"{in_words(count)} {name}" + (f", {in_words(rest)}" if rest else "")


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" + ("" if number == 1 else "s")


def _dollars(match: re.Match) -> str:
    parts = match.group(1).split(".")
    if len(parts) > 2:
        return f"{match.group(1)} dollars"
    dollars, cents = (int(part or 0) for part in (*parts, "0")[:2])
    said = [_counted(n, unit) for n, unit in ((dollars, "dollar"), (cents, "cent")) if n]
    return ", ".join(said) or "zero dollars"


def _ordinal(match: re.Match) -> str:
    number = int(match.group()[:-2])
    usual = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return in_words(number) + ("th" if 10 <= number % 100 <= 20 else usual)


def _number(match: re.Match) -> str:
    number = int(match.group())
    if 2000 <= number < 2010:
        return "two thousand" + (f" {in_words(number % 100)}" if number > 2000 else "")
    if 1000 < number < 3000 and number % 100 == 0:
        return f"{in_words(number // 100)} hundred"
    return in_words(number)


def spoken(text: str) -> str:
    """ASCII text in lower case with numbers and abbreviations in words and single spaces."""
    text = text.encode("ascii", "ignore").decode().lower()
    text = re.sub(r"[0-9][0-9,]+[0-9]", lambda match: match.group().replace(",", ""), text)
    text = re.sub(r"£([0-9,]*[0-9]+)", r"\1 pounds", text)
    text = re.sub(r"\$([0-9.,]*[0-9]+)", _dollars, text)
    text = re.sub(r"[0-9]+\.[0-9]+", lambda match: match.group().replace(".", " point "), text)
    text = re.sub(r"[0-9]+(st|nd|rd|th)", _ordinal, text)
    text = re.sub(r"[0-9]+", _number, text)
    for short, long in _ABBREVIATIONS.items():
        text = re.sub(rf"\b{short}\.", long, text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", text).replace('"', "")
