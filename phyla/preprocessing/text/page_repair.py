"""Mending what a model reads from a page: repeated passages, invented references, broken tables and lists.

The rules are those that Nougat's authors publish with their model (arXiv:2308.13418, section 4).
"""

import functools
import re
from itertools import pairwise

from phyla.errors import MissingExtraError, require

Rule = tuple[str, str, re.RegexFlag]

_LINES, _PLAIN = re.M, re.RegexFlag(0)
_BEFORE: tuple[Rule, ...] = (
    (r"^#+ (?:[\d+\.]+|[ixv\.]+)?\s*(?:$|\n\s*)", "", _LINES),  # headings of a number alone
)
_AFTER: tuple[Rule, ...] = (
    (r"^\* \[\d+\](\s?[A-W]\.+\s?){10,}.*$", "", _LINES),  # references of nothing but initials
    (r"^(\* \[\d+\])\[\](.*)$", r"\1\2", _LINES),
    (r"(^\w\n\n|\n\n\w$)", "", _PLAIN),  # a single letter at either end
    (r"([\s.,()])_([a-zA-Z0-9])__([a-zA-Z0-9]){1,3}_([\s.,:()])", r"\1\(\2_{\3}\)\4", _PLAIN),
    (r"([\s.,\d])_([a-zA-Z0-9])_([\s.,\d;])", r"\1\(\2\)\3", _PLAIN),
    (r"(\nFootnote .*?:) (?:footnotetext|thanks):\W*(.*(?:\n\n|$))", r"\1 \2", _PLAIN),
    (r"\[FOOTNOTE:.+?\](.*?)\[ENDFOOTNOTE\]", "", _PLAIN),
)
_LAST: tuple[Rule, ...] = (
    (r"\\begin{array}\[\]{", r"\\begin{array}{", _PLAIN),
    (r"\\begin{tabular}{([clr ]){2,}}\s*[& ]*\s*(\\\\)? \\end{tabular}", "", _PLAIN),
    (r"(\*\*S\. A\. B\.\*\*\n+){2,}", "", _PLAIN),
    (r"^#+( [\[\d\w])?$", "", _LINES),
    (r"^\.\s*$", "", _LINES),
    (r"\n{3,}", "\n\n", _PLAIN),
)
_MARKDOWN: tuple[Rule, ...] = (
    (r"^\(([\d.]+[a-zA-Z]?)\) \\\[(.+?)\\\]$", r"\[\2 \\tag{\1}\]", _LINES),  # numbered equations
    (r"^\\\[(.+?)\\\] \(([\d.]+[a-zA-Z]?)\)$", r"\[\1 \\tag{\2}\]", _LINES),
    (r"^\\\[(.+?)\\\] \(([\d.]+[a-zA-Z]?)\) (\\\[.+?\\\])$", r"\[\1 \\tag{\2}\] \3", _LINES),
    (r"\\\. ", ". ", _PLAIN),
    (r"\\bm{|{\\\\bm ", r"\\mathbf{", _PLAIN),
    (r"\\mbox{ ?\\boldmath\$(.*?)\$}", r"\\mathbf{\1}", _PLAIN),
    (
        r"((?:http|ftp|https):\/\/(?:[\w_-]+(?:(?:\.[\w_-]+)+))(?:[\w.,@?^=%&:\/~+#-]*[\w@?^=%&\/~+#-]))",
        r"[\1](\1)",
        _PLAIN,
    ),
    (r"```\s*(.+?)\s*```", r"```\n\1\n```", re.S),
)
_MISSING = "\n\n[MISSING_PAGE_POST]\n\n"
_STOP = re.compile(r"[.?!\n]")
_NUMERAL = re.compile(r"^[\dixv]+((?:\.[\dixv])?)+$", re.I | re.M)
_ALIKE = 0.9


