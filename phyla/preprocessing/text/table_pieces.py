"""Questions about tables as one sequence: `[CLS] question [SEP] header cells`, with seven kinds of
token types
(TAPAS, arXiv:2004.02349).
"""

import math
import re
from typing import Any, NamedTuple

from phyla.errors import ArgumentError, TokenizerInputError

from .base import CallOptions
from .batch import BatchEncoding, to_python
from .slow import OffsetsError
from .strategy import PaddingStrategy
from .table_values import Value, column_values, sort_key, values_of
from .tokens import LIST_ROLE
from .wordpiece import PythonWordPiece

_STRATEGIES = ("drop_rows_to_fit", "do_not_truncate")
_EMPTY = ("n/a", "?", "nan")


class Placed(NamedTuple):
    """A token of a table and its place; column 1 and row 0 are the first of the header."""

    token: str
    column: int
    row: int


class Grid(NamedTuple):
    """A table as text: the header and the rows of cells."""

    header: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, table) -> "Grid":
        """From a pandas DataFrame, or a dictionary of columns."""
        if isinstance(table, dict):
            columns = list(table.values())
            if len({len(column) for column in columns}) > 1:
                raise TokenizerInputError(
                    f"columns must have one length, but have {[len(c) for c in columns]}"
                )
            return cls(list(table), [list(row) for row in zip(*columns)])
        if not hasattr(table, "columns") or not hasattr(table, "values"):
            found = type(table).__name__
            raise TokenizerInputError(
                f"table must be a pandas DataFrame or a dictionary of columns, but is {found}"
            )
        return cls(list(table.columns), table.values.tolist())


def is_blank(text: str) -> bool:
    """Whether a cell says nothing: no letter or digit, or `n/a`, `?`, `nan`."""
    text = text.lower().strip()
    return text in _EMPTY or not re.sub(r"[^\w\d]+", " ", text).replace("_", " ").strip()


def numeric_types(
    places: list[tuple[int, int]], grid: Grid, question: str
) -> tuple[list[int], list[int], list[int]]:
    """Rank, inverse rank and relation to the question's numbers of each token's cell."""
    ranks, inverse, relations = ([0] * len(places) for _ in range(3))
    asked = values_of(question)
    for column in range(len(grid.header)):
        values = column_values(row[column] for row in grid.rows)
        rank_of, count = _ranks(values)
        related = {row: _relations(row, values, asked) for row in values}
        for i, (token_column, token_row) in enumerate(places):
            row = token_row - 1
            if token_column - 1 != column or row not in values:
                continue
            if row in rank_of:
                ranks[i], inverse[i] = rank_of[row] + 1, count - rank_of[row]
            relations[i] = related[row]
    return ranks, inverse, relations


def _ranks(values: dict[int, Value]) -> tuple[dict[int, int], int]:
    key = sort_key(values.values()) if values else None
    if key is None:
        return {}, 0
    unique = sorted({key(value) for value in values.values()})
    return {row: unique.index(key(value)) for row, value in values.items()}, len(unique)


def _relations(row: int, values: dict[int, Value], asked: list[Value]) -> int:
    """Bits: 1 where an asked value is equal to the cell's, 2 where it is less, 4 where it is greater."""
    bits = 0
    for value in asked:
        key = sort_key([*values.values(), value])
        if key is not None:
            a, b = key(value), key(values[row])
            bits |= 1 if a == b else 2 if a < b else 4
    return bits


