"""Segment Anything (Kirillov et al. 2023, arXiv:2304.02643): masks of what points, boxes and masks show.

Public checkpoints: facebook/sam-vit-base, -large, -huge and every `model_type: sam`.
Differs from ViT in: windows in most layers, biases of rows and columns, no class vector, a neck;
behind it prompts and image attend to each other in turn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Block, Context, Encoder, Heads, Layer, LayerNorm, PatchEmbed, StackOutput, activation, residual,
)  # fmt: skip
from phyla.blocks.attention import Attention
from phyla.blocks.conv import ChannelNorm, Conv2d
from phyla.blocks.decomposed import GridBias
from phyla.blocks.places import PlacedAttention
from phyla.blocks.position import Position
from phyla.blocks.spec import Spec, make
from phyla.blocks.window import WindowAttention
from phyla.checkpoints.names import NameMap, To, split, stack
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Head
from phyla.heads.detect import Steps
from phyla.outputs import ModelOutput, SamImageSegmentationOutput
from phyla.skeletons.prompted import PromptedModel


class SamPromptEncoderConfig(PretrainedConfig):
    """Keys and defaults of the public prompt_encoder_config."""

    hidden_size: int = 256
    image_size: int = 1024
    patch_size: int = 16
    mask_input_channels: int = 16
    num_point_embeddings: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6

    def finish(self) -> None:
        self.image_embedding_size = self.image_size // self.patch_size


class SamMaskDecoderConfig(PretrainedConfig):
    """Keys and defaults of the public mask_decoder_config."""

    hidden_size: int = 256
    hidden_act: str = "relu"
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    layer_norm_eps: float = 1e-6


class SamVisionConfig(PretrainedConfig):
    """Keys and defaults of the public vision_config."""

    hidden_size: int = 768
    output_channels: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 1e-10
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    window_size: int = 14
    global_attn_indexes: list = [2, 5, 8, 11]
    num_pos_feats: int = 128
    mlp_dim: int | None = None

    def finish(self) -> None:
        if self.mlp_dim is None:
            self.mlp_dim = int(self.hidden_size * self.mlp_ratio)


KINDS = {
    "vision_config": SamVisionConfig,
    "prompt_encoder_config": SamPromptEncoderConfig,
    "mask_decoder_config": SamMaskDecoderConfig,
}


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vision_config: Any = None
    prompt_encoder_config: Any = None
    mask_decoder_config: Any = None
    initializer_range: float = 0.02

    PARTS = dict.fromkeys(KINDS, "")

    def _part(self, name: str, value: Any, model_type: str) -> PretrainedConfig:
        return value if isinstance(value, PretrainedConfig) else KINDS[name](**(value or {}))


class VisionTower(Encoder):
    """Pixels to a map (B, D, Y, X), through windows and a neck of convolutions."""

    def __init__(self, embed: Spec, layers: Sequence[Spec], width: int, out: int) -> None:
        super().__init__(embed, layers)
        self.narrow, self.first = Conv2d(width, out, 1, bias=False), make(ChannelNorm(out))
        self.smooth, self.second = Conv2d(out, out, 3, padding=1, bias=False), make(ChannelNorm(out))

    def forward(  # type: ignore[override]
        self, pixels: Tensor, implementation: str, attentions: bool, states: bool
    ) -> StackOutput:
        x, grid = self.embed(pixels, None, False), self.embed.grid
        ctx = Context(
            torch.arange(x.shape[1], device=x.device)[None], x.shape[1], implementation=implementation,
            attentions=[] if attentions else None, memo={"grid": grid},
        )  # fmt: skip
        out = self.run(x, ctx, None, states)
        x = out.last_hidden_state.transpose(1, 2).unflatten(2, grid)
        out.last_hidden_state = self.second(self.smooth(self.first(self.narrow(x))))
        if out.hidden_states is not None:
            out.hidden_states = tuple(s.unflatten(1, grid) for s in out.hidden_states)
        if out.attentions is not None:
            # Published weights have one dimension for images, windows and heads.
            out.attentions = tuple(a.flatten(0, 1) for a in out.attentions)
        return out


class Compass(Block):
    """Places (..., 2) in [0, 1] as waves along random directions (Tancik et al. 2020, arXiv:2006.10739)."""

    def __init__(self, waves: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("directions", torch.empty(2, waves))

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * ((2 * x - 1).to(self.directions.dtype) @ self.directions)
        return torch.cat((angles.sin(), angles.cos()), -1)

    def reset(self, std: float) -> bool:
        self.directions.normal_(0.0, self.scale)
        return True


class Prompts(Block):
    """Vectors of points and corners of boxes, and a map for a rough mask."""

    def __init__(
        self, width: int, image: int, grid: int, channels: int, kinds: int, compass: Spec, act: str,
        eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.image, self.side, self.act = image, grid, activation(act)
        self.compass = make(compass)
        self.kinds = nn.Parameter(torch.empty(kinds, 1, width))  # outside, inside, first corner, last corner
        self.no_point, self.no_mask = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        small = channels // 4
        self.first, self.first_norm = Conv2d(1, small, 2, 2), make(ChannelNorm(small, eps))
        self.second, self.second_norm = Conv2d(small, channels, 2, 2), make(ChannelNorm(small * 4, eps))
        self.third = Conv2d(channels, width, 1)

    def grid(self) -> Tensor:
        """Vectors (1, D, Y, X) of the places of the image's map."""
        place = (torch.arange(self.side, device=self.no_mask.device) + 0.5) / self.side
        xy = torch.stack((place.expand(self.side, -1), place[:, None].expand(-1, self.side)), -1)
        return self.compass(xy).permute(2, 0, 1)[None]

    def points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        """Vectors (B, P, N, D), one more with `pad`, which stands for no box."""
        points = (points + 0.5) / self.image
        if pad:
            points = torch.cat((points, torch.zeros_like(points[:, :, :1])), 2)
            labels = torch.cat((labels, -torch.ones_like(labels[:, :, :1])), 2)
        labels = labels[..., None]
        x = torch.where(labels == -1, self.no_point, self.compass(points))
        x = torch.where(labels == -10, torch.zeros_like(x), x)
        for label in (0, 1):
            x = torch.where(labels == label, x + self.kinds[label], x)
        return x

    def forward(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        found = []
        if points is not None:
            labels = torch.ones_like(points[..., 0]) if labels is None else labels
            found.append(self.points(points, labels, boxes is None))
        if boxes is not None:
            corners = (boxes.unflatten(-1, (2, 2)) + 0.5) / self.image
            found.append(self.compass(corners) + self.kinds[2:4, 0])
        dense = self.no_mask[None, :, None, None].expand(1, -1, self.side, self.side)
        if masks is not None:
            h = self.act(self.first_norm(self.first(masks.to(self.no_mask.dtype))))
            dense = self.third(self.act(self.second_norm(self.second(h))))
        return (torch.cat(found, 2) if found else None), dense


class SimilarAttention(PlacedAttention):
    """Attention whose weights are normed again with ctx.memo["similar"] (Zhang et al., arXiv:2305.03048)."""

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        similar = ctx.memo.get("similar")
        if similar is None:
            return super().mix(x, ctx)
        q, k, v = self._cross(x, ctx, None)
        weights = ((q @ k.transpose(2, 3) * self.scale).softmax(-1) + similar).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class TwoWay(Block):
    """Tokens attend to each other, then to the image, then the image to them. first: without places."""

    def __init__(self, own: Spec, cross: Spec, ffn: Spec, norm: Spec, first: bool) -> None:
        super().__init__()
        self.attn, self.cross, self.ffn, self.back = make(own), make(cross), make(ffn), make(cross)
        self.attn_norm, self.cross_norm = make(norm), make(norm)
        self.ffn_norm, self.back_norm, self.first = make(norm), make(norm), first

    def forward(
        self, x: Tensor, image: Tensor, tokens: Context, places: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.first:
            own = Context(tokens.positions, tokens.length, implementation=tokens.implementation)
            x = self.attn_norm(self.attn(x, own))
        else:
            x = self.attn_norm(x + self.attn(x, tokens))
        tokens.memory = image
        x = self.cross_norm(x + self.cross(x, tokens))
        x = self.ffn_norm(x + self.ffn(x, tokens))
        places.memory = x
        change = self.back(image, places)
        return x, self.back_norm(image + change), change


class MaskDecoder(Block):
    """Masks and their expected overlaps from prompts and a map."""

    def __init__(
        self, width: int, count: int, layers: Sequence[Spec], last: Spec, quality: Spec, act: str = "gelu"
    ) -> None:
        super().__init__()
        self.quality_token = nn.Parameter(torch.empty(width))
        self.mask_tokens = nn.Parameter(torch.empty(count, width))
        self.layers, self.last, self.norm = make(list(layers)), make(last), make(LayerNorm(width))
        self.up = nn.ConvTranspose2d(width, width // 4, 2, 2)
        self.up_norm = make(ChannelNorm(width // 4))
        self.up_again = nn.ConvTranspose2d(width // 4, width // 8, 2, 2)
        self.act = activation(act)
        self.mixes = make([Steps(width, width // 8)] * count)
        self.quality = make(quality)

    def forward(
        self, image: Tensor, places: Tensor, sparse: Tensor | None, dense: Tensor, implementation: str,
        similarity: Tensor | None = None, target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        b, (y, x_) = len(image), image.shape[-2:]
        prompts = 1 if sparse is None else sparse.shape[1]
        own = torch.cat((self.quality_token[None], self.mask_tokens)).expand(b, prompts, -1, -1)
        tokens = own if sparse is None else torch.cat((own, sparse.to(own.dtype)), 2)
        keys = (image + dense).flatten(2).transpose(1, 2).repeat_interleave(prompts, 0)  # (B * P, K, D)
        at = places.flatten(2).transpose(1, 2)
        x = tokens.flatten(0, 1)
        if target is not None:
            x = x + target.expand(b, prompts, -1, -1).flatten(0, 1)
        asked, change = x, []

        def context(length: int, own: Tensor, other: Tensor) -> Context:
            row = torch.arange(length, device=image.device)[None]
            memo: dict[Any, Any] = {"places": own, "memory_places": other}
            return Context(row, length, implementation=implementation, memo=memo)

        to_image, to_tokens = context(x.shape[1], asked, at), context(keys.shape[1], at, asked)
        if similarity is not None:
            to_image.memo["similar"] = similarity[:, None].to(x.dtype)
        for index, layer in enumerate(self.layers):
            if index and target is not None:
                x = x + target.expand(b, prompts, -1, -1).flatten(0, 1)
            x, keys, seen = layer(x, keys, to_image, to_tokens)
            change.append(seen[:, None])
        to_image.memory, to_image.memo["similar"] = keys, None
        x = self.norm(x + self.last(x, to_image)).unflatten(0, (b, prompts))
        large = self.up(keys.transpose(1, 2).unflatten(2, (y, x_)))
        large = self.act(self.up_again(self.act(self.up_norm(large))))  # (B * P, D / 8, 4 Y, 4 X)
        weights = torch.stack([mix(x[:, :, 1 + i]) for i, mix in enumerate(self.mixes)], 2)
        masks = weights @ large.flatten(2).unflatten(0, (b, prompts))
        return masks.unflatten(-1, large.shape[-2:]), self.quality(x[:, :, 0]), tuple(change)


class Segmenter(Block):
    """A tower of the image, what reads prompts, and what draws masks."""

    def __init__(self, vision: Spec, prompts: Spec, decoder: Spec) -> None:
        super().__init__()
        self.vision, self.prompts, self.decoder = make(vision), make(prompts), make(decoder)


def tower(c: Any) -> VisionTower:
    """The vision tower of a vision_config."""
    width, side = c.hidden_size, c.image_size // c.patch_size
    norm, heads = LayerNorm(width, eps=c.layer_norm_eps), Heads(c.num_attention_heads)
    layers, each = [], width // c.num_attention_heads
    for index in range(c.num_hidden_layers):
        reach = 0 if index in c.global_attn_indexes else c.window_size
        bias = GridBias((reach or side,) * 2, each) if c.use_rel_pos else Position()
        plain = Attention(width, heads, bias, bias=c.qkv_bias, out_bias=True, dropout=c.attention_dropout)
        attn = plain
        if reach:
            attn = WindowAttention(width, heads, reach, 0, c.qkv_bias, c.attention_dropout, False, bias)
        ffn = FFN(width, c.mlp_dim, act=c.hidden_act)
        layers.append(Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm)))
    embed = PatchEmbed(
        (c.image_size,) * 2, (c.patch_size,) * 2, c.num_channels, width, class_token=False,
        position=c.use_abs_pos,
    )  # fmt: skip
    return VisionTower(embed, layers, width, c.output_channels)


def build(c: Config) -> Segmenter:
    v, p, m = c.vision_config, c.prompt_encoder_config, c.mask_decoder_config
    width, count = m.hidden_size, m.num_multimask_outputs + 1

    def attend(rate: int, cross: bool) -> Spec:
        heads = Heads(m.num_attention_heads, width=width // rate // m.num_attention_heads)
        return PlacedAttention(width, heads, cross=cross)

    # Published layers halve the width whatever attention_downsample_rate says; the last attention follows it.
    across, last = attend(2, True), attend(m.attention_downsample_rate, True)
    across = Spec(SimilarAttention, across.args)
    ffn, norm = FFN(width, m.mlp_dim, act=m.hidden_act), LayerNorm(width, eps=m.layer_norm_eps)
    layers = [TwoWay(attend(1, False), across, ffn, norm, not i) for i in range(m.num_hidden_layers)]
    quality = Steps(width, count, m.iou_head_depth, m.iou_head_hidden_dim)
    prompts = Prompts(
        p.hidden_size, p.image_size, p.image_embedding_size, p.mask_input_channels, p.num_point_embeddings,
        Compass(v.num_pos_feats, v.hidden_size // 2), p.hidden_act, p.layer_norm_eps,
    )  # fmt: skip
    return Segmenter(tower(v), prompts, MaskDecoder(width, count, layers, last, quality))


def steps_names(ours: str, theirs: str, count: int) -> dict[str, str]:
    """Lines of Steps."""
    names = ["proj_in", *(f"layers.{i}" for i in range(count - 2)), "proj_out"]
    return {f"{ours}.layers.{i}": f"{theirs}.{name}" for i, name in enumerate(names)}


def tower_names(c: Any) -> dict[str, Any]:
    """Lines of the vision tower."""
    side, at = c.image_size // c.patch_size, "layers.{i}"
    return {
        "embed.projection": "patch_embed.projection",
        "embed.position": To("pos_embed", Reshape((1, side, side, c.hidden_size))),
        f"{at}.attn.pre_norm": f"{at}.layer_norm1",
        f"{at}.attn.q|k|v": split(f"{at}.attn.qkv"),
        f"{at}.attn.o": f"{at}.attn.proj",
        f"{at}.attn.position.rows": f"{at}.attn.rel_pos_h",
        f"{at}.attn.position.columns": f"{at}.attn.rel_pos_w",
        f"{at}.ffn.pre_norm": f"{at}.layer_norm2",
        f"{at}.ffn.up": f"{at}.mlp.lin1",
        f"{at}.ffn.down": f"{at}.mlp.lin2",
        "narrow": "neck.conv1",
        "first": "neck.layer_norm1",
        "smooth": "neck.conv2",
        "second": "neck.layer_norm2",
    }


STEPS = ("first", "second", "third")


def names(c: Config) -> NameMap:
    m, width = c.mask_decoder_config, c.mask_decoder_config.hidden_size
    ours, theirs = "decoder.layers.{i}", "mask_decoder.transformer.layers.{i}"
    row = To("mask_decoder.iou_token.weight", Reshape((1, width)))
    attentions = {
        f"{ours}.attn": f"{theirs}.self_attn",
        f"{ours}.cross": f"{theirs}.cross_attn_token_to_image",
        f"{ours}.back": f"{theirs}.cross_attn_image_to_token",
        "decoder.last": "mask_decoder.transformer.final_attn_token_to_image",
    }
    lines: dict[str, Any] = {f"{o}.{p}": f"{t}.{p}_proj" for o, t in attentions.items() for p in "qkv"}
    lines |= {f"{o}.o": f"{t}.out_proj" for o, t in attentions.items()}
    norms = ("attn_norm", "cross_norm", "ffn_norm", "back_norm")
    lines |= {f"{ours}.{n}": f"{theirs}.layer_norm{i + 1}" for i, n in enumerate(norms)}
    for i in range(m.num_multimask_outputs + 1):
        lines |= steps_names(f"decoder.mixes.{i}", f"mask_decoder.output_hypernetworks_mlps.{i}", 3)
    lines |= steps_names("decoder.quality", "mask_decoder.iou_prediction_head", m.iou_head_depth)
    lines |= {
        f"{ours}.ffn.up": f"{theirs}.mlp.lin1",
        f"{ours}.ffn.down": f"{theirs}.mlp.lin2",
        "decoder.norm": "mask_decoder.transformer.layer_norm_final_attn",
        "decoder.quality_token": row,
        "decoder.mask_tokens": "mask_decoder.mask_tokens.weight",
        "decoder.up": "mask_decoder.upscale_conv1",
        "decoder.up_norm": "mask_decoder.upscale_layer_norm",
        "decoder.up_again": "mask_decoder.upscale_conv2",
        "prompts.compass.directions": "shared_image_embedding.positional_embedding",
        "prompts.kinds": stack("prompt_encoder.point_embed.{e}.weight"),
        "prompts.no_point": To("prompt_encoder.not_a_point_embed.weight", Reshape((1, width))),
        "prompts.no_mask": To("prompt_encoder.no_mask_embed.weight", Reshape((1, width))),
        **{f"prompts.{n}": f"prompt_encoder.mask_embed.conv{i + 1}" for i, n in enumerate(STEPS)},
        **{
            f"prompts.{n}_norm": f"prompt_encoder.mask_embed.layer_norm{i + 1}"
            for i, n in enumerate(STEPS[:2])
        },
    }
    copy = "prompt_encoder.shared_embedding.positional_embedding"
    return NameMap(
        lines,
        aliases={"prompts.compass.directions": (copy,)},
        parts={"vision": ("vision_encoder.", NameMap(tower_names(c.vision_config)))},
    )


@dataclass(frozen=True)
class Draw(Head):
    """Masks of what prompts show."""

    task: ClassVar[str] = "mask-generation"
    output: type[ModelOutput] = SamImageSegmentationOutput


HEADS: dict[str, Head] = {"SamModel": Draw()}

family(
    "sam", config=Config, build=build, names=names, heads=HEADS, skeleton=PromptedModel, public="Sam",
    width=lambda c: c.mask_decoder_config.hidden_size,
)  # fmt: skip
