"""The head that chooses cells of a table and an operation over them (Herzig et al., arXiv:2004.02349)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Linear, make
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.outputs import ModelOutput, TableQuestionAnsweringOutput

NEVER = -10000.0
TINY = 1e-10


@dataclass
class TableCall(Call):
    """What the caller said of the table and its answer; see `TableModel`."""

    token_type_ids: Tensor | None = None
    table_mask: Tensor | None = None
    aggregation_labels: Tensor | None = None
    float_answer: Tensor | None = None
    numeric_values: Tensor | None = None
    numeric_values_scale: Tensor | None = None

    def needed(self, name: str) -> Tensor:
        """One of these, which a loss needs; ArgumentError without it."""
        value = getattr(self, name)
        if value is None:
            raise ArgumentError(f"the loss of this configuration needs {name}: pass it beside labels")
        return value


@dataclass
class Cells:
    """Which cell each token is of: index (B, S) = row * columns + column; real (B, rows * columns).

    `real` is the share of a cell's tokens that the mask attends.
    """

    index: Tensor
    rows: int
    columns: int
    real: Tensor

    @classmethod
    def of(cls, types: Tensor, mask: Tensor, config: Any) -> "Cells":
        """From token types (B, S, 7) and the padding mask (B, S), as floats."""
        rows, columns = config.max_num_rows, config.max_num_columns
        index = types[..., 2].clamp(max=rows - 1) * columns + types[..., 1].clamp(max=columns - 1)
        return cls(index, rows, columns, gathered(mask, index, rows * columns, "mean"))

    def over(self, values: Tensor, how: str) -> Tensor:
        """(B, rows * columns) of token values (B, S); empty cells have 0."""
        return gathered(values, self.index, self.rows * self.columns, how)

    def at(self, values: Tensor) -> Tensor:
        """(B, S): each token's cell's value of (B, rows * columns)."""
        return values.gather(1, self.index)

    def by_column(self, values: Tensor) -> Tensor:
        """(B, columns): sums over the rows of (B, rows * columns)."""
        return values.unflatten(1, (self.rows, self.columns)).sum(1)

    def in_column(self, column: Tensor) -> Tensor:
        """(B, rows * columns): 1.0 in the cells of each row's column (B)."""
        columns = torch.arange(self.columns, device=column.device).repeat(self.rows)
        return (columns == column[:, None]).to(self.real.dtype)


def gathered(values: Tensor, index: Tensor, count: int, how: str) -> Tensor:
    """(B, count): values (B, S) reduced ("sum", "mean", "amax", "amin") by index (B, S); 0 where none is."""
    empty = values.new_zeros(values.shape[0], count)
    return empty.scatter_reduce(1, index, values, how, include_self=False)


class Score(Block):
    """One number a token: x (B, S, D) -> (B, S). zero: it starts at zero."""

    def __init__(self, width: int, zero: bool) -> None:
        super().__init__()
        self.zero = zero
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias

    def reset(self, std: float) -> bool:
        nn.init.normal_(self.weight, std=0.0 if self.zero else std)
        nn.init.zeros_(self.bias)
        return True


class _CellSelection(HeadModule):
    """`cell` and `column` score tokens, `operation` the pooled vector."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.dropout_prob = config.hidden_dropout_prob
        zero, operations = config.init_cell_selection_weights_to_zero, config.num_aggregation_labels
        self.cell, self.column = make(Score(width, zero)), make(Score(width, zero))
        self.operation = Linear(width, operations) if operations > 0 else None

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        config, x = call.config, F.dropout(out.last_hidden_state, self.dropout_prob, self.training)
        types = call.token_type_ids
        if types is None:
            types = torch.zeros(*x.shape[:2], 7, dtype=torch.long, device=x.device)
        mask = torch.ones_like(types[..., 0]) if call.attention_mask is None else call.attention_mask
        mask = mask.to(device=x.device, dtype=x.dtype)
        cells = Cells.of(types, mask, config)
        logits = self.cell(x) / config.temperature
        operations = None if self.operation is None else self.operation(out.pooler_output)
        if config.average_logits_per_cell:
            logits = cells.at(cells.over(logits, "mean"))
        columns = column_scores(self.column(x), cells, config) if config.select_one_column else None
        chosen = logits if columns is None else within_best_column(logits, columns, cells)
        loss = None
        if call.labels is not None:
            if columns is None:
                selection = token_loss(logits, call.labels, mask, config.positive_label_weight)
            else:
                selection = cell_loss(logits, columns, call.labels, cells)
            loss = total_loss(selection, chosen, operations, types, call)
        return {"loss": loss, "logits": chosen, "logits_aggregation": operations}


def column_scores(scores: Tensor, cells: Cells, config: Any) -> Tensor:
    """(B, columns): mean over a column's cells of token scores (B, S); very low where no column is."""
    count = cells.by_column(cells.real)
    logits = cells.by_column(cells.over(scores, "mean") * cells.real) / (count + TINY)
    outside = torch.arange(cells.columns, device=scores.device) == 0
    logits = logits + NEVER * ((count < 0.5) & ~outside).to(logits.dtype)
    return logits if config.allow_empty_column_selection else logits + NEVER * outside.to(logits.dtype)


def within_best_column(logits: Tensor, columns: Tensor, cells: Cells) -> Tensor:
    """(B, S): each token's cell's mean score, very low outside of the best column."""
    best = columns.argmax(-1)
    kept = cells.in_column(best) * (best != 0).to(logits.dtype)[:, None]
    return cells.at(cells.over(logits, "mean") + NEVER * (1.0 - cells.real * kept))


