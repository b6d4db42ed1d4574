"""Kinds of processors that put the tokens of the pictures before the text."""

from __future__ import annotations

from typing import Any

from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from ..image.inputs import as_flat_list, fetched, is_image
from ..text.batch import BatchEncoding
from ..text.tokens import AddedToken
from .base import ProcessorMixin, texts_of
from .options import Options

IMAGE = "<image>"
# Places in a picture (0 to 1023) and shapes (0 to 127) that the public checkpoints write as tokens.
PLACES = [f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)]


class Prefixed(ProcessorMixin):
    """Image tokens, the beginning of text, the prompt and a line end; a suffix is the answer."""

    def prepare(self) -> None:
        tokenizer, processor = self.tokenizer, self.image_processor
        if getattr(processor, "image_seq_length", None) is None:
            raise ArgumentError("the image processor needs the setting `image_seq_length`")
        self.image_seq_length = processor.image_seq_length
        if getattr(tokenizer, "image_token", None) is None:
            token = AddedToken(IMAGE, normalized=False, special=True)
            tokenizer.add_special_tokens({"additional_special_tokens": [token]})
            self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        else:
            self.image_token_id = tokenizer.image_token_id
        tokenizer.add_tokens(PLACES)
        tokenizer.add_bos_token = tokenizer.add_eos_token = False

    def started(self, prompt: str, count: int) -> str:
        """A prompt after the tokens of some pictures."""
        return f"{IMAGE * (self.image_seq_length * count)}{self.tokenizer.bos_token}{prompt}\n"

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> BatchFeature:
        if images is None:
            raise ArgumentError(f"{type(self).__name__} needs images")
        suffix = options.text.pop("suffix", None)
        texts = texts_of("" if text is None else text)
        images = fetched(images)
        if any(IMAGE in one for one in texts):
            prompts = [self._expanded(one) for one in texts]
        else:
            groups = self._by_text(images, len(texts))
            prompts = [self.started(one, len(group)) for one, group in zip(texts, groups)]
            images = as_flat_list(groups)
        if suffix is not None:
            suffix = [one + self.tokenizer.eos_token for one in texts_of(suffix)]
        pixels = self.image_processor(images, **options.images)["pixel_values"]
        if options.text.get("max_length") is not None:
            options.text["max_length"] += self.image_seq_length
        asked = {**options.text, "return_token_type_ids": suffix is not None}
        batch = self.tokenizer(prompts, text_pair=suffix, **asked)
        data = {**batch, "pixel_values": pixels}
        if suffix is not None:
            data["labels"] = batch["input_ids"].masked_fill(batch["token_type_ids"] == 0, -100)
        return BatchFeature(data)

    @staticmethod
    def _by_text(images: Any, count: int) -> list[list]:
        if is_image(images):
            return [[images]]
        if isinstance(images, list) and len(images) != count:
            raise ArgumentError(
                f"there are {len(images)} images for {count} texts: give one list for each text"
            )
        return [[one] if is_image(one) else list(one) for one in images]

    def _expanded(self, text: str) -> str:
        """A prompt with its image tokens multiplied, and the beginning of text after the last of them."""
        before, token, after = text.rpartition(IMAGE)
        start = (before + token).replace(IMAGE, IMAGE * self.image_seq_length)
        return f"{start}{self.tokenizer.bos_token}{after}\n"


