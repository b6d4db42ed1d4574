"""PatchTST (Nie et al. 2023, arXiv:2211.14730). Public checkpoints: namctin/patchtst_etth1_forecast, ...

Differs from the plain encoder in: each channel of a series is a row of its own, cut into patches and scaled
first; norms over the batch; training hides patches; heads for classes, numbers and the future.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    FFN,
    Attention,
    Block,
    Context,
    Heads,
    LayerNorm,
    Linear,
    Spec,
    make,
    repeat,
    residual,
)
from phyla.blocks.conv import BatchNorm
from phyla.blocks.series import Scaling, SeriesOutput, scaling
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone
from phyla.heads.series import HiddenPatches, SeriesClassify, SeriesForecast, SeriesRegress
from phyla.outputs.series import PatchTSTModelOutput
from phyla.skeletons.series import SeriesModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    num_input_channels: int = 1
    context_length: int = 32
    distribution_output: str = "student_t"
    loss: str | None = "mse"
    patch_length: int = 1
    patch_stride: int = 1
    num_hidden_layers: int = 3
    d_model: int = 128
    num_attention_heads: int = 4
    share_embedding: bool = True
    channel_attention: bool = False
    ffn_dim: int = 512
    norm_type: str = "batchnorm"
    norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    positional_dropout: float = 0.0
    path_dropout: float = 0.0
    ff_dropout: float = 0.0
    bias: bool = True
    activation_function: str = "gelu"
    pre_norm: bool = True
    positional_encoding_type: str = "sincos"
    use_cls_token: bool = False
    init_std: float = 0.02
    share_projection: bool = True
    scaling: str | bool | None = "std"
    do_mask_input: bool | None = None
    mask_type: str = "random"
    random_mask_ratio: float = 0.5
    num_forecast_mask_patches: list | int | None = [2]
    channel_consistent_masking: bool | None = False
    unmasked_channel_indices: list | None = None
    mask_value: int | float = 0
    pooling_type: str | None = "mean"
    head_dropout: float = 0.0
    prediction_length: int = 24
    num_targets: int = 1
    output_range: list | None = None
    num_parallel_samples: int = 100

    ALIASES = {"hidden_size": "d_model"}

    def finish(self) -> None:
        choices = {
            "norm_type": ("batchnorm", "layernorm"), "positional_encoding_type": ("random", "sincos"),
            "mask_type": ("random", "forecast"),
        }  # fmt: skip
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{key} must be one of {allowed}, but is {getattr(self, key)!r} (patchtst)")
        if self.context_length <= self.patch_length:
            raise ConfigError(
                f"context_length must be above patch_length ({self.patch_length}), "
                f"but is {self.context_length}"
            )
        if not 0 <= self.random_mask_ratio < 1:
            raise ConfigError(f"random_mask_ratio must be in 0 .. 1, but is {self.random_mask_ratio}")

    @property
    def num_patches(self) -> int:
        """Patches of a series."""
        return (self.context_length - self.patch_length) // self.patch_stride + 1


class TimeBatchNorm(BatchNorm):
    """Batch norm of each element of states (N, P, D) over rows and patches."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


