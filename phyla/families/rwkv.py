"""RWKV-4 (Peng et al. 2023, arXiv:2305.13048). Public checkpoints: RWKV/rwkv-4-169m-pile, ...

Differs from the plain decoder in: time mixing (a decaying weighted average) in place of attention, channel
mixing, each of a token with the one before it, in place of the feed-forward; no positions; a norm before the
first layer; outside training the stream is halved every few layers, so that half precision holds it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks import Context, Decoder, Embed, Layer, LayerNorm, Mixer, Spec, StackOutput, make, residual
from phyla.blocks.cache import Cache, StateCache
from phyla.blocks.scan import decayed_average
from phyla.blocks.shapes import Stream
from phyla.blocks.ssm import FanLinear, kept
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import RwkvCausalLMOutput, RwkvOutput
from phyla.skeletons import TextModel

SUMS = ("numerator", "denominator", "exponent")


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. Texts may be longer than context_length."""

    vocab_size: int = 50277
    context_length: int = 1024
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    attention_hidden_size: int | None = None
    intermediate_size: int | None = None
    layer_norm_epsilon: float = 1e-5
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 0
    rescale_every: int = 6
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def finish(self) -> None:
        self.attention_hidden_size = self.attention_hidden_size or self.hidden_size
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size


class Shifted(Mixer):
    """What both mixers share: blends of each token with the one before it, weighted a channel.

    depth: (number of the layer, count of layers), for fresh values. gain: factor on the output outside
    training. Leading padding counts as nothing before the text.
    """

    caches = True

    def __init__(self, width: int, blends: tuple[str, ...], depth: tuple[int, int], gain: float) -> None:
        super().__init__()
        self.width, self.blends, self.depth, self.gain = width, blends, depth, gain
        for name in blends:
            self.register_parameter(f"blend_{name}", nn.Parameter(torch.empty(width)))

    def new_cache(self, batch: int, length: int) -> StateCache:
        return StateCache()

    def blend(self, x: Stream, keep: Tensor | None, cache: StateCache | None) -> list[Tensor]:
        """The blends (B, S, D), in order."""
        x = x if keep is None else x * keep
        last = None if cache is None else cache.get("last")
        last = torch.zeros_like(x[:, 0]) if last is None else last
        if cache is not None:
            cache.set("last", x[:, -1].clone())
        before = torch.cat((last[:, None], x[:, :-1]), 1)
        return [torch.lerp(before, x, getattr(self, f"blend_{name}")) for name in self.blends]

    def scaled(self, y: Tensor) -> Tensor:
        """The output, smaller outside training in deep layers."""
        return y if self.training or self.gain == 1 else y * self.gain

    def reset(self, std: float) -> bool:
        index, count = self.depth
        rank = torch.arange(self.width, device=self.blend_k.device) / self.width
        depth, rest = index / max(count - 1, 1), 1 - index / count
        with torch.no_grad():
            for name in self.blends:
                power = 0.5 * rest if name == "r" and len(self.blends) == 3 else rest
                getattr(self, f"blend_{name}").copy_(rank**power + (0.3 * depth if name == "v" else 0.0))
        return True


class TimeMix(Shifted):
    """r * (an average of v that forgets) (Peng et al. 2023, eq. 11-16). inner: I."""

    def __init__(self, width: int, inner: int, depth: tuple[int, int], gain: float) -> None:
        super().__init__(width, ("k", "v", "r"), depth, gain)
        self.decay, self.bonus = nn.Parameter(torch.empty(inner)), nn.Parameter(torch.empty(inner))
        self.k, self.v = FanLinear(width, inner, bias=False), FanLinear(width, inner, bias=False)
        self.r, self.out = FanLinear(width, inner, bias=False), FanLinear(inner, width, bias=False)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        cache, keep = ctx.slot(self.slot), kept(ctx, x, leading=True)
        for_k, for_v, for_r = self.blend(x, keep, cache)
        k, v, r = self.k(for_k).float(), self.v(for_v).float(), torch.sigmoid(self.r(for_r))
        if keep is not None:
            k = k.masked_fill(keep == 0, -1e30)
        state = None
        if cache is not None and cache.get(SUMS[0]) is not None:
            state = tuple(cache.tensors[name] for name in SUMS)
        y, state = decayed_average(k, v, -torch.exp(self.decay.float()), self.bonus.float(), state)
        if cache is not None:
            for name, value in zip(SUMS, state, strict=True):
                cache.set(name, value.clone())
        y = self.scaled(self.out(r * y.to(x.dtype)))
        if ctx.attentions is not None:
            ctx.attentions.append(y)
        return y

    def reset(self, std: float) -> bool:
        super().reset(std)
        index, count = self.depth
        inner, power = len(self.decay), 0.7 + 1.3 * index / max(count - 1, 1)
        order = torch.arange(inner, device=self.decay.device)
        with torch.no_grad():
            self.decay.copy_(-5 + 8 * (order / max(inner - 1, 1)) ** power)
            self.bonus.copy_(math.log(0.3) + 0.5 * ((order + 1) % 3 - 1))
        return True


