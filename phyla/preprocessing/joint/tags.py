"""Text with tags <s_key>...</s_key> as nested dictionaries."""

from __future__ import annotations

import re
from typing import Any

SEPARATOR = "<sep/>"


def tagged(tokens: str, vocabulary: Any, inner: bool = False) -> Any:
    """The values of the tags of a text: lists where <sep/> divides them; {"text_sequence"} without tags.

    A leaf that is a token <.../> of the vocabulary stands for its name.
    """
    output: dict[str, Any] = {}
    while tokens:
        opening = re.search(r"<s_(.*?)>", tokens, re.IGNORECASE)
        if opening is None:
            break
        key, start = opening.group(1), opening.group()
        closing = re.search(rf"</s_{re.escape(key)}>", tokens, re.IGNORECASE)
        if closing is None:
            tokens = tokens.replace(start, "")
            continue
        end = closing.group()
        content = re.search(f"{re.escape(start)}(.*?){re.escape(end)}", tokens, re.IGNORECASE | re.DOTALL)
        if content is not None:
            value = _value(content.group(1).strip(), vocabulary)
            if value:
                output[key] = value[0] if len(value) == 1 else value
        tokens = tokens[tokens.find(end) + len(end) :].strip()
        if tokens.startswith(SEPARATOR):
            return [output, *tagged(tokens[len(SEPARATOR) :], vocabulary, inner=True)]
    if output:
        return [output] if inner else output
    return [] if inner else {"text_sequence": tokens}


def _value(content: str, vocabulary: Any) -> Any:
    if "<s_" in content and "</s_" in content:
        return tagged(content, vocabulary, inner=True)
    leaves = [leaf.strip() for leaf in content.split(SEPARATOR)]
    return [
        leaf[1:-2] if leaf in vocabulary and leaf[0] == "<" and leaf[-2:] == "/>" else leaf for leaf in leaves
    ]
