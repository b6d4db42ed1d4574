"""Reformer (Kitaev et al. 2020, arXiv:2001.04451).

Public checkpoints: google/reformer-crime-and-punishment, google/reformer-enwik8.
Differs from the plain stack in: two residual streams (that could be recomputed backwards), attention
within chunks of neighbours or of hashed tokens in turn, positions on axes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN,
    Context,
    Encoder,
    Layer,
    LayerNorm,
    Learned,
    Linear,
    Spec,
    StackOutput,
    make,
    residual,
)
from phyla.blocks.embed import Tokens
from phyla.blocks.hashing import AxialPositions, HashAttention, LocalChunkAttention
from phyla.blocks.spec import Block
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError, nearest
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, HeadModule, MaskedLM, Span
from phyla.outputs import ReformerModelOutput, ReformerModelWithLMHeadOutput
from phyla.skeletons import HashTextModel

KINDS = ("local", "lsh")


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    attention_head_size: int = 64
    attn_layers: list = ["local", "lsh", "local", "lsh", "local", "lsh"]
    axial_norm_std: float = 1.0
    axial_pos_embds: bool = True
    axial_pos_shape: list = [64, 64]
    axial_pos_embds_dim: Any = [64, 192]
    chunk_size_lm_head: int = 0
    eos_token_id: int | list | None = 2
    feed_forward_size: int = 512
    hash_seed: int | None = None
    hidden_act: str = "relu"
    hidden_dropout_prob: float = 0.05
    hidden_size: int = 256
    initializer_range: float = 0.02
    is_decoder: bool = False
    layer_norm_eps: float = 1e-12
    local_num_chunks_before: Any = 1
    local_num_chunks_after: Any = 0
    local_attention_probs_dropout_prob: float = 0.05
    local_attn_chunk_length: int = 64
    lsh_attn_chunk_length: int = 64
    lsh_attention_probs_dropout_prob: float = 0.0
    lsh_num_chunks_before: Any = 1
    lsh_num_chunks_after: Any = 0
    max_position_embeddings: int = 4096
    num_attention_heads: int = 12
    num_buckets: Any = None
    num_hashes: int = 1
    pad_token_id: int | None = 0
    vocab_size: int = 320
    tie_word_embeddings: bool = False
    use_cache: bool = True
    classifier_dropout: float | None = None

    DEFAULTS = {"num_hidden_layers": None}

    def finish(self) -> None:
        if self.__dict__["num_hidden_layers"] is None:
            self.num_hidden_layers = len(self.attn_layers)
        for kind in self.attn_layers or [None]:
            if kind not in KINDS:
                raise ConfigError(
                    f"attn_layers must name {KINDS}, but has {kind!r}.{nearest(str(kind), KINDS)}"
                )
        widths = list(self.axial_pos_embds_dim)
        if self.axial_pos_embds and (
            sum(widths) != self.hidden_size or len(widths) != len(self.axial_pos_shape)
        ):
            raise ConfigError(
                f"axial_pos_embds_dim must sum to hidden_size ({self.hidden_size}) and have as many numbers "
                f"as axial_pos_shape ({self.axial_pos_shape}), but is {widths}"
            )


class Beginning(Block):
    """Tokens, dropout, positions: ids (B, S) -> (B, S, D)."""

    site_kind = "stream"
    segment, shares_segments = None, False

    def __init__(self, vocabulary: int, width: int, position: Spec, dropout: float) -> None:
        super().__init__()
        self.tokens, self.position, self.dropout_prob = Tokens(vocabulary, width), make(position), dropout
        self.register_module("site", None)

    def forward(self, ids: Tensor | None, vectors: Tensor | None, segment_ids: None, ctx: Context) -> Tensor:
        x = F.dropout(self.tokens(ids) if vectors is None else vectors, self.dropout_prob, self.training)
        x = x + self.position(self.position.index(ctx, ids))
        return x if self.site is None else self.site(x)


class ReversibleLayer(Layer):
    """y1 = x1 + attn(x2), y2 = x2 + ffn(y1) for the two streams side by side in x (B, S, 2 D)."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        first, second = x.chunk(2, -1)
        first = first + self.attn.change(self.attn.normed(second), first, ctx)
        second = second + self.ffn.change(self.ffn.normed(first), second, ctx)
        x = torch.cat((first, second), -1)
        return x if self.site is None else self.site(x)


