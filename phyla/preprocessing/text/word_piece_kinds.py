"""WordPiece tokenizers with questions, passages, candidates or Chinese words, in Python and on Rust."""

from collections import namedtuple
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from phyla.errors import TokenizerInputError, require

from . import backends
from .base import PreTrainedTokenizerBase
from .batch import BatchEncoding
from .fast_kinds import FastWordPiece
from .layout import Layout, special_mask, template
from .tokens import LIST_ROLE
from .wordpiece import PythonWordPiece

SpanPrediction = namedtuple(
    "SpanPrediction", ["span_score", "relevance_score", "doc_id", "start_index", "end_index", "text"]
)


def best_spans(starts, ends, longest: int, count: int) -> list[tuple[int, int]]:
    """The `count` spans of highest start + end score, none within another."""
    scored = [
        ((start, start + more), start_score + end_score)
        for start, start_score in enumerate(starts)
        for more, end_score in enumerate(ends[start : start + longest])
    ]
    chosen: list[tuple[int, int]] = []
    for (start, end), _ in sorted(scored, key=lambda pair: pair[1], reverse=True):
        if not any(start <= a <= b <= end or a <= start <= end <= b for a, b in chosen):
            chosen.append((start, end))
            if len(chosen) == count:
                break
    return chosen


class PythonCasedTokens(PythonWordPiece):
    """WordPiece whose added tokens keep their capitals."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        del self.do_lower_case


class Passages(PreTrainedTokenizerBase):
    """A question with the titles and texts of passages: `[CLS] question [SEP] title [SEP] text`."""

    def __call__(  # type: ignore[override]
        self,
        questions,
        titles=None,
        texts=None,
        padding=False,
        truncation=False,
        max_length: int | None = None,
        return_tensors=None,
        return_attention_mask: bool | None = None,
        **options,
    ) -> BatchEncoding:
        """One row for each passage; with only titles or only texts, pairs as usual."""
        if titles is None or texts is None:
            return super().__call__(
                questions,
                texts if titles is None else titles,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                return_tensors=return_tensors,
                return_attention_mask=return_attention_mask,
                **options,
            )
        titles = [titles] if isinstance(titles, str) else titles
        texts = [texts] if isinstance(texts, str) else texts
        questions = [questions] * len(titles) if isinstance(questions, str) else questions
        if len(titles) != len(texts):
            raise TokenizerInputError(
                f"{len(titles)} titles stand beside {len(texts)} texts: each passage needs both"
            )
        plain: dict[str, Any] = {"padding": False, "truncation": False}
        heads = super().__call__(questions, titles, **plain)["input_ids"]
        bodies = super().__call__(texts, add_special_tokens=False, **plain)["input_ids"]
        limit = max_length if truncation else None
        rows = {"input_ids": [(head + body)[:limit] for head, body in zip(heads, bodies)]}
        if return_attention_mask is not False:
            rows["attention_mask"] = [[int(i != self.pad_token_id) for i in row] for row in rows["input_ids"]]
        return self.pad(rows, padding=padding, max_length=max_length, return_tensors=return_tensors)

    def decode_best_spans(
        self,
        reader_input,
        reader_output,
        num_spans: int = 16,
        max_answer_length: int = 64,
        num_spans_per_passage: int = 4,
    ) -> list[SpanPrediction]:
        """The best answers of the most relevant passages, from the reader's three kinds of logits."""
        starts, ends, relevance = reader_output[:3]
        found: list[SpanPrediction] = []
        for row in sorted(range(len(relevance)), reverse=True, key=relevance.__getitem__):
            ids = list(reader_input["input_ids"][row])
            first = ids.index(self.sep_token_id, 2) + 1
            last = ids.index(self.pad_token_id) if ids[-1] == self.pad_token_id else len(ids)
            for start, end in best_spans(
                starts[row][first:last], ends[row][first:last], max_answer_length, num_spans_per_passage
            ):
                start, end = start + first, end + first
                text = self.decode(ids[start : end + 1])
                score = starts[row][start] + ends[row][end]
                found.append(SpanPrediction(score, relevance[row], row, start, end, text))
            if len(found) >= num_spans:
                break
        return found[:num_spans]


class PythonPassagePieces(Passages, PythonWordPiece):
    """WordPiece of passages."""


class FastPassagePieces(Passages, FastWordPiece):
    """The same on Rust."""


class Candidates(PreTrainedTokenizerBase):
    """Batches of candidate texts."""

    def batch_encode_candidates(self, text, text_pair=None, return_tensors=None, **options) -> BatchEncoding:
        """Inputs (batch, candidates, max_length) of lists of candidates, padded to the full length."""
        options["padding"] = "max_length"
        rows: dict[str, list] = {}
        for i, candidates in enumerate(text):
            pair = None if text_pair is None else text_pair[i]
            for key, value in self(candidates, pair, return_tensors=None, **options).items():
                if key in ("input_ids", "attention_mask", "token_type_ids"):
                    rows.setdefault(key, []).append(value)
        return BatchEncoding(rows, tensor_type=return_tensors)


