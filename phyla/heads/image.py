"""Heads on image backbones."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from phyla.blocks import Linear
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.loss import label_loss
from phyla.outputs import ImageClassifierOutput, MaskedImageModelingOutput, ModelOutput


class _ImageLabels(HeadModule):
    def __init__(self, head: "ImageClassify", config: Any, width: int) -> None:
        super().__init__()
        self.on = head.on
        self.dropout_prob = getattr(config, head.dropout) if head.dropout else 0.0
        width = 2 * width if head.on == "both" else width
        self.out = Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        x = {
            "first": lambda: x[:, 0],
            "pool": lambda: out.pooler_output.flatten(1),
            "mean": lambda: x[:, 1:].mean(1),
            "all": lambda: x.mean(1),
            "map": lambda: x.flatten(2).mean(2) if x.dim() == 4 else x.mean(1),
            "both": lambda: torch.cat((x[:, 0], x[:, 1:].mean(1)), -1),
        }[self.on]()
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        logits = self.out(x)
        return {
            "loss": None if call.labels is None else label_loss(logits, call.labels, call.config),
            "logits": logits,
        }


@dataclass(frozen=True)
class ImageClassify(Head):
    """Labels of an image: on the "first" vector, the "pool", the "mean" of those behind it, or of "all".

    "both": the first and the mean of those behind it, side by side (DINOv2).
    "map": the mean of all places of a map (B, D, Y, X). dropout: the config key of its chance.
    """

    task: ClassVar[str] = "image-classification"
    output: type[ModelOutput] = ImageClassifierOutput
    on: str = "first"
    dropout: str = ""

    def make(self, config: Any, width: int) -> HeadModule:
        return _ImageLabels(self, config, width)


class _Pixels(HeadModule):
    """Every patch vector becomes a square of pixels."""

    def __init__(self, head: "MaskedImage", config: Any, width: int) -> None:
        super().__init__()
        self.head = head
        self.stride = config.encoder_stride
        self.out = nn.Conv2d(width, self.stride**2 * config.num_channels, 1)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        config = call.config
        x = out.last_hidden_state[:, self.head.front : out.last_hidden_state.shape[1] - self.head.back]
        side = int(x.shape[1] ** 0.5)
        x = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)  # (B, D, rows, columns)
        pixels = F.pixel_shuffle(self.out(x), self.stride)  # (B, C, Y, X)
        loss = None
        if call.bool_masked_pos is not None and call.pixel_values is not None:
            if self.head.front and config.patch_size != config.encoder_stride:
                raise ArgumentError(
                    f"patch_size ({config.patch_size}) must equal encoder_stride "
                    f"({config.encoder_stride}) to rebuild pixels"
                )
            size = config.image_size // config.patch_size
            mask = call.bool_masked_pos.reshape(-1, size, size).float()
            mask = mask.repeat_interleave(config.patch_size, 1).repeat_interleave(config.patch_size, 2)[
                :, None
            ]
            error = F.l1_loss(call.pixel_values, pixels, reduction="none")
            loss = (error * mask).sum() / (mask.sum() + 1e-5) / config.num_channels
        return {"loss": loss, "reconstruction": pixels}


@dataclass(frozen=True)
class MaskedImage(Head):
    """Rebuilds the pixels of hidden patches (SimMIM, Xie et al. 2021, arXiv:2111.09886).

    front, back: vectors before and behind the patches. Without any in front, each state stands for a square
    of encoder_stride pixels, whatever the patch.
    """

    task: ClassVar[str] = "masked-image-modeling"
    output: type[ModelOutput] = MaskedImageModelingOutput
    front: int = 1
    back: int = 0

    def make(self, config: Any, width: int) -> HeadModule:
        return _Pixels(self, config, width)