class HiddenPart(Block):
    """Hides patches: a random share of each channel, or the last ones of each row (section 3.2).

    share: of the patches; last: how many are hidden at the end, by rows in equal parts ((): a random share);
    alike: all channels lose the same patches; spared: channels that lose none; value: what stands there.
    """

    def __init__(
        self, share: float, last: tuple[int, ...], alike: bool, spared: tuple[int, ...], value: float
    ) -> None:
        super().__init__()
        self.share, self.last, self.alike, self.spared, self.value = share, last, alike, spared, value

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, C, P, length), and which are hidden, bool (B, C, P)."""
        batch, channels, count, _ = patches.shape
        if self.last:
            hidden = self._at_the_end(batch, count, patches.device)[:, None].expand(-1, channels, -1)
        else:
            noise = torch.rand(batch, 1 if self.alike else channels, count, device=patches.device)
            hidden = noise.argsort(-1).argsort(-1) >= int(count * (1 - self.share))
            hidden = hidden.expand(-1, channels, -1)
        if self.spared:
            spared = torch.zeros(channels, dtype=torch.bool, device=patches.device)
            spared[list(self.spared)] = True
            hidden = hidden & ~spared[:, None]
        return patches.masked_fill(hidden[..., None], self.value), hidden

    def _at_the_end(self, batch: int, count: int, device: torch.device) -> Tensor:
        wrong = [n for n in self.last if not 0 < n < count]
        if wrong:
            raise ConfigError(f"num_forecast_mask_patches must be in 1 .. {count - 1}, but has {wrong[0]}")
        rows = batch // len(self.last)
        sizes = [batch - rows * (len(self.last) - 1), *[rows] * (len(self.last) - 1)]
        lengths = torch.tensor([n for n, size in zip(self.last, sizes, strict=True) for _ in range(size)])
        order = torch.randperm(batch)
        return torch.arange(count, device=device) >= count - lengths[order].to(device)[:, None]


class PatchLayer(Block):
    """Attention over the patches of a channel, perhaps over the channels of a patch, then a feed-forward.

    One set of projections serves both attentions; `across` is the norm of the second, before or after it.
    """

    def __init__(self, attn: Spec, ffn: Spec, across: Spec | None, before: bool) -> None:
        super().__init__()
        self.attn, self.across, self.ffn, self.before = make(attn), make(across), make(ffn), before

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """States (B, C, P, D)."""
        batch, channels = x.shape[:2]
        x = self.attn(x.flatten(0, 1), ctx)  # (B * C, P, D)
        if self.across is not None:
            recorded, ctx.attentions = ctx.attentions, None
            x = x.unflatten(0, (batch, channels)).transpose(1, 2).flatten(0, 1)  # (B * P, C, D)
            if self.before:
                x = x + self.attn.change(self.across(x), x, ctx)
            else:
                x = self.across(x + self.attn.change(x, x, ctx))
            x = x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)
            ctx.attentions = recorded
        return self.ffn(x, ctx).unflatten(0, (batch, channels))


class PatchStack(Block):
    """Series -> scaled -> patches -> perhaps some hidden -> embedded with positions -> layers.

    sizes: (context, length of a patch, stride). channels: 0 where all share one embedding, else how many
    have their own. waves: positions are sines and cosines that do not learn.
    """

    def __init__(
        self, width: int, sizes: tuple[int, int, int], layers: Any, scaling: Scaling, hidden: Spec | None,
        channels: int = 0, waves: bool = True, class_token: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes, self.scaling, self.dropout_prob = sizes, scaling, dropout
        context, length, stride = sizes
        self.count = (context - length) // stride + 1
        self.hidden = make(hidden)
        if channels:
            self.embeds = nn.ModuleList(Linear(length, width) for _ in range(channels))
        else:
            self.embed = Linear(length, width)
        self.class_token = nn.Parameter(torch.empty(width)) if class_token else None
        table = torch.empty(self.count + class_token, width)
        self.waves = waves
        if waves:
            self.register_buffer("position", table)
        else:
            self.position = nn.Parameter(table)
        self.layers = make(list(layers))

    def forward(self, ctx: Context, values: Tensor, observed: Tensor, record_states: bool) -> SeriesOutput:
        """values, observed (B, time, C) -> states (B, C, P, D)."""
        context, length, stride = self.sizes
        values, loc, scale = self.scaling(values, observed)
        start = context - length - stride * (self.count - 1)
        patches = values[:, start:].unfold(1, length, stride).transpose(1, 2)  # (B, C, P, length)
        given, mask = patches, None
        if self.hidden is not None:
            given, mask = self.hidden(patches)
        x = self._embedded(given)
        states: list[Tensor] | None = [] if record_states else None
        for index, layer in enumerate(self.layers):
            ctx.layer = index
            if states is not None:
                states.append(x)
            x = layer(x, ctx)
        return SeriesOutput(
            x, hidden_states=None if states is None else tuple(states),
            attentions=None if ctx.attentions is None else tuple(ctx.attentions),
            mask=mask, loc=loc, scale=scale, patch_input=patches.contiguous(),
        )  # fmt: skip

    def _embedded(self, patches: Tensor) -> Tensor:
        if hasattr(self, "embeds"):
            x = torch.stack([embed(patches[:, i]) for i, embed in enumerate(self.embeds)], 1)
        else:
            x = self.embed(patches)
        first = self.class_token is not None
        x = x + (self.position[1:] if first else self.position)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        if self.class_token is None:
            return x
        token = (self.class_token + self.position[0]).expand(*x.shape[:2], 1, -1)
        return torch.cat((token, x), 2)

    def reset(self, std: float) -> bool:
        if self.class_token is not None:
            nn.init.normal_(self.class_token, 0.0, 0.02)
        with torch.no_grad():
            if not self.waves:
                self.position.normal_(0.0, 0.1)
                return True
            count, width = self.position.shape
            angles = torch.arange(count)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
            table = torch.zeros(count, width)
            table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()[:, : width // 2]
            self.position.copy_((table - table.mean()) / (table.std() * 10))
        return True


def build(c: PretrainedConfig, hides: bool | None = None) -> Spec:
    norm = (TimeBatchNorm if c.norm_type == "batchnorm" else LayerNorm)(c.d_model, eps=c.norm_eps)
    place: dict[str, Any] = {"pre" if c.pre_norm else "post": norm, "dropout": c.path_dropout}
    attn = Attention(c.d_model, Heads(c.num_attention_heads), dropout=c.attention_dropout)
    ffn = FFN(c.d_model, c.ffn_dim, act=c.activation_function, bias=c.bias, dropout=c.ff_dropout)
    layer = PatchLayer(
        residual(attn, **place), residual(ffn, **place), norm if c.channel_attention else None, c.pre_norm
    )
    last = c.num_forecast_mask_patches
    last = (last,) if isinstance(last, int) else tuple(last or ())
    hidden = HiddenPart(
        c.random_mask_ratio, last if c.mask_type == "forecast" else (), bool(c.channel_consistent_masking),
        tuple(c.unmasked_channel_indices or ()), c.mask_value,
    )  # fmt: skip
    return PatchStack(
        c.d_model, (c.context_length, c.patch_length, c.patch_stride), repeat(c.num_hidden_layers, layer),
        scaling(c), hidden if (c.do_mask_input if hides is None else hides) else None,
        channels=0 if c.share_embedding else c.num_input_channels,
        waves=c.positional_encoding_type == "sincos", class_token=c.use_cls_token,
        dropout=c.positional_dropout,
    )  # fmt: skip


def names(c: PretrainedConfig) -> NameMap:
    at, leaf = "encoder.layers.{i}", ".batchnorm" if c.norm_type == "batchnorm" else ""
    place = "pre" if c.pre_norm else "post"
    return NameMap(
        {
            "embed": "encoder.embedder.input_embedding",
            "embeds.{c}": "encoder.embedder.input_embedding.{c}",
            "class_token": To("encoder.positional_encoder.cls_token", Reshape((1, 1, 1, c.d_model))),
            "position": "encoder.positional_encoder.position_enc",
            **{f"layers.{{i}}.attn.{p}": f"{at}.self_attn.{p}_proj" for p in "qkv"},
            "layers.{i}.attn.o": f"{at}.self_attn.out_proj",
            f"layers.{{i}}.attn.{place}_norm": f"{at}.norm_sublayer1{leaf}",
            "layers.{i}.across": f"{at}.norm_sublayer2{leaf}",
            f"layers.{{i}}.ffn.{place}_norm": f"{at}.norm_sublayer3{leaf}",
            "layers.{i}.ffn.up": f"{at}.ff.0",
            "layers.{i}.ffn.down": f"{at}.ff.3",
        },
        prefix="model",
    )


_open = partial(build, hides=False)
_ONE = {"out": "head.projection", "out.proj.{p}": "head.projection.proj.{p}"}
HEADS = {
    "PatchTSTModel": Backbone(output=PatchTSTModelOutput),
    "PatchTSTForPretraining": HiddenPatches(names={"out": "head.linear"}, changes={"do_mask_input": True}),
    "PatchTSTForPrediction": SeriesForecast(
        names={
            **_ONE,
            "channels.{c}": "head.projections.{c}",
            "channels.{c}.proj.{p}": "head.projections.{c}.proj.{p}",
        },
        build=_open,
    ),
    "PatchTSTForRegression": SeriesRegress(names=_ONE, build=_open),
    "PatchTSTForClassification": SeriesClassify(names={"out": "head.linear"}, build=_open),
}

family(
    "patchtst", config=Config, build=build, names=names, heads=HEADS, skeleton=SeriesModel, public="PatchTST",
    width=lambda c: c.d_model,
)  # fmt: skip
