"""Where special tokens stand around one or two sequences, as one line of text per case.

`cls A sep` is one sequence between two special tokens; `cls A sep B:1 sep:1` a pair whose second part has
token type 1. A `?` after a role makes it depend on the tokenizer's setting `add_<role>_token`; `<x>` names a
token by its text.
"""

import functools
from typing import NamedTuple


class Part(NamedTuple):
    """One place of a layout: sequence A or B, or the role (or `<text>`) of a special token, with its token
    type.
    """

    name: str
    type: int
    optional: bool

    @property
    def is_sequence(self) -> bool:
        """Whether a sequence stands here."""
        return self.name in ("A", "B")


@functools.lru_cache(maxsize=512)
def parse(line: str) -> tuple[Part, ...]:
    """The places that a layout line names."""
    parts = []
    for word in line.split():
        name, _, kind = (
            word.rpartition(":") if ":" in word[1:] and word.rsplit(":", 1)[1].isdigit() else (word, "", "0")
        )
        parts.append(Part(name.rstrip("?"), int(kind), name.endswith("?")))
    return tuple(parts)


class Layout(NamedTuple):
    """The lines for one sequence and for a pair, and how their token types are counted.

    `types`: "layout" follows the lines, "zeros" gives 0 everywhere over the same length, "framed"
    gives 0 over the length with `FRAME`, "plain" gives 0 to the first sequence and 1 to the second
    and counts no special tokens.
    """

    single: str = "A"
    pair: str = "A B"
    types: str = "plain"

    def places(self, tokenizer, pair: bool) -> list[Part]:
        """The places in force under the tokenizer's settings."""
        line = self.pair if pair else self.single
        return [p for p in parse(line) if not p.optional or getattr(tokenizer, f"add_{p.name}_token", False)]


PLAIN = Layout()
FRAME = Layout("cls A sep", "cls A sep sep B sep")


def token_of(tokenizer, name: str) -> str | None:
    """The text of a special token named in a layout."""
    return name.removeprefix("=") if name.startswith(("<", "[", "=")) else getattr(tokenizer, f"{name}_token")


def id_of(tokenizer, name: str) -> int | None:
    """The id of a special token named in a layout."""
    token = token_of(tokenizer, name)
    return None if token is None else tokenizer.convert_tokens_to_ids(token)


def build(tokenizer, layout: Layout, first: list[int], second: list[int] | None) -> list[int]:
    """Token ids of one sequence or a pair with the special tokens around them."""
    ids: list = []
    for place in layout.places(tokenizer, second is not None):
        if place.is_sequence:
            ids += first if place.name == "A" else second or []
        else:
            ids.append(id_of(tokenizer, place.name))
    return ids


def special_mask(tokenizer, layout: Layout, first: list[int], second: list[int] | None) -> list[int]:
    """1 for special tokens and 0 for the sequences, along what `build` gives."""
    mask = []
    for place in layout.places(tokenizer, second is not None):
        mask += [0] * len(first if place.name == "A" else second or []) if place.is_sequence else [1]
    return mask


def token_types(tokenizer, layout: Layout, first: list[int], second: list[int] | None) -> list[int]:
    """Token types along what `build` gives (see `Layout.types` for the exceptions)."""
    if layout.types == "plain":
        return [0] * len(first) + [1] * len(second or ())
    if layout.types == "framed":
        return [0] * (len(first) + 2 if second is None else len(first) + len(second) + 4)
    types = []
    for place in layout.places(tokenizer, second is not None):
        kind = 0 if layout.types == "zeros" else place.type
        types += [kind] * (len(first if place.name == "A" else second or []) if place.is_sequence else 1)
    return types


def template(tokenizer, layout: Layout, ids=None):
    """The Rust post-processor that puts special tokens where the layout says.

    `ids` gives the id of a token's text (default: the tokenizer's own table).
    """
    from tokenizers.processors import TemplateProcessing

    find = ids or tokenizer.convert_tokens_to_ids
    lines, used = [], {}
    for pair in (False, True):
        words = []
        for place in layout.places(tokenizer, pair):
            token = f"${place.name}" if place.is_sequence else token_of(tokenizer, place.name)
            if token is None:
                continue
            if not place.is_sequence:
                used[token] = find(token)
            words.append(f"{token}:{place.type}")
        lines.append(words)
    return TemplateProcessing(single=lines[0], pair=lines[1], special_tokens=list(used.items()))
