"""DETR (Carion et al. 2020, arXiv:2005.12872): objects as a set, from queries that ask an encoded image.

Public checkpoints: facebook/detr-resnet-50, facebook/detr-resnet-50-panoptic and every `model_type: detr`.
Differs from an encoder-decoder of texts in: maps of a convolutional backbone with waves for places in front,
which join queries and keys in every layer; learned queries; masks from the encoder's attention maps.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import FFN, Block, Encoder, Heads, Layer, LayerNorm, Linear, repeat, residual
from phyla.blocks.conv import Conv2d, Stem, freeze
from phyla.blocks.detector import DetectorOutput, Look, QueryDecoder, shrunk
from phyla.blocks.places import PlacedAttention, PlaceTable, PlaceWaves
from phyla.blocks.spec import Spec, make
from phyla.blocks.stack import Decoder
from phyla.blocks.wave import GroupNorm
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families._old_resnet import OldResNet
from phyla.family import family, part
from phyla.heads import Backbone, Head, HeadModule
from phyla.heads.detect import Detect, ObjectScores
from phyla.outputs import DetrModelOutput, DetrSegmentationOutput, ModelOutput
from phyla.skeletons.detection import DetectionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    use_timm_backbone: bool = True
    backbone_config: Any = None
    num_channels: int = 3
    num_queries: int = 100
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
    class_cost: int | float = 1
    bbox_cost: int | float = 5
    giou_cost: int | float = 2
    mask_loss_coefficient: int | float = 1
    dice_loss_coefficient: int | float = 1
    bbox_loss_coefficient: int | float = 5
    giou_loss_coefficient: int | float = 2
    eos_coefficient: float = 0.1

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}

    def finish(self) -> None:
        take_old_backbone(self, [1, 2, 3, 4])
        self.__dict__.setdefault("num_hidden_layers", self.encoder_layers)

    @classmethod
    def from_backbone_config(cls, backbone_config: PretrainedConfig, **keys: Any) -> "Config":
        """A configuration around that of a backbone."""
        keys = {"use_timm_backbone": False, "backbone": None, **keys}
        return cls(backbone_config=backbone_config, **keys)


def take_old_backbone(c: Any, out_indices: list[int]) -> None:
    """Make `backbone_config` a configuration, or check the old keys that name a ResNet."""
    if c.use_timm_backbone:
        if c.backbone_config is not None:
            raise ConfigError(
                "backbone_config stands alone, but use_timm_backbone is true "
                f"(config of {c.model_type}); set it to false and backbone to null"
            )
        if c.backbone_kwargs is None:
            c.backbone_kwargs = {"out_indices": out_indices, "in_chans": c.num_channels}
            if c.dilation:
                c.backbone_kwargs = {"output_stride": 16, **c.backbone_kwargs}
        elif "out_indices" not in c.backbone_kwargs:
            c.backbone_kwargs = {"out_indices": out_indices, **c.backbone_kwargs}
        return
    if c.backbone == "resnet50":
        c.backbone = None
    default = {"model_type": "resnet", "out_features": ["stage4"]}
    c.take_backbone(default, "resnet")


@dataclass(frozen=True)
class Maps:
    """The network of feature maps in front of a detector: description, public names, channels of its maps."""

    spec: Spec
    names: NameMap
    channels: list[int]


def maps(c: Any) -> Maps:
    """The backbone that the configuration describes, all its batch norms frozen."""
    if not c.use_timm_backbone:
        found = part(c.backbone_config)
        return Maps(freeze(found.features), found.feature_names, found.channels)
    options = c.backbone_kwargs
    known = {"out_indices", "in_chans", "output_stride"}
    if set(options) - known:
        raise ConfigError(
            f"backbone_kwargs may hold {sorted(known)}, but hold {sorted(set(options) - known)} too "
            f"(config of {c.model_type})"
        )
    # A file may have the stretched last stage (DC5) in either key.
    stride = options.get("output_stride", 16 if c.dilation else 32)
    old = OldResNet(c.backbone, options["out_indices"], options.get("in_chans", c.num_channels), stride)
    return Maps(old.spec, old.names, old.widths)


def hold(features: Any) -> Any:
    """The network with the stem and the first stage of a ResNet kept as they were pretrained (A.4)."""
    if isinstance(features.body.embed, Stem):
        for block in (features.body.embed, features.body.layers[0]):
            block.requires_grad_(False)
    return features


def place_spec(c: Any, shift: float = 0.0) -> Spec:
    """What tells places of a map apart."""
    if c.position_embedding_type not in ("sine", "learned"):
        raise ConfigError(
            f'position_embedding_type must be "sine" or "learned", but is {c.position_embedding_type!r}'
        )
    return (
        PlaceWaves(c.d_model, shift=shift) if c.position_embedding_type == "sine" else PlaceTable(c.d_model)
    )


class Detector(Block):
    """Maps of an image -> encoder -> decoder of queries."""

    def __init__(
        self, features: Spec, channels: int, width: int, queries: int, place: Spec, encoder: Spec,
        decoder: Spec, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.features, self.place = hold(make(features)), make(place)
        self.project = Conv2d(channels, width, 1)
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.encoder, self.decoder, self.dropout_prob = make(encoder), make(decoder), dropout

    def forward(self, look: Look) -> DetectorOutput:
        pixels = look.pixels.to(self.project.weight.dtype)
        maps = self.features(pixels, look.implementation).feature_maps
        x, mask = self.project(maps[-1]), None
        real = shrunk(look.real(), x.shape[-2:])
        places = self.place(x, real).flatten(2).transpose(1, 2)  # (B, Y * X, D)
        h = x.flatten(2).transpose(1, 2)
        mask = None if look.mask is None else real.flatten(1)
        encoded = look.encoder_output()
        if encoded is None:
            start = F.dropout(h, self.dropout_prob, self.training)
            encoded = self.encoder.run(start, look.context(h, mask, places=places), None, look.states)
        queries = torch.zeros((len(x), *self.queries.shape), dtype=h.dtype, device=h.device)
        ctx = look.context(queries, None, True, places=self.queries, memory_places=places)
        ctx.memory, ctx.memory_mask = encoded.last_hidden_state, mask
        decoded = self.decoder.run(queries, ctx, None, look.states)
        out = DetectorOutput.of(decoded, encoded, maps=maps, projected=x, real=real)
        out.intermediate_hidden_states = ctx.memo.get("kept")
        out.extra["reference_points"] = ctx.memo.get("reference")
        return out


def build(c: Any, before: bool = False) -> Detector:
    """DETR; before: norms stand before the mixers, and one behind the encoder."""
    found = maps(c)
    norm = LayerNorm(c.d_model)
    pre, post = (norm, None) if before else (None, norm)

    def branches(heads: int, inner: int) -> dict[str, Spec]:
        attn = PlacedAttention(c.d_model, Heads(heads), dropout=c.attention_dropout)
        ffn = FFN(c.d_model, inner, c.activation_function, dropout=c.activation_dropout)
        own = {"attn": attn, "cross": attn.but(cross=True), "ffn": ffn}
        return {name: residual(mixer, pre, post, dropout=c.dropout) for name, mixer in own.items()}

    first = branches(c.encoder_attention_heads, c.encoder_ffn_dim)
    del first["cross"]
    second = repeat(c.decoder_layers, Layer(**branches(c.decoder_attention_heads, c.decoder_ffn_dim)))
    return Detector(
        found.spec, found.channels[-1], c.d_model, c.num_queries, place_spec(c),
        Encoder(
            layers=repeat(c.encoder_layers, Layer(**first)), norm=norm if before else None, record="raw",
            layer_drop=c.encoder_layerdrop,
        ),
        QueryDecoder(second, norm, c.decoder_layerdrop) if c.auxiliary_loss
        else Decoder(layers=second, norm=norm, layer_drop=c.decoder_layerdrop),
        c.dropout,
    )  # fmt: skip


def layer_names(ours: str, theirs: str, cross: bool, norm: str = "post_norm") -> dict[str, str]:
    """Lines of a layer of the encoder or the decoder."""
    found = {f"{ours}.ffn.up": f"{theirs}.fc1", f"{ours}.ffn.down": f"{theirs}.fc2",
             f"{ours}.ffn.{norm}": f"{theirs}.final_layer_norm"}  # fmt: skip
    for name, public in {"attn": "self_attn", **({"cross": "encoder_attn"} if cross else {})}.items():
        found |= {f"{ours}.{name}.{p}": f"{theirs}.{public}.{p}_proj" for p in "qkv"}
        found[f"{ours}.{name}.o"] = f"{theirs}.{public}.out_proj"
        found[f"{ours}.{name}.{norm}"] = f"{theirs}.{public}_layer_norm"
    return found


def names(c: Any, before: bool = False) -> NameMap:
    """DETR's names; before: as in `build`."""
    norm = "pre_norm" if before else "post_norm"
    return NameMap(
        {
            "place.rows": "backbone.position_embedding.row_embeddings.weight",
            "place.columns": "backbone.position_embedding.column_embeddings.weight",
            "project": "input_projection",
            "queries": "query_position_embeddings.weight",
            **layer_names("encoder.layers.{i}", "encoder.layers.{i}", False, norm),
            **layer_names("decoder.layers.{i}", "decoder.layers.{i}", True, norm),
            "encoder.norm": "encoder.layernorm",
            "decoder.norm": "decoder.layernorm",
        },
        prefix="model",
        parts={"features": ("backbone.conv_encoder.model.", maps(c).names)},
    )


