"""SegFormer (Xie et al. 2021, arXiv:2105.15203): a hierarchical encoder and a decoder of linear maps.

Public checkpoints: nvidia/segformer-b0-finetuned-ade-512-512, nvidia/mit-b0, all `model_type: segformer`.
Differs from Swin in: every place attends to a shrunken map of all places, patches overlap, a depthwise
convolution in the feed-forward tells places apart, no positions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    Attention, Block, Context, Heads, Layer, LayerNorm, Linear, Mixer, activation, make, residual,
)  # fmt: skip
from phyla.blocks.conv import BatchNorm, Conv2d, check_pixels
from phyla.blocks.residual import path_chances
from phyla.blocks.shapes import NewStream, Stream
from phyla.blocks.stages import Stage, Stages, StagesOutput
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families.vit import attention_names
from phyla.family import family
from phyla.heads import Backbone, Head, ImageClassify
from phyla.heads.dense import Segment, resized
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutput, SegFormerImageClassifierOutput
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    num_channels: int = 3
    num_encoder_blocks: int = 4
    depths: list = [2, 2, 2, 2]
    sr_ratios: list = [8, 4, 2, 1]
    hidden_sizes: list = [32, 64, 160, 256]
    patch_sizes: list = [7, 3, 3, 3]
    strides: list = [4, 2, 2, 2]
    num_attention_heads: list = [1, 2, 5, 8]
    mlp_ratios: list = [4, 4, 4, 4]
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    drop_path_rate: float = 0.1
    layer_norm_eps: float = 1e-6
    decoder_hidden_size: int = 256
    semantic_loss_ignore_index: int = 255
    reshape_last_stage: bool = True


def to_map(x: Tensor, ctx: Context) -> Tensor:
    """Tokens (B, Y * X, D) as a map (B, D, Y, X)."""
    return x.transpose(1, 2).unflatten(2, ctx.memo["grid"])


class Overlap(Block):
    """Patches that overlap: (B, C, Y, X), or (B, Y, X, C) where `last`, to a normed map (B, Y', X', D)."""

    def __init__(self, width: int, out: int, size: int, stride: int, last: bool = True) -> None:
        super().__init__()
        self.width, self.last = width, last
        self.conv = Conv2d(width, out, size, stride, size // 2)
        self.norm = make(LayerNorm(out))

    def forward(self, x: Tensor, hidden: Tensor | None = None, interpolate: bool = False) -> Tensor:
        if self.last:
            x = x.permute(0, 3, 1, 2)
        else:
            check_pixels(x, self.width)
        return self.norm(self.conv(x.to(self.conv.weight.dtype)).permute(0, 2, 3, 1))


class ShrunkAttention(Attention):
    """Attention to a map that a convolution has made `ratio` times smaller on each side (section 3.1)."""

    def __init__(self, width: int, heads: Heads, ratio: int, dropout: float = 0.0) -> None:
        super().__init__(width, heads, dropout=dropout)
        self.shrink = Conv2d(width, width, ratio, ratio) if ratio > 1 else None
        self.shrink_norm: Any = make(LayerNorm(width)) if ratio > 1 else None

    def _project_and_turn(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        if self.shrink is None:
            return self.project(x, x)
        small = self.shrink(to_map(x, ctx)).flatten(2).transpose(1, 2)
        return self.project(x, self.shrink_norm(small))


class MixFFN(Mixer):
    """down(act(conv(up(x)))) with a 3 x 3 depthwise convolution on the map (section 3.1)."""

    def __init__(self, width: int, inner: int, act: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.up, self.down = Linear(width, inner), Linear(inner, width)
        self.conv = Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.act, self.inner_dropout = activation(act), dropout

    def mix(self, x: Stream, ctx: Context) -> NewStream:
        y = self.act(self.conv(to_map(self.up(x), ctx)).flatten(2).transpose(1, 2))
        if self.training and self.inner_dropout:
            y = F.dropout(y, self.inner_dropout)
        return self.down(y)


class Maps(Stages):
    """Stages whose states are maps (B, D, Y, X), without the embedded image; `last_tokens`: but the last."""

    def __init__(self, embed: Any, layers: Any, last_tokens: bool = False, pool: Any = None) -> None:
        super().__init__(embed, layers)
        self.last_tokens = last_tokens

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StagesOutput:
        out = super().run(x, ctx, ids, True)
        assert out.reshaped_hidden_states is not None
        maps = out.reshaped_hidden_states[1:]
        out.reshaped_hidden_states = maps
        if not self.last_tokens:
            out.last_hidden_state = maps[-1]
        out.hidden_states = (*maps[:-1], out.last_hidden_state) if record_states else None
        return out


def build(c: Config) -> Maps:
    chances = iter(path_chances(c.drop_path_rate, sum(c.depths)))
    drop, stages, enters = c.hidden_dropout_prob, [], []
    for i in range(c.num_encoder_blocks):
        width = c.hidden_sizes[i]
        before = c.hidden_sizes[i - 1] if i else c.num_channels
        enters.append(Overlap(before, width, c.patch_sizes[i], c.strides[i], last=i > 0))
        norm = LayerNorm(width)
        attn = ShrunkAttention(
            width, Heads(c.num_attention_heads[i]), c.sr_ratios[i], c.attention_probs_dropout_prob
        )
        ffn = MixFFN(width, int(width * c.mlp_ratios[i]), c.hidden_act, drop)
        layers = [
            Layer(
                attn=residual(attn, pre=norm, dropout=drop, path_dropout=chance),
                ffn=residual(ffn, pre=norm, dropout=drop, path_dropout=chance),
            )
            for chance in (next(chances) for _ in range(c.depths[i]))
        ]
        stages.append(Stage(layers, enter=enters[i] if i else None, leave=norm, tokens=True))
    return Maps(embed=enters[0], layers=stages, last_tokens=not c.reshape_last_stage)


AT, THEIRS = "layers.{i}.layers.{j}", "encoder.block.{i}.{j}"
NAMES = NameMap(
    {
        "embed.conv": "encoder.patch_embeddings.0.proj",
        "embed.norm": "encoder.patch_embeddings.0.layer_norm",
        "layers.{i}.enter.conv": "encoder.patch_embeddings.{i}.proj",
        "layers.{i}.enter.norm": "encoder.patch_embeddings.{i}.layer_norm",
        "layers.{i}.leave": "encoder.layer_norm.{i}",
        f"{AT}.attn.pre_norm": f"{THEIRS}.layer_norm_1",
        **attention_names(f"{AT}.attn", f"{THEIRS}.attention.self"),
        f"{AT}.attn.shrink": f"{THEIRS}.attention.self.sr",
        f"{AT}.attn.shrink_norm": f"{THEIRS}.attention.self.layer_norm",
        f"{AT}.attn.o": f"{THEIRS}.attention.output.dense",
        f"{AT}.ffn.pre_norm": f"{THEIRS}.layer_norm_2",
        f"{AT}.ffn.up": f"{THEIRS}.mlp.dense1",
        f"{AT}.ffn.conv": f"{THEIRS}.mlp.dwconv.dwconv",
        f"{AT}.ffn.down": f"{THEIRS}.mlp.dense2",
    },
    prefix="segformer",
)


class AllMaps(Block):
    """The maps of all stages."""

    def forward(self, out: Any) -> tuple[Tensor, ...]:
        return out.reshaped_hidden_states


class LinearDecoder(Block):
    """Scores of labels from all maps, each through a linear map, at the size of the first (section 3.2)."""

    def __init__(self, widths: list[int], width: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.each = torch.nn.ModuleList(Linear(w, width) for w in widths)
        self.join = Conv2d(width * len(widths), width, 1, bias=False)
        self.norm = make(BatchNorm(width))
        self.dropout_prob = dropout
        self.out = Conv2d(width, labels, 1)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        size = maps[0].shape[2:]
        each = [
            resized(linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), size)
            for linear, x in zip(self.each, maps, strict=True)
        ]
        y = F.relu(self.norm(self.join(torch.cat(each[::-1], 1))))
        if self.training and self.dropout_prob:
            y = F.dropout(y, self.dropout_prob)
        return self.out(y)


class Decoder(PreTrainedModel):
    """Maps of all stages to scores: the public class of the decoder alone."""

    main_input_name = "encoder_hidden_states"

    def forward(self, encoder_hidden_states: tuple[Tensor, ...]) -> Tensor:
        """Scores (B, labels, Y, X) from maps (B, D, Y, X), or a last one of tokens (B, S, D) of a square."""
        maps = []
        for x in encoder_hidden_states:
            side = int(x.shape[1] ** 0.5)
            maps.append(x if x.dim() == 4 else x.transpose(1, 2).unflatten(2, (side, -1)))
        return self.backbone(tuple(maps))


@dataclass(frozen=True)
class DecoderAlone(Head):
    """A class that is the decoder and nothing else."""

    task: ClassVar[str] = "decoder"


def decoder(c: Config) -> LinearDecoder:
    """The decoder of segmentation."""
    return LinearDecoder(c.hidden_sizes, c.decoder_hidden_size, c.num_labels, c.classifier_dropout_prob)


DECODER = {
    "each.{i}": "linear_c.{i}.proj",
    "join": "linear_fuse",
    "norm": "batch_norm",
    "out": "classifier",
}

HEADS: dict[str, Head] = {
    "SegformerModel": Backbone(output=BaseModelOutput),
    "SegformerForImageClassification": ImageClassify(
        names={"out": "classifier"}, on="map", output=SegFormerImageClassifierOutput
    ),
    "SegformerForSemanticSegmentation": Segment(
        neck=lambda c: AllMaps(),
        main=decoder,
        binary=True,
        names={f"main.{ours}": f"decode_head.{theirs}" for ours, theirs in DECODER.items()},
    ),
    "SegformerDecodeHead": DecoderAlone(build=decoder, table=NameMap(DECODER), skeleton=Decoder),
}

family(
    "segformer", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=VisionModel,
    public="Segformer", width=lambda c: c.hidden_sizes[-1],
)  # fmt: skip
