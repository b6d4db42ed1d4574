"""Mask2Former (Cheng et al. 2021, arXiv:2112.01527): labels and masks of queries for all segmentation.

Public checkpoints: facebook/mask2former-swin-base-coco-panoptic and every `model_type: mask2former`.
Differs from DETR in: a decoder of pixels with deformable attention; queries attend to what their mask of the
layer before shows, to each map in turn, before they attend to each other; masks are pixels
times queries.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import FFN, Block, Encoder, Heads, Layer, LayerNorm, Linear, repeat, residual
from phyla.blocks.deformable import DeformableAttention
from phyla.blocks.detector import DetectorOutput, Look
from phyla.blocks.pixels import PixelDecoder, all_places
from phyla.blocks.places import PlacedAttention, PlaceWaves
from phyla.blocks.spec import Spec, make
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.family import family, part
from phyla.heads import Backbone, Head
from phyla.heads.detect import Steps
from phyla.heads.masks import MaskScores
from phyla.outputs import Mask2FormerModelOutput
from phyla.skeletons.masks import MaskQueryModel

LEVELS, POINTS = 3, 4


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    backbone_config: Any = None
    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_feedforward_dim: int = 1024
    activation_function: str = "relu"
    encoder_layers: int = 6
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dropout: float = 0.0
    dim_feedforward: int = 2048
    pre_norm: bool = False
    enforce_input_projection: bool = False
    common_stride: int = 4
    ignore_value: int = 255
    num_queries: int = 100
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    use_auxiliary_loss: bool = True
    feature_strides: list = [4, 8, 16, 32]
    output_auxiliary_logits: bool | None = None
    backbone: str | None = None
    use_pretrained_backbone: bool = False
    use_timm_backbone: bool = False
    backbone_kwargs: dict | None = None

    def finish(self) -> None:
        self.take_backbone(SWIN, "swin")
        self.__dict__.setdefault("num_hidden_layers", self.decoder_layers)

    @classmethod
    def from_backbone_config(cls, backbone_config: PretrainedConfig, **keys: Any) -> "Config":
        """A configuration around that of a backbone."""
        return cls(backbone_config=backbone_config, **keys)


SWIN = {
    "model_type": "swin",
    "depths": [2, 2, 18, 2],
    "drop_path_rate": 0.3,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


class MaskDecoder(Block):
    """Queries that attend to each map in turn where their own mask is, and their masks of all layers."""

    def __init__(
        self, width: int, inner: int, out: int, queries: int, layers: Sequence[Spec], project: bool,
        layer_drop: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.states = nn.Parameter(torch.empty(queries, width))
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.level_places = nn.Parameter(torch.empty(LEVELS, width))
        self.projects = nn.ModuleList(Linear(inner, width) for _ in range(LEVELS if project else 0))
        self.place, self.layers = make(PlaceWaves(width)), make(list(layers))
        self.norm, self.masks = make(LayerNorm(width)), make(Steps(width, out))
        self.layer_drop = layer_drop

    def mask(self, x: Tensor, pixels: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scores of masks (B, Q, Y, X), and where on a map of `size` queries may look, (B, 1, Q, K)."""
        scores = torch.einsum("bqd,bdyx->bqyx", self.masks(x), pixels)
        small = F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)
        seen = small.detach().flatten(2).sigmoid() >= 0.5
        return scores, (seen | ~seen.any(-1, keepdim=True))[:, None]

    def forward(self, pixels: Tensor, maps: Sequence[Tensor], look: Look) -> dict[str, Any]:
        places = [all_places(self.place, m) for m in maps]
        flat = [m.flatten(2).transpose(1, 2) for m in maps]
        flat = [p(m) for p, m in zip(self.projects, flat, strict=True)] if self.projects else flat
        flat = [m + level for m, level in zip(flat, self.level_places, strict=True)]
        x = self.states.expand(len(pixels), -1, -1)
        ctx = look.context(x, None, True, places=self.queries)
        states, kept = [x], [self.norm(x)]
        scores, seen = self.mask(kept[0], pixels, maps[0].shape[-2:])
        masks = [scores]
        for index, layer in enumerate(self.layers):
            # Published losses, given a seed, come behind one draw a layer.
            if (
                (self.training or look.labels is not None)
                and torch.rand(()) < self.layer_drop
                and self.training
            ):
                continue
            at = index % LEVELS
            ctx.memory, ctx.memory_mask, ctx.memo["memory_places"] = flat[at], seen, places[at]
            x = layer(x, ctx)
            states.append(x)
            kept.append(self.norm(x))
            scores, seen = self.mask(kept[-1], pixels, maps[(index + 1) % LEVELS].shape[-2:])
            masks.append(scores)
        return {"x": x, "states": states, "kept": kept, "masks": tuple(masks), "attentions": ctx.attentions}


class Segmenter(Block):
    """A network of maps, a decoder of pixels, a decoder of queries."""

    def __init__(self, features: Spec, pixels: Spec, decoder: Spec) -> None:
        super().__init__()
        self.features, self.pixels, self.decoder = make(features), make(pixels), make(decoder)

    def forward(self, look: Look) -> DetectorOutput:
        maps = self.features(look.pixels, look.implementation).feature_maps
        pixels, coarse = self.pixels(maps, look)
        found = self.decoder(pixels, coarse, look)
        extra = {
            "pixel_decoder_last_hidden_state": pixels,
            "transformer_decoder_last_hidden_state": found["x"],
            "masks_queries_logits": found["masks"],
            "kept": found["kept"],
            "attentions": None if found["attentions"] is None else tuple(found["attentions"]),
        }
        if look.states:
            extra["pixel_decoder_hidden_states"] = tuple(coarse)
            # Published states of the queries have the queries first, (Q, B, D).
            extra["transformer_decoder_hidden_states"] = tuple(s.transpose(0, 1) for s in found["states"])
            extra["transformer_decoder_intermediate_states"] = tuple(s.transpose(0, 1) for s in found["kept"])
        out = DetectorOutput(found["x"], encoder_last_hidden_state=maps[-1], extra=extra)
        out.encoder_hidden_states = maps if look.states else None
        return out


