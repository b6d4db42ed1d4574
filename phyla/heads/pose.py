"""Places of joints as maps of heat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.conv import BatchNorm, Conv2d
from phyla.blocks.spec import Block, make
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.outputs import ModelOutput, VitPoseEstimatorOutput


@dataclass
class PoseCall(Call):
    """flip_pairs (N, 2): numbers of joints that change places in a mirrored image."""

    flip_pairs: Tensor | None = None


class SimpleHeat(Block):
    """Heat of each joint (B, joints, Y * grow, X * grow) by one convolution (Xu et al., arXiv:2204.12484)."""

    def __init__(self, width: int, joints: int, grow: int) -> None:
        super().__init__()
        self.grow = grow
        self.out = Conv2d(width, joints, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2] * self.grow, x.shape[3] * self.grow)
        return self.out(F.interpolate(F.relu(x), size=size, mode="bilinear", align_corners=False))


class ClassicHeat(Block):
    """Heat of each joint (B, joints, 4 Y, 4 X) by two transposed convolutions (the same paper)."""

    def __init__(self, width: int, joints: int, inner: int = 256) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(width, inner, 4, 2, 1, bias=False)
        self.second = nn.ConvTranspose2d(inner, inner, 4, 2, 1, bias=False)
        self.first_norm, self.second_norm = make(BatchNorm(inner)), make(BatchNorm(inner))
        self.out = Conv2d(inner, joints, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)))
        return self.out(F.relu(self.second_norm(self.second(x))))


def mirrored(heat: Tensor, pairs: Tensor) -> Tensor:
    """Heat (B, joints, Y, X) of a mirrored image as of the image; pairs (N, 2) of joints change places."""
    order = torch.arange(heat.shape[1], device=heat.device)
    left, right = pairs.to(heat.device).long().unbind(1)
    order = order.scatter(0, left, right).scatter(0, right, left)
    return heat[:, order].flip(-1)


class _Pose(HeadModule):
    def __init__(self, head: "PoseEstimate", config: Any) -> None:
        super().__init__()
        self.heat = make(head.heat(config))
        self.grid = head.grid(config)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        if call.labels is not None:
            raise ArgumentError("there is no loss of poses: compare heatmaps with the truth yourself")
        x = out.feature_maps[-1].unflatten(1, self.grid).permute(0, 3, 1, 2)
        heat = self.heat(x)
        pairs = getattr(call, "flip_pairs", None)
        return {"heatmaps": heat if pairs is None else mirrored(heat, pairs)}


@dataclass(frozen=True)
class PoseEstimate(Head):
    """Heat maps of joints. heat: config -> block; grid: config -> (rows, columns) of the patches."""

    task: ClassVar[str] = "pose-estimation"
    output: type[ModelOutput] = VitPoseEstimatorOutput
    heat: Callable[[Any], Any] = lambda config: None
    grid: Callable[[Any], tuple[int, int]] = lambda config: (1, 1)

    def make(self, config: Any, width: int) -> HeadModule:
        return _Pose(self, config)