class ChannelMix(Shifted):
    """sigmoid(r) * v(relu(k)^2) (Peng et al. 2023, eq. 17-19). inner: I."""

    def __init__(self, width: int, inner: int, depth: tuple[int, int], gain: float) -> None:
        super().__init__(width, ("k", "r"), depth, gain)
        self.k, self.v = FanLinear(width, inner, bias=False), FanLinear(inner, width, bias=False)
        self.r = FanLinear(width, width, bias=False)

    def mix(self, x: Stream, ctx: Context) -> Stream:
        for_k, for_r = self.blend(x, kept(ctx, x, leading=True), ctx.slot(self.slot))
        y = self.v(torch.relu(self.k(for_k)).square())
        return torch.sigmoid(self.r(for_r)) * self.scaled(y)


class FadingLayer(Layer):
    """A layer that may begin with a norm of the stream and, outside training, end with half of it."""

    def __init__(self, first: Spec | None, halves: bool, **branches: Spec) -> None:
        super().__init__(**branches)
        self.first, self.halves = make(first), halves

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = super().forward(x if self.first is None else self.first(x), ctx)
        return x / 2 if self.halves and not self.training else x


class StatefulDecoder(Decoder):
    """A decoder that gives its memory as five public tensors (B, D, layers).

    They are the last token seen by channel and by time mixing, then both sums and their exponent.
    """

    def run(
        self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False
    ) -> StackOutput:
        out: Any = super().run(x, ctx, ids, record_states)
        if ctx.cache is not None and not ctx.cache.flat:
            out.state = [
                torch.stack([ctx.slot(getattr(la, part).slot).tensors[name] for la in self.layers], -1)
                for part, name in self.places()
            ]
        return out

    def places(self) -> list[tuple[str, str]]:
        """Mixer and name of each public tensor."""
        return [("ffn", "last"), ("time", "last"), *(("time", name) for name in SUMS)]

    def recall(self, cache: Cache | None, state: Any) -> Cache | None:
        slots: Any = [] if cache is None else cache.slots
        for tensor, (part, name) in zip(state, self.places(), strict=True):
            for layer, value in zip(self.layers, tensor.unbind(-1), strict=True):
                slots[getattr(layer, part).slot].set(name, value)
        return cache


def build(c: PretrainedConfig) -> Decoder:
    norm, every = LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon), c.rescale_every

    def layer(i: int) -> Spec:
        depth, gain = (i, c.num_hidden_layers), 2.0 ** -(i // every) if every > 0 else 1.0
        return FadingLayer(
            norm if i == 0 else None,
            every > 0 and (i + 1) % every == 0,
            time=residual(TimeMix(c.hidden_size, c.attention_hidden_size, depth, gain), pre=norm),
            ffn=residual(ChannelMix(c.hidden_size, c.intermediate_size, depth, gain), pre=norm),
        )

    return StatefulDecoder(
        embed=Embed(c.vocab_size, c.hidden_size),
        layers=tuple(layer(i) for i in range(c.num_hidden_layers)),
        norm=LayerNorm(c.hidden_size),  # layer_norm_epsilon is not the final norm's
        record="layers",
    )


def names(c: PretrainedConfig) -> NameMap:
    time, channel, row = "blocks.{i}.attention", "blocks.{i}.feed_forward", Reshape((1, 1, c.hidden_size))
    public = {"k": "key", "v": "value", "r": "receptance"}
    return NameMap(
        {
            "embed.tokens": "embeddings",
            "layers.{i}.first": "blocks.{i}.pre_ln",
            "layers.{i}.time.pre_norm": "blocks.{i}.ln1",
            "layers.{i}.time.decay": f"{time}.time_decay",
            "layers.{i}.time.bonus": f"{time}.time_first",
            "layers.{i}.time.out": f"{time}.output",
            "layers.{i}.ffn.pre_norm": "blocks.{i}.ln2",
            **{f"layers.{{i}}.time.{p}": f"{time}.{n}" for p, n in public.items()},
            **{f"layers.{{i}}.ffn.{p}": f"{channel}.{n}" for p, n in public.items()},
            **{f"layers.{{i}}.time.blend_{p}": To(f"{time}.time_mix_{n}", row) for p, n in public.items()},
            **{f"layers.{{i}}.ffn.blend_{p}": To(f"{channel}.time_mix_{public[p]}", row) for p in "kr"},
            "norm": "ln_out",
        },
        prefix="rwkv",
    )


HEADS = {
    "RwkvModel": Backbone(output=RwkvOutput),
    "RwkvForCausalLM": CausalLM(names={"out": "head"}, output=RwkvCausalLMOutput),
}

family("rwkv", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="Rwkv")
