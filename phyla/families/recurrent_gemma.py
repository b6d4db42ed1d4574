"""RecurrentGemma (Botev et al. 2024, arXiv:2404.07839), after Griffin (De et al. 2024, arXiv:2402.19427).

Public checkpoints: google/recurrentgemma-2b, google/recurrentgemma-9b. Differs from Gemma in: two of three
layers have a gated linear recurrence in place of attention, the third sees a sliding window; half of each
head turns; logits are capped softly; biases; the embedding's factor is rounded to bfloat16.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    Attention, Causal, Context, Decoder, Embed, GatedFFN, Heads, Layer, Linear, Mixer, RMSNorm, Rotary, Spec,
    activation, residual,
)  # fmt: skip
from phyla.blocks.cache import StateCache
from phyla.blocks.scan import scan
from phyla.blocks.shapes import Stream
from phyla.blocks.ssm import causal_conv, kept
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import BaseModelOutputWithNoAttention, CausalLMOutput
from phyla.skeletons import TextModel

STEEPEST = 1000.0  # bound of the gradient of the square root


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    num_hidden_layers: int = 26
    vocab_size: int = 256000
    hidden_size: int = 2560
    intermediate_size: int = 3 * 2560
    num_attention_heads: int = 10
    lru_width: int | None = None
    attention_window_size: int = 2048
    conv1d_width: int = 4
    logits_soft_cap: float = 30.0
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    bos_token_id: int | None = 2
    hidden_activation: str = "gelu_pytorch_tanh"
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    block_types: list = ["recurrent", "recurrent", "attention"]
    attention_dropout: float = 0.0
    num_key_value_heads: int | None = None
    attention_bias: bool = False
    w_init_variance_scale: float = 0.01
    final_w_init_variance_scale: float | None = None
    head_dim: int | None = None

    def finish(self) -> None:
        self.lru_width = self.lru_width or self.hidden_size
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.final_w_init_variance_scale is None:
            self.final_w_init_variance_scale = 2.0 / max(self.num_hidden_layers, 1)
        unknown = set(self.block_types) - {"recurrent", "attention"}
        if unknown or not self.block_types:
            raise ConfigError(
                f'block_types must list "recurrent" and "attention", but is {self.block_types!r} '
                "(config key of recurrent_gemma)"
            )

    @property
    def layers_block_type(self) -> list[str]:
        """The kind of each layer."""
        kinds = self.block_types
        return [kinds[i % len(kinds)] for i in range(self.num_hidden_layers)]

    @property
    def initializer_range(self) -> float:
        """Spread of fresh weights that have no rule of their own."""
        return math.sqrt(self.w_init_variance_scale / self.conv1d_width)


class FreshLinear(Linear):
    """A projection whose fresh weights have a spread of their own."""

    std = 0.02

    def reset(self, std: float) -> bool:
        nn.init.normal_(self.weight, 0.0, self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        return True


def fresh_linear(inputs: int, outputs: int, bias: bool, variance: float) -> FreshLinear:
    """A projection with fresh weights of variance `variance` / inputs."""
    made = FreshLinear(inputs, outputs, bias=bias)
    made.std = math.sqrt(variance / inputs)
    return made


class FreshAttention(Attention):
    """Attention whose fresh projections have a spread of their own; `variance` is that of the output's."""

    def __init__(
        self, width: int, heads: Heads, position: Spec, window: int, bias: bool, dropout: float,
        variance: float,
    ) -> None:  # fmt: skip
        super().__init__(width, heads, position, Causal(window), bias, out_bias=True, dropout=dropout)
        for name in "qkv":
            setattr(self, name, fresh_linear(width, getattr(self, name).out_features, bias, 1.0))
        self.o = fresh_linear(self.o.in_features, width, True, variance * self.o.in_features / width)


class RecurrentBlock(Mixer):
    """act(y(x)) * RG-LRU(conv(x)), then an output projection (De et al. 2024, figure 2c, eq. 1-4).

    r_t, i_t = sigmoid of block-diagonal maps of x_t; a_t = exp(-8 softplus(param) r_t);
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t, anew at position 0. inner I, blocks: of the maps, taps: of
    the convolution. Leading padding enters nothing into the state.
    """

    caches = True

    def __init__(
        self, width: int, inner: int, blocks: int, taps: int, act: str, variance: float, out_variance: float
    ) -> None:
        super().__init__()
        self.blocks, self.act, self.variance = blocks, activation(act), variance
        self.in_gate, self.in_x = fresh_linear(width, inner, True, 1.0), fresh_linear(width, inner, True, 1.0)
        self.conv = nn.Conv1d(inner, inner, taps, groups=inner)
        each = inner // blocks
        self.decay = nn.Parameter(torch.empty(inner))
        self.input_weight = nn.Parameter(torch.empty(blocks, each, each))
        self.input_bias = nn.Parameter(torch.empty(blocks, each))
        self.decay_weight = nn.Parameter(torch.empty(blocks, each, each))
        self.decay_bias = nn.Parameter(torch.empty(blocks, each))
        self.out = fresh_linear(inner, width, True, out_variance)

    def new_cache(self, batch: int, length: int) -> StateCache:
        return StateCache()

    def mix(self, x: Stream, ctx: Context) -> Stream:
        cache, keep = ctx.slot(self.slot), kept(ctx, x, leading=True)
        h = self.in_x(x)
        h = causal_conv(h if keep is None else h * keep, self.conv, cache)  # (B, S, I)
        parts = h.unflatten(-1, (self.blocks, -1))  # (B, S, blocks, I / blocks)
        gate_in, gate = (
            torch.sigmoid(torch.einsum("bsgi,gio->bsgo", parts, weight) + bias).flatten(-2).float()
            for weight, bias in (
                (self.input_weight, self.input_bias), (self.decay_weight, self.decay_bias)
            )
        )  # fmt: skip
        log_decay = -8.0 * gate * F.softplus(self.decay.float())
        anew = (ctx.positions == 0)[..., None]  # (B or 1, S, 1)
        scale = torch.where(anew, 1.0, bounded_sqrt(-torch.expm1(2 * log_decay)))
        entry = h.float() * gate_in * scale
        if keep is not None:
            entry = entry * keep
        state = None if cache is None else cache.get("state")
        states, last = scan(log_decay.exp() * ~anew, entry, state)
        if cache is not None:
            cache.set("state", last.clone())
        return self.out(states.to(x.dtype) * self.act(self.in_gate(x)))

    def reset(self, std: float) -> bool:
        for weight in (self.input_weight, self.decay_weight):
            nn.init.normal_(weight, 0.0, math.sqrt(self.variance / weight.shape[1]))
        for bias in (self.input_bias, self.decay_bias):
            nn.init.zeros_(bias)
        with torch.no_grad():
            # Decays at an open gate are uniform in 0.9 .. 0.999, squared; softplus(decay) is -log / 16.
            log = self.decay.uniform_(0.9**2 + 1e-8, 0.999**2 + 1e-8).log_().mul_(0.5)
            self.decay.copy_(torch.log(torch.expm1(-log)))
        return True


