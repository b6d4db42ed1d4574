"""Kind of processor that puts the patches of a picture in one stream with the text, row by row."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..image.streams import RaggedBatch
from .base import ProcessorMixin, texts_of
from .options import Options

# What a prompt writes for places in the picture, and the tokens that stand for it.
WRITTEN = {
    "<box>": "<0x00>",
    "</box>": "<0x01>",
    "<point>": "<0x02>",
    "</point>": "<0x03>",
}
BOX, BOX_END, POINT, POINT_END = WRITTEN.values()
ANSWER, ENDS, PATCH, LINE = "<0x04>", "|ENDOFTEXT|", "|SPEAKER|", "|NEWLINE|"


class Patched(ProcessorMixin):
    """Patches with line ends, the prompt with places scaled as the picture was, room for an answer."""

    max_tokens_to_generate = 10
    max_position_embeddings = 16384
    pad_token_id = 0
    dummy_image_index = -1

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> Any:
        torch = require("torch", "torch", "preparing patches")
        if not options.text.get("return_attention_mask", True):
            raise ArgumentError("this processor always returns the attention mask")
        if images is None:
            return self.tokenizer(text, **options.text)
        texts = [""] if text is None else texts_of(text)
        found = self.image_processor.preprocess(images, **{**options.images, "return_tensors": "pt"})
        patch, line = (self.tokenizer(t, add_special_tokens=False)["input_ids"][1] for t in (PATCH, LINE))
        samples = []
        for number, prompt in enumerate(texts):
            heights, widths, scales = (
                torch.as_tensor(np.array(found[name][number])).reshape(1, -1)
                for name in ("image_unpadded_heights", "image_unpadded_widths", "image_scale_factors")
            )
            seen = self.image_processor.preprocess_with_tokenizer_info(
                image_input=found["images"][number][0][None, None],
                image_present=torch.ones(1, 1, 1),
                image_unpadded_h=heights,
                image_unpadded_w=widths,
                image_placeholder_id=patch,
                image_newline_id=line,
                variable_sized=True,
            )
            samples.append(self._sample(self._ids(prompt, float(scales[0, 0])), seen))
        return self._batch(samples)

    def _sample(self, ids: list[int], seen: Any) -> dict[str, Any]:
        """The stream of one picture and its prompt."""
        torch = require("torch", "torch", "preparing patches")
        if len(ids) > min(len(ids) + self.max_tokens_to_generate, self.max_position_embeddings):
            raise ArgumentError(f"a prompt has {len(ids)} tokens, more than {self.max_position_embeddings}")
        tokens, places = seen["image_input_ids"][0][0], seen["image_patch_indices_per_batch"][0][0]
        stream = torch.cat([tokens, torch.tensor(ids, dtype=torch.int64)])
        length = min(len(stream) + self.max_tokens_to_generate, self.max_position_embeddings)
        numbers = torch.full((1, length), -1, dtype=torch.int64)
        kept = min(length, len(places))
        numbers[0, :kept] = places[:kept]
        patches = torch.stack([one[0] for one in seen["image_patches"]])
        return {"input_ids": stream[None], "image_patches": patches, "image_patches_indices": numbers}

    def _batch(self, samples: list[dict[str, Any]]) -> RaggedBatch:
        """Samples padded on the left."""
        torch = require("torch", "torch", "preparing patches")

        def padded(name: str, value: int) -> Any:
            length = max(one[name].shape[1] for one in samples)
            rows = [
                torch.nn.functional.pad(one[name], (length - one[name].shape[1], 0), value=value)
                for one in samples
            ]
            return torch.cat(rows)

        length = max(one["input_ids"].shape[1] for one in samples)
        mask = torch.zeros(len(samples), length, dtype=torch.long)
        for row, one in enumerate(samples):
            mask[row, length - one["input_ids"].shape[1] :] = 1
        return RaggedBatch(
            {
                "input_ids": padded("input_ids", self.pad_token_id),
                "image_patches": [one["image_patches"] for one in samples],
                "image_patches_indices": padded("image_patches_indices", self.dummy_image_index),
                "attention_mask": mask,
            }
        )

    # ------------------------------------------------------------------ places in the picture

    def _ids(self, prompt: str, scale: float) -> list[int]:
        """The ids of a prompt, its places as numbers of the scaled picture, and the start of the answer."""
        for written, token in WRITTEN.items():
            prompt = prompt.replace(written, token)
        parts = re.split("|".join(f"({token})" for token in WRITTEN.values()), prompt)
        vocabulary = self.tokenizer.get_vocab()
        ids, inside = [vocabulary["<s>"]], False
        for part in parts:
            if part in WRITTEN.values():
                inside = part in (BOX, POINT)
            elif part and inside:
                ids += self._places(part, scale, vocabulary)
            elif part:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return [*ids, vocabulary[ANSWER]]

    @staticmethod
    def _places(text: str, scale: float, vocabulary: Any) -> list[int]:
        numbers = [float(one.strip()) for one in text.split(",")]
        if len(numbers) not in (2, 4):
            raise ArgumentError(f"a place has two or four numbers, but is {text!r}")
        start, end = (POINT, POINT_END) if len(numbers) == 2 else (BOX, BOX_END)
        scaled = [str(np.round(np.array([one / 2]) * scale).astype(np.int32)[0]) for one in numbers]
        return [vocabulary[token] for token in (start, *scaled, end)]

    def post_process_box_coordinates(self, outputs: Any, target_sizes: Any = None) -> list:
        """Generated ids (batch, tokens) with tokens of places written out for the picture's own size."""
        size = self.image_processor.size
        full = (size["height"], size["width"])
        sizes = [full] * len(outputs) if target_sizes is None else [tuple(s) for s in target_sizes]
        if len(sizes) != len(outputs) or any(len(one) != 2 for one in sizes):
            raise ArgumentError(f"target_sizes must be {len(outputs)} pairs (height, width)")
        results = []
        for row, own in zip(outputs, sizes):
            fits = own[1] <= full[1] and own[0] <= full[0]
            scale = 1.0 if fits else min(full[0] / own[0], full[1] / own[1])
            for start, end, count, words in (
                (BOX, BOX_END, 4, ("<box>", "</box>")),
                (POINT, POINT_END, 2, ("<point>", "</point>")),
            ):
                row = self._written(row, start, end, count, words, scale)
            results.append(row)
        return results

    def _written(self, row: Any, start: str, end: str, count: int, words: tuple[str, str], scale: float):
        torch = require("torch", "torch", "post-processing")
        opens, closes = (self.tokenizer.convert_tokens_to_ids(token) for token in (start, end))
        ids, place = row.tolist(), 0
        while place + count + 1 < len(ids):
            if ids[place] == opens and ids[place + count + 1] == closes:
                tokens = self.tokenizer.convert_ids_to_tokens(ids[place + 1 : place + count + 1])
                numbers = ", ".join(str(2 * int(float(token) / scale)) for token in tokens)
                new = self.tokenizer.tokenize(f" {words[0]}{numbers}{words[1]}")[1:]
                new = self.tokenizer.convert_tokens_to_ids(new)
                ids[place : place + count + 2] = new
                place += len(new) - 1
            place += 1
        return torch.tensor(ids, dtype=row.dtype, device=row.device)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """The answers in generated ids (batch, tokens)."""
        start = self.tokenizer.convert_tokens_to_ids(ANSWER)
        rows = [row.tolist() for row in generated_outputs]
        rows = [row[row.index(start) + 1 :] if start in row else row for row in rows]
        longest = max(map(len, rows))
        rows = [row + [self.pad_token_id] * (longest - len(row)) for row in rows]
        return self.batch_decode(rows, skip_special_tokens=skip_special_tokens, **options)
