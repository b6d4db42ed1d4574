"""Conditional DETR (Meng et al. 2021, arXiv:2108.06152): DETR whose queries look around a point of their own.

Public checkpoints: microsoft/conditional-detr-resnet-50 and every `model_type: conditional_detr`.
Differs from DETR in: content and places have projections of their own and stand side by side in the attention
to the image; boxes are offsets from a point of each query; focal loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from phyla.blocks import FFN, Context, Decoder, Heads, Layer, LayerNorm, Linear, StackOutput, residual
from phyla.blocks.cache import CrossCache
from phyla.blocks.deformable import moved
from phyla.blocks.places import PlacedAttention, waves
from phyla.blocks.spec import Spec, make
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import detr
from phyla.family import family
from phyla.heads import Backbone, Call, Head, HeadModule
from phyla.heads.boxes import FOCAL, SOFTMAX, Focal, detection_loss
from phyla.heads.detect import Steps
from phyla.outputs import (
    ConditionalDetrModelOutput,
    ConditionalDetrObjectDetectionOutput,
    ConditionalDetrSegmentationOutput,
    ModelOutput,
)
from phyla.skeletons.detection import DetectionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    use_timm_backbone: bool = True
    backbone_config: Any = None
    num_channels: int = 3
    num_queries: int = 300
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 256
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"
    backbone: str | None = "resnet50"
    use_pretrained_backbone: bool = True
    backbone_kwargs: dict | None = None
    dilation: bool | None = False
    class_cost: int | float = 2
    bbox_cost: int | float = 5
    giou_cost: int | float = 2
    mask_loss_coefficient: int | float = 1
    dice_loss_coefficient: int | float = 1
    bbox_loss_coefficient: int | float = 5
    giou_loss_coefficient: int | float = 2
    cls_loss_coefficient: int | float = 2
    focal_alpha: float = 0.25

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}

    def finish(self) -> None:
        detr.take_old_backbone(self, [1, 2, 3, 4])
        self.__dict__.setdefault("num_hidden_layers", self.encoder_layers)


class ContentAttention(PlacedAttention):
    """Attention in which places have projections of their own.

    To the stream they are added. To the image (`cross`) the waves of a query's point, ctx.memo["waves"],
    stand beside its content, and the places of the image beside theirs; `first`: they are added as well.
    """

    def __init__(
        self, width: int, heads: Heads, dropout: float = 0.0, cross: bool = False, first: bool = False
    ) -> None:
        scale = (heads.resolve(width)[2] * (2 if cross else 1)) ** -0.5
        super().__init__(width, heads, dropout=dropout, cross=cross, scale=scale)
        self.k_place = Linear(width, width)
        self.q_place: Any = Linear(width, width) if first or not cross else None
        self.q_waves: Any = Linear(width, width) if cross else None

    def _project_and_turn(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        places = ctx.memo["places"].expand_as(x)
        found = (self.q(x) + self.q_place(places), self.k(x) + self.k_place(places), self.v(x))
        q, k, v = (self._split(y, self.num_heads) for y in found)
        return q, k, v

    def _cross(self, x: Tensor, ctx: Context, cache: CrossCache | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, at = self.q(x), self.k(ctx.memory), self.k_place(ctx.memo["memory_places"])
        if self.q_place is not None:
            q, k = q + self.q_place(ctx.memo["places"]), k + at
        found = (q, self.q_waves(ctx.memo["waves"]), k, at.expand_as(k), self.v(ctx.memory))
        q, around, k, at, v = (self._split(y, self.num_heads) for y in found)
        return torch.cat((q, around), -1), torch.cat((k, at), -1), v


class PointDecoder(Decoder):
    """Layers that look around a point of each query, as far as their states say.

    keep: states are normed behind every layer and kept, as for auxiliary losses.
    """

    def __init__(
        self, width: int, layers: Sequence[Spec], norm: Spec, layer_drop: float = 0.0, keep: bool = False
    ) -> None:
        super().__init__(None, layers, norm, layer_drop=layer_drop)
        self.points, self.scale = make(Steps(width, 2, 2)), make(Steps(width, width, 2))
        self.width, self.keep = width, keep

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StackOutput:
        points = self.points(ctx.memo["places"]).sigmoid()  # (Q, 2)
        around = waves(points.flip(-1) * 2 * math.pi, self.width // 2).flatten(-2).to(x.dtype)
        states, kept = [x], []
        for index, layer in enumerate(self.layers):
            if self.training and self.layer_drop and torch.rand(()) < self.layer_drop:
                continue
            own = around.expand_as(x) if not index else around * self.scale(x)
            now = replace(ctx, layer=index, memo={**ctx.memo, "waves": own})
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, now, use_reentrant=False)
            else:
                x = layer(x, now)
            if self.keep:
                x = self.norm(x)
                kept.append(x)
            states.append(x)
        states[-1] = x = self.norm(x)
        ctx.memo["kept"] = torch.stack(kept) if self.keep else None
        # Published points have the queries first.
        ctx.memo["reference"] = points[:, None].expand(-1, len(x), -1)
        return StackOutput(
            x, hidden_states=tuple(states) if record_states else None,
            attentions=None if ctx.attentions is None else tuple(ctx.attentions),
            cross_attentions=None if ctx.cross_attentions is None else tuple(ctx.cross_attentions),
        )  # fmt: skip


def build(c: Config) -> Spec:
    heads, norm = Heads(c.decoder_attention_heads), LayerNorm(c.d_model)

    def layer(first: bool) -> Spec:
        attn = ContentAttention(c.d_model, heads, c.attention_dropout)
        ffn = FFN(c.d_model, c.decoder_ffn_dim, c.activation_function, dropout=c.activation_dropout)
        own = {"attn": attn, "cross": attn.but(cross=True, first=first), "ffn": ffn}
        return Layer(**{n: residual(m, post=norm, dropout=c.dropout) for n, m in own.items()})

    layers = [layer(not i) for i in range(c.decoder_layers)]
    return detr.build(c).but(
        decoder=PointDecoder(c.d_model, layers, norm, c.decoder_layerdrop, c.auxiliary_loss)
    )


PROJECTIONS = {"q": "qcontent", "k": "kcontent", "v": "v", "q_place": "qpos", "k_place": "kpos"}


def names(c: Config) -> NameMap:
    plain, at = detr.names(c), "decoder.layers.{i}"
    lines = {
        f"{at}.{ours}.{p}": f"{at}.{short}_{theirs}_proj"
        for ours, short in (("attn", "sa"), ("cross", "ca"))
        for p, theirs in (
            ("q", "qcontent"),
            ("k", "kcontent"),
            ("v", "v"),
            ("q_place", "qpos"),
            ("k_place", "kpos"),
        )
    }
    lines |= {
        f"{at}.cross.q_waves": f"{at}.ca_qpos_sine_proj",
        "decoder.points.layers.{i}": "decoder.ref_point_head.layers.{i}",
        "decoder.scale.layers.{i}": "decoder.query_scale.layers.{i}",
    }
    return plain.but(lines={**plain.lines, **lines})


class _Scores(HeadModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.labels, self.boxes = Linear(width, config.num_labels), make(Steps(width, 4))

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        points = out.reference_points.transpose(0, 1)

        def predicted(x: Tensor) -> tuple[Tensor, Tensor]:
            return self.labels(x), moved(points, self.boxes(x)).sigmoid()

        logits, boxes = predicted(out.last_hidden_state)
        fields: dict[str, Any] = {"logits": logits, "pred_boxes": boxes}
        if call.labels is not None:
            others = []
            if call.config.auxiliary_loss:
                others = [predicted(x) for x in out.intermediate_hidden_states[:-1]]
                fields["auxiliary_outputs"] = [{"logits": a, "pred_boxes": b} for a, b in others]
            fields["loss"], fields["loss_dict"] = detection_loss(
                logits, boxes, call.labels, call.config, others, FOCAL
            )
        return fields


@dataclass(frozen=True)
class Detect(Head):
    """Labels and boxes of objects."""

    task: ClassVar[str] = "object-detection"
    output: type[ModelOutput] = ConditionalDetrObjectDetectionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Scores(config, width)


class _Matched(Focal):
    """The focal loss, with pairs by shares of the labels, as published models for segments have it."""

    def cost(self, logits: Tensor, ids: Tensor, row: int) -> Tensor:
        return SOFTMAX.cost(logits, ids, row)


class _Segments(detr.SegmentScores):
    kind, nothing = _Matched(), 0


@dataclass(frozen=True)
class Segments(detr.Segments):
    """Labels, boxes and masks; the boxes are no offsets here, as published."""

    output: type[ModelOutput] = ConditionalDetrSegmentationOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Segments(config, width)


HEADS: dict[str, Head] = {
    "ConditionalDetrModel": Backbone(output=ConditionalDetrModelOutput),
    "ConditionalDetrForObjectDetection": Detect(names=detr.SCORES),
    "ConditionalDetrForSegmentation": Segments(
        prefix="conditional_detr.model", names=detr.segment_names("conditional_detr")
    ),
}

family(
    "conditional_detr", config=Config, build=build, names=names, heads=HEADS, skeleton=DetectionModel,
    public="ConditionalDetr", width=lambda c: c.d_model,
)  # fmt: skip
