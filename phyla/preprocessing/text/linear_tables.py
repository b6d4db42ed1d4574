"""Questions about tables as a line, `question col : a | b row 1 : x | y` (TAPEX, arXiv:2107.07653)."""

import dataclasses
import logging
import random
from collections.abc import Sequence
from itertools import chain

from phyla.errors import TokenizerInputError

from .base import CallOptions
from .batch import BatchEncoding
from .byte_level import PythonByteLevel
from .strategy import TruncationStrategy
from .table_pieces import Grid

log = logging.getLogger(__name__)

_DROP_ROWS = "drop_rows_to_fit"
_MARKS = "?!.,"
_NEIGHBOURS = 2  # rows before and after one that has to do with the question are kept too


class PythonLinearTables(PythonByteLevel):
    """Byte-level BPE of a question and a table, or of answers."""

    def __call__(self, table=None, query=None, answer=None, **options) -> BatchEncoding:  # type: ignore[override]
        """Model inputs of a table and a question, or of answers where there is no table.

        Tables and questions may be lists of one length; one table (or question) serves for a whole list.
        With `truncation="drop_rows_to_fit"` rows that have nothing to do with question and answer go first.
        """
        if table is not None:
            batched = isinstance(table, (list, tuple)) or isinstance(query, (list, tuple))
            return (self.batch_encode_plus if batched else self.encode_plus)(table, query, answer, **options)
        if answer is None:
            raise TokenizerInputError("a table or an answer must be given, but both are None")
        if isinstance(answer, (list, tuple)):
            return self.target_batch_encode_plus(answer, **options)
        return self.target_encode_plus(answer, **options)

    def encode(self, table, query=None, answer=None, **options) -> list[int]:  # type: ignore[override]
        """The input ids of a table and a question."""
        return self.encode_plus(table, query, answer, **options)["input_ids"]

    def encode_plus(self, table, query=None, answer=None, **options) -> BatchEncoding:  # type: ignore[override]
        """Model inputs of a table and a question."""
        settings, drops = self._settings(options)
        text = self.prepare_table_query(table, query, answer, drops, settings.max_length)
        return self._encode_plus(self._cased(text), None, settings)

    def batch_encode_plus(self, table, query=None, answer=None, **options) -> BatchEncoding:  # type: ignore[override]
        """Model inputs of several tables, several questions, or both."""
        settings, drops = self._settings(options)
        tables, queries, answers = _in_step(table, query, answer)
        texts = [
            self._cased(self.prepare_table_query(*each, drops, settings.max_length))
            for each in zip(tables, queries, answers)
        ]
        return self._batch_encode_plus(texts, settings)

    def target_encode(self, answer: str, **options) -> list[int]:
        """The ids of an answer."""
        return self.target_encode_plus(answer, **options)["input_ids"]

    def target_encode_plus(self, answer: str, **options) -> BatchEncoding:
        """Model inputs of an answer."""
        return self._encode_plus(self._cased(_text(answer, "answer")), None, self._options(options))

    def target_batch_encode_plus(self, answer: Sequence[str], **options) -> BatchEncoding:
        """Model inputs of a list of answers."""
        texts = [self._cased(_text(each, f"answer[{i}]")) for i, each in enumerate(answer)]
        return self._batch_encode_plus(texts, self._options(options))

    def _settings(self, options: dict) -> tuple[CallOptions, str]:
        """The options of a call, and whether rows are dropped; what is still too long is cut at the end."""
        settings = self._options(options)
        asked = getattr(settings.truncation, "value", settings.truncation)
        if asked != _DROP_ROWS:
            return settings, TruncationStrategy.DO_NOT_TRUNCATE.value
        limit = self.model_max_length if settings.max_length is None else settings.max_length
        return dataclasses.replace(settings, truncation=True, max_length=limit), _DROP_ROWS

    def _cased(self, text: str) -> str:
        return text.lower() if self.do_lower_case else text

    # ------------------------------------------------------------------ tables

    def prepare_table_query(
        self, table, query: str | None, answer=None, truncation_strategy=None, max_length: int | None = None
    ) -> str:
        """A question and a table as one text; long cells are cut, and rows dropped to fit where asked."""
        if query is not None:
            _text(query, "query")
        grid = Grid.of(table)
        header, line = [str(name) for name in grid.header], ""
        if header and grid.rows:
            rows = [[self._cut_cell(cell) for cell in row] for row in grid.rows]
            if getattr(truncation_strategy, "value", truncation_strategy) == _DROP_ROWS:
                limit = self.model_max_length if max_length is None else max_length
                answers = [answer] if isinstance(answer, str) else list(answer or ())
                cut = {str(old): new for old, new in zip(chain(*grid.rows), chain(*rows))}
                kept = [cut.get(str(each), str(each)) for each in answers]
                rows = self._fitting(header, rows, query or "", kept, limit)
            line = " ".join([_header(header), *(_row(row, i) for i, row in enumerate(rows, 1))])
        else:
            log.warning("the table of the question %r is empty", query)
        return f"{query} {line}" if query and line else query or line

    def _cut_cell(self, cell) -> str:
        """A cell's text; the first `max_cell_length` tokens of a long one."""
        if not isinstance(cell, str) or not cell.strip():
            return str(cell)
        tokens = self.tokenize(cell)
        if len(tokens) < self.max_cell_length:
            return cell
        return self.convert_tokens_to_string(tokens[: self.max_cell_length])

    def _fitting(self, header, rows, query: str, answers: list[str], max_length: int) -> list[list[str]]:
        """The rows that fit beside the question and the header."""
        left = max_length - len(self.tokenize(query)) - len(self.tokenize(_header(header)))
        size = len(self.tokenize("".join(f"{_row(row, 100)} " for row in rows)))
        excess = 0.0 if size < left else 1.0 - left / size
        kept = []
        for number, row in enumerate(_related(rows, query, answers, excess), 1):
            left -= len(self.tokenize(_row(row, number)))
            if left < 0:
                break
            kept.append(row)
        return kept


