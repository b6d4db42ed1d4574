"""The vision tower of Gemma 4 and its relatives (Google 2026), part of google/diffusiongemma-26B-A4B-it, ...

Differs from SigLIP in: images keep their shape, as rows of flattened patches with a column and a row each, -1
where there is padding; halves of a head turn with columns and rows; values are normed and scores not scaled;
squares of patches are averaged to the vectors that come out, those of padding left out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    Attention, Block, Context, Full, GatedFFN, Heads, Layer, Linear, RMSNorm, Spec, Stack, repeat, residual,
)  # fmt: skip
from phyla.blocks.position import Position
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutputWithPooling
from phyla.skeletons.base import finish, flag

PLACES = "places"  # the note of a call: (N, P, 2), column and row of each patch


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 131072
    attention_bias: bool = False
    attention_dropout: float = 0.0
    rope_parameters: dict | None = None
    pooling_kernel_size: int = 3
    patch_size: int = 16
    position_embedding_size: int = 10240
    use_clipped_linears: bool = False
    standardize: bool = False
    initializer_range: float = 0.02

    def finish(self) -> None:
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_theta": 100.0, "rope_type": "axial"}
        if self.rope_parameters.get("rope_type", "axial") != "axial":
            raise ConfigError(f'rope_type must be "axial", but rope_parameters is {self.rope_parameters}')
        if self.head_dim % 4:
            raise ConfigError(f"head_dim must be a multiple of 4, but is {self.head_dim}")


def unit(x: Tensor, eps: float) -> Tensor:
    """x (..., D) over its root mean square, in float32, without a gain."""
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)


class UnitAttention(Attention):
    """Attention with unscaled scores; queries and keys are normed by head, and values without a gain.

    same: keys, before their norm, serve as values.
    """

    def __init__(
        self, width: int, heads: Heads, position: Spec, mask: Any, eps: float, bias: bool = False,
        dropout: float = 0.0, same: bool = False,
    ) -> None:  # fmt: skip
        norm = RMSNorm(heads.resolve(width)[2], eps=eps, cast="late")
        super().__init__(width, heads, position, mask, bias, scale=1.0, norm_qk=norm, dropout=dropout)
        self.eps = eps
        if same:
            self.register_module("v", None)

    def project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.joined is not None and self.joined.ready():
            q, k, *v = self.joined(x)
        else:
            q, k, v = self.q(x), self.k(x), [] if self.v is None else [self.v(x)]
        k, *v = (self._split(t, self.num_kv_heads) for t in (k, *v))
        return (
            self.q_norm(self._split(q, self.num_heads)), self.k_norm(k), unit(v[0] if v else k, self.eps),
        )  # fmt: skip


class BoundedLinear(Linear):
    """A map whose inputs and outputs are held between stored bounds."""

    input_min: Tensor
    input_max: Tensor
    output_min: Tensor
    output_max: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        for name in BOUNDS:
            self.register_buffer(name, torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.clamp(self.input_min, self.input_max))
        return y.clamp(self.output_min, self.output_max)

    def reset(self, std: float) -> bool:
        """Fresh weights, and bounds that nothing reaches."""
        nn.init.normal_(self.weight, 0.0, std)
        for name in BOUNDS:
            getattr(self, name).fill_(float("-inf" if name.endswith("min") else "inf"))
        return True


BOUNDS = ("input_min", "input_max", "output_min", "output_max")


class BoundedAttention(UnitAttention):
    """`UnitAttention` with bounded maps."""

    def __init__(
        self, width: int, heads: Heads, position: Spec, mask: Any, eps: float, dropout: float
    ) -> None:
        super().__init__(width, heads, position, mask, eps, False, dropout)
        for name in "qkvo":
            old = getattr(self, name)
            setattr(self, name, BoundedLinear(old.in_features, old.out_features))


class BoundedFFN(GatedFFN):
    """`GatedFFN` with bounded maps."""

    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__(width, inner, act)
        self.gate, self.up = BoundedLinear(width, inner), BoundedLinear(width, inner)
        self.down = BoundedLinear(inner, width)


class Axial(Position):
    """Turns the first half of a head by columns and the second by rows, from the note PLACES."""

    def __init__(self, width: int, base: float) -> None:
        super().__init__()
        self.width, self.base = width, base
        self.register_buffer("frequencies", torch.empty(width // 4), persistent=False)

    def fill_buffers(self) -> None:
        half = self.width // 2
        self.frequencies.copy_(1.0 / self.base ** (torch.arange(0, half, 2, dtype=torch.float32) / half))

    def rotate(self, q: Tensor, k: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        angles = ctx.notes[PLACES][:, None, :, :, None].float() * self.frequencies  # (N, 1, P, 2, E / 4)
        return _turned(q, angles), _turned(k, angles)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # (N, H, P, 2, E / 4) each
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -2).flatten(-3)


class PatchEmbed(Block):
    """Patches (N, P, 3 * size ** 2) of values from 0 to 1, mapped, plus vectors of their column and row."""

    def __init__(self, size: int, width: int, positions: int) -> None:
        super().__init__()
        self.map = Linear(3 * size**2, width, bias=False)
        self.table = nn.Parameter(torch.empty(2, positions, width))

    def forward(self, pixels: Tensor, places: Tensor) -> Tensor:
        x = self.map((2 * (pixels - 0.5)).to(self.table.dtype))
        column, row = (F.embedding(places[..., i].clamp(min=0), self.table[i]) for i in range(2))
        return x + (column + row).masked_fill((places == -1).all(-1, keepdim=True), 0.0)

    def reset(self, std: float) -> bool:
        nn.init.ones_(self.table)
        return True


class PatchTower(Stack):
    """Patches to states, and to means over squares of `edge` patches, times D ** 0.5.

    standard: whether a stored bias is then taken off and a stored factor applied.
    """

    def __init__(self, embed: Spec, layers: Any, width: int, edge: int, standard: bool) -> None:
        super().__init__(embed, layers)
        self.width, self.edge = width, edge
        if standard:
            self.register_buffer("std_bias", torch.empty(width))
            self.register_buffer("std_scale", torch.empty(width))
        self.standard = standard

    def reset(self, std: float) -> bool:
        if self.standard:
            self.std_bias.zero_()
            self.std_scale.fill_(1.0)
        return True

    def averaged(self, x: Tensor, places: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Means (N, T, D), and which of them are of real patches, (N, T)."""
        count, square = x.shape[1] // self.edge**2, self.edge**2
        if count * square != x.shape[1]:
            raise ArgumentError(
                f"the patches of an image must come in squares of {square}, but there are {x.shape[1]}"
            )
        x, kept = x.masked_fill(~real[..., None], 0.0), real
        if square > 1:
            at = places.clamp(min=0)
            across = (at[..., 0].amax(-1, keepdim=True) + 1) // self.edge
            number = at[..., 0] // self.edge + across * (at[..., 1] // self.edge)  # (N, P)
            share = F.one_hot(number, count).float() / square  # (N, P, T)
            x = (share.transpose(1, 2) @ x.float()).to(x.dtype)
            kept = (share > 0).any(1)
        y = x.float() * self.width**0.5
        if self.standard:
            y = (y - self.std_bias.float()) * self.std_scale.float()
        return y.to(x.dtype), kept

    def look(
        self, pixels: Tensor, places: Tensor | None, implementation: str, attentions: bool = False,
        states: bool = False,
    ) -> tuple[Tensor, Tensor, Any]:  # fmt: skip
        """Vectors (N, T, D) of images, which of them are real, and the output before pooling."""
        if places is None or pixels.dim() != 3 or places.shape != (*pixels.shape[:2], 2):
            raise ArgumentError(
                "images must be patches (images, patches, values) with places (images, patches, 2), but are "
                f"{tuple(pixels.shape)} with {None if places is None else tuple(places.shape)}"
            )
        real = (places != -1).any(-1)
        numbers = torch.arange(pixels.shape[1], device=pixels.device)[None]
        ctx = Context(
            numbers, pixels.shape[1], attention_mask=real, implementation=implementation,
            attentions=[] if attentions else None, notes={PLACES: places},
        )  # fmt: skip
        out = self.run(self.embed(pixels, places), ctx, None, states)
        return *self.averaged(out.last_hidden_state, places, real), out