def mended(text: str, fix_markdown: bool) -> str:
    """A generated page, mended; with `fix_markdown` equations, links and code as Markdown has them."""
    text = re.sub(r"(?:\n|^)#+ \d*\W? ?(.{100,})", r"\n\1", text).strip()  # what is so long is no heading
    text = _ruled(text.replace("\n* [leftmargin=*]\n", "\n"), _BEFORE)
    head, _, last = text.rpartition("\n")
    if head and last.startswith("#") and last.lstrip("#").startswith(" "):
        text = head  # a heading with nothing below it is made up
    text = _ruled(without_made_up_references(without_repetition(text)), _AFTER)
    text = with_corrected_tables(_ended(listed(text)))
    text = _ruled(text, _LAST)
    return _ruled(text, _MARKDOWN) if fix_markdown else text


def _ruled(text: str, rules: tuple[Rule, ...]) -> str:
    for pattern, new, flags in rules:
        text = re.sub(pattern, new, text, flags=flags)
    return text


def _ended(text: str) -> str:
    """The text with the break that the next page needs."""
    if text.endswith((".", "}")):
        text += "\n\n"
    if re.match(r"[A-Z0-9,;:]$", text):
        return text + " "
    if text.startswith(("#", "**", "\\begin")):
        return "\n\n" + text
    if text.rpartition("\n")[2].startswith(("#", "Figure", "Table")):
        return text + "\n\n"
    words = _english_words()
    return text + " " if words is None or text.rpartition(" ")[2] in words else text


@functools.cache
def _english_words() -> frozenset[str] | None:
    """NLTK's word list where NLTK (the extra `nougat`) and its list are there, else None."""
    try:
        words = require("nltk.corpus", "nougat", "telling words from halves of words").words
        return frozenset(words.words())
    except (MissingExtraError, LookupError):
        return None


def with_corrected_tables(text: str) -> str:
    """Tables with their begin and end on lines of their own, and without those that cannot be tables."""
    for line in text.split("\n"):
        many = (("\\begin{tabular}", 15), ("\\multicolumn", 60), ("&", 400))
        if any(line.count(part) > most for part, most in many):
            text = text.replace(line, "")
    text = text.replace("\\begin{table} \\begin{tabular}", "\\begin{table}\n\\begin{tabular}")
    text = text.replace("\\end{tabular} \\end{table}", "\\end{tabular}\n\\end{table}")
    text = text.replace("\\end{table} Tab", "\\end{table}\nTab")
    text = re.sub(r"(^.+)\\begin{tab", r"\1\n\\begin{tab", text, flags=re.M)
    text = text.replace(r"\begin{tabular}{l l}  & \\ \end{tabular}", "")
    return text.replace("\\begin{tabular}{}\n\n\\end{tabular}", "")


def listed(text: str) -> str:
    """Lines that hold several items of a list cut into one line an item, with a tab for each level."""
    lines = text.split("\n")
    return "\n".join(_items(line, i == 0, i == len(lines) - 1) for i, line in enumerate(lines))


def _items(line: str, first: bool, last: bool) -> str:
    bullet = re.search(r". ([-*]) ", line)
    if bullet is None or line[0] not in "-*":
        return line
    mark, outer = f"{bullet.group(1)} ", f"{line[0]} "
    written = ""
    for i, item in enumerate(part.strip() for part in line.split(mark)[1:]):
        number, _, rest = item.partition(" ")
        if rest:
            level = number.count(".") if _NUMERAL.match(number) else 0
            written += "\n" * (i > 0) + "\t" * level + (mark if i or first else outer) + item
    return written + "\n" * last


# ------------------------------------------------------------------ repetitions


