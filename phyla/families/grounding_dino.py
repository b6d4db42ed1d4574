"""Grounding DINO (Liu et al. 2023, arXiv:2303.05499): finds what a text names.

Public checkpoints: IDEA-Research/grounding-dino-tiny, -base and every `model_type: grounding-dino`.
Differs from Deformable DETR in: a text beside the image, each attending to the other in every layer of the
encoder; queries chosen by their likeness to the text; labels are likenesses to its tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import FFN, Block, Context, Heads, Layer, LayerNorm, Linear, repeat, residual
from phyla.blocks.attention import attend
from phyla.blocks.conv import freeze
from phyla.blocks.deformable import DeformableAttention, LevelMaps, LevelProject, PointDecoder
from phyla.blocks.detector import DetectorOutput, Look
from phyla.blocks.places import PlacedAttention, PlaceTable, PlaceWaves, waves
from phyla.blocks.residual import LayerScale, drop_path
from phyla.blocks.spec import Spec, make
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families.deformable_detr import deformable_names
from phyla.families.detr import hold
from phyla.family import family, part
from phyla.heads import Backbone, Head
from phyla.heads.detect import BoxSteps, Steps
from phyla.heads.ground import Ground, ends_of, likeness
from phyla.outputs import GroundingDinoModelOutput
from phyla.skeletons.detection import GroundedDetectionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    backbone_config: Any = None
    backbone: str | None = None
    use_pretrained_backbone: bool = False
    use_timm_backbone: bool = False
    backbone_kwargs: dict | None = None
    text_config: Any = None
    num_queries: int = 900
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 256
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"
    num_feature_levels: int = 4
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    two_stage: bool = True
    class_cost: float = 1.0
    bbox_cost: float = 5.0
    giou_cost: float = 2.0
    bbox_loss_coefficient: float = 5.0
    giou_loss_coefficient: float = 2.0
    focal_alpha: float = 0.25
    disable_custom_kernels: bool = False
    max_text_len: int = 256
    text_enhancer_dropout: float = 0.0
    fusion_droppath: float = 0.1
    fusion_dropout: float = 0.0
    embedding_init_target: bool = True
    query_dim: int = 4
    decoder_bbox_embed_share: bool = True
    two_stage_bbox_embed_share: bool = False
    positional_embedding_temperature: int | float = 20
    init_std: float = 0.02
    layer_norm_eps: float = 1e-5

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    PARTS = {"text_config": "bert"}

    def finish(self) -> None:
        self.take_backbone({"model_type": "swin", "out_indices": [2, 3, 4]}, "swin")
        if self.two_stage_bbox_embed_share and not self.decoder_bbox_embed_share:
            raise ConfigError("two_stage_bbox_embed_share needs decoder_bbox_embed_share, which is false")

    def get_text_config(self, decoder: bool = False) -> PretrainedConfig:
        """The whole: the text part has its own rules for fresh weights alone."""
        return self


def phrases(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens see each other (B, S, S): those of one phrase; and each token's position in it (B, S)."""
    ends, length = ends_of(ids), ids.shape[1]
    place = torch.arange(length, device=ids.device).expand_as(ids)
    number = ends.long().cumsum(1) - ends.long()
    following = torch.where(ends, place, length).flip(1).cummin(1).values.flip(1)
    inside = (following > 0) & (following < length - 1) & (place > 0)
    before = F.pad(torch.where(ends, place, 0).cummax(1).values, (1, 0))[:, :-1]
    same = (number[:, :, None] == number[:, None]) & inside[:, :, None] & inside[:, None]
    alone = torch.eye(length, dtype=torch.bool, device=ids.device)
    return same | alone, torch.where(inside, place - before - 1, 0)


