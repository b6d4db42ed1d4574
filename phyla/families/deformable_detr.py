"""Deformable DETR (Zhu et al. 2020, arXiv:2010.04159): DETR that looks at a few points of maps of all sizes.

Public checkpoints: SenseTime/deformable-detr, SenseTime/deformable-detr-with-box-refine-two-stage and every
`model_type: deformable_detr`.
Differs from DETR in: several maps at once, deformable attention for attention to places, a point for each
query, which layers may move (with_box_refine) and the encoder may choose (two_stage), focal loss.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import FFN, Encoder, Heads, Layer, LayerNorm, Linear, repeat, residual
from phyla.blocks.deformable import DeformableAttention, LevelMaps, LevelProject, Levels, PointDecoder
from phyla.blocks.detector import DetectorOutput, Look
from phyla.blocks.places import PlacedAttention, waves
from phyla.blocks.spec import Spec, make
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families.detr import hold, maps, place_spec, take_old_backbone
from phyla.family import family
from phyla.heads import Backbone, Head, HeadModule
from phyla.heads.detect import LayerScores
from phyla.outputs import DeformableDetrModelOutput, DeformableDetrObjectDetectionOutput, ModelOutput
from phyla.skeletons.detection import DetectionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    use_timm_backbone: bool = True
    backbone_config: Any = None
    num_channels: int = 3
    num_queries: int = 300
    max_position_embeddings: int = 1024
    encoder_layers: int = 6
    encoder_ffn_dim: int = 1024
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 1024
    decoder_attention_heads: int = 8
    encoder_layerdrop: float = 0.0
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 256
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    return_intermediate: bool = True
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"
    backbone: str | None = "resnet50"
    use_pretrained_backbone: bool = True
    backbone_kwargs: dict | None = None
    dilation: bool | None = False
    num_feature_levels: int = 4
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    two_stage: bool = False
    two_stage_num_proposals: int = 300
    with_box_refine: bool = False
    class_cost: int | float = 1
    bbox_cost: int | float = 5
    giou_cost: int | float = 2
    mask_loss_coefficient: int | float = 1
    dice_loss_coefficient: int | float = 1
    bbox_loss_coefficient: int | float = 5
    giou_loss_coefficient: int | float = 2
    eos_coefficient: float = 0.1
    focal_alpha: float = 0.25
    disable_custom_kernels: bool = False

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}

    def finish(self) -> None:
        take_old_backbone(self, [2, 3, 4] if self.num_feature_levels > 1 else [4])
        if self.two_stage and not self.with_box_refine:
            raise ConfigError("two_stage needs with_box_refine, which is false (config of deformable_detr)")


class Detector(LevelMaps):
    """Maps of several sizes -> encoder of all their places -> decoder of queries with points."""

    def __init__(
        self, features: Spec, levels: Spec, width: int, count: int, queries: int | None, top: int,
        place: Spec, encoder: Spec, decoder: Spec, refine: bool, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(features, levels, place, width, count)
        hold(self.features)
        self.encoder, self.decoder, self.dropout_prob = make(encoder), make(decoder), dropout
        self.top, self.width, self.refine, self.two_stage = top, width, refine, queries is None
        if queries is None:
            self.propose, self.propose_norm = Linear(width, width), make(LayerNorm(width))
            self.ask, self.ask_norm = Linear(2 * width, 2 * width), make(LayerNorm(2 * width))
        else:
            self.queries = nn.Parameter(torch.empty(queries, 2 * width))
            self.points = Linear(width, 2)

    def choose(self, states: Tensor, levels: Levels, head: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Labels and boxes (as logits) of all places; vectors of queries and boxes of the best places."""
        if head is None:
            raise ConfigError("two_stage chooses queries by scores: use the class for object detection")
        boxes, used = levels.proposals()
        x = self.propose_norm(self.propose(states.masked_fill(~used[..., None], 0.0)))
        labels = head.labels[-1](x)
        boxes = head.boxes[-1](x) + boxes
        best = labels[..., 0].topk(self.top, 1).indices
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach().sigmoid()
        vectors = waves(chosen * 2 * math.pi, self.width // 2).flatten(2)
        return labels, boxes, self.ask_norm(self.ask(vectors.to(x.dtype))), chosen

    def forward(self, look: Look) -> DetectorOutput:
        x, at, levels = self.rows(look)
        encoded = look.encoder_output()
        if encoded is None:
            ctx = look.context(x, levels.mask, places=at, levels=levels, points=levels.points())
            start = F.dropout(x, self.dropout_prob, self.training)
            encoded = self.encoder.run(start, ctx, None, look.states)
        memory, extra = encoded.last_hidden_state, {}
        if self.two_stage:
            labels, boxes, vectors, points = self.choose(memory, levels, look.head)
            extra = {"enc_outputs_class": labels, "enc_outputs_coord_logits": boxes}
        else:
            vectors = self.queries.expand(len(x), -1, -1)
            points = self.points(vectors[..., : self.width]).sigmoid()
        places_of, queries = vectors.split(self.width, -1)
        ctx = look.context(queries, None, True, places=places_of, levels=levels, points=points)
        ctx.memory = memory
        if self.refine and look.head is not None:
            ctx.memo["refine"] = look.head.boxes
        decoded = self.decoder.run(queries, ctx, None, look.states)
        out = DetectorOutput.of(
            decoded, encoded, init_reference_points=points, intermediate_reference_points=ctx.memo["moved"],
            **extra,
        )  # fmt: skip
        out.intermediate_hidden_states = ctx.memo["kept"]
        return out


def build(c: Config) -> Detector:
    found, norm, count = maps(c), LayerNorm(c.d_model), c.num_feature_levels

    def layer(inner: int, **mixers: Spec) -> Spec:
        ffn = FFN(c.d_model, inner, c.activation_function, dropout=c.activation_dropout)
        mixers = {**mixers, "ffn": ffn}
        return Layer(**{n: residual(m, post=norm, dropout=c.dropout) for n, m in mixers.items()})

    def look(heads: int, points: int, own: bool) -> Spec:
        return DeformableAttention(c.d_model, heads, count, points, own)

    first = layer(c.encoder_ffn_dim, attn=look(c.encoder_attention_heads, c.encoder_n_points, True))
    second = layer(
        c.decoder_ffn_dim,
        attn=PlacedAttention(c.d_model, Heads(c.decoder_attention_heads), dropout=c.attention_dropout),
        cross=look(c.decoder_attention_heads, c.decoder_n_points, False),
    )
    return Detector(
        found.spec, LevelProject(found.channels, c.d_model, count), c.d_model, count,
        None if c.two_stage else c.num_queries, c.two_stage_num_proposals, place_spec(c, -0.5),
        Encoder(layers=repeat(c.encoder_layers, first)), PointDecoder(repeat(c.decoder_layers, second)),
        c.with_box_refine, c.dropout,
    )  # fmt: skip


def deformable_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of deformable attention."""
    pairs = {
        "offsets": "sampling_offsets",
        "weights": "attention_weights",
        "v": "value_proj",
        "o": "output_proj",
    }
    return {f"{ours}.{own}": f"{theirs}.{public}" for own, public in pairs.items()}


def layer_names(at: str, cross: bool) -> dict[str, str]:
    """Lines of a layer of the encoder or the decoder."""
    norms = {"attn": "self_attn_layer_norm", "cross": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
    found = {f"{at}.ffn.up": f"{at}.fc1", f"{at}.ffn.down": f"{at}.fc2"}
    found |= {f"{at}.{o}.post_norm": f"{at}.{t}" for o, t in norms.items() if cross or o != "cross"}
    if not cross:
        return found | deformable_names(f"{at}.attn", f"{at}.self_attn")
    found |= {f"{at}.attn.{p}": f"{at}.self_attn.{p}_proj" for p in "qkv"}
    found[f"{at}.attn.o"] = f"{at}.self_attn.out_proj"
    return found | deformable_names(f"{at}.cross", f"{at}.encoder_attn")


def names(c: Config) -> NameMap:
    lines = {
        "place.rows": "backbone.position_embedding.row_embeddings.weight",
        "place.columns": "backbone.position_embedding.column_embeddings.weight",
        "levels.convs.{i}.conv": "input_proj.{i}.0",
        "levels.convs.{i}.norm": "input_proj.{i}.1",
        "level_places": "level_embed",
        **layer_names("encoder.layers.{i}", False),
        **layer_names("decoder.layers.{i}", True),
    }
    if c.two_stage:
        lines |= {"propose": "enc_output", "propose_norm": "enc_output_norm", "ask": "pos_trans",
                  "ask_norm": "pos_trans_norm"}  # fmt: skip
    else:
        lines |= {"queries": "query_position_embeddings.weight", "points": "reference_points"}
    features = ("backbone.conv_encoder.model.", maps(c).names)
    # Without box refinement all layers share one pair of heads, of which old files hold a copy a layer.
    copies = () if c.with_box_refine else (r"(class|bbox)_embed\.[1-9]\d*\..*",)
    return NameMap(lines, prefix="model", parts={"features": features}, ignore=copies)


SCORES = NameMap(
    {"labels.{i}": "class_embed.{i}", "boxes.{i}.layers.{j}": "bbox_embed.{i}.layers.{j}"},
    aliases={
        "labels.{i}": ("model.decoder.class_embed.{i}",),
        "boxes.{i}.layers.{j}": ("model.decoder.bbox_embed.{i}.layers.{j}",),
    },
)


@dataclass(frozen=True)
class Detect(Head):
    """Labels and boxes of objects."""

    task: ClassVar[str] = "object-detection"
    output: type[ModelOutput] = DeformableDetrObjectDetectionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        count = config.decoder_layers + config.two_stage if config.with_box_refine else 1
        return LayerScores(config, width, count)


HEADS: dict[str, Head] = {
    "DeformableDetrModel": Backbone(output=DeformableDetrModelOutput),
    "DeformableDetrForObjectDetection": Detect(names=SCORES),
}

family(
    "deformable_detr", config=Config, build=build, names=names, heads=HEADS, skeleton=DetectionModel,
    public="DeformableDetr", width=lambda c: c.d_model,
)  # fmt: skip
