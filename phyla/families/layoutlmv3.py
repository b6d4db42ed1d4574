"""LayoutLMv3 (Huang et al. 2022, arXiv:2204.08387): words, their boxes and the page's patches in one encoder.

Public checkpoints: microsoft/layoutlmv3-base, microsoft/layoutlmv3-large.
Differs from RoBERTa in: tables of the edges, heights and widths of boxes, patches behind the words, and
bucketed biases of the distances in the text and on the page, shared by all layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Block, BucketBias, Context, Encoder, Heads, Layer, LayerNorm, Learned, PatchEmbed, Spec,
    make, repeat, residual,
)  # fmt: skip
from phyla.blocks.embed import Tokens
from phyla.blocks.position import Position
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape, Transpose
from phyla.config import PretrainedConfig
from phyla.families.bert import attention_names
from phyla.family import family
from phyla.heads import Backbone, Classify, Head
from phyla.heads.page import PageSpan, WordClassify
from phyla.skeletons.page import PageModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    max_2d_position_embeddings: int = 1024
    coordinate_size: int = 128
    shape_size: int = 128
    has_relative_attention_bias: bool = True
    rel_pos_bins: int = 32
    max_rel_pos: int = 128
    rel_2d_pos_bins: int = 64
    max_rel_2d_pos: int = 256
    has_spatial_attention_bias: bool = True
    text_embed: bool = True
    visual_embed: bool = True
    input_size: int = 224
    num_channels: int = 3
    patch_size: int = 16
    classifier_dropout: float | None = None


class Words(Block):
    """Token ids (B, S) and boxes (B, S, 4) to the stream: word, kind, position and place on the page,
    normed.
    """

    def __init__(
        self, vocabulary: int, width: int, position: Spec, kinds: int, boxes: tuple[int, int, int],
        norm: Spec,
        dropout: float, padding: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        limit, edge, size = boxes
        self.tokens, self.segment = Tokens(vocabulary, width, padding), Tokens(kinds, width)
        self.position, self.norm, self.dropout_prob = make(position), make(norm), dropout
        self.x, self.y = Tokens(limit, edge), Tokens(limit, edge)
        self.height, self.width = Tokens(limit, size), Tokens(limit, size)

    def place(self, boxes: Tensor) -> Tensor:
        """(B, S, D) of left, upper, right, lower edge, height and width, side by side."""
        left, upper, right, lower = boxes.unbind(-1)
        height, width = (lower - upper).clamp(0, 1023), (right - left).clamp(0, 1023)
        edges = (self.x(left), self.y(upper), self.x(right), self.y(lower))
        return torch.cat((*edges, self.height(height), self.width(width)), -1)

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, boxes: Tensor, kinds: Tensor | None, ctx: Context
    ) -> Tensor:
        x = self.tokens(ids) if vectors is None else vectors
        x = x + (self.segment.weight[0] if kinds is None else self.segment(kinds))
        x = self.norm(x + self.position(self.position.index(ctx, ids)) + self.place(boxes))
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x


class PageBias(Position):
    """Takes the bias that the page owns and has put into the call."""

    def bias(self, q: Tensor, k: Tensor, first: int, scale: float, ctx: Context) -> Tensor | None:
        bias = ctx.memo.get("page-bias")
        return None if bias is None else bias.to(q.dtype) * scale


class Page(Block):
    """Words and patches in one encoder. near, across, down: biases of distances in the text and on the
    page.
    """

    def __init__(
        self, embed: Spec | None, patches: Spec | None, norm: Spec, dropout: float, stack: Spec,
        near: Spec | None, across: Spec | None, down: Spec | None, grid: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches: Any
        self.norm: Any
        self.embed, self.patches, self.stack = make(embed), make(patches), make(stack)
        self.norm = make(norm) if patches is not None else None
        self.near, self.across, self.down = make(near), make(across), make(down)
        self.dropout_prob, self.grid = dropout, grid
        self.register_buffer("boxes", torch.empty(grid * grid + 1, 4, dtype=torch.long), persistent=False)

    def fill_buffers(self) -> None:
        edges = torch.arange(self.grid + 1) * 1000 // self.grid
        low, high = (
            torch.meshgrid(edges[:-1], edges[:-1], indexing="ij"),
            torch.meshgrid(edges[1:], edges[1:], indexing="ij"),
        )
        grid = torch.stack((low[1], low[0], high[1], high[0]), -1).view(-1, 4)
        self.boxes.copy_(torch.cat((torch.tensor([[1, 1, 999, 999]]), grid)))

    def join(
        self, x: Tensor | None, boxes: Tensor | None, pixels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Words and patches (B, S + P, D), their boxes (B, S + P, 4) and places in their rows (S + P)."""
        parts, corners, places = [], [], []
        if x is not None and boxes is not None:
            parts, corners = [x], [boxes]
            places = [torch.arange(x.shape[1], device=x.device)]
        if pixels is not None:
            seen = self.patches(pixels, None, False)
            parts.append(seen)
            corners.append(self.boxes.to(seen.device).expand(len(seen), -1, -1))
            places.append(torch.arange(seen.shape[1], device=seen.device))
        y = torch.cat(parts, 1)
        if pixels is not None:
            y = self.norm(y)
            y = F.dropout(y, self.dropout_prob) if self.training and self.dropout_prob else y
        return y, torch.cat(corners, 1), torch.cat(places)

    def relate(self, ctx: Context, boxes: Tensor, places: Tensor) -> None:
        """Put the bias (B, H, S, S) of all pairs into the call."""
        if self.near is None:
            return  # biases of the page alone are in files, but public results do without them
        bias = _between(self.near, places[None])
        if self.across is not None:
            bias = bias + _between(self.across, boxes[..., 0]) + _between(self.down, boxes[..., 3])
        ctx.memo["page-bias"] = bias


