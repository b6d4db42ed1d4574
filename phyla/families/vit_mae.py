"""ViT-MAE (He et al. 2021, arXiv:2111.06377): ViT that sees a quarter of the patches and paints the rest.

Public checkpoints: facebook/vit-mae-base and every `model_type: vit_mae`.
Differs from ViT in: patches are dropped at random before the layers, positions are fixed waves, and a small
second stack rebuilds the pixels.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Context, Encoder, LayerNorm, Linear, PatchEmbed, make
from phyla.blocks.patch import grid_waves, keep_some
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.families import vit
from phyla.family import family
from phyla.heads import Backbone, Call, Head, HeadModule
from phyla.outputs import ModelOutput, ViTMAEForPreTrainingOutput, ViTMAEModelOutput
from phyla.skeletons.vision import NoisyVisionModel


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
    image_size: int | list = 224
    patch_size: int | list = 16
    num_channels: int = 3
    qkv_bias: bool = True
    decoder_num_attention_heads: int = 16
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False


def waves(table: nn.Parameter, grid: tuple[int, int]) -> None:
    """Fill a position table (P + 1, D): zeros for the class vector, then the waves of a square of patches."""
    side = int((grid[0] * grid[1]) ** 0.5)
    table.zero_()
    table[1:].copy_(grid_waves(table.shape[1], side, side))


class SeenPatches(PatchEmbed):
    """The class vector and those patches that are seen, a share of 1 - hide, in random order.

    In place of a mask the call takes noise (B, P); the patches of smallest noise are seen.
    """

    def __init__(
        self, image: tuple[int, int], patch: tuple[int, int], channels: int, width: int, hide: float
    ) -> None:
        super().__init__(image, patch, channels, width)
        self.hide = hide
        self.position.requires_grad_(False)

    def forward(self, pixels: Tensor, noise: Tensor | None, interpolate: bool) -> Any:
        x, grid = self.patches(pixels, interpolate)
        table = self.positions(*grid)
        x = x + table[1:]
        count = x.shape[1]
        if noise is None:
            noise = torch.rand(x.shape[0], count, device=x.device)
        seen, hidden, back = keep_some(noise, int(count * (1 - self.hide)))
        x = x.gather(1, seen[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat(((self.class_token + table[0]).expand(len(x), 1, -1), x), 1)
        return (x if self.site is None else self.site(x)), {"mask": hidden, "ids_restore": back}

    def reset(self, std: float) -> bool:
        nn.init.normal_(self.class_token, std=std)
        waves(self.position, self.grid)
        return True


def build(c: Config) -> Encoder:
    return Encoder(
        embed=SeenPatches(
            vit.pair(c.image_size), vit.pair(c.patch_size), c.num_channels, c.hidden_size, c.mask_ratio
        ),
        layers=vit.layers(c),
        norm=LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
        record="raw",
    )


def names(c: Config) -> NameMap:
    """ViT's names."""
    return vit.names(c).but(prefix="vit")


def painter_config(c: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the second stack."""
    made = copy.deepcopy(c)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        setattr(made, key, getattr(c, f"decoder_{key}"))
    made.pruned_heads = {}
    return made


def plain_context(x: Tensor) -> Context:
    """The context of a stack in a head."""
    return Context(positions=torch.arange(x.shape[1], device=x.device)[None], length=x.shape[1])


class _Painter(HeadModule):
    """States of the patches seen -> pixels of all patches."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        image, patch = vit.pair(c.image_size), vit.pair(c.patch_size)
        self.grid, self.patch = (image[0] // patch[0], image[1] // patch[1]), patch
        width = c.decoder_hidden_size
        self.embed = Linear(c.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        rows = self.grid[0] * self.grid[1] + 1
        self.position = nn.Parameter(torch.empty(rows, width), requires_grad=False)
        norm = LayerNorm(width, eps=c.layer_norm_eps)
        self.stack = make(Encoder(layers=vit.layers(painter_config(c)), norm=norm))
        self.out = Linear(width, patch[0] * patch[1] * c.num_channels)

    def reset(self, std: float) -> bool:
        nn.init.normal_(self.mask_token, std=std)
        waves(self.position, self.grid)
        return True

    def positions(self, count: int) -> Tensor:
        """The table for `count` patches; of another number resampled as one row, whatever their grid."""
        table = self.position
        if count == len(table) - 1:
            return table
        row = table[1:].T[None, :, None]  # (1, D, 1, P)
        row = F.interpolate(row, size=(1, count), mode="bicubic", align_corners=False)
        return torch.cat((table[:1], row[0, :, 0].T))

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x, back, pixels = self.embed(out.last_hidden_state), out.ids_restore, call.pixel_values
        assert pixels is not None
        hidden = self.mask_token.expand(len(x), back.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat((x[:, 1:], hidden), 1)
        patches = patches.gather(1, back[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat((x[:, :1], patches), 1) + self.positions(back.shape[1])
        logits = self.out(self.stack.run(x, plain_context(x)).last_hidden_state)[:, 1:]
        # (B, C, rows, y, columns, x) -> (B, rows * columns, y * x * C)
        target = pixels.unflatten(3, (-1, self.patch[1])).unflatten(2, (-1, self.patch[0]))
        target = target.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if call.config.norm_pix_loss:
            mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (var + 1e-6) ** 0.5
        error = (logits - target).square().mean(-1)
        return {"loss": (error * out.mask).sum() / out.mask.sum(), "logits": logits}


@dataclass(frozen=True)
class Paint(Head):
    """Rebuilds the pixels of hidden patches with a second stack."""

    task: ClassVar[str] = "pretraining"
    output: type[ModelOutput] = ViTMAEForPreTrainingOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Painter(config)


def painter_names(c: Config) -> dict[str, str | To]:
    """Lines of the second stack."""
    return {
        "embed": "decoder.decoder_embed",
        "mask_token": To("decoder.mask_token", Reshape((1, 1, c.decoder_hidden_size))),
        "position": To("decoder.decoder_pos_embed", Reshape((1, -1, c.decoder_hidden_size))),
        **vit.layer_names("stack.layers.{i}", "decoder.decoder_layers.{i}"),
        "stack.norm": "decoder.decoder_norm",
        "out": "decoder.decoder_pred",
    }


HEADS: dict[str, Head] = {
    "ViTMAEModel": Backbone(output=ViTMAEModelOutput),
    "ViTMAEForPreTraining": Paint(names=painter_names),
}

family(
    "vit_mae", config=Config, build=build, names=names, heads=HEADS, skeleton=NoisyVisionModel,
    public="ViTMAE",
)  # fmt: skip