class BothWays(Block):
    """An image and a text that attend to each other by one set of scores (arXiv:2112.03857, section 3.2)."""

    def __init__(self, width: int, inner: int, heads: int, dropout: float, chance: float, norm: Spec) -> None:
        super().__init__()
        self.heads, self.scale = heads, (inner // heads) ** -0.5
        self.dropout_prob, self.path_dropout = dropout, chance
        self.image_norm, self.text_norm = make(norm), make(norm)
        self.q, self.k = Linear(width, inner), Linear(width, inner)
        self.image_v, self.text_v = Linear(width, inner), Linear(width, inner)
        self.image_o, self.text_o = Linear(inner, width), Linear(inner, width)
        self.image_gain, self.text_gain = make(LayerScale(width, 1e-4)), make(LayerScale(width, 1e-4))

    def _ask(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, look: Look
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = None if mask is None else mask[:, None, None]
        chance = self.dropout_prob if self.training else 0.0
        if not look.attentions and look.implementation != "eager":
            y, weights = attend(q, k, v, mask, None, False, self.scale, chance), None
        else:
            scores = q @ k.transpose(2, 3) * self.scale
            scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
            weights = scores.softmax(-1)
            y = F.dropout(weights, chance) @ v
            weights = weights.flatten(0, 1)  # published weights have one dimension for images and heads
        return y.transpose(1, 2).flatten(2), weights

    def forward(
        self, image: Tensor, text: Tensor, seen: Tensor | None, read: Tensor | None, look: Look
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
        image, text = self.image_norm(image), self.text_norm(text)
        q, k = self.q(image), self.k(text)
        to_image, first = self._ask(q, k, self.text_v(text), read, look)
        to_text, second = self._ask(k, q, self.image_v(image), seen, look)
        to_image, to_text = self.image_gain(self.image_o(to_image)), self.text_gain(self.text_o(to_text))
        if self.training and self.path_dropout:
            to_image, to_text = drop_path(to_image, self.path_dropout), drop_path(to_text, self.path_dropout)
        return image + to_image, text + to_text, (first, second)


class FusionEncoder(Block):
    """Layers in which image and text meet, then each goes through a layer of its own."""

    def __init__(self, fuse: Sequence[Spec], text: Sequence[Spec], image: Sequence[Spec]) -> None:
        super().__init__()
        self.fuse, self.text, self.image = make(list(fuse)), make(list(text)), make(list(image))

    def forward(
        self, x: Tensor, text: Tensor, image_ctx: Context, text_ctx: Context, read: Tensor | None, look: Look
    ) -> dict[str, Any]:
        images, texts, met = [x], [text], []
        for fuse, words, image in zip(self.fuse, self.text, self.image, strict=True):
            x, text, weights = fuse(x, text, image_ctx.memo["levels"].mask, read, look)
            text, x = words(text, text_ctx), image(x, image_ctx)
            images.append(x)
            texts.append(text)
            met.append(weights)
        found: dict[str, Any] = {
            "encoder_last_hidden_state_vision": x,
            "encoder_last_hidden_state_text": text,
        }
        if look.states:
            found |= {
                "encoder_vision_hidden_states": tuple(images),
                "encoder_text_hidden_states": tuple(texts),
            }
        if look.attentions:
            own = (tuple(text_ctx.attentions or ()), tuple(image_ctx.attentions or ()))
            found["encoder_attentions"] = (*zip(*met, strict=True), *own)
        return found


class TextAttention(PlacedAttention):
    """Cross-attention to the text, ctx.memo["text"], whose real tokens are ctx.memo["read"]."""

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        memo: dict[Any, Any] = {k: v for k, v in ctx.memo.items() if k == "places"}
        record = ctx.memo.get("text_attentions")
        own = replace(
            ctx, memory=ctx.memo["text"], memory_mask=ctx.memo["read"], memo=memo, cross_attentions=record
        )
        return super().mix(x, own)


class QueryPlaces(Block):
    """Vectors of queries from their boxes (B, Q, L, 4) in the first level: rows, columns, widths, heights."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.width = width
        self.steps = make(Steps(count // 2 * width, width, 2, width))

    def forward(self, points: Tensor) -> Tensor:
        x, y, *size = points[:, :, 0].unbind(-1)
        vectors = waves(torch.stack((y, x, *size), -1) * 2 * math.pi, self.width // 2).flatten(2)
        return self.steps(vectors.to(self.steps.layers[0].weight.dtype))


class Detector(LevelMaps):
    """Maps and a text -> encoder of both -> queries chosen by the text -> decoder."""

    def __init__(
        self, features: Spec, levels: Spec, place: Spec, width: int, count: int, text: Spec, text_width: int,
        encoder: Spec, decoder: Spec, queries: Spec, propose: Spec | None,
    ) -> None:  # fmt: skip
        super().__init__(features, levels, place, width, count)
        hold(self.features)
        self.width, self.text, self.text_project = width, make(text), Linear(text_width, width)
        self.encoder, self.decoder = make(encoder), make(decoder)
        self.queries, self.propose = make(queries), make(propose)

    def words(self, look: Look) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """States of the text's tokens (B, S, D), which of them see each other, positions, which are real."""
        ids, segments, mask = look.text["ids"], look.text["segments"], look.text["mask"]
        together, positions = phrases(look.text["whole"])
        length = ids.shape[1]
        together, positions = together[:, None, :length, :length], positions[:, :length]
        ctx = Context(
            positions, length, attention_mask=together, implementation=look.implementation, counted=False
        )
        x = self.text_project(self.text(ctx, ids, None, segments).last_hidden_state)
        return x, together, positions, None if mask is None else mask.bool()

    def forward(self, look: Look) -> DetectorOutput:
        words, together, positions, read = self.words(look)
        x, places, levels = self.rows(look)
        encoded = self._given(look)
        if encoded is None:
            image_ctx = look.context(x, places=places, levels=levels, points=levels.points())
            at = waves(positions.float() * 2 * math.pi, self.width).to(words.dtype)
            text_ctx = look.context(words, together, places=at)
            encoded = self.encoder(x, words, image_ctx, text_ctx, read, look)
        image, text = encoded["encoder_last_hidden_state_vision"], encoded["encoder_last_hidden_state_text"]
        if self.propose is None:
            states, points = self.queries(len(x))
            extra = {}
        else:
            states, points, extra = self.propose(image, text, words, read, levels, self.queries)
        ctx = look.context(states, None, True, levels=levels, points=points, text=text, read=read)
        ctx.memory, ctx.memo["text_attentions"] = image, [] if look.attentions else None
        if look.head is not None:
            ctx.memo["refine"] = [look.head.boxes[0]] * len(self.decoder.layers)
        decoded = self.decoder.run(states, ctx, None, look.states)
        attentions = None
        if look.attentions:
            attentions = (decoded.attentions, tuple(ctx.memo["text_attentions"]), decoded.cross_attentions)
        extra |= {"read": read, "init_reference_points": points, **encoded}
        out = DetectorOutput(decoded.last_hidden_state, decoded.hidden_states, attentions, extra=extra)
        out.intermediate_hidden_states = ctx.memo["kept"]
        out.encoder_attentions = encoded.get("encoder_attentions")
        out.extra["intermediate_reference_points"] = ctx.memo["moved"]
        return out

    def _given(self, look: Look) -> dict[str, Any] | None:
        given = look.encoded
        if given is None:
            return None
        names = ("last_hidden_state_vision", "last_hidden_state_text")
        pair = [getattr(given, n) for n in names] if hasattr(given, names[0]) else given[:2]
        return {f"encoder_{n}": state for n, state in zip(names, pair, strict=True)}


class Queries(Block):
    """What queries begin as: learned states, and learned boxes where nothing proposes any."""

    def __init__(self, count: int, width: int, states: bool, boxes: bool) -> None:
        super().__init__()
        self.count = count
        self.states: Any = nn.Parameter(torch.empty(count, width)) if states else None
        self.boxes: Any = nn.Parameter(torch.empty(count, 4)) if boxes else None

    def forward(self, rows: int) -> tuple[Tensor, Tensor]:
        return self.states.expand(rows, -1, -1), self.boxes.sigmoid().expand(rows, -1, -1)


class Proposals(Block):
    """Scores and boxes of all places, of which the best become queries."""

    def __init__(self, width: int, most: int, norm: Spec) -> None:
        super().__init__()
        self.most, self.project, self.norm = most, Linear(width, width), make(norm)
        self.boxes = make(BoxSteps(width, 4))

    def forward(
        self, image: Tensor, text: Tensor, words: Tensor, read: Tensor | None, levels: Any, queries: Any
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        start, used = levels.proposals()
        x = self.norm(self.project(image.masked_fill(~used[..., None], 0.0)))
        scores, boxes = likeness(x, text, read, self.most), self.boxes(x) + start
        best = scores.max(-1).values.topk(queries.count, 1).indices[..., None]
        points = boxes.gather(1, best.expand(-1, -1, 4)).detach().sigmoid()
        if queries.states is None:
            states = x.gather(1, best.expand(-1, -1, x.shape[-1])).detach()
        else:
            states = queries.states.expand(len(x), -1, -1)
        return (
            states,
            points,
            {
                "enc_outputs_class": scores,
                "enc_outputs_coord_logits": boxes,
                "encoder_logits": likeness(states, words, read, self.most),
                "encoder_pred_boxes": points,
            },
        )


def build(c: Config) -> Detector:
    found, text = part(c.backbone_config), part(c.text_config)
    width, count, norm = c.d_model, c.num_feature_levels, LayerNorm(c.d_model, eps=c.layer_norm_eps)
    half = c.encoder_attention_heads // 2

    def layer(drop: float, **mixers: Spec) -> Spec:
        return Layer(**{n: residual(m, post=norm, dropout=drop) for n, m in mixers.items()})

    def ffn(inner: int, drop: float) -> Spec:
        return FFN(width, inner, c.activation_function, dropout=drop)

    def look(heads: int, points: int, own: bool) -> Spec:
        return DeformableAttention(width, heads, count, points, own)

    inner = c.encoder_ffn_dim
    fuse = BothWays(width, inner // 2, half, c.fusion_dropout, c.fusion_droppath, norm)
    own = PlacedAttention(width, Heads(half), dropout=c.attention_dropout)
    words = layer(c.text_enhancer_dropout, attn=own, ffn=ffn(inner // 2, c.text_enhancer_dropout))
    image = layer(
        c.dropout, attn=look(c.encoder_attention_heads, c.encoder_n_points, True),
        ffn=ffn(inner, c.activation_dropout),
    )  # fmt: skip
    heads = Heads(c.decoder_attention_heads)
    each = layer(
        c.dropout, attn=PlacedAttention(width, heads, dropout=c.attention_dropout),
        text=TextAttention(width, heads, dropout=c.attention_dropout, cross=True),
        cross=look(c.decoder_attention_heads, c.decoder_n_points, False),
        ffn=ffn(c.decoder_ffn_dim, c.activation_dropout),
    )  # fmt: skip
    if c.position_embedding_type not in ("sine", "learned"):
        raise ConfigError(
            f'position_embedding_type must be "sine" or "learned", but is {c.position_embedding_type!r}'
        )
    sine = PlaceWaves(width, c.positional_embedding_temperature)
    tower = text.spec
    return Detector(
        freeze(found.features), LevelProject(found.channels, width, count),
        sine if c.position_embedding_type == "sine" else PlaceTable(width), width, count,
        tower.but(pool=None) if "pool" in tower.args else tower, text.width,
        FusionEncoder(*(repeat(c.encoder_layers, one) for one in (fuse, words, image))),
        PointDecoder(repeat(c.decoder_layers, each), norm, QueryPlaces(width, c.query_dim)),
        Queries(c.num_queries, width, c.embedding_init_target or not c.two_stage, not c.two_stage),
        Proposals(width, c.max_text_len, norm) if c.two_stage else None,
    )  # fmt: skip


def attention_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of attention as BERT spells it."""
    pairs = {"q": "query", "k": "key", "v": "value", "o": "out_proj"}
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in pairs.items()}


def names(c: Config) -> NameMap:
    e, d = "encoder.layers.{i}", "decoder.layers.{i}"
    fuse = {
        "image_norm": "layer_norm_vision", "text_norm": "layer_norm_text", "q": "attn.vision_proj",
        "k": "attn.text_proj", "image_v": "attn.values_vision_proj", "text_v": "attn.values_text_proj",
        "image_o": "attn.out_vision_proj", "text_o": "attn.out_text_proj",
        "image_gain.weight": "vision_param", "text_gain.weight": "text_param",
    }  # fmt: skip
    blocks = {
        "encoder.text.{i}": (
            f"{e}.text_enhancer_layer", {"attn": "layer_norm_before", "ffn": "layer_norm_after"},
        ),
        "encoder.image.{i}": (
            f"{e}.deformable_layer", {"attn": "self_attn_layer_norm", "ffn": "final_layer_norm"},
        ),
        d: (d, {"attn": "self_attn_layer_norm", "text": "encoder_attn_text_layer_norm",
                "cross": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}),
    }  # fmt: skip
    lines = {f"encoder.fuse.{{i}}.{a}": f"{e}.fusion_layer.{b}" for a, b in fuse.items()}
    for ours, (theirs, norms) in blocks.items():
        lines |= {f"{ours}.ffn.up": f"{theirs}.fc1", f"{ours}.ffn.down": f"{theirs}.fc2"}
        lines |= {f"{ours}.{a}.post_norm": f"{theirs}.{b}" for a, b in norms.items()}
    lines |= {
        **attention_names("encoder.text.{i}.attn", f"{e}.text_enhancer_layer.self_attn"),
        **deformable_names("encoder.image.{i}.attn", f"{e}.deformable_layer.self_attn"),
        **attention_names(f"{d}.attn", f"{d}.self_attn"),
        **attention_names(f"{d}.text", f"{d}.encoder_attn_text"),
        **deformable_names(f"{d}.cross", f"{d}.encoder_attn"),
        "place.rows": "backbone.position_embedding.row_embeddings.weight",
        "place.columns": "backbone.position_embedding.column_embeddings.weight",
        "levels.convs.{i}.conv": "input_proj_vision.{i}.0",
        "levels.convs.{i}.norm": "input_proj_vision.{i}.1",
        "level_places": "level_embed",
        "text_project": "text_projection",
        "queries.states": "query_position_embeddings.weight",
        "queries.boxes": "reference_points.weight",
        "propose.project": "enc_output",
        "propose.norm": "enc_output_norm",
        "propose.boxes.layers.{i}": "encoder_output_bbox_embed.layers.{i}",
        "decoder.norm": "decoder.layer_norm",
        "decoder.waves.steps.layers.{i}": "decoder.reference_points_head.layers.{i}",
    }
    parts = {
        "features": ("backbone.conv_encoder.model.", part(c.backbone_config).feature_names),
        "text": ("text_backbone.", part(c.text_config).bare),
    }
    copies = (r"(model\.decoder\.)?bbox_embed\.[1-9]\d*\..*",)
    return NameMap(lines, prefix="model", parts=parts, ignore=copies)


HEADS: dict[str, Head] = {
    "GroundingDinoModel": Backbone(output=GroundingDinoModelOutput),
    "GroundingDinoForObjectDetection": Ground(
        names=NameMap(
            {"boxes.{i}.layers.{j}": "bbox_embed.{i}.layers.{j}"},
            aliases={"boxes.{i}.layers.{j}": ("model.decoder.bbox_embed.{i}.layers.{j}",)},
        )
    ),
}

family(
    "grounding-dino", config=Config, build=build, names=names, heads=HEADS, skeleton=GroundedDetectionModel,
    public="GroundingDino", width=lambda c: c.d_model,
)  # fmt: skip
