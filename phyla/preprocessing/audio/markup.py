"""Text nodes of HTML pages and their XPaths."""

from __future__ import annotations

import html
from html.parser import HTMLParser
from typing import Any

from phyla.errors import ArgumentError

from ..feature import BatchFeature, FeatureExtractionMixin

_VOID = frozenset(
    [
        "area",
        "base",
        "basefont",
        "bgsound",
        "br",
        "col",
        "command",
        "embed",
        "frame",
        "hr",
        "image",
        "img",
        "input",
        "isindex",
        "keygen",
        "link",
        "menuitem",
        "meta",
        "nextid",
        "param",
        "source",
        "spacer",
        "track",
        "wbr",
    ]
)


class _Node:
    """An element: its name, its parent, and which of the parent's children of that name it is."""

    def __init__(self, name: str, parent: _Node | None):
        self.name, self.parent = name, parent
        self.names: dict[str, int] = {}
        self.number = 0
        if parent is not None:
            parent.names[name] = self.number = parent.names.get(name, 0) + 1

    def xpath(self) -> str:
        if self.parent is None:
            return ""
        alone = self.parent.names[self.name] == 1
        return f"{self.parent.xpath()}/{self.name}" + ("" if alone else f"[{self.number}]")


class _Page(HTMLParser):
    """Elements as they are opened and closed; an end tag closes all up to the last of its name."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.here = _Node("", None)
        self.texts: list[tuple[str, _Node]] = []
        self.joins = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.joins = False
        node = _Node(tag, self.here)
        if tag not in _VOID:
            self.here = node

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.joins = False
        _Node(tag, self.here)

    def handle_endtag(self, tag: str) -> None:
        self.joins = False
        node: _Node | None = self.here
        while node is not None and node.name != tag:
            node = node.parent
        if node is not None and node.parent is not None:
            self.here = node.parent

    def handle_data(self, data: str) -> None:
        if self.joins:
            data = self.texts.pop()[0] + data
        self.texts.append((data, self.here))
        self.joins = True

    def handle_comment(self, data: str) -> None:
        self.texts.append((data, self.here))
        self.joins = False

    def unknown_decl(self, data: str) -> None:
        self.handle_comment(data.removeprefix("CDATA["))

    def handle_pi(self, data: str) -> None:
        self.handle_comment(data)


class MarkupFeatures(FeatureExtractionMixin):
    """HTML pages as their texts (`nodes`) and where they stand (`xpaths`)."""

    def __call__(self, html_strings: str | list[str]) -> BatchFeature:
        """Lists of texts and of XPaths, one each for every page."""
        pages = [html_strings] if isinstance(html_strings, str) else html_strings
        if not isinstance(pages, (list, tuple)) or not all(isinstance(page, str) for page in pages):
            raise ArgumentError(
                f"HTML is a string or a list of strings, but is {type(html_strings).__name__}"
            )
        nodes, xpaths = [], []
        for page in pages:
            reader = _Page()
            reader.feed(page)
            reader.close()
            # Text outside of every element has no path and counts nothing.
            kept = [(html.unescape(t).strip(), node) for t, node in reader.texts if node.parent is not None]
            kept = [(text, node) for text, node in kept if text]
            nodes.append([text for text, _ in kept])
            xpaths.append([node.xpath() for _, node in kept])
        return BatchFeature({"nodes": nodes, "xpaths": xpaths})