def token_loss(logits: Tensor, labels: Tensor, mask: Tensor, weight: float) -> Tensor:
    """(B): mean loss of the real tokens, those of the answer weighed `weight` times."""
    labels = labels.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    losses = torch.where(labels == 0, losses, losses * weight)
    return (losses * mask).sum(1) / (mask.sum(1) + TINY)


def cell_loss(logits: Tensor, columns: Tensor, labels: Tensor, cells: Cells) -> Tensor:
    """(B): loss of the answer's column, and of the cells within it (section 3.2)."""
    wanted = labels.to(logits.dtype)
    by_column = gathered(wanted, cells.index % cells.columns, cells.columns, "sum")
    none = by_column.amax(-1) == 0
    column = torch.where(none, 0, by_column.argmax(-1))
    losses = F.binary_cross_entropy_with_logits(
        cells.over(logits, "mean"), cells.over(wanted, "amax"), reduction="none"
    )
    inside = cells.in_column(column) * cells.real
    within = (losses * inside).sum(1) / (inside.sum(1) + TINY)
    return F.cross_entropy(columns, column, reduction="none") + torch.where(none, 0.0, within)


def total_loss(
    selection: Tensor, chosen: Tensor, operations: Tensor | None, types: Tensor, call: TableCall
) -> Tensor:
    """Selection of cells, plus the operation where there is one, known or only told by its result."""
    config = call.config
    total = selection.new_zeros(())
    if operations is None or not config.use_answer_as_supervision:
        if not config.disable_per_token_loss:
            total = total + selection.mean()
        if operations is not None:
            known = F.cross_entropy(operations, call.needed("aggregation_labels"), reduction="none")
            total = total + config.aggregation_loss_weight * known.mean()
        return total
    answer = call.needed("float_answer")
    some = torch.softmax(operations, -1)[:, 1:].sum(1)  # (B): chance of any operation
    by_cells = (some <= config.cell_selection_preference) & (call.needed("labels").sum(1) > 0)
    computed = torch.where(by_cells, 0.0, (~answer.isnan()).to(some.dtype)).detach()
    if not config.disable_per_token_loss:
        total = total + (selection * (1.0 - computed)).mean()
    none = F.cross_entropy(operations, torch.zeros_like(by_cells, dtype=torch.long), reduction="none")
    guessed = config.aggregation_loss_weight * (none * (1.0 - computed) - torch.log(some) * computed)
    off, kept = result_loss(answer, computed, chosen, operations, types, call)
    return total + ((guessed + off) * kept).mean()


def result_loss(
    answer: Tensor, computed: Tensor, chosen: Tensor, operations: Tensor, types: Tensor, call: TableCall
) -> tuple[Tensor, Tensor]:
    """(B): how far the expected result is from the answer (eq. 4), and 1 where that is below the cutoff."""
    config = call.config
    table = (types[..., 2] > 0 if call.table_mask is None else call.table_mask).to(chosen.dtype)
    expected = expected_result(chosen, operations, table, call)
    answer = answer.nan_to_num(0.0)
    delta = 1.0 if config.huber_loss_delta is None else config.huber_loss_delta
    if config.use_normalized_answer_loss:
        size = (torch.maximum(expected.abs(), answer.abs()) + TINY).detach()
        expected, answer, delta = expected / size, answer / size, 1.0
    off = F.huber_loss(expected * computed, answer * computed, reduction="none", delta=delta)
    cutoff = config.answer_loss_cutoff
    kept = torch.ones_like(off) if cutoff is None else (off <= cutoff).to(off.dtype)
    return config.answer_loss_importance * off * computed, kept


def expected_result(chosen: Tensor, operations: Tensor, table: Tensor, call: TableCall) -> Tensor:
    """(B): sum, mean and count over the chosen cells, weighed by the operations' chances (section 3.3)."""
    config = call.config
    chance = torch.sigmoid(chosen)
    if config.use_gumbel_for_cells:
        soft = torch.distributions.RelaxedBernoulli(config.temperature, logits=chosen * config.temperature)
        chance = soft.sample()
    chance = chance / call.needed("numeric_values_scale") * table
    values = call.needed("numeric_values").nan_to_num(0.0, torch.inf, -torch.inf)
    count, total = chance.sum(1), (chance * values).sum(1)
    kind = config.average_approximation_function
    others = chance.sum(1, keepdim=True) - chance + 1  # expected count, given that this one is chosen
    if kind == "ratio":
        mean = total / (count + TINY)
    elif kind == "first_order":
        mean = (values * chance / others).sum(1)
    else:
        spread = chance * (1 - chance)
        variance = spread.sum(1, keepdim=True) - spread
        mean = (values * chance * (variance / others.square() + 1) / others).sum(1)
    scores = operations[:, 1:]
    if config.use_gumbel_for_aggregation:
        odds = torch.distributions.RelaxedOneHotCategorical(
            config.aggregation_temperature, logits=scores
        ).sample()
    else:
        odds = torch.softmax(scores / config.aggregation_temperature, -1)
    return (torch.stack((total, mean, count), 1) * odds).sum(1)


@dataclass(frozen=True)
class CellSelection(Head):
    """Which cells of a table answer the question, and which operation over them."""

    task: ClassVar[str] = "table-question-answering"
    output: type[ModelOutput] = TableQuestionAnsweringOutput
    pool: bool = True

    def make(self, config: Any, width: int) -> HeadModule:
        return _CellSelection(config, width)