class ReversibleStack(Encoder):
    """A stack of two streams; texts longer than a chunk are padded to whole chunks of each kind.

    multiple: of chunks; shortest: the smallest chunk; padding: id that fills up.
    """

    def __init__(
        self, embed: Spec, layers: tuple[Spec, ...], norm: Spec, dropout: float, multiple: int, shortest: int,
        padding: int,
    ) -> None:  # fmt: skip
        super().__init__(embed=embed, layers=layers, norm=norm, dropout=dropout, record="raw")
        self.multiple, self.shortest, self.fill = multiple, shortest, padding

    def forward(
        self,
        ctx: Context,
        ids: Tensor | None = None,
        vectors: Tensor | None = None,
        segment_ids: Tensor | None = None,
        record_states: bool = False,
    ) -> StackOutput:
        length = ctx.length
        if not ctx.start and length > self.shortest and length % self.multiple:
            given: Any = ids if vectors is None else vectors
            ids, vectors = self._filled(ctx, ids, vectors, len(given))
        x = self.embed(ids, vectors, None, ctx)
        out = self.run(torch.cat((x, x), -1), ctx, ids, record_states)
        out.last_hidden_state = out.last_hidden_state[:, :length]
        if out.hidden_states is not None:
            out.hidden_states = tuple(s[:, :length].chunk(2, -1)[1] for s in out.hidden_states)
        if ctx.cache is not None:
            ctx.cache.length = ctx.start + length
        return out

    def _filled(
        self, ctx: Context, ids: Tensor | None, vectors: Tensor | None, batch: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Inputs with padding up to whole chunks, which the mask hides."""
        length, extra = ctx.length, -ctx.length % self.multiple
        device = ctx.positions.device
        if vectors is not None:
            blank = self.embed.tokens(torch.full((len(vectors), extra), self.fill, device=device))
            vectors = torch.cat((vectors, blank.to(vectors.dtype)), 1)
        if ids is not None:
            ids = F.pad(ids, (0, extra), value=self.fill)
        more = ctx.positions[:, -1:] + torch.arange(1, extra + 1, device=device)
        ctx.positions = torch.cat((ctx.positions, more), 1)
        given = ctx.attention_mask
        given = torch.ones(batch, length, dtype=torch.bool, device=device) if given is None else given
        ctx.attention_mask = F.pad(given, (0, extra), value=False)
        ctx.length, ctx.memo["length"] = length + extra, length
        return ids, vectors


def build(c: Config) -> Spec:
    drop, width = c.hidden_dropout_prob, c.hidden_size
    norm = LayerNorm(width, eps=c.layer_norm_eps)
    sizes = (width, c.num_attention_heads, c.attention_head_size)
    buckets = tuple(c.num_buckets) if isinstance(c.num_buckets, list | tuple) else c.num_buckets
    kinds = {
        "local": LocalChunkAttention(
            *sizes, c.local_attn_chunk_length, c.local_num_chunks_before, c.local_num_chunks_after,
            c.is_decoder, c.local_attention_probs_dropout_prob,
        ),
        "lsh": HashAttention(
            *sizes, c.lsh_attn_chunk_length, c.lsh_num_chunks_before, c.lsh_num_chunks_after, c.is_decoder,
            c.lsh_attention_probs_dropout_prob, c.num_hashes, buckets, c.hash_seed, c.max_position_embeddings,
        ),
    }  # fmt: skip
    ffn = FFN(width, c.feed_forward_size, act=c.hidden_act, dropout=drop)
    layers = tuple(
        ReversibleLayer(
            attn=residual(kinds[k], pre=norm, dropout=drop), ffn=residual(ffn, pre=norm, dropout=drop)
        )
        for k in (c.attn_layers * c.num_hidden_layers if len(set(c.attn_layers)) == 1 else c.attn_layers)[
            : c.num_hidden_layers
        ]
    )
    position: Spec = Learned(c.max_position_embeddings, width)
    if c.axial_pos_embds:
        axes = tuple(c.axial_pos_shape), tuple(c.axial_pos_embds_dim)
        position = AxialPositions(*axes, c.axial_norm_std, drop)
    chunks = [getattr(c, f"{kind}_attn_chunk_length") for kind in sorted(set(c.attn_layers))]
    return ReversibleStack(
        Beginning(c.vocab_size, width, position, drop), layers, LayerNorm(2 * width, eps=c.layer_norm_eps),
        drop, math.lcm(*chunks), min(chunks), c.pad_token_id or 0,
    )  # fmt: skip


AT = "encoder.layers.{i}"
NAMES = NameMap(
    {
        "embed.tokens": "embeddings.word_embeddings",
        "embed.position": "embeddings.position_embeddings.embedding",
        "embed.position.weights.{i}": "embeddings.position_embeddings.weights.{i}",
        "layers.{i}.attn.pre_norm": f"{AT}.attention.layer_norm",
        "layers.{i}.attn.q": f"{AT}.attention.self_attention.query",
        "layers.{i}.attn.k": f"{AT}.attention.self_attention.key",
        "layers.{i}.attn.qk": f"{AT}.attention.self_attention.query_key",
        "layers.{i}.attn.v": f"{AT}.attention.self_attention.value",
        "layers.{i}.attn.o": f"{AT}.attention.output.dense",
        "layers.{i}.ffn.pre_norm": f"{AT}.feed_forward.layer_norm",
        "layers.{i}.ffn.up": f"{AT}.feed_forward.dense.dense",
        "layers.{i}.ffn.down": f"{AT}.feed_forward.output.dense",
        "norm": "encoder.layer_norm",
    },
    prefix="reformer",
)


@dataclass(frozen=True)
class Halved(Classify):
    """Labels of a row through a layer half as wide as the states."""

    def make(self, config: Any, width: int) -> HeadModule:
        module = super().make(config, width)
        module.dense, module.out = Linear(width, width // 2), Linear(width // 2, config.num_labels)
        return module


LM: dict[str, Any] = {
    "names": NameMap(
        {"out.weight": "lm_head.decoder.weight", "out.bias": "lm_head.bias"},
        aliases={"out.bias": ("lm_head.decoder.bias",)},
    ),
    "bias": True,
    "tied": False,
}

HEADS = {
    "ReformerModel": Backbone(output=ReformerModelOutput),
    "ReformerModelWithLMHead": CausalLM(
        **LM, output=ReformerModelWithLMHeadOutput, changes={"is_decoder": True}
    ),
    "ReformerForMaskedLM": MaskedLM(**LM),
    "ReformerForSequenceClassification": Halved(
        on="first", dense="tanh", dropout=("classifier_dropout", "hidden_dropout_prob"),
        names={"dense": "classifier.dense", "out": "classifier.out_proj"},
    ),
    "ReformerForQuestionAnswering": Span(names={"out": "qa_outputs"}),
}  # fmt: skip

family(
    "reformer", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=HashTextModel,
    public="Reformer", width=lambda c: 2 * c.hidden_size,
)  # fmt: skip