def _between(table: Any, at: Tensor) -> Tensor:
    """Bias (B, H, S, S) of the distances between places `at` (B, S)."""
    distance = at[:, None, :] - at[:, :, None]
    return F.embedding(table.bucket(distance), table.weight).permute(0, 3, 1, 2)


def build(c: Config) -> Page:
    width, norm, drop = c.hidden_size, LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    attn = Attention(
        width, Heads(c.num_attention_heads), position=PageBias(), dropout=c.attention_probs_dropout_prob
    )
    ffn = FFN(width, c.intermediate_size, act=c.hidden_act)
    layer = Layer(attn=residual(attn, post=norm, dropout=drop), ffn=residual(ffn, post=norm, dropout=drop))
    position = Learned(c.max_position_embeddings, width, count="tokens", padding=c.pad_token_id)
    boxes = (c.max_2d_position_embeddings, c.coordinate_size, c.shape_size)
    words = Words(c.vocab_size, width, position, c.type_vocab_size, boxes, norm, drop, c.pad_token_id)
    size, patch = (c.input_size, c.input_size), (c.patch_size, c.patch_size)
    patches = PatchEmbed(size, patch, c.num_channels, width, norm=LayerNorm(width, eps=1e-6))
    near = BucketBias(c.rel_pos_bins, c.max_rel_pos, c.num_attention_heads, both_sides=True)
    far = BucketBias(c.rel_2d_pos_bins, c.max_rel_2d_pos, c.num_attention_heads, both_sides=True)
    spatial = far if c.has_spatial_attention_bias else None
    return Page(
        words if c.text_embed else None, patches if c.visual_embed else None, norm, drop,
        Encoder(layers=repeat(c.num_hidden_layers, layer)), near if c.has_relative_attention_bias else None,
        spatial, spatial, c.input_size // c.patch_size,
    )  # fmt: skip


def names(c: Config) -> NameMap:
    lines: dict[str, str | To] = {
        "embed.tokens": "embeddings.word_embeddings",
        "embed.segment": "embeddings.token_type_embeddings",
        "embed.position": "embeddings.position_embeddings",
        "embed.norm": "embeddings.LayerNorm",
        "embed.x": "embeddings.x_position_embeddings",
        "embed.y": "embeddings.y_position_embeddings",
        "embed.height": "embeddings.h_position_embeddings",
        "embed.width": "embeddings.w_position_embeddings",
        "patches.projection": "patch_embed.proj",
        "patches.class_token": To("cls_token", Reshape((1, 1, -1))),
        "patches.position": To("pos_embed", Reshape((1, -1, c.hidden_size))),
        "patches.norm": "norm",
        "norm": "LayerNorm",
        "near": To("encoder.rel_pos_bias", Transpose()),
        "across": To("encoder.rel_pos_x_bias", Transpose()),
        "down": To("encoder.rel_pos_y_bias", Transpose()),
        "stack.layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
        "stack.layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
        "stack.layers.{i}.ffn.post_norm": "encoder.layer.{i}.output.LayerNorm",
    }
    lines |= {f"stack.{ours}": theirs for ours, theirs in attention_names("attn", "attention").items()}
    return NameMap(lines, prefix="layoutlmv3", ignore=(r"(layoutlmv3\.)?embeddings\.position_ids",))


def label_names(c: Config) -> dict[str, str]:
    """Names of the token labels: one layer for few, two for many."""
    if c.num_labels < DEEP:
        return {"out": "classifier"}
    return {"dense": "classifier.dense", "out": "classifier.out_proj"}


DEEP = 10  # labels from which on the head has a layer more
DROPOUT = ("classifier_dropout", "hidden_dropout_prob")

HEADS: dict[str, Head] = {
    "LayoutLMv3Model": Backbone(),
    "LayoutLMv3ForSequenceClassification": Classify(
        on="first", dense="tanh", dropout=DROPOUT,
        names={"dense": "classifier.dense", "out": "classifier.out_proj"},
    ),
    "LayoutLMv3ForTokenClassification": WordClassify(names=label_names, dropout=DROPOUT, deep_from=DEEP),
    "LayoutLMv3ForQuestionAnswering": PageSpan(
        names={"dense": "qa_outputs.dense", "out": "qa_outputs.out_proj"}, dropout=DROPOUT
    ),
}  # fmt: skip

family(
    "layoutlmv3",
    config=Config,
    build=build,
    names=names,
    heads=HEADS,
    skeleton=PageModel,
    public="LayoutLMv3",
)
