"""TAPAS (Herzig et al. 2020, arXiv:2004.02349; entailment: Eisenschlos et al. 2020, arXiv:2010.00571).

Public checkpoints: google/tapas-base-finetuned-wtq and every `model_type: tapas`. Differs from BERT in: seven
token types that say where a token stands in a table, positions counted anew in each cell, its heads.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Context, Decoder, Embed, Encoder, LayerNorm, Learned, Pool, Spec
from phyla.blocks.embed import Tokens
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError, nearest
from phyla.families import bert
from phyla.family import family
from phyla.heads import Backbone, Classify, Head, MaskedLM
from phyla.heads.table import CellSelection, gathered
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons import TableModel, TextModel

MEANS = ("ratio", "first_order", "second_order")


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 1024
    type_vocab_sizes: list = [3, 256, 256, 2, 256, 256, 10]
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    positive_label_weight: float = 10.0
    num_aggregation_labels: int = 0
    aggregation_loss_weight: float = 1.0
    use_answer_as_supervision: bool | None = None
    answer_loss_importance: float = 1.0
    use_normalized_answer_loss: bool = False
    huber_loss_delta: float | None = None
    temperature: float = 1.0
    aggregation_temperature: float = 1.0
    use_gumbel_for_cells: bool = False
    use_gumbel_for_aggregation: bool = False
    average_approximation_function: str = "ratio"
    cell_selection_preference: float | None = None
    answer_loss_cutoff: float | None = None
    max_num_rows: int = 64
    max_num_columns: int = 32
    average_logits_per_cell: bool = False
    select_one_column: bool = True
    allow_empty_column_selection: bool = False
    init_cell_selection_weights_to_zero: bool = False
    reset_position_index_per_cell: bool = True
    disable_per_token_loss: bool = False
    aggregation_labels: dict | None = None
    no_aggregation_label_index: int | None = None

    def finish(self) -> None:
        kind = self.average_approximation_function
        if kind not in MEANS:
            raise ConfigError(
                f"average_approximation_function must be one of {MEANS}, but is {kind!r}."
                + nearest(kind, MEANS)
            )
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError("add_cross_attention needs a decoder: set is_decoder to true")
        if (
            self.num_aggregation_labels
            and self.use_answer_as_supervision
            and self.cell_selection_preference is None
        ):
            raise ConfigError(
                "use_answer_as_supervision needs cell_selection_preference, a chance (WTQ: 0.207951)"
            )
        if self.aggregation_labels is not None:
            self.aggregation_labels = {int(k): v for k, v in self.aggregation_labels.items()}


class TableEmbed(Embed):
    """Token vectors with several token types (B, S, types). anew: positions begin at 0 in each cell."""

    def __init__(
        self, vocabulary: int, width: int, position: Spec, types: list[int], norm: Spec, dropout: float,
        padding: int | None, anew: bool,
    ) -> None:  # fmt: skip
        super().__init__(vocabulary, width, position, norm=norm, dropout=dropout, padding=padding)
        self.segment: Any = nn.ModuleList(Tokens(size, width) for size in types)
        self.columns, self.rows, self.anew = types[1], types[2], anew

    def places(self, types: Tensor | None, ctx: Context) -> Tensor:
        """Rows (B or 1, S) of the position table."""
        index = ctx.positions
        if not (self.anew and ctx.counted) or types is None:
            return index
        index = index.expand(types.shape[0], -1)
        cell = types[..., 1] * self.rows + types[..., 2]
        first = gathered(index, cell, self.columns * self.rows, "amin").gather(1, cell)
        return (index - first).clamp(max=len(self.position.weight) - 1)

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, segment_ids: Tensor | None, ctx: Context
    ) -> Tensor:
        x = self.tokens(ids) if vectors is None else vectors
        x = x + self.position(self.places(segment_ids, ctx))
        for number, table in enumerate(self.segment):
            x = x + (table.weight[0] if segment_ids is None else table(segment_ids[..., number]))
        x = F.dropout(self.norm(x), self.dropout_prob, self.training)
        return x if self.site is None else self.site(x, ctx)


def build(c: Config) -> Spec:
    stack = Decoder if c.is_decoder else Encoder
    return stack(
        embed=TableEmbed(
            c.vocab_size, c.hidden_size, Learned(c.max_position_embeddings, c.hidden_size),
            c.type_vocab_sizes, LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob,
            c.pad_token_id, c.reset_position_index_per_cell,
        ),
        layers=bert.layers(c),
        pool=Pool(c.hidden_size),
    )  # fmt: skip


NAMES = NameMap(
    {
        k: v
        for k, v in bert.NAMES.lines.items()
        if not k.endswith((".segment", ".attn.position", ".cross.position"))
    }
    | {"embed.segment.{i}": "embeddings.token_type_embeddings_{i}"},
    prefix="tapas",
    ignore=(r"(tapas\.)?embeddings\.position_ids",),
)

CELLS = {
    "cell.weight": "output_weights",
    "cell.bias": "output_bias",
    "column.weight": "column_output_weights",
    "column.bias": "column_output_bias",
    "operation": "aggregation_classifier",
}

HEADS: dict[str, Head] = {
    "TapasModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "TapasForMaskedLM": MaskedLM(**bert.LM),
    "TapasForQuestionAnswering": CellSelection(names=CELLS, skeleton=TableModel),
    "TapasForSequenceClassification": Classify(
        names={"out": "classifier"}, dropout=("hidden_dropout_prob",), pool=True
    ),
}

family("tapas", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Tapas")