def bounded_sqrt(x: Tensor) -> Tensor:
    """The square root, its gradient bounded by STEEPEST."""
    least = 1 / (4 * STEEPEST**2)
    small = x < least
    flat = x.detach().clamp(min=0).sqrt() + STEEPEST * (x - x.detach())
    return torch.where(small, flat, torch.where(small, least, x).sqrt())


def build(c: PretrainedConfig) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps, offset=1.0, cast="late")
    heads = Heads(c.num_attention_heads, kv=c.num_key_value_heads, width=c.head_dim)
    rotary = Rotary(int(c.partial_rotary_factor * c.head_dim), c.rope_theta)
    last = c.final_w_init_variance_scale
    attn = FreshAttention(
        c.hidden_size, heads, rotary, c.attention_window_size, c.attention_bias, c.attention_dropout, last
    )
    lru = RecurrentBlock(
        c.hidden_size, c.lru_width, c.num_attention_heads, c.conv1d_width, c.hidden_activation,
        c.w_init_variance_scale, last,
    )  # fmt: skip
    gated = GatedFFN(c.hidden_size, c.intermediate_size // 2, act=c.hidden_activation, bias=True)
    ffn = residual(gated, pre=norm)
    kinds = {
        "attention": Layer(attn=residual(attn, pre=norm), ffn=ffn),
        "recurrent": Layer(lru=residual(lru, pre=norm), ffn=ffn),
    }
    scale = float(torch.tensor(c.hidden_size**0.5, dtype=torch.bfloat16, device="cpu"))
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, scale=scale, scale_rounded=True, padding=c.pad_token_id),
        layers=tuple(kinds[kind] for kind in c.layers_block_type),
        norm=norm,
    )


_MIX, _LRU = "layers.{i}.temporal_block", "layers.{i}.temporal_block.rg_lru"
NAMES = NameMap(
    {
        "embed.tokens": "embed_tokens",
        "layers.{i}.attn.pre_norm": "layers.{i}.temporal_pre_norm",
        "layers.{i}.lru.pre_norm": "layers.{i}.temporal_pre_norm",
        **{f"layers.{{i}}.attn.{p}": f"{_MIX}.{p}_proj" for p in "qkvo"},
        "layers.{i}.lru.in_gate": f"{_MIX}.linear_y",
        "layers.{i}.lru.in_x": f"{_MIX}.linear_x",
        "layers.{i}.lru.conv": f"{_MIX}.conv_1d",
        "layers.{i}.lru.decay": f"{_LRU}.recurrent_param",
        "layers.{i}.lru.input_weight": f"{_LRU}.input_gate_weight",
        "layers.{i}.lru.input_bias": f"{_LRU}.input_gate_bias",
        "layers.{i}.lru.decay_weight": f"{_LRU}.recurrent_gate_weight",
        "layers.{i}.lru.decay_bias": f"{_LRU}.recurrent_gate_bias",
        "layers.{i}.lru.out": f"{_MIX}.linear_out",
        "layers.{i}.ffn.pre_norm": "layers.{i}.channel_pre_norm",
        **{f"layers.{{i}}.ffn.{p}": f"layers.{{i}}.mlp_block.{p}_proj" for p in ("gate", "up", "down")},
        "norm": "final_norm",
    },
    prefix="model",
    ignore=(r"(model\.)?(normalizer|layers\.\d+\.temporal_block\.rotary_emb\.inv_freq)",),
)

HEADS = {
    "RecurrentGemmaModel": Backbone(output=BaseModelOutputWithNoAttention),
    "RecurrentGemmaForCausalLM": CausalLM(
        names={"out": "lm_head"}, softcap="logits_soft_cap", output=CausalLMOutput
    ),
}

family(
    "recurrent_gemma", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="RecurrentGemma",
)  # fmt: skip
