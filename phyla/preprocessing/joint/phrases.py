"""Kind of processor whose text refers to places of the picture, by tokens of patches."""

from __future__ import annotations

import math
import re
from typing import Any

from phyla.errors import ArgumentError

from ..feature import BatchFeature
from ..text.batch import BatchEncoding
from ..text.tokens import AddedToken
from .base import ProcessorMixin
from .options import Options

TAGS = (
    "</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>", "<object>", "</object>",
    "</delimiter_of_multi_objects/>", "<grounding>",
)  # fmt: skip
_NAMES = ("eod", "boi", "eoi", "eoc", "eol", "bop", "eop", "boo", "eoo", "dom", "grd")
_AGAIN = "</delimiter_of_multi_objects/>"
_FOUND = re.compile(
    r"(?:(<phrase>([^<]+)</phrase>))?<object>((?:<patch_index_\d+><patch_index_\d+>"
    r"</delimiter_of_multi_objects/>)*<patch_index_\d+><patch_index_\d+>)</object>"
)


def _patch(number: int) -> str:
    return f"<patch_index_{number:04d}>"


class Located(ProcessorMixin):
    """A picture as a fixed number of tokens before the text, boxes after the phrases that they bound."""

    def prepare(self) -> None:
        for name, tag in zip(_NAMES, TAGS):
            setattr(self, f"{name}_token", tag)
        self.tag_tokens = list(TAGS)
        tokens = [*TAGS, *(_patch(i) for i in range(self.num_patch_index_tokens))]
        self.tokenizer.add_tokens(
            [AddedToken(token, lstrip=True, rstrip=False, normalized=False) for token in tokens]
        )

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> BatchFeature:
        bboxes = options.images.pop("bboxes", None)
        count = options.images.pop("num_image_tokens", 64)
        first = options.images.pop("first_image_token_id", None)
        ends = options.text.pop("add_eos_token", False)
        special = options.text.pop("add_special_tokens", True)
        batch = BatchFeature()
        if images is not None:
            batch.update(self.image_processor(images, **options.images))
        if text is None:
            return batch
        texts = self.preprocess_examples(text, images, bboxes, num_image_tokens=count)
        if special and not ends:
            start = self.tokenizer.bos_token
            texts = start + texts if isinstance(texts, str) else [start + one for one in texts]
        asked = {**options.text, "add_special_tokens": special and ends}
        if images is None:
            batch.update(self.tokenizer(texts, **asked))
            return batch
        plain = {**asked, "padding": False, "return_tensors": None}
        single = isinstance(texts, str)
        encoding = self.tokenizer([texts] if single else texts, **plain)
        first = self.tokenizer.unk_token_id + 1 if first is None else first
        begin = int(special) + 1
        rows, masks = [], []
        for ids in encoding["input_ids"]:
            pictures = list(range(first, first + count))
            rows.append(ids[:begin] + pictures + ids[begin + count :])
            mask = [0] * int(special) + [0, *[1] * count, 0]
            masks.append(mask + [0] * (len(ids) - len(mask)))
        data = {
            "input_ids": rows,
            "attention_mask": encoding["attention_mask"],
            "image_embeds_position_mask": masks,
        }
        if not single:
            longest = max(range(len(texts)), key=lambda i: (len(rows[i]), i))
            length = len(
                self.tokenizer([texts[longest]], **{**asked, "return_tensors": None})["input_ids"][0]
            )
            data = self._padded(data, length)
        elif options.return_tensors is None:
            data = {name: value[0] for name, value in data.items()}
        batch.update({k: v[0] for k, v in encoding.items()} if single else encoding)
        batch.update(BatchEncoding(data, tensor_type=options.return_tensors))
        return batch

    def _padded(self, data: dict[str, list], length: int) -> dict[str, list]:
        right = self.tokenizer.padding_side == "right"

        def filled(row: list, value: int) -> list:
            more = [value] * (length - len(row))
            return row + more if right else more + row

        fill = {"input_ids": self.tokenizer.pad_token_id}
        return {name: [filled(row, fill.get(name, 0)) for row in rows] for name, rows in data.items()}

    def preprocess_examples(
        self, texts: Any, images: Any = None, bboxes: Any = None, num_image_tokens: int = 64
    ) -> Any:
        """Texts with the place of the picture before them and the places of boxes in them."""
        single = isinstance(texts, str)
        texts = [texts] if single else texts
        several = isinstance(images, (list, tuple))
        pictures = [images] * len(texts) if images is None else images if several else [images]
        boxes = [bboxes] if single else [None] * len(texts) if bboxes is None else bboxes
        if len(pictures) != len(texts) or len(boxes) != len(texts):
            raise ArgumentError(
                f"there are {len(texts)} texts, but {len(pictures)} images and {len(boxes)} lists of boxes"
            )
        info = " ".join([*["<image>"] * (num_image_tokens + 1), "</image>"])
        result = []
        for text, picture, own in zip(texts, pictures, boxes):
            text = text.strip() if picture is None else f"{info} {text.strip()}"
            result.append(self._with_boxes(text, own))
        return result[0] if single else result

    def _with_boxes(self, text: str, bboxes: Any) -> str:
        """A text with the tokens of boxes after each phrase."""
        if not bboxes:
            return text
        if not isinstance(bboxes, list):
            raise ArgumentError("the boxes of a text are a list, with one entry for each phrase")
        phrases = list(re.finditer("<phrase>.+?</phrase>", text))
        if len(phrases) != len(bboxes):
            raise ArgumentError(f"the text has {len(phrases)} phrases, but there are {len(bboxes)} boxes")
        parts, start = [], 0
        for phrase, own in zip(phrases, bboxes):
            parts.append(text[start : phrase.end()])
            start = phrase.end()
            own = [own] if isinstance(own, tuple) else own or []
            places = [" ".join(map(_patch, self._corners(box))) for box in own]
            if places:
                parts.append(f"<object> {f' {_AGAIN} '.join(places)} </object>")
        return "".join([*parts, text[start:]])

    def _corners(self, box: Any) -> tuple[int, int]:
        """The patches of the upper left and lower right corner of a box (its patches, or parts of 1)."""
        if not isinstance(box, tuple) or len(box) not in (2, 4):
            raise ArgumentError(f"a box is a tuple of two patches or of four parts of 1, but is {box}")
        if len(box) == 2:
            return box
        side = int(math.sqrt(self.num_patch_index_tokens))
        left, top, right, bottom = box
        if not (right > left and bottom > top):
            raise ArgumentError(f"a box is (left, top, right, bottom), but is {box}")
        upper = math.floor(top * side) * side + math.floor(left * side)
        lower = math.ceil(bottom * side - 1) * side + math.ceil(right * side - 1)
        return upper, lower

    def post_process_generation(self, text: str, cleanup_and_extract: bool = True) -> Any:
        """The caption, or (caption without tags, [(phrase, (start, end), [boxes])])."""
        caption = text.split("</image>")[-1]
        return entities_of(caption) if cleanup_and_extract else caption

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """The captions that a model generated."""
        texts = self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **options)
        return [self.post_process_generation(text, cleanup_and_extract=False) for text in texts]