class Retrieval(Prefixed):
    """Pages of documents with a fixed prompt, or queries, to be compared by late interaction."""

    visual_prompt_prefix = "Describe the image."
    query_prefix = "Question: "

    @property
    def query_augmentation_token(self) -> str:
        """The token that lengthens a query."""
        return self.tokenizer.pad_token

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> Any:
        if text is not None and images is not None:
            raise ArgumentError("text and images exclude each other here: give one of them")
        suffix = options.text.pop("suffix", None)
        if text is not None:
            end = self.query_augmentation_token * 10 if suffix is None else suffix
            start = f"{self.tokenizer.bos_token}{self.query_prefix}"
            texts = [f"{start}{one}{end}\n" for one in texts_of(text)]
            options.text.setdefault("max_length", 50)
            return self.tokenizer(texts, **{**options.text, "return_token_type_ids": False})
        images = fetched(images)
        images = [images] if is_image(images) else as_flat_list(images)
        images = [image.convert("RGB") if hasattr(image, "convert") else image for image in images]
        if suffix is not None:
            options.text["suffix"] = suffix
        return super().process(options, text=[self.visual_prompt_prefix] * len(images), images=images)

    def process_images(self, images: Any = None, **options: Any) -> BatchFeature:
        """The inputs of pages."""
        return self(images=images, **options)

    def process_queries(self, text: Any, **options: Any) -> Any:
        """The inputs of queries."""
        return self(text=text, **options)

    def score_retrieval(
        self,
        query_embeddings: Any,
        passage_embeddings: Any,
        batch_size: int = 128,
        output_dtype: Any = None,
        output_device: Any = "cpu",
    ) -> Any:
        """For each query (tokens, width) and passage the sum of every token's best match."""
        torch = require("torch", "torch", "scoring")
        if len(query_embeddings) == 0 or len(passage_embeddings) == 0:
            raise ArgumentError("at least one query and one passage are needed")
        first, other = query_embeddings[0], passage_embeddings[0]
        if first.device != other.device or first.dtype != other.dtype:
            raise ArgumentError("queries and passages must have one device and one dtype")

        def padded(rows: Any, start: int) -> Any:
            part = list(rows[start : start + batch_size])
            return torch.nn.utils.rnn.pad_sequence(part, batch_first=True)

        scores = [
            torch.cat(
                [
                    torch.einsum("bnd,csd->bcns", padded(query_embeddings, i), padded(passage_embeddings, j))
                    .amax(dim=3)
                    .sum(dim=2)
                    for j in range(0, len(passage_embeddings), batch_size)
                ],
                dim=1,
            )
            for i in range(0, len(query_embeddings), batch_size)
        ]
        return torch.cat(scores).to(first.dtype if output_dtype is None else output_dtype).to(output_device)


class Queried(ProcessorMixin):
    """A fixed number of tokens for the queries that look at the picture; the row says when they are there."""

    def prepare(self) -> None:
        row = type(self).row
        assert row is not None
        name = row.fixed["token"]
        token = getattr(self.tokenizer, name, None)
        if token is None:
            token = AddedToken(f"<{name.removesuffix('_token')}>", normalized=False, special=True)
            self.tokenizer.add_tokens([token], special_tokens=True)
        setattr(self, name, token)

    def process(self, options: Options, text: Any = None, images: Any = None, **more: Any) -> BatchFeature:
        row = type(self).row
        assert row is not None
        batch = BatchFeature()
        if text is not None:
            texts = texts_of(text)
            encoding = dict(self.tokenizer(texts, **{**options.text, "return_tensors": None}))
            always = row.fixed.get("without_pictures", False)
            if self.num_query_tokens is not None and (always or images is not None):
                count = self.num_query_tokens * row.fixed.get("frames", 1)
                token = str(getattr(self, row.fixed["token"]))
                queries = self.tokenizer([token * count] * len(texts), add_special_tokens=False)
                own = {k: v for k, v in encoding.items() if k in queries}
                encoding = {k: [a + b for a, b in zip(queries[k], v)] for k, v in own.items()}
            batch.update(BatchEncoding(encoding, tensor_type=options.return_tensors))
            if "qformer_tokenizer" in type(self).attributes:
                for name, value in self.qformer_tokenizer(texts, **options.text).items():
                    batch[f"qformer_{name}"] = value
        if images is not None:
            batch.update(self.image_processor(images, **options.images))
        return batch