class AttentionMaps(Block):
    """Weights (B, Q, H, Y, X) with which queries (B, Q, D) attend to a map (B, D, Y, X)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width / heads) ** -0.5
        self.q, self.k = Linear(width, width), Linear(width, width)

    def forward(self, queries: Tensor, memory: Tensor, real: Tensor) -> Tensor:
        y, x = memory.shape[-2:]
        q = self.q(queries).unflatten(-1, (self.heads, -1)) * self.scale
        k = self.k(memory.flatten(2).transpose(1, 2)).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("bqhe,bkhe->bqhk", q, k)
        scores = scores.masked_fill(~real.flatten(1)[:, None, None], torch.finfo(scores.dtype).min)
        # One softmax over heads and places together, as the published code has it.
        return scores.flatten(2).softmax(-1).unflatten(-1, (self.heads, y, x))


class MaskScores(Block):
    """Scores of masks from attention maps, joined step by step by larger maps of the image."""

    def __init__(self, width: int, inner: int, maps: list[int]) -> None:
        super().__init__()
        widths = [width, inner // 2, inner // 4, inner // 8, inner // 16]
        pairs = zip([width, *widths[:-1]], widths, strict=True)
        self.convs = nn.ModuleList(Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.norms = make([GroupNorm(8 if not i else min(8, w), w) for i, w in enumerate(widths)])
        self.sides = nn.ModuleList(Conv2d(a, b, 1) for a, b in zip(maps, widths[1:4], strict=True))
        self.out = Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor, weights: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        b, queries = weights.shape[:2]
        x = x[:, None].expand(-1, queries, -1, -1, -1)
        y = torch.cat((x, weights), 2).flatten(0, 1)  # (B * Q, D + H, Y, X)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = F.relu(norm(conv(y)))
            if 0 < i < 4:
                side = self.sides[i - 1](maps[i - 1])
                y = F.interpolate(y, size=side.shape[-2:]).unflatten(0, (b, queries)) + side[:, None]
                y = y.flatten(0, 1)
        return self.out(y)[:, 0].unflatten(0, (b, queries))


class SegmentScores(ObjectScores):
    """Labels, boxes and masks of queries."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config, width)
        heads = config.encoder_attention_heads
        if (width + heads) % 8:
            raise ConfigError(
                f"d_model + encoder_attention_heads must be a multiple of 8, but is {width + heads}"
            )
        self.attention = make(AttentionMaps(width, heads))
        self.scores = make(MaskScores(width + heads, width, maps(config).channels[::-1][-3:]))

    def masks(self, out: Any) -> Tensor:
        memory = out.encoder_last_hidden_state.transpose(1, 2).unflatten(2, out.projected.shape[-2:])
        weights = self.attention(out.last_hidden_state, memory, out.real)
        return self.scores(out.projected, weights, out.maps[2::-1])