def without_repetition(text: str, min_len: int = 30) -> str:
    """The text without the passage (of `min_len` characters or more) that its end repeats."""
    lower = text.lower()
    size = len(lower)
    lengths = range(size // 2 - 1, min_len - 1, -1)
    length = next((n for n in lengths if lower[size - 2 * n : size - n] == lower[size - n :]), None)
    if length is None:
        return text
    passage, end = lower[-length:], size
    while lower[:end].endswith(passage):
        end -= length
    tail, turned = lower[end:], lower[::-1]
    while True:  # go on to the end of the first sentence that is repeated
        stop, start = _next_stop(lower, end), _next_stop(turned, end)
        if not stop or not start:
            return text[:end]
        end = stop + 1
        if lower[start:stop] in tail:
            return text[:end]


def _next_stop(text: str, start: int) -> int | None:
    found = _STOP.search(text, start)
    return found.start() if found else None


# ------------------------------------------------------------------ references


def without_made_up_references(text: str) -> str:
    """The text with a mark in place of long runs of references that are almost the same."""
    lines = text.split("\n")
    plain = [_unnumbered(line) for line in lines]
    runs = [_run_text(lines, plain, start, end) for start, end in _runs(lines, plain)]
    for run in reversed(runs):
        text = text.replace(run, _MISSING)
    return re.sub(r"## References\n+\[MISSING_PAGE_POST(:\d+)?\]", r"\n\n[MISSING_PAGE_POST\1]", text)


def _unnumbered(line: str) -> str:
    return re.sub(r"(?:[\d_]|\*\*)", "", line).strip()


def _runs(lines: list[str], plain: list[str]) -> list[tuple[int, int]]:
    """First line and end of each run of more than 15 lines, each much like the one after it."""
    marked: set[int] = set()
    for i in range(len(lines) - 1):
        j = next((k for k in range(i + 1, len(lines) - 1) if plain[k]), len(lines) - 1)
        a, b = plain[i], plain[j]
        short = 3 < len(a) < 200 and 3 < len(b) < 200
        if short and not a.startswith("[MISSING_PAGE") and (a == b or likeness(a, b) > _ALIKE):
            marked.update(range(i, j))
    if not marked:
        return []
    places = sorted(marked)
    breaks = [(a, b) for a, b in pairwise(places) if b - a > 3]
    starts, ends = [places[0], *(b for _, b in breaks)], [*(a for a, _ in breaks), places[-1]]
    return [(start, end + 2) for start, end in zip(starts, ends) if end + 2 - start > 15]


def _run_text(lines: list[str], plain: list[str], start: int, end: int) -> str:
    """The text of a run, from a line before it that belongs to it to where the next page begins."""
    base, found = plain[start], False
    for i in range(max(0, start - 1), max(0, start - 5), -1):
        if not lines[i]:
            continue
        if lines[i] == "## References":
            start = i
            break
        if likeness(base, _unnumbered(lines[i])) < _ALIKE:
            start, found = i + 1, True
            last = _unnumbered(lines[max(0, i - 1)].partition("* [")[2])
            if len(last) >= 0.75 * len(base) and likeness(base, last) < _ALIKE:
                start = i
            break
    after = range(min(len(lines), end), min(len(lines), end + 5))
    end = next((i for i in after if likeness(base, _unnumbered(lines[i])) < _ALIKE), end)
    end = min(end, len(lines) - 1)
    text = "\n".join(lines[start : end + 1])
    place = _departs(lines[end - 1], lines[end])
    if found and "* [" in text:
        text = "* [" + text.partition("* [")[2]
    beyond = 0 if place is None else len(lines[end]) - place - 1
    return (text[:-beyond] if beyond > 0 else text).strip()


def _departs(above: str, line: str) -> int | None:
    """Where a line, digits aside, departs from the line above it; its last match where it does not."""
    place, letters = None, enumerate(line)
    for char in above:
        if char.isnumeric():
            continue
        for place, own in letters:  # noqa: B007 - the place stays where the line ends
            if not own.isnumeric():
                break
        else:
            return place
        if own != char:
            return place
    return place


def likeness(a: str, b: str) -> float:
    """Twice the longest common subsequence over both lengths (0 to 1), counted bit by bit."""
    if not a and not b:
        return 1.0
    masks: dict[str, int] = {}
    for i, char in enumerate(a):
        masks[char] = masks.get(char, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for char in b:
        hit = row & masks.get(char, 0)
        row = ((row + hit) | (row - hit)) & full
    return 2 * (len(a) - row.bit_count()) / (len(a) + len(b))
