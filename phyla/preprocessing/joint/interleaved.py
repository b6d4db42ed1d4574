"""Kind of processor for prompts that are lists of texts and pictures in any order."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from .base import ProcessorMixin
from .options import Options

FAKE, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"


class Interleaved(ProcessorMixin):
    """Prompts of texts and pictures (or their URLs); each token attends to the last picture before it."""

    def prepare(self) -> None:
        tokenizer, processor = self.tokenizer, self.image_processor
        self.image_token_id = (
            tokenizer.image_token_id
            if getattr(tokenizer, "image_token", None) is not None
            else tokenizer.convert_tokens_to_ids(IMAGE)
        )
        side = processor.image_size
        self.default_image_dims = (processor.image_num_channels, side, side)
        special = tokenizer.special_tokens_map.get("additional_special_tokens", [])
        self.tokenizer_was_trained_with_end_of_utterance_token = END in special

    def to_dict(self) -> dict[str, Any]:
        """Its class alone: the public files hold no settings of this kind."""
        return {"processor_class": type(self).__name__}

    def __call__(self, *values: Any, prompts: Any = None, **options: Any) -> BatchFeature:
        """`input_ids`, `attention_mask`, `pixel_values`, `image_attention_mask`; `prompts` means `text`."""
        if prompts is not None:
            options["text"] = prompts
        return super().__call__(*values, **options)

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> BatchFeature:
        torch = require("torch", "torch", "preparing prompts")
        ends = options.text.pop("add_eos_token", False)
        utterances = options.text.pop("add_end_of_utterance_token", None)
        if utterances is None:
            utterances = self.tokenizer_was_trained_with_end_of_utterance_token
        options.text.pop("return_tensors", None)
        texts, pictures = [], []
        for prompt in self._prompts(text, images):
            written, shown = self._written(prompt, utterances)
            texts.append(written + (self.tokenizer.eos_token if ends else ""))
            pictures.append(self.image_processor(shown, **{**options.images, "return_tensors": "pt"}))
        encoding = self.tokenizer(texts, **options.text)
        ids = torch.tensor(encoding["input_ids"])
        most = max(1, *(len(one) for one in pictures))
        pixels = torch.zeros(len(texts), most, *self.default_image_dims)
        for row, (own, shown) in enumerate(zip(ids, pictures)):
            kept = min(int((own == self.image_token_id).sum()), len(shown))
            if kept:
                pixels[row, :kept] = shown[:kept]
        if any(len(one) for one in pictures):
            mask = self._seen(np.asarray(ids), most)
        else:
            mask = np.zeros((*ids.shape, 1), dtype=bool)
        return BatchFeature(
            {
                "input_ids": ids,
                "attention_mask": torch.tensor(encoding["attention_mask"]),
                "pixel_values": pixels,
                "image_attention_mask": torch.from_numpy(mask),
            }
        )

    @staticmethod
    def _prompts(text: Any, images: Any) -> list:
        if images is not None and text is not None:
            images = list(images) if isinstance(images, (list, tuple)) else [images]
            text = [text] if isinstance(text, str) else list(text)
            if len(text) != len(images):
                raise ArgumentError(f"there are {len(images)} images, but {len(text)} texts")
            if isinstance(images[0], (list, tuple)):
                return [[*own, one] for own, one in zip(images, text)]
            return [list(pair) for pair in zip(images, text)]
        prompts = text if text is not None else images
        if isinstance(prompts, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in prompts):
            return list(prompts)
        return [prompts if isinstance(prompts, (list, tuple)) else [prompts]]

    def _written(self, prompt: Any, utterances: bool) -> tuple[str, list]:
        """The text of a prompt with tokens where its pictures stand, and the pictures."""
        whole, shown = str(self.tokenizer.bos_token), []
        after_image = after_text = False
        for item in prompt:
            text = item.strip(" ") if isinstance(item, str) else None
            url = text is not None and text.startswith(("http://", "https://")) and " " not in text
            if text is None or url:
                shown.append(self.image_processor.fetch_images(text) if url else item)
                whole += IMAGE + FAKE if after_image else FAKE + IMAGE + FAKE
                after_image, after_text = True, False
            else:
                whole += (END if utterances and after_text else "") + text
                after_image, after_text = False, True
        return whole, shown

    def _seen(self, ids: np.ndarray, count: int) -> np.ndarray:
        """(batch, tokens, images) integers: 1 for the last picture before a token of the same document."""
        mask = np.zeros((*ids.shape, count), dtype=np.int64)
        for row, tokens in enumerate(ids):
            current, over = -1, False
            for place, token in enumerate(tokens):
                if token == self.image_token_id:
                    current, over = current + 1, False
                if 0 <= current < count and not over:
                    mask[row, place, current] = 1
                over = over or token == self.tokenizer.eos_token_id
        return mask