def _related(rows: list[list[str]], query: str, answers: list[str], excess: float) -> list[list[str]]:
    """The rows without some (a share `excess`, at random) of those far from question and answers."""
    asked = {answer.lower() for answer in answers} | {*query.split(), *query.strip(_MARKS).split(" ")}
    named = [i for i, row in enumerate(rows) if asked & {cell.lower() for cell in row}]
    near = {i + step for i in named for step in range(-_NEIGHBOURS, _NEIGHBOURS + 1)}
    others = [i for i in range(len(rows)) if i not in near]
    count = min(len(others), int(len(rows) * excess))
    dropped = set(random.choices(others, k=count)) if count else set()
    return [row for i, row in enumerate(rows) if i not in dropped]


def _header(names: list[str]) -> str:
    return "col : " + " | ".join(names)


def _row(cells: list[str], number: int) -> str:
    return f"row {number} : " + " | ".join(cells)


def _text(value, name: str) -> str:
    if not isinstance(value, str):
        raise TokenizerInputError(f"{name} must be a string, but is {value!r:.80} ({type(value).__name__})")
    return value


def _in_step(table, query, answer) -> tuple[list, list, list]:
    """Tables, questions and answers of a batch, each as long as the others."""
    count = len(table) if isinstance(table, (list, tuple)) else len(query)
    lists = []
    for name, value, one in (("table", table, False), ("query", query, False), ("answer", answer, True)):
        many = list(value) if isinstance(value, (list, tuple)) else [value] * count
        if one and isinstance(value, str):
            raise TokenizerInputError("a batch needs a list of answers, but answer is one string")
        if len(many) != count:
            raise TokenizerInputError(f"{name} has {len(many)} entries, but the batch has {count}")
        lists.append(many)
    return lists[0], lists[1], lists[2]
