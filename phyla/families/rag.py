"""RAG (Lewis et al. 2020, arXiv:2005.11401): a question encoder, an index of passages, and a generator.

Public checkpoints: facebook/rag-token-nq, facebook/rag-sequence-nq, ...
The question encoder and the generator are whole models of other families; scores of the next token are summed
over the retrieved passages, for the whole text (Sequence) or for each token (Token).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from phyla.blocks.spec import Block
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, UnsafeFormatError, require
from phyla.family import family, part
from phyla.heads import Backbone, Head
from phyla.model import Lazy
from phyla.outputs import RetrievAugLMMarginOutput, RetrievAugLMOutput
from phyla.skeletons.retrieval import PassageSequenceModel, PassageTokenModel, RetrievalModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    question_encoder: dict | None = None
    generator: dict | None = None
    vocab_size: int | None = None
    is_encoder_decoder: bool = True
    title_sep: str = " / "
    doc_sep: str = " // "
    n_docs: int = 5
    max_combined_length: int = 300
    retrieval_vector_size: int = 768
    retrieval_batch_size: int = 8
    dataset: str = "wiki_dpr"
    dataset_split: str = "train"
    index_name: str = "compressed"
    index_path: str | None = None
    passages_path: str | None = None
    use_dummy_dataset: bool = False
    reduce_loss: bool = False
    label_smoothing: float = 0.0
    do_deduplication: bool = True
    exclude_bos_score: bool = False
    do_marginalize: bool = False
    output_retrieved: bool = False
    use_cache: bool = True
    forced_eos_token_id: int | list | None = None
    dataset_revision: str | None = None

    PARTS = {"question_encoder": "dpr", "generator": "bart"}

    def finish(self) -> None:
        if self.forced_eos_token_id is None:
            self.forced_eos_token_id = self.__dict__["generator"].__dict__.get("forced_eos_token_id")

    @classmethod
    def from_question_encoder_generator_configs(
        cls, question_encoder_config: PretrainedConfig, generator_config: PretrainedConfig, **keys: Any
    ) -> "Config":
        """A configuration of these two."""
        return cls(
            question_encoder=question_encoder_config.to_dict(), generator=generator_config.to_dict(), **keys
        )


class Reading(Block):
    """A whole question encoder and a whole generator with its head."""

    def __init__(self, question_encoder: PretrainedConfig, generator: PretrainedConfig) -> None:
        super().__init__()
        # The generator comes first, so that its caches have the numbers that they have alone.
        self.generator = part(generator).model("seq2seq-lm")
        self.question_encoder = part(question_encoder).model("base-model")


@dataclass(frozen=True)
class Marginal(Head):
    """A class that writes; the scores are its generator's."""

    task: ClassVar[str] = "seq2seq-lm"


class PassageIndex:
    """Passages that can be searched by vector; subclass it for an index of your own."""

    def search(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (Q, count) and vectors (Q, count, E) of the best passages for vectors (Q, E)."""
        raise NotImplementedError(f"{type(self).__name__} must define search(vectors, count)")

    def texts(self, ids: np.ndarray) -> list[dict[str, list[str]]]:
        """`title` and `text` of the passages ids (Q, count), one dictionary a question."""
        raise NotImplementedError(f"{type(self).__name__} must define texts(ids)")

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Public name of `search`."""
        return self.search(question_hidden_states, n_docs)

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, list[str]]]:
        """Public name of `texts`."""
        return self.texts(doc_ids)


