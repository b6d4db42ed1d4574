"""The sound tower of CLAP (Wu et al. 2022, arXiv:2211.06687): HTS-AT (Chen et al. 2022, arXiv:2202.00874).

Public checkpoints: the sound encoders of laion/clap-htsat-unfused, laion/clap-htsat-fused, ...
Differs from Swin in: mel frames normed by band and folded into a square, patches that may overlap, three
crops of a longer sound fused into its whole, and a map of states that is unfolded to bands again.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, Context, LayerNorm, Spec, make
from phyla.blocks.conv import BatchNorm, Conv2d
from phyla.blocks.residual import path_chances
from phyla.blocks.stages import Stage, Stages, StagesOutput
from phyla.blocks.window import PatchMerge
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError
from phyla.families import swin
from phyla.families.vit import attention_names, pair
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.agree import AudioSide
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons.sound import SoundModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    window_size: int = 8
    num_mel_bins: int = 64
    spec_size: int = 256
    hidden_act: str = "gelu"
    patch_size: int | list = 4
    patch_stride: int | list = [4, 4]
    num_classes: int = 527
    hidden_size: int = 768
    projection_dim: int = 512
    depths: list = [2, 2, 6, 2]
    num_attention_heads: list = [4, 8, 16, 32]
    enable_fusion: bool = False
    hidden_dropout_prob: float = 0.1
    fusion_type: str | None = None
    patch_embed_input_channels: int = 1
    flatten_patch_embeds: bool = True
    patch_embeds_hidden_size: int = 96
    enable_patch_layer_norm: bool = True
    drop_path_rate: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    aff_block_r: int = 4
    num_hidden_layers: int = 4
    projection_hidden_act: str = "relu"
    layer_norm_eps: float = 1e-5
    initializer_factor: float = 1.0


class Gate(Block):
    """Two 1 x 1 convolutions with norms: how much of one map to take. x (B, C, Y, X)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.down_norm = Conv2d(width, inner, 1), make(BatchNorm(inner))
        self.up, self.up_norm = Conv2d(inner, width, 1), make(BatchNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.up_norm(self.up(F.relu(self.down_norm(self.down(x)))))


class Fuse(Block):
    """Two maps (B, C, Y, X) mixed by what stands at each place and overall (Dai et al., arXiv:2009.14082)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.near, self.far = make(Gate(width, inner)), make(Gate(width, inner))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = x + y
        share = torch.sigmoid(self.near(both) + self.far(both.mean((2, 3), keepdim=True)))
        return 2 * x * share + 2 * y * (1 - share)


class MelMap(Block):
    """Mel frames (B, C, T, M) to a map (B, Y, X, D) of patches of the folded square."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        width, (py, px), (sy, sx) = c.patch_embeds_hidden_size, pair(c.patch_size), pair(c.patch_stride)
        padding = ((py - sy) // 2, (px - sx) // 2)
        inputs = c.patch_embed_input_channels
        fused = c.enable_fusion
        channels = inputs * (4 if fused and c.fusion_type == "channel_map" else 1)
        self.size, self.ratio, self.width = c.spec_size, c.spec_size // c.num_mel_bins, width
        self.bands = make(BatchNorm(c.num_mel_bins))
        self.projection = Conv2d(channels, width, (py, px), (sy, sx), padding)
        self.norm = make(LayerNorm(width)) if c.enable_patch_layer_norm else None
        self.crops = Conv2d(inputs, width, (py, 3 * px), (sy, 3 * sx), padding) if fused else None
        self.fuse = make(Fuse(width, width // c.aff_block_r)) if fused else None

    def folded(self, x: Tensor) -> Tensor:
        """Frames (B, C, T, M) as a square: stretches of time stand above each other."""
        time, bands = self.size * self.ratio, self.size // self.ratio
        if x.shape[2] > time or x.shape[3] > bands:
            raise ArgumentError(
                f"input_features must have at most {time} frames of {bands} mels, "
                f"but have {tuple(x.shape[2:])}"
            )
        if x.shape[2] < time:
            x = F.interpolate(x, (time, x.shape[3]), mode="bicubic", align_corners=True)
        if x.shape[3] < bands:
            x = F.interpolate(x, (x.shape[2], bands), mode="bicubic", align_corners=True)
        x = x.unflatten(2, (self.ratio, -1))  # (B, C, ratio, T / ratio, M)
        return x.transpose(3, 4).flatten(2, 3)  # (B, C, ratio * M, T / ratio)

    def forward(self, frames: Tensor, longer: Tensor | None) -> Tensor:
        x = self.folded(self.bands(frames.transpose(1, 3)).transpose(1, 3))
        if self.crops is None or self.fuse is None:
            y = self.projection(x)
        else:
            y = self.projection(x[:, :1])
            if longer is not None:
                near = self.crops(x[:, 1:].flatten(0, 1)[:, None]).unflatten(0, (len(x), -1))
                near = near.permute(0, 2, 3, 1, 4).flatten(3)  # crops side by side, (B, D, Y, X')
                near = F.pad(near, (0, y.shape[-1] - near.shape[-1]))
                y = torch.where(longer.reshape(-1, 1, 1, 1).bool(), self.fuse(y, near), y)
        y = y.permute(0, 2, 3, 1)
        return y if self.norm is None else self.norm(y)


class SoundStages(Stages):
    """Stages whose last map (B, Y, X, D) is unfolded to (B, D, bands, places), and its mean taken."""

    def __init__(self, embed: Spec, layers: Sequence[Spec], norm: Spec, ratio: int) -> None:
        super().__init__(embed, layers, norm, one_attention=True)
        self.ratio = ratio

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StagesOutput:
        out = super().run(x, ctx, ids, record_states)
        y = out.last_hidden_state.unflatten(1, ctx.memo["grid"]).permute(0, 3, 1, 2)  # (B, D, Y, X)
        bands = y.shape[2] // self.ratio
        y = y.unflatten(2, (-1, bands)).transpose(2, 3).flatten(3)  # (B, D, bands, Y X / bands)
        out.last_hidden_state, out.pooler_output = y, y.flatten(2).mean(-1)
        out.hidden_states = out.reshaped_hidden_states
        return out


def build(c: Any) -> Spec:
    chances = iter(path_chances(c.drop_path_rate, sum(c.depths)))
    stages = []
    for number, (depth, heads) in enumerate(zip(c.depths, c.num_attention_heads, strict=True)):
        width = c.patch_embeds_hidden_size * 2**number
        layers = [swin.layer(c, width, heads, i, next(chances), True) for i in range(depth)]
        last = number == len(c.depths) - 1
        stages.append(Stage(layers, leave=None if last else PatchMerge(width), tokens=True))
    norm = LayerNorm(c.patch_embeds_hidden_size * 2 ** (len(c.depths) - 1))
    return SoundStages(MelMap(c), stages, norm, c.spec_size // c.num_mel_bins)


def names() -> NameMap:
    at, to = "layers.{i}.layers.{j}", "audio_encoder.layers.{i}.blocks.{j}"
    fusion = "audio_encoder.patch_embed.fusion_model"
    lines = {
        "embed.bands": "audio_encoder.batch_norm",
        "embed.projection": "audio_encoder.patch_embed.proj",
        "embed.norm": "audio_encoder.patch_embed.norm",
        "embed.crops": "audio_encoder.patch_embed.mel_conv2d",
        "norm": "audio_encoder.norm",
        f"{at}.attn.pre_norm": f"{to}.layernorm_before",
        **attention_names(f"{at}.attn", f"{to}.attention.self"),
        f"{at}.attn.o": f"{to}.attention.output.dense",
        f"{at}.attn.position.weight": f"{to}.attention.self.relative_position_bias_table",
        f"{at}.attn.position.index": f"{to}.attention.self.relative_position_index",
        f"{at}.ffn.pre_norm": f"{to}.layernorm_after",
        f"{at}.ffn.up": f"{to}.intermediate.dense",
        f"{at}.ffn.down": f"{to}.output.dense",
        "layers.{i}.leave.norm": "audio_encoder.layers.{i}.downsample.norm",
        "layers.{i}.leave.reduce": "audio_encoder.layers.{i}.downsample.reduction",
    }
    parts = ("down", "down_norm", None, "up", "up_norm")
    for ours, theirs, first in (("near", "local_att", 0), ("far", "global_att", 1)):
        for i, part in enumerate(parts):
            if part is not None:
                lines[f"embed.fuse.{ours}.{part}"] = f"{fusion}.{theirs}.{i + first}"
    return NameMap(lines, prefix="audio_model")


TOWER = names()
NAMES = TOWER.but(ignore=(r"(text_model|audio_projection|text_projection)\..*", "logit_scale_[at]"))

HEADS: dict[str, Head] = {
    "ClapAudioModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "ClapAudioModelWithProjection": AudioSide(
        names={"out.up": "audio_projection.linear1", "out.down": "audio_projection.linear2"}
    ),
}

family(
    "clap_audio_model", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=SoundModel,
    public="ClapAudio", bases=("ClapPreTrainedModel",),
)  # fmt: skip