class PythonCandidatePieces(Candidates, PythonWordPiece):
    """WordPiece of candidates."""


class FastCandidatePieces(Candidates, FastWordPiece):
    """The same on Rust."""


class Questions(PreTrainedTokenizerBase):
    """A pair has a question token and a full stop behind its question, which padding says the side of."""

    @property
    def question_token_id(self) -> int:
        """The id of the question token."""
        return self.convert_tokens_to_ids(self.question_token)

    @property
    def layout(self) -> Layout:
        """Where the special tokens stand."""
        after = f"={self.question_token} =."
        typed = f"={self.question_token}:1 =.:1"
        right = self.__dict__.get("padding_side", "right") == "right"
        pair = f"cls A {after} sep B:1 sep:1" if right else f"cls A sep B:1 {typed} sep:1"
        return Layout("cls A sep", pair, "layout")


class PythonQuestionPieces(Questions, PythonWordPiece):
    """WordPiece of questions."""

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens (the question token is none), 0 for others."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
        return special_mask(self, Layout("cls A sep", "cls A sep B sep"), token_ids_0, token_ids_1)


class FastQuestionPieces(Questions, FastWordPiece):
    """The same on Rust."""

    template = Layout("cls A sep", "cls A sep B:1 sep:1")  # until the question token is known

    def _load(self, settings: dict, given: dict) -> None:
        tokens = list(settings.get(LIST_ROLE) or [])
        settings[LIST_ROLE] = tokens + [t for t in (settings["question_token"],) if t not in tokens]

    def _build_backend(self, settings: dict) -> Tokenizer:
        backend = backends.word_piece(self, {**settings, "question_token": settings["question_token"]})
        side = settings.get("padding_side", "right")
        question = settings["question_token"]
        pair = (
            f"cls A ={question} =. sep B:1 sep:1"
            if side == "right"
            else f"cls A sep B:1 ={question} =. sep:1"
        )
        vocab = backend.get_vocab()
        unknown = vocab.get(str(settings["unk_token"]))
        roles = backends.Roles(settings)
        backend.post_processor = template(roles, Layout("cls A sep", pair), lambda t: vocab.get(t, unknown))
        return backend


def _rjieba():
    return require("rjieba", "chinese", "cutting Chinese into words")


class PythonSegmentedPieces(PythonWordPiece):
    """Chinese words that the vocabulary has stay whole; the rest is cut as BERT does."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        _rjieba()

    def _tokenize(self, text: str, use_jieba: bool = True) -> list[str]:
        if not use_jieba:
            return super()._tokenize(text)
        pieces: list[str] = []
        for word in _rjieba().cut(text, False):
            pieces += [word] if word in self.vocab else super()._tokenize(word)
        return pieces


class WordSegmenter:
    """The pre-tokenizer of `PythonSegmentedPieces`: known words, else single Chinese characters."""

    def __init__(self, vocab: dict[str, int]):
        self.vocab = vocab
        self.jieba = _rjieba()
        self._apart = normalizers.BertNormalizer(
            clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
        )

    def _cut(self, _, text):
        parts = []
        for word, start, end in self.jieba.tokenize(str(text), hmm=False):
            if word in self.vocab:
                parts.append(text[start:end])
                continue
            for piece in self._apart.normalize_str(word).split():
                parts.append(text[start : start + len(piece)])
                start += len(piece)
        return parts

    def pre_tokenize(self, text) -> None:
        """Cut the text in place."""
        text.split(self._cut)


class FastSegmentedPieces(FastWordPiece):
    """The same on Rust; files hold BERT's pre-tokenizer, since they cannot hold this one."""

    settle = None

    def _build_backend(self, settings: dict) -> Tokenizer:
        return backends.word_piece(self, {**settings, "tokenize_chinese_chars": False})

    def _settle(self, settings: dict) -> None:
        backend = self._tokenizer
        kept = {"tokenize_chinese_chars": getattr(backend.normalizer, "handle_chinese_chars", False)}
        backends.settle_cleaning(self, {**settings, **kept}, settings)
        self._segment()

    def _segment(self) -> None:
        backend = self._tokenizer
        backend.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(WordSegmenter(backend.get_vocab()))

    def save_pretrained(self, *args, **options) -> tuple[str, ...]:
        """Write the tokenizer's files (see the class)."""
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        try:
            return super().save_pretrained(*args, **options)
        finally:
            self._segment()

    def __getstate__(self) -> dict:
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        try:
            return {**super().__getstate__(), "_tokenizer": Tokenizer.from_str(self._tokenizer.to_str())}
        finally:
            self._segment()

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._segment()