@dataclass(frozen=True)
class Segments(Detect):
    """Labels, boxes and masks of things and stuff."""

    task: ClassVar[str] = "image-segmentation"
    output: type[ModelOutput] = DetrSegmentationOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return SegmentScores(config, width)


SCORES = {"labels": "class_labels_classifier", "boxes.layers.{i}": "bbox_predictor.layers.{i}"}


def segment_names(ahead: str) -> dict[str, str]:
    """Lines of the head for segments, whose files hold a detector as `ahead`."""
    return {
        **{ours: f"{ahead}.{theirs}" for ours, theirs in SCORES.items()},
        "attention.q": "bbox_attention.q_linear",
        "attention.k": "bbox_attention.k_linear",
        **{f"scores.convs.{i}": f"mask_head.lay{i + 1}" for i in range(5)},
        **{f"scores.norms.{i}": f"mask_head.gn{i + 1}" for i in range(5)},
        **{f"scores.sides.{i}": f"mask_head.adapter{i + 1}" for i in range(3)},
        "scores.out": "mask_head.out_lay",
    }


HEADS: dict[str, Head] = {
    "DetrModel": Backbone(output=DetrModelOutput),
    "DetrForObjectDetection": Detect(names=SCORES),
    "DetrForSegmentation": Segments(prefix="detr.model", names=segment_names("detr")),
}

family(
    "detr", config=Config, build=build, names=names, heads=HEADS, skeleton=DetectionModel, public="Detr",
    width=lambda c: c.d_model,
)  # fmt: skip
