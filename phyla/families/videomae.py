"""VideoMAE (Tong et al. 2022, arXiv:2203.12602): ViT-MAE on tubes of frames.

Public checkpoints: MCG-NJU/videomae-base and every `model_type: videomae`.
Differs from ViT in: a patch goes through `tubelet_size` frames, positions are waves that no file holds, no
class vector, keys without bias; the caller says which patches are hidden.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Encoder, LayerNorm, Linear, make
from phyla.blocks.spec import Spec
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.families import vit
from phyla.families.vit_mae import painter_config, plain_context
from phyla.family import family
from phyla.heads import Backbone, Call, Head, HeadModule
from phyla.heads.loss import label_loss
from phyla.outputs import BaseModelOutput, ImageClassifierOutput, ModelOutput, VideoMAEForPreTrainingOutput
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    image_size: int | list = 224
    patch_size: int | list = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    use_mean_pooling: bool = True
    decoder_num_attention_heads: int = 6
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 4
    decoder_intermediate_size: int = 1536
    norm_pix_loss: bool = True


def tubes(c: Config) -> int:
    """Patches of a video."""
    image, patch = vit.pair(c.image_size), vit.pair(c.patch_size)
    return (c.num_frames // c.tubelet_size) * (image[0] // patch[0]) * (image[1] // patch[1])


class Waves(Block):
    """A table of waves (positions, width) that no file holds."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty(positions, width), persistent=False)

    def fill_buffers(self) -> None:
        positions, width = self.table.shape
        index = torch.arange(width, dtype=torch.float64)
        angles = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (index // 2) / width)
        self.table.copy_(torch.where(index % 2 == 0, angles.sin(), angles.cos()))


class TubeEmbed(Block):
    """Tubes of a video: pixels (B, T, C, Y, X) -> (B, P, D); those that `hidden` marks fall away."""

    site_kind = "stream"

    def __init__(
        self, image: tuple[int, int], tube: tuple[int, int, int], channels: int, width: int, positions: int
    ) -> None:
        super().__init__()
        self.image, self.channels = image, channels
        self.projection = nn.Conv3d(channels, width, tube, tube)
        self.waves = make(Waves(positions, width))
        self.register_module("site", None)

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, interpolate: bool = False) -> Tensor:
        if pixels.dim() != 5 or pixels.shape[2] != self.channels or tuple(pixels.shape[3:]) != self.image:
            raise ArgumentError(
                f"pixel_values must be (batch, frames, {self.channels}, {self.image[0]}, {self.image[1]}), "
                f"but are {tuple(pixels.shape)}"
            )
        x = self.projection(pixels.to(self.projection.weight.dtype).transpose(1, 2))
        x = x.flatten(2).transpose(1, 2)  # (B, P, D)
        x = x + self.waves.table.to(x.dtype)
        if hidden is not None:
            x = x[~hidden.bool()].reshape(x.shape[0], -1, x.shape[2])
        return x if self.site is None else self.site(x)


def layers(c: PretrainedConfig) -> tuple[Spec, ...]:
    """ViT's layers, with biases on queries and values alone."""

    def changed(layer: Spec) -> Spec:
        attn = layer.branches["attn"].but(bias="qv" if c.qkv_bias else False)
        return layer.but(branches={**layer.branches, "attn": attn})

    return tuple(changed(layer) for layer in vit.layers(c))


def build(c: Config) -> Encoder:
    image, patch = vit.pair(c.image_size), vit.pair(c.patch_size)
    return Encoder(
        embed=TubeEmbed(image, (c.tubelet_size, *patch), c.num_channels, c.hidden_size, tubes(c)),
        layers=layers(c),
        norm=None if c.use_mean_pooling else LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
        record="raw",
    )


def layer_names(ours: str, theirs: str) -> dict[str, str]:
    """ViT's lines; biases stand beside the matrices."""
    lines = vit.layer_names(ours, theirs)
    at = f"{theirs}.attention.attention"
    for part, word in (("q", "query"), ("k", "key"), ("v", "value")):
        del lines[f"{ours}.attn.{part}"]
        lines[f"{ours}.attn.{part}.weight"] = f"{at}.{word}.weight"
    return {**lines, f"{ours}.attn.q.bias": f"{at}.q_bias", f"{ours}.attn.v.bias": f"{at}.v_bias"}


