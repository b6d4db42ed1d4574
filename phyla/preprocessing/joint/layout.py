"""Kinds of processors for pages: pictures with words and their boxes, HTML with its paths."""

from __future__ import annotations

from typing import Any

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from .base import ProcessorMixin
from .options import Options

_LAYOUT = ("text_pair", "boxes", "word_labels")


class Page(ProcessorMixin):
    """A picture of a page, and its words with their boxes (given, or read by the image processor)."""

    def process(self, options: Options, images: Any = None, text: Any = None, **given: Any) -> Any:
        row = type(self).row
        assert row is not None
        layout = {name: given.get(name) for name in _LAYOUT}
        for name in _LAYOUT:
            if layout[name] is None:
                layout[name] = options.text.pop(name, None)
        self._check(layout, options.text, row.fixed.get("offsets", True))
        if options.text.get("text_target") is not None:
            return self.tokenizer(**options.text)
        features = self.image_processor(images, **options.images)
        words, boxes = features.pop("words", None), features.pop("boxes", None)
        if text is not None and self.image_processor.apply_ocr and layout["text_pair"] is None:
            text, layout["text_pair"] = [text] if isinstance(text, str) else text, words
        if layout["boxes"] is None:
            layout["boxes"] = boxes
        batch = self.tokenizer(text=words if text is None else text, **layout, **options.text)
        pixels = features.pop("pixel_values")
        if options.text.get("return_overflowing_tokens"):
            pixels = self.get_overflowing_images(pixels, batch["overflow_to_sample_mapping"])
        batch[row.fixed["image"]] = pixels
        return batch

    def _check(self, layout: dict[str, Any], asked: dict[str, Any], offsets: bool) -> None:
        if self.image_processor.apply_ocr:
            for name in ("boxes", "word_labels"):
                if layout[name] is not None:
                    raise ArgumentError(
                        f"{name} cannot be given while the image processor reads the words: apply_ocr=False"
                    )
        overflowing = asked.get("return_overflowing_tokens")
        if offsets and overflowing and not asked.get("return_offsets_mapping"):
            raise ArgumentError("return_overflowing_tokens needs return_offsets_mapping=True")

    @staticmethod
    def get_overflowing_images(images: Any, overflow_to_sample_mapping: Any) -> list:
        """The picture of each row, again for the rows that overflowed."""
        return [images[int(i)] for i in overflow_to_sample_mapping]


class Markup(ProcessorMixin):
    """HTML pages, or their texts and paths where `parse_html` is off."""

    parse_html = True

    def process(
        self,
        options: Options,
        html_strings: Any = None,
        nodes: Any = None,
        xpaths: Any = None,
        node_labels: Any = None,
        questions: Any = None,
        **more: Any,
    ) -> BatchFeature:
        if self.parse_html:
            if html_strings is None or any(one is not None for one in (nodes, xpaths, node_labels)):
                raise ArgumentError(
                    "with parse_html, html_strings is needed and nodes, xpaths, labels are not"
                )
            features = self.feature_extractor(html_strings)
            nodes, xpaths = features["nodes"], features["xpaths"]
            questions = [questions] if isinstance(questions, str) else questions
        elif html_strings is not None or nodes is None or xpaths is None:
            raise ArgumentError("without parse_html, nodes and xpaths are needed and html_strings is not")
        return self.tokenizer(
            text=nodes if questions is None else questions,
            text_pair=None if questions is None else nodes,
            xpaths=xpaths,
            node_labels=node_labels,
            **options.text,
        )