class PatchTowerModel(PreTrainedModel):
    """Patches of images to the vectors that a text model reads."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor,
        pixel_position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Vectors (T, D) of all images, one after the other, without those of padding.

        pixel_values (N, P, 3 * size ** 2); pixel_position_ids (N, P, 2): column and row, -1 for padding.
        """
        config = self.config
        y, kept, out = self.backbone.look(
            pixel_values, pixel_position_ids, self.implementation,
            flag(output_attentions, config.output_attentions),
            flag(output_hidden_states, config.output_hidden_states),
        )  # fmt: skip
        fields: dict[str, Any] = {"last_hidden_state": y[kept]}
        if out.hidden_states is not None:  # as published: the last entry is what comes out
            fields["hidden_states"] = (*out.hidden_states[:-1], y[kept])
        return finish(self, fields, out, return_dict)


def build(c: Config) -> Stack:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps, cast="late")
    heads = Heads(c.num_attention_heads, kv=c.num_key_value_heads, width=c.head_dim)
    axial = Axial(c.head_dim, float((c.rope_parameters or {}).get("rope_theta", 100.0)))
    shape = (c.hidden_size, heads, axial, Full(), c.rms_norm_eps)
    if c.use_clipped_linears:
        attn: Spec = BoundedAttention(*shape, c.attention_dropout)
        ffn: Spec = BoundedFFN(c.hidden_size, c.intermediate_size, c.hidden_activation)
    else:
        attn = UnitAttention(*shape, False, c.attention_dropout)
        ffn = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_activation)
    layer = Layer(attn=residual(attn, pre=norm, out=norm), ffn=residual(ffn, pre=norm, out=norm))
    return PatchTower(
        PatchEmbed(c.patch_size, c.hidden_size, c.position_embedding_size),
        repeat(c.num_hidden_layers, layer), c.hidden_size, c.pooling_kernel_size, c.standardize,
    )  # fmt: skip


