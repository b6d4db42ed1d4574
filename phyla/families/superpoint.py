"""SuperPoint (DeTone et al. 2017, arXiv:1712.07629): interest points of an image, each with a descriptor.

Public checkpoints: magic-leap-community/superpoint and every `model_type: superpoint`.
A small convolutional network with two decoders: scores of all pixels, and descriptors of squares of 8 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Context, StackOutput
from phyla.blocks.conv import Conv2d
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.family import family
from phyla.heads import Call, Head, HeadModule
from phyla.outputs import ModelOutput, SuperPointKeypointDescriptionOutput
from phyla.skeletons import VisionModel
import itertools

SQUARE = 8  # pixels on a side of the squares that scores and descriptors are made for


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    encoder_hidden_sizes: list = [64, 64, 128, 128]
    decoder_hidden_size: int = 256
    keypoint_decoder_dim: int = 65
    descriptor_decoder_dim: int = 256
    keypoint_threshold: float = 0.005
    max_keypoints: int = -1
    nms_radius: int = 4
    border_removal_distance: int = 4
    initializer_range: float = 0.02

    def finish(self) -> None:
        if self.nms_radius < 0:
            raise ConfigError(f"nms_radius must not be negative, but is {self.nms_radius}")


@dataclass
class Points(StackOutput):
    """Points (B, N, 2) as shares of width and height, scores, descriptors, and which are real (B, N)."""

    keypoints: Tensor | None = None
    scores: Tensor | None = None
    descriptors: Tensor | None = None
    mask: Tensor | None = None


class TwoConvs(Block):
    """relu(conv(relu(conv(x)))), then the maxima of 2 x 2 where `pool`."""

    def __init__(self, width: int, out: int, pool: bool) -> None:
        super().__init__()
        self.first, self.second = Conv2d(width, out, 3, padding=1), Conv2d(out, out, 3, padding=1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return F.max_pool2d(x, 2, 2) if self.pool else x


class Grey(Block):
    """The first channel of pixels (B, C, Y, X)."""

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, interpolate: bool = False) -> Tensor:
        return pixels[:, :1]


class Detector(Block):
    """Grey pixels to points. radius: of the square in which only the greatest score stays.

    threshold: least score of a point. border: pixels on the upper and left edge without points. most:
    greatest number of points, or -1.
    """

    def __init__(
        self,
        widths: Sequence[int],
        inner: int,
        scores: int,
        width: int,
        threshold: float,
        most: int,
        radius: int,
        border: int,
    ) -> None:
        super().__init__()
        self.embed = Grey().make()
        sizes = [1, *widths]
        self.layers = nn.ModuleList(
            TwoConvs(a, b, i < len(widths) - 1).make() for i, (a, b) in enumerate(itertools.pairwise(sizes))
        )
        self.score_first, self.score = Conv2d(widths[-1], inner, 3, padding=1), Conv2d(inner, scores, 1)
        self.describe_first, self.describe = Conv2d(widths[-1], inner, 3, padding=1), Conv2d(inner, width, 1)
        self.threshold, self.most, self.radius, self.border = threshold, most, radius, border

    def run(self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False) -> Points:
        """From grey pixels x (B, 1, Y, X) to the points."""
        size, states = x.shape[2:], []
        x = x.to(self.score.weight.dtype)
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        scores = self.pixel_scores(x)
        maps = F.normalize(self.describe(F.relu(self.describe_first(x))), dim=1)
        found = [self.points(row) for row in scores]
        most = max(len(points) for points, _ in found)
        out = Points(x, hidden_states=tuple(states) if record_states else None)
        rows = [
            (points, score, self.describe_points(points, row))
            for (points, score), row in zip(found, maps, strict=True)
        ]
        padded = [
            torch.stack([F.pad(t, _ahead(t, most)) for t in column]) for column in zip(*rows, strict=True)
        ]
        out.keypoints = padded[0] / torch.tensor([size[1], size[0]], device=x.device)
        out.scores, out.descriptors = padded[1], padded[2]
        lengths = torch.tensor([len(points) for points, _ in found], device=x.device)
        out.mask = (torch.arange(most, device=x.device) < lengths[:, None]).int()
        return out

    def pixel_scores(self, x: Tensor) -> Tensor:
        """(B, Y, X): the score of every pixel, 0 where a neighbour has a greater one."""
        scores = self.score(F.relu(self.score_first(x))).softmax(1)[:, :-1]  # (B, 64, rows, columns)
        scores = F.pixel_shuffle(scores, SQUARE)

        def peaks(values: Tensor) -> Tensor:
            return F.max_pool2d(values, 2 * self.radius + 1, 1, self.radius)

        kept = scores == peaks(scores)
        for _ in range(2):
            near = peaks(kept.to(scores.dtype)) > 0
            rest = scores.masked_fill(near, 0)
            kept = kept | ((rest == peaks(rest)) & ~near)
        return scores.masked_fill(~kept, 0)[:, 0]

    def points(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, 2) as (x, y) in pixels and their scores (N) from those of all pixels (Y, X)."""
        places = torch.nonzero(scores > self.threshold)
        values = scores[places[:, 0], places[:, 1]]
        # As the reference has it, the lower and right edge lie far outside of the image.
        far = torch.tensor(scores.shape, device=scores.device) * SQUARE - self.border
        inside = ((places >= self.border) & (places < far)).all(1)
        places, values = places[inside], values[inside]
        if 0 <= self.most < len(places):
            values, order = values.topk(self.most)
            places = places[order]
        return places.flip(1).to(scores.dtype), values

    def describe_points(self, points: Tensor, maps: Tensor) -> Tensor:
        """Descriptors (N, D) at points (N, 2), from those of squares (D, rows, columns), bilinearly."""
        rows, columns = maps.shape[1:]
        far = torch.tensor([columns * SQUARE, rows * SQUARE], device=points.device) - SQUARE / 2 - 0.5
        at = (points - SQUARE / 2 + 0.5) / far * 2 - 1
        found = F.grid_sample(maps[None], at[None, None].to(maps.dtype), mode="bilinear", align_corners=True)
        return F.normalize(found[0, :, 0], dim=0).T