def _box(upper: int, lower: int, side: int) -> tuple[float, float, float, float]:
    """The box of two patches, in parts of 1; between patches that are not in line from centre to centre."""
    cell = 1.0 / side
    left, top, right, bottom = upper % side, upper // side, lower % side, lower // side
    if left == right or top == bottom:
        return left * cell, top * cell, right * cell + cell, bottom * cell + cell
    half = cell / 2
    return left * cell + half, top * cell + half, right * cell + half, bottom * cell + half


def entities_of(text: str, side: int = 32) -> tuple[str, list]:
    """A generated text without tags, and its phrases: (text, (start, end), boxes)."""
    plain = re.sub("<.*?>", "", text)
    lead = len(plain) - len(plain.lstrip())
    entities = []

    def place(position: int) -> int:
        return len(re.sub("<.*?>", "", text[:position]))

    for match in _FOUND.finditer(text):
        phrase = match.group(2)
        pairs = [tuple(map(int, re.findall(r"\d+", pair))) for pair in match.group(3).split(_AGAIN)]
        span = match.span(2) if phrase else (match.start(), match.start())
        found = [(phrase, pairs)]
        if not phrase:
            found = [(f"<patch_index_{a}><patch_index_{b}>", [(a, b)]) for a, b in pairs]
        for name, own in found:
            start = place(span[0]) - lead + len(name) - len(name.lstrip())
            end = place(span[1]) - lead - (len(name) - len(name.rstrip()))
            entities.append((name.strip(), (start, end), [_box(a, b, side) for a, b in own]))
    return plain.strip(), entities