NAMES = NameMap(
    {
        "embed.projection": "embeddings.patch_embeddings.projection",
        **layer_names("layers.{i}", "encoder.layer.{i}"),
        "norm": "layernorm",
    },
    prefix="videomae",
)

# Mean and deviation of the colours that the public preprocessors subtract.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Painter(HeadModule):
    """States of the tubes seen -> pixels of the hidden tubes."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        width = c.decoder_hidden_size
        self.embed = Linear(c.hidden_size, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.waves = make(Waves(tubes(c), width))
        self.stack = make(Encoder(layers=layers(painter_config(c))))
        self.norm = make(LayerNorm(width))
        self.patch, self.depth = vit.pair(c.patch_size), c.tubelet_size
        self.out = Linear(width, c.num_channels * c.tubelet_size * self.patch[0] * self.patch[1])

    def target(self, pixels: Tensor, config: Any) -> Tensor:
        """(B, P, t * y * x * C): the pixels to rebuild, with colours from 0 to 1 or normed by tube."""
        if config.num_channels == 3:
            mean, deviation = (pixels.new_tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
            pixels = pixels * deviation + mean
        elif not config.norm_pix_loss:
            raise ConfigError(
                f"without norm_pix_loss, videos must have 3 channels, but num_channels is "
                f"{config.num_channels}"
            )
        x = pixels.unflatten(4, (-1, self.patch[1])).unflatten(3, (-1, self.patch[0]))
        x = x.unflatten(1, (-1, self.depth))  # (B, T / t, t, C, rows, y, columns, x)
        x = x.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4, 6).flatten(1, 3)  # (B, P, t * y * x, C)
        if config.norm_pix_loss:
            x = (x - x.mean(-2, keepdim=True)) / (x.var(-2, keepdim=True).sqrt() + 1e-6)
        return x.flatten(2)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        if call.bool_masked_pos is None or call.pixel_values is None:
            raise ArgumentError("pass bool_masked_pos (batch, patches), True where a patch is hidden")
        hidden = call.bool_masked_pos.bool()
        x = self.embed(out.last_hidden_state)
        table = self.waves.table.to(x.dtype).expand(len(x), -1, -1)
        seen = table[~hidden].reshape(len(x), -1, x.shape[2])
        blank = self.mask_token + table[hidden].reshape(len(x), -1, x.shape[2])
        x = torch.cat((x + seen, blank), 1)
        x = self.stack.run(x, plain_context(x)).last_hidden_state[:, seen.shape[1] :]
        logits = self.out(self.norm(x))
        with torch.no_grad():
            target = self.target(call.pixel_values, call.config)[hidden].reshape(logits.shape)
        return {"loss": F.mse_loss(logits, target), "logits": logits}


@dataclass(frozen=True)
class PaintVideo(Head):
    """Rebuilds the pixels of hidden tubes with a second stack."""

    task: ClassVar[str] = "pretraining"
    output: type[ModelOutput] = VideoMAEForPreTrainingOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Painter(config)


class _Labels(HeadModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.norm = make(LayerNorm(width)) if config.use_mean_pooling else None
        self.out = Linear(width, config.num_labels)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        logits = self.out(x[:, 0] if self.norm is None else self.norm(x.mean(1)))
        loss = None if call.labels is None else label_loss(logits, call.labels, call.config)
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class VideoClassify(Head):
    """Labels of a video, on the normed mean of its tubes or on the first."""

    task: ClassVar[str] = "video-classification"
    output: type[ModelOutput] = ImageClassifierOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Labels(config, width)


def painter_names(c: Config) -> dict[str, str | To]:
    """Lines of the second stack."""
    return {
        "embed": "encoder_to_decoder",
        "mask_token": To("mask_token", Reshape((1, 1, c.decoder_hidden_size))),
        **layer_names("stack.layers.{i}", "decoder.decoder_layers.{i}"),
        "norm": "decoder.norm",
        "out": "decoder.head",
    }


HEADS: dict[str, Head] = {
    "VideoMAEModel": Backbone(output=BaseModelOutput),
    "VideoMAEForPreTraining": PaintVideo(names=painter_names),
    "VideoMAEForVideoClassification": VideoClassify(names={"norm": "fc_norm", "out": "classifier"}),
}

family(
    "videomae", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=VisionModel, public="VideoMAE"
)  # fmt: skip