def _ahead(t: Tensor, most: int) -> tuple[int, ...]:
    """The padding that gives t (N, ...) `most` rows."""
    return (*(0, 0) * (t.dim() - 1), 0, most - len(t))


def build(c: Config) -> Detector:
    return Detector(
        c.encoder_hidden_sizes, c.decoder_hidden_size, c.keypoint_decoder_dim, c.descriptor_decoder_dim,
        c.keypoint_threshold, c.max_keypoints, c.nms_radius, c.border_removal_distance,
    )  # fmt: skip


NAMES = NameMap(
    {
        "layers.{i}.first": "encoder.conv_blocks.{i}.conv_a",
        "layers.{i}.second": "encoder.conv_blocks.{i}.conv_b",
        "score_first": "keypoint_decoder.conv_score_a",
        "score": "keypoint_decoder.conv_score_b",
        "describe_first": "descriptor_decoder.conv_descriptor_a",
        "describe": "descriptor_decoder.conv_descriptor_b",
    }
)


class _Inference(HeadModule):
    """Refuses labels."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        if call.labels is not None:
            raise ArgumentError("points are found, not learned: leave out labels")
        return {}


@dataclass(frozen=True)
class KeypointDetection(Head):
    """The points that the body found."""

    task: ClassVar[str] = "keypoint-detection"
    output: type[ModelOutput] = SuperPointKeypointDescriptionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Inference()


HEADS: dict[str, Head] = {"SuperPointForKeypointDetection": KeypointDetection()}

family(
    "superpoint", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=VisionModel,
    public="SuperPoint", width=lambda c: c.descriptor_decoder_dim,
)  # fmt: skip