def build(c: Config) -> Segmenter:
    found, width, norm = part(c.backbone_config), c.hidden_dim, LayerNorm(c.feature_size)
    attn = DeformableAttention(c.feature_size, c.num_attention_heads, LEVELS, POINTS, own=True)
    ffn = FFN(c.feature_size, c.encoder_feedforward_dim, "relu", dropout=c.dropout)
    pair = {"attn": attn, "ffn": ffn}
    layer = Layer(**{n: residual(m, post=norm, dropout=c.dropout) for n, m in pair.items()})
    finer = int(math.log2(min(c.feature_strides[-LEVELS:])) - math.log2(c.common_stride))
    pixels = PixelDecoder(
        found.channels, c.feature_size, c.mask_feature_size, Encoder(layers=repeat(c.encoder_layers, layer)),
        finer, LEVELS,
    )  # fmt: skip
    look = PlacedAttention(width, Heads(c.num_attention_heads), dropout=c.dropout)
    inner = FFN(width, c.dim_feedforward, c.activation_function, dropout=c.dropout)
    place = LayerNorm(width)
    pre, post = (place, None) if c.pre_norm else (None, place)
    steps = {"cross": look.but(cross=True), "attn": look, "ffn": inner}
    each = Layer(**{n: residual(m, pre, post, dropout=c.dropout) for n, m in steps.items()})
    decoder = MaskDecoder(
        width, c.feature_size, c.mask_feature_size, c.num_queries, repeat(c.decoder_layers - 1, each),
        c.feature_size != width or c.enforce_input_projection, c.dropout,
    )  # fmt: skip
    return Segmenter(found.features, pixels, decoder)


def names(c: Config) -> NameMap:
    found = part(c.backbone_config)
    p, norm = "pixel_level_module.decoder", "pre_norm" if c.pre_norm else "post_norm"
    ours, theirs = "pixels.encoder.layers.{i}", f"{p}.encoder.layers.{{i}}"
    at, to = "decoder.layers.{i}", "transformer_module.decoder.layers.{i}"
    lines: dict[str, Any] = {
        "pixels.projects.{i}.conv": f"{p}.input_projections.{{i}}.0",
        "pixels.projects.{i}.norm": f"{p}.input_projections.{{i}}.1",
        "pixels.level_places": f"{p}.level_embed",
        "pixels.out": f"{p}.mask_projection",
        f"{ours}.attn.offsets": f"{theirs}.self_attn.sampling_offsets",
        f"{ours}.attn.weights": f"{theirs}.self_attn.attention_weights",
        f"{ours}.attn.v": f"{theirs}.self_attn.value_proj",
        f"{ours}.attn.o": f"{theirs}.self_attn.output_proj",
        f"{ours}.attn.post_norm": f"{theirs}.self_attn_layer_norm",
        "decoder.states": "transformer_module.queries_features.weight",
        "decoder.queries": "transformer_module.queries_embedder.weight",
        "decoder.level_places": "transformer_module.level_embed.weight",
        "decoder.projects.{i}.weight": To(
            "transformer_module.input_projections.{i}.weight", Reshape((c.hidden_dim, c.feature_size, 1, 1))
        ),
        "decoder.projects.{i}.bias": "transformer_module.input_projections.{i}.bias",
        "decoder.norm": "transformer_module.decoder.layernorm",
        "decoder.masks.layers.{i}": "transformer_module.decoder.mask_predictor.mask_embedder.{i}.0",
        f"{at}.cross.q|k|v": split(f"{to}.cross_attn.in_proj", joint="_"),
        f"{at}.cross.o": f"{to}.cross_attn.out_proj",
        f"{at}.cross.{norm}": f"{to}.cross_attn_layer_norm",
        f"{at}.attn.o": f"{to}.self_attn.out_proj",
        f"{at}.attn.{norm}": f"{to}.self_attn_layer_norm",
        **{f"{at}.attn.{x}": f"{to}.self_attn.{x}_proj" for x in "qkv"},
    }
    for a, b, n in ((ours, theirs, "post_norm"), (at, to, norm)):
        lines |= {
            f"{a}.ffn.up": f"{b}.fc1",
            f"{a}.ffn.down": f"{b}.fc2",
            f"{a}.ffn.{n}": f"{b}.final_layer_norm",
        }
    for i in range(len(c.feature_strides)):
        for a, b in (("sides", "adapter"), ("smooths", "layer")):
            lines |= {
                f"pixels.{a}.{i}.conv": f"{p}.{b}_{i + 1}.0",
                f"pixels.{a}.{i}.norm": f"{p}.{b}_{i + 1}.1",
            }
    features = ("pixel_level_module.encoder.", found.feature_names)
    return NameMap(lines, prefix="model", parts={"features": features})


HEADS: dict[str, Head] = {
    "Mask2FormerModel": Backbone(output=Mask2FormerModelOutput),
    "Mask2FormerForUniversalSegmentation": MaskScores(
        names={"labels": "class_predictor", "classes.weight": "criterion.empty_weight"}
    ),
}

family(
    "mask2former", config=Config, build=build, names=names, heads=HEADS, skeleton=MaskQueryModel,
    public="Mask2Former", width=lambda c: c.hidden_dim,
)  # fmt: skip