class ExactIndex(PassageIndex):
    """Inner products with all vectors (N, E), in numpy."""

    def __init__(self, vectors: np.ndarray, titles: Sequence[str], texts: Sequence[str]) -> None:
        self.vectors = np.asarray(vectors, dtype=np.float32)
        self.titles, self.passages = list(titles), list(texts)
        if self.vectors.ndim != 2 or not len(self.vectors) == len(self.titles) == len(self.passages):
            raise ArgumentError(
                f"an index needs one vector, title and text a passage, but has vectors {self.vectors.shape}, "
                f"{len(self.titles)} titles and {len(self.passages)} texts"
            )

    def search(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        if count > len(self.vectors):
            raise ArgumentError(f"n_docs must be at most the {len(self.vectors)} passages, but is {count}")
        scores = np.asarray(vectors, dtype=np.float32) @ self.vectors.T  # (Q, N)
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return ids, self.vectors[ids]

    def texts(self, ids: np.ndarray) -> list[dict[str, list[str]]]:
        return [
            {"title": [self.titles[i] for i in row], "text": [self.passages[i] for i in row]} for row in ids
        ]


class FaissIndex(ExactIndex):
    """The same with a ready faiss index over the vectors (the extra `retrieval`)."""

    def __init__(self, index: Any, vectors: np.ndarray, titles: Sequence[str], texts: Sequence[str]) -> None:
        super().__init__(vectors, titles, texts)
        if isinstance(index, str | os.PathLike):
            index = require("faiss", "retrieval", "reading a faiss index").read_index(os.fspath(index))
        self.index = index

    def search(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        _, ids = self.index.search(np.ascontiguousarray(vectors, dtype=np.float32), count)
        return ids, self.vectors[ids]


class DatasetIndex(PassageIndex):
    """A dataset with the columns title, text, embeddings; searched by its faiss index if it has one."""

    def __init__(self, dataset: Any) -> None:
        lacking = {"title", "text", "embeddings"} - set(dataset.column_names)
        if lacking:
            raise ArgumentError(f"the dataset must have the columns {sorted(lacking)}, but does not")
        self.dataset = dataset
        self.exact: ExactIndex | None = None
        if "embeddings" not in dataset.list_indexes():
            self.exact = ExactIndex(
                np.array(dataset["embeddings"]), list(dataset["title"]), list(dataset["text"])
            )

    def search(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        if self.exact is not None:
            return self.exact.search(vectors, count)
        _, ids = self.dataset.search_batch("embeddings", np.asarray(vectors, dtype=np.float32), count)
        found = [np.asarray(self.dataset[[int(i) for i in row]]["embeddings"], np.float32) for row in ids]
        return np.asarray(ids), np.stack(found)

    def texts(self, ids: np.ndarray) -> list[dict[str, list[str]]]:
        rows = [self.dataset[[int(i) for i in row]] for row in ids]
        return [{"title": list(row["title"]), "text": list(row["text"])} for row in rows]


def open_index(c: PretrainedConfig) -> PassageIndex:
    """The index that a configuration names (the extra `retrieval`)."""
    if c.index_name == "legacy":
        raise UnsafeFormatError(
            "the legacy index is a pickle, which phyla does not open: load its passages yourself and pass "
            "index=ExactIndex(vectors, titles, texts)"
        )
    datasets = require("datasets", "retrieval", f"opening the index {c.index_name!r}")
    if c.index_name == "custom":
        if c.passages_path is None:
            raise ArgumentError("a custom index needs config.passages_path (and perhaps config.index_path)")
        data = datasets.load_from_disk(c.passages_path)
        if c.index_path is not None:
            data.load_faiss_index("embeddings", file=c.index_path)
        return DatasetIndex(data)
    data = datasets.load_dataset(
        c.dataset, with_embeddings=True, with_index=c.index_path is None, split=c.dataset_split,
        index_name=c.index_name, dummy=c.use_dummy_dataset, revision=c.dataset_revision,
    )  # fmt: skip
    if c.index_path is not None:
        data.load_faiss_index("embeddings", file=c.index_path)
    return DatasetIndex(data)


class RagRetriever:
    """Finds passages for questions and writes each with its question, as the generator reads them.

    index: a `PassageIndex`, or a dataset with title, text and embeddings; without one, that of the
    configuration.
    """

    from_pretrained = Lazy("phyla.preprocessing.text.retrieval", "retriever_from_pretrained", "class")
    save_pretrained = Lazy("phyla.preprocessing.text.retrieval", "save_retriever", "method")

    def __init__(
        self,
        config: PretrainedConfig,
        question_encoder_tokenizer: Any,
        generator_tokenizer: Any,
        index: Any = None,
        init_retrieval: bool = True,
    ) -> None:
        if index is not None and hasattr(index, "column_names"):
            index = DatasetIndex(index)
        self.index = open_index(config) if index is None else index
        self.question_encoder_tokenizer = question_encoder_tokenizer
        self.generator_tokenizer = generator_tokenizer
        self.config, self.n_docs, self.batch_size = config, config.n_docs, config.retrieval_batch_size
        self.ctx_encoder_tokenizer: Any = None

    def init_retrieval(self) -> None:
        """Nothing: an index is open from the start."""

    def set_ctx_encoder_tokenizer(self, ctx_encoder_tokenizer: Any) -> None:
        """Return the passages alone too, as the trained passage encoder reads them."""
        self.ctx_encoder_tokenizer = ctx_encoder_tokenizer

    def retrieve(
        self, question_hidden_states: np.ndarray, n_docs: int
    ) -> tuple[np.ndarray, np.ndarray, list[dict[str, list[str]]]]:
        """Vectors (Q, n_docs, E), numbers (Q, n_docs) and texts of the best passages for vectors (Q, E)."""
        found = [
            self.index.get_top_docs(question_hidden_states[at : at + self.batch_size], n_docs)
            for at in range(0, len(question_hidden_states), self.batch_size)
        ]
        ids, vectors = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return vectors, ids, self.index.get_doc_dicts(ids)

    def postprocess_docs(
        self, docs: list[dict[str, list[str]]], input_strings: list[str], prefix: str | None, n_docs: int,
        return_tensors: str | None = None,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Ids and mask (Q * n_docs, max_combined_length) of "title / text // question"."""
        c = self.config
        texts = []
        for found, question in zip(docs, input_strings, strict=True):
            for title, text in zip(found["title"][:n_docs], found["text"][:n_docs], strict=True):
                title = title.removeprefix('"').removesuffix('"')
                joined = f"{prefix or ''}{title}{c.title_sep}{text}{c.doc_sep}{question}"
                texts.append(joined.replace("  ", " "))
        read = self.generator_tokenizer(
            texts, max_length=c.max_combined_length, padding="max_length", truncation=True,
            return_tensors=return_tensors,
        )  # fmt: skip
        return read["input_ids"], read["attention_mask"]

    def __call__(
        self,
        question_input_ids: Any,
        question_hidden_states: np.ndarray,
        prefix: str | None = None,
        n_docs: int | None = None,
        return_tensors: str | None = None,
    ) -> dict[str, Any]:
        """The passages for questions with these ids (Q, S) and vectors (Q, E), read with their questions."""
        count = self.n_docs if n_docs is None else n_docs
        prefix = self.config.generator.prefix if prefix is None else prefix
        vectors, ids, docs = self.retrieve(np.asarray(question_hidden_states), count)
        questions = self.question_encoder_tokenizer.batch_decode(question_input_ids, skip_special_tokens=True)
        read, mask = self.postprocess_docs(docs, questions, prefix, count, return_tensors)
        found = {
            "context_input_ids": read, "context_attention_mask": mask, "retrieved_doc_embeds": vectors,
            "doc_ids": ids,
        }  # fmt: skip
        if self.ctx_encoder_tokenizer is not None:
            alone = self.ctx_encoder_tokenizer(
                [title for found_docs in docs for title in found_docs["title"][:count]],
                [text for found_docs in docs for text in found_docs["text"][:count]],
                truncation=True, padding="longest", return_tensors=return_tensors,
            )  # fmt: skip
            found["tokenized_doc_ids"] = alone["input_ids"]
            found["tokenized_doc_attention_mask"] = alone["attention_mask"]
        if return_tensors == "pt":
            return {name: torch.as_tensor(value) for name, value in found.items()}
        return found


def build(c: PretrainedConfig) -> Reading:
    return Reading(c.question_encoder, c.generator)


def names(c: PretrainedConfig) -> NameMap:
    return NameMap(
        {},
        prefix="rag",
        ignore=(r".*\.pooler\.dense\.(weight|bias)", r".*\.embeddings\.position_ids"),
        parts={
            "question_encoder": ("question_encoder.", part(c.question_encoder).model_names("base-model")),
            "generator": ("generator.", part(c.generator).model_names("seq2seq-lm")),
        },
    )


HEADS: dict[str, Head] = {
    "RagModel": Backbone(output=RetrievAugLMOutput),
    "RagSequenceForGeneration": Marginal(output=RetrievAugLMMarginOutput, skeleton=PassageSequenceModel),
    "RagTokenForGeneration": Marginal(output=RetrievAugLMMarginOutput, skeleton=PassageTokenModel),
}

family(
    "rag", config=Config, build=build, names=names, heads=HEADS, skeleton=RetrievalModel, public="Rag",
    width=lambda c: part(c.generator).width,
)  # fmt: skip
