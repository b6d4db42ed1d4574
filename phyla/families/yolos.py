"""YOLOS (Fang et al. 2021, arXiv:2106.00666): objects from a plain ViT with a vector for each.

Public checkpoints: hustvl/yolos-tiny, hustvl/yolos-base and every `model_type: yolos`.
Differs from ViT in: detection vectors behind the patches, positions again between the layers, images of any
size; the loss is that of DETR.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Context, Encoder, LayerNorm, PatchEmbed, Pool, StackOutput, make
from phyla.blocks.spec import Spec
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.families import vit
from phyla.family import family
from phyla.heads import Backbone, Call, Head, HeadModule
from phyla.heads.boxes import detection_loss
from phyla.heads.detect import Steps
from phyla.outputs import BaseModelOutputWithPooling, ModelOutput, YolosObjectDetectionOutput
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list = [512, 864]
    patch_size: int | list = 16
    num_channels: int = 3
    qkv_bias: bool = True
    num_detection_tokens: int = 100
    use_mid_position_embeddings: bool = True
    auxiliary_loss: bool = False
    class_cost: int | float = 1
    bbox_cost: int | float = 5
    giou_cost: int | float = 2
    bbox_loss_coefficient: int | float = 5
    giou_loss_coefficient: int | float = 2
    eos_coefficient: float = 0.1


def resampled(table: Tensor, old: tuple[int, int], new: tuple[int, int], behind: int) -> Tensor:
    """Positions (..., 1 + P + behind, D) of a grid of P patches for another grid, bicubically."""
    if old == new:
        return table
    first, patches, last = table.split([1, table.shape[-2] - 1 - behind, behind], -2)
    maps = patches.flatten(0, -3) if patches.dim() > 2 else patches[None]
    maps = F.interpolate(
        maps.transpose(1, 2).unflatten(2, old), size=new, mode="bicubic", align_corners=False
    )
    patches = maps.flatten(2).transpose(1, 2).reshape(*table.shape[:-2], -1, table.shape[-1])
    return torch.cat((first, patches, last), -2)


class PatchesAndObjects(PatchEmbed):
    """The class vector, patches, and a vector for each object to find, with positions."""

    def __init__(
        self,
        image: tuple[int, int],
        patch: tuple[int, int],
        channels: int,
        width: int,
        objects: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(image, patch, channels, width, dropout=dropout, any_size=True)
        self.objects = nn.Parameter(torch.empty(objects, width))
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1] + objects + 1, width))

    def forward(self, pixels: Tensor, hidden: Tensor | None, interpolate: bool) -> Tensor:
        x, grid = self.patches(pixels, interpolate)
        rows = len(x)
        x = torch.cat((self.class_token.expand(rows, 1, -1), x, self.objects.expand(rows, -1, -1)), 1)
        x = x + resampled(self.position, self.grid, grid, len(self.objects))
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        return x if self.site is None else self.site(x)


class PositionsAgain(Block):
    """x + the positions behind layer number `index`."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return x + ctx.memo["positions"][self.index]


class ObjectEncoder(Encoder):
    """An encoder with tables of positions (layers - 1, S, D) between its layers, where `again`."""

    def __init__(
        self, embed: Spec, layers: Any, norm: Spec, again: bool, width: int, pool: Spec | None = None
    ) -> None:
        super().__init__(embed, layers, norm, pool, record="raw")
        shape = (len(layers) - 1, len(self.embed.position), width)
        self.positions = nn.Parameter(torch.empty(shape)) if again else None

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StackOutput:
        if self.positions is not None:
            (sy, sx), (py, px) = ctx.memo["pixels"], self.embed.patch
            objects = len(self.embed.objects)
            ctx.memo["positions"] = resampled(self.positions, self.embed.grid, (sy // py, sx // px), objects)
        return super().run(x, ctx, ids, record_states)


def build(c: Config) -> ObjectEncoder:
    layers = vit.layers(c)
    if c.use_mid_position_embeddings:
        again = [
            layer.but(branches={**layer.branches, "again": PositionsAgain(i)})
            for i, layer in enumerate(layers[:-1])
        ]
        layers = (*again, *layers[-1:])
    return ObjectEncoder(
        embed=PatchesAndObjects(
            vit.pair(c.image_size), vit.pair(c.patch_size), c.num_channels, c.hidden_size,
            c.num_detection_tokens, c.hidden_dropout_prob,
        ),
        layers=layers,
        norm=LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
        again=c.use_mid_position_embeddings,
        width=c.hidden_size,
        pool=Pool(c.hidden_size),
    )  # fmt: skip


def names(c: Config) -> NameMap:
    """ViT's names, with the objects and the tables of positions."""
    plain = vit.names(c)
    lines = {
        **plain.lines,
        "embed.objects": To("embeddings.detection_tokens", Reshape((1, -1, c.hidden_size))),
    }
    shape = Reshape((c.num_hidden_layers - 1, 1, -1, c.hidden_size))
    return plain.but(lines={**lines, "positions": To("encoder.mid_position_embeddings", shape)}, prefix="vit")


class _Objects(HeadModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.labels, self.boxes = make(Steps(width, config.num_labels + 1)), make(Steps(width, 4))
        self.count = config.num_detection_tokens

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state[:, -self.count :]
        logits, boxes = self.labels(x), self.boxes(x).sigmoid()
        fields: dict[str, Any] = {"logits": logits, "pred_boxes": boxes}
        if call.labels is not None:
            loss, parts = detection_loss(logits, boxes, call.labels, call.config)
            fields |= {"loss": loss, "loss_dict": parts}
        return fields


@dataclass(frozen=True)
class Objects(Head):
    """Labels and boxes of objects."""

    task: ClassVar[str] = "object-detection"
    output: type[ModelOutput] = YolosObjectDetectionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Objects(config, width)


HEADS: dict[str, Head] = {
    "YolosModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "YolosForObjectDetection": Objects(
        names={
            "labels.layers.{i}": "class_labels_classifier.layers.{i}",
            "boxes.layers.{i}": "bbox_predictor.layers.{i}",
        }
    ),
}

family("yolos", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel, public="Yolos")