_IN, _OUT, _NORM = "layers.{i}", "encoder.layers.{i}", "layernorm"
_MAPS = {f"attn.{p}": f"self_attn.{p}_proj" for p in "qkvo"} | {
    f"ffn.{p}": f"mlp.{p}_proj" for p in ("gate", "up", "down")
}
NAMES = NameMap(
    {
        "embed.map": "patch_embedder.input_proj",
        "embed.table": "patch_embedder.position_embedding_table",
        "std_bias": "std_bias",
        "std_scale": "std_scale",
        f"{_IN}.attn.pre_norm": f"{_OUT}.input_{_NORM}",
        f"{_IN}.attn.out_norm": f"{_OUT}.post_attention_{_NORM}",
        f"{_IN}.ffn.pre_norm": f"{_OUT}.pre_feedforward_{_NORM}",
        f"{_IN}.ffn.out_norm": f"{_OUT}.post_feedforward_{_NORM}",
        **{f"{_IN}.attn.{part}_norm": f"{_OUT}.self_attn.{part}_norm" for part in "qk"},
        **{f"{_IN}.{ours}.weight": f"{_OUT}.{theirs}.linear.weight" for ours, theirs in _MAPS.items()},
        **{f"{_IN}.{o}.{bound}": f"{_OUT}.{t}.{bound}" for o, t in _MAPS.items() for bound in BOUNDS},
    }
)
HEADS: dict[str, Head] = {"Gemma4VisionModel": Backbone(output=BaseModelOutputWithPooling)}

family(
    "gemma4_vision", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=PatchTowerModel,
    public="Gemma4Vision", bases=("Gemma4PreTrainedModel",),
)  # fmt: skip
