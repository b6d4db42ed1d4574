"""Heads on image backbones."""

from dataclasses import dataclass
from typing import Any, ClassVar

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
        self.out = Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        x = {"first": lambda: x[:, 0], "pool": lambda: out.pooler_output, "mean": lambda: x[:, 1:].mean(1)}[
            self.on
        ]()
        logits = self.out(x)
        return {
            "loss": None if call.labels is None else label_loss(logits, call.labels, call.config),
            "logits": logits,
        }


@dataclass(frozen=True)
class ImageClassify(Head):
    """Labels of an image: on the "first" vector, the "pool", or the "mean" of the patches."""

    task: ClassVar[str] = "image-classification"
    output: type[ModelOutput] = ImageClassifierOutput
    on: str = "first"

    def make(self, config: Any, width: int) -> HeadModule:
        return _ImageLabels(self, config, width)


class _Pixels(HeadModule):
    """Every patch vector becomes a square of pixels."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.stride = config.encoder_stride
        self.out = nn.Conv2d(width, self.stride**2 * config.num_channels, 1)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        config = call.config
        x = out.last_hidden_state[:, 1:]
        side = int(x.shape[1] ** 0.5)
        x = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)  # (B, D, rows, columns)
        pixels = F.pixel_shuffle(self.out(x), self.stride)  # (B, C, Y, X)
        loss = None
        if call.bool_masked_pos is not None and call.pixel_values is not None:
            if config.patch_size != config.encoder_stride:
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
    """Rebuilds the pixels of hidden patches (SimMIM, Xie et al. 2021, arXiv:2111.09886)."""

    task: ClassVar[str] = "masked-image-modeling"
    output: type[ModelOutput] = MaskedImageModelingOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Pixels(config, width)