class PythonTablePieces(PythonWordPiece):
    """WordPiece of a question and a table."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        tokens, empty = list(settings.get(LIST_ROLE) or []), settings["empty_token"]
        settings[LIST_ROLE] = tokens if empty in tokens else [*tokens, empty]
        limit = settings["model_max_length"]
        for name in ("max_column_id", "max_row_id"):
            if settings[name] is None:
                setattr(self, name, limit if limit is not None else int(1e30))

    def _tokenize(self, text: str, split_special_tokens: bool = False) -> list[str]:
        if is_blank(text):
            return [self.additional_special_tokens[0]]
        return super()._tokenize(text, split_special_tokens)

    # ------------------------------------------------------------------ calls

    def __call__(self, table, queries=None, answer_coordinates=None, answer_text=None, **options):  # type: ignore[override]
        """Model inputs of a table and one question, or several about the same table.

        `answer_coordinates` (row, column of the answer's cells) and `answer_text` give labels.
        """
        if queries is not None and not isinstance(queries, (str, list, tuple)):
            raise TokenizerInputError(
                f"queries must be a string or a list of strings, but is {queries!r:.80}"
            )
        call = self.batch_encode_plus if isinstance(queries, (list, tuple)) else self.encode_plus
        return call(table, queries, answer_coordinates, answer_text, **options)

    def encode(self, table, query=None, **options) -> list[int]:  # type: ignore[override]
        """The input ids of a table and a question."""
        return self.encode_plus(table, query, **options)["input_ids"]

    def _settings(self, options: dict) -> CallOptions:
        if "is_split_into_words" in options:
            raise SplitTablesError("questions are strings here: leave is_split_into_words out")
        settings = self._options(options)
        if settings.return_offsets_mapping:
            raise OffsetsError("tables have no offsets: leave return_offsets_mapping out")
        if settings.return_overflowing_tokens:
            raise TokenizerInputError("tables have no overflowing tokens: rows are dropped whole")
        if settings.return_token_type_ids is not None and not settings.add_special_tokens:
            raise TokenizerInputError(
                "token types are not defined without special tokens: set return_token_type_ids to None"
            )
        return settings

    def encode_plus(  # type: ignore[override]
        self, table, query=None, answer_coordinates=None, answer_text=None, **options
    ) -> BatchEncoding:
        """Model inputs of a table and one question."""
        settings = self._settings(options)
        _both(answer_coordinates, answer_text)
        grid = Grid.of(table)
        answer = None if answer_coordinates is None else (answer_coordinates, answer_text)
        row = self._row(grid, self._cells(grid), query or "", answer, None, settings)
        padding = settings.padding
        if isinstance(padding, bool):
            sized = settings.max_length is not None or settings.pad_to_multiple_of is not None
            padding = PaddingStrategy.MAX_LENGTH if padding and sized else PaddingStrategy.DO_NOT_PAD
        mask = self._wants("attention_mask", settings.return_attention_mask)
        if PaddingStrategy(padding) is not PaddingStrategy.DO_NOT_PAD or mask:
            row = dict(self._padded_table(row, PaddingStrategy(padding).value, settings, mask))
        if settings.return_length:
            row["length"] = len(row["input_ids"])
        return BatchEncoding(row, tensor_type=settings.return_tensors, prepend_batch_axis=True)

    def batch_encode_plus(  # type: ignore[override]
        self, table, queries=None, answer_coordinates=None, answer_text=None, **options
    ) -> BatchEncoding:
        """Model inputs of a table and several questions; each sees the answer before it."""
        settings = self._settings(options)
        _both(answer_coordinates, answer_text)
        grid = Grid.of(table)
        cells = self._cells(grid)
        answers: list = [None] * len(queries)
        if answer_coordinates is not None:
            answers = [
                None if where is None and text is None else (where, text)
                for where, text in zip(answer_coordinates, answer_text)
            ]
        rows: dict[str, list] = {}
        for i, (query, answer) in enumerate(zip(queries, answers)):
            row = self._row(grid, cells, query, answer, answers[i - 1] if i else None, settings)
            if settings.return_length:
                row["length"] = len(row["input_ids"])
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
        mask = self._wants("attention_mask", settings.return_attention_mask)
        padded = self._padded_table(rows, settings.padding, settings, mask)
        return BatchEncoding(dict(padded), tensor_type=settings.return_tensors)

    def _padded_table(self, rows: dict, padding, settings: CallOptions, mask: bool) -> BatchEncoding:
        return self.pad(
            rows,
            padding=padding,
            max_length=settings.max_length,
            pad_to_multiple_of=settings.pad_to_multiple_of,
            padding_side=settings.padding_side,
            return_attention_mask=mask,
        )

    # ------------------------------------------------------------------ one example

    def _cells(self, grid: Grid) -> list[list[list[str]]]:
        header = ["" if self.strip_column_names else name for name in grid.header]
        return [[self.tokenize(cell) for cell in row] for row in (header, *grid.rows)]

    def _question_tokens(self, query: str) -> tuple[str, list[str]]:
        tokens = self.tokenize(query)
        low = self.min_question_length is not None and len(tokens) < self.min_question_length
        high = self.max_question_length is not None and len(tokens) > self.max_question_length
        return ("", []) if low or high else (query, tokens)

    @staticmethod
    def _placed(cells: list[list[list[str]]], num_rows: int, num_tokens: int) -> list[Placed]:
        """The tokens of the first rows, of each cell the words that begin within its first tokens."""
        placed = []
        for row, columns in enumerate(cells[: num_rows + 1]):
            for column, cell in enumerate(columns):
                begin = -1
                for i, token in enumerate(cell):
                    begin = begin if token.startswith("##") else i
                    if begin < num_tokens:
                        placed.append(Placed(token, column + 1, row))
        return placed

    def _fit(self, cells, question: list[str], num_rows: int, max_length: int | None) -> tuple[int, int]:
        """How many rows, and how many tokens of each cell, fit beside the question."""
        budget = (self.model_max_length if max_length is None else max_length) - len(question) - 2
        longest = max((len(cell) for row in cells for cell in row), default=0)
        if self.cell_trim_length >= 0:
            longest = min(longest, self.cell_trim_length)
        while num_rows >= 1:
            fits = next(
                (n for n in range(longest + 1) if len(self._placed(cells, num_rows, n + 1)) > budget), longest
            )
            if fits == longest or (fits and self.cell_trim_length < 0):
                return num_rows, fits or 1
            num_rows -= 1
        return num_rows, 1

    def _size(self, grid: Grid, drops: bool) -> int:
        rows, columns = len(grid.rows), len(grid.header)
        if columns >= self.max_column_id:
            raise TokenizerInputError(
                f"a table must have less than {self.max_column_id} columns, but has {columns}"
            )
        if rows >= self.max_row_id and not drops:
            raise TokenizerInputError(
                f"a table must have less than {self.max_row_id} rows, but has {rows}; truncation drops rows"
            )
        return min(rows, self.max_row_id - 1)

    def _row(self, grid: Grid, cells, query: str, answer, previous, settings: CallOptions) -> dict:
        """One unpadded example."""
        strategy = settings.truncation
        if (
            strategy is not None
            and not isinstance(strategy, bool)
            and getattr(strategy, "value", strategy) not in _STRATEGIES
        ):
            raise ArgumentError(
                f"truncation must be a boolean or one of {list(_STRATEGIES)}, but is {strategy!r}"
            )
        drops = strategy is True or getattr(strategy, "value", strategy) == "drop_rows_to_fit"
        query, question = self._question_tokens(query)
        num_rows = self._size(grid, drops)
        num_tokens = max((len(cell) for row in cells for cell in row), default=0)
        if drops:
            num_rows, num_tokens = self._fit(cells, question, num_rows, settings.max_length)
        placed = self._placed(cells, num_rows, num_tokens)
        question_ids = self.convert_tokens_to_ids(question)
        table_ids = self.convert_tokens_to_ids([item.token for item in placed])
        special = settings.add_special_tokens
        ids = (
            self.build_inputs_with_special_tokens(question_ids, table_ids)
            if special
            else question_ids + table_ids
        )
        if settings.max_length is not None and len(ids) > settings.max_length:
            raise TokenizerInputError(
                f"the question and the table's header have {len(ids)} tokens, more than max_length"
                f" ({settings.max_length})"
            )
        head = len(question_ids) + 2
        places = [(0, 0)] * head + [(item.column, item.row) for item in placed]
        row: dict = {"input_ids": ids}
        if self._wants("attention_mask", settings.return_attention_mask):
            row["attention_mask"] = [1] * len(places)
        if answer is not None:
            row["labels"] = self._answer_ids(places, cells, answer)
            row["numeric_values"], row["numeric_values_scale"] = self._numbers(places, grid)
        if self._wants("token_type_ids", settings.return_token_type_ids):
            before = [0] * len(places) if previous is None else self._answer_ids(places, cells, previous)
            segments = [0] * head + [1] * len(placed)
            kinds = zip(segments, *zip(*places), before, *numeric_types(places, grid, query))
            row["token_type_ids"] = [list(types) for types in kinds]
        if settings.return_special_tokens_mask:
            row["special_tokens_mask"] = (
                self.get_special_tokens_mask(question_ids, table_ids) if special else [0] * len(ids)
            )
        self._warn_if_long(ids, settings.max_length)
        return row

    def _answer_ids(self, places, cells, answer) -> list[int]:
        """1 for the tokens of the answer's cells (`update_answer_coordinates`: of the answer's words)."""
        where, texts = answer
        if self.update_answer_coordinates:
            return self._found_answers(places, cells, texts)
        wanted = {(column + 1, row + 1) for row, column in where}
        missing = wanted - set(places)
        if missing:
            rows = [(row - 1, column - 1) for column, row in sorted(missing)]
            raise TokenizerInputError(
                f"the answer's cells (row, column) {rows} are not in the table that is left"
            )
        return [int(place in wanted) for place in places]

    def _found_answers(self, places, cells, texts: list[str]) -> list[int]:
        found = [0] * len(places)
        for text in texts:
            words = self.tokenize(text)
            for row, columns in enumerate(cells[1:], 1):
                for column, cell in enumerate(columns, 1):
                    starts = [
                        i for i in range(len(cell) - len(words) + 1) if cell[i : i + len(words)] == words
                    ]
                    tokens = [i for i, place in enumerate(places) if place == (column, row)]
                    span = tokens[starts[0] : starts[0] + len(words)] if starts else []
                    if words and len(span) == len(words):
                        for i in span:
                            found[i] = 1
                        break
                else:
                    continue
                break
        return found

    def _numbers(self, places, grid: Grid) -> tuple[list[float], list[float]]:
        """The number of each token's cell (else NaN), and how many tokens that cell has."""
        numbers = {
            (column + 1, row + 1): value
            for column in range(len(grid.header))
            for row, value in column_values(cells[column] for cells in grid.rows).items()
            if not isinstance(value, tuple)
        }
        counts = {place: places.count(place) for place in set(places) if place[0] and place[1]}
        return [numbers.get(p, math.nan) for p in places], [float(counts.get(p, 1)) for p in places]

    def _fills(self) -> dict[str, Any]:
        return {
            "token_type_ids": [self.pad_token_type_id] * 7, "labels": 0, "numeric_values": math.nan,
            "numeric_values_scale": 1.0,
        }  # fmt: skip

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[CLS] question [SEP] table`."""
        if token_ids_1 is None:
            raise TokenizerInputError("a question needs its table: give token_ids_1")
        return super().build_inputs_with_special_tokens(token_ids_0, token_ids_1)

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others."""
        if already_has_special_tokens or token_ids_1 is not None:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens)
        return [1, *[0] * len(token_ids_0), 1]

    # ------------------------------------------------------------------ answers

    def convert_logits_to_predictions(
        self, data, logits, logits_agg=None, cell_classification_threshold: float = 0.5
    ):
        """The cells (row, column) whose tokens' mean probability is above the threshold, for each example;
        with `logits_agg` also the index of each example's aggregation.
        """
        found = []
        types, masks = to_python(data["token_type_ids"]), to_python(data["attention_mask"])
        for scores, kinds, mask in zip(to_python(logits), types, masks):
            cells: dict[tuple[int, int], list[float]] = {}
            for score, kind, kept in zip(scores, kinds, mask):
                segment, column, row = kind[:3]
                if segment == 1 and column and row:
                    chance = kept / (1 + math.exp(-max(score, -88.7)))
                    cells.setdefault((row - 1, column - 1), []).append(chance)
            if any(kind[1] or kind[2] for kind in kinds):
                above = [p for p, c in cells.items() if sum(c) / len(c) > cell_classification_threshold]
                found.append(sorted(above))
        if logits_agg is None:
            return (found,)
        return found, [max(range(len(row)), key=row.__getitem__) for row in to_python(logits_agg)]


class SplitTablesError(TokenizerInputError, NotImplementedError):
    """Split words where only strings will do."""


def _both(coordinates, texts) -> None:
    if bool(coordinates) != bool(texts):
        raise TokenizerInputError("answer_coordinates and answer_text belong together: give both or none")
