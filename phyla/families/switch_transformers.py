"""Switch Transformers (Fedus et al. 2021, arXiv:2101.03961): T5 whose every n-th feed-forward is one of many.

Public checkpoints: google/switch-base-8, google/switch-c-2048, ...
Differs from T5 in: sparse feed-forwards, where each token goes to the best expert alone and an expert takes
no more than `expert_capacity` tokens of a row (the rest pass unchanged), and the routers' losses.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Context, Decoder, Encoder, EncoderDecoder, Linear, Mixer, Spec, activation,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, To, stack
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import t5
from phyla.family import family
from phyla.heads import Backbone, Head, Seq2SeqLM
from phyla.heads.base import Call, HeadModule
from phyla.heads.lm import TokenScores
from phyla.outputs import ModelOutput, MoEModelOutput, Seq2SeqMoEModelOutput, Seq2SeqMoEOutput
from phyla.skeletons import EncoderDecoderModel, TextModel

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32128
    d_model: int = 768
    d_kv: int = 64
    d_ff: int = 2048
    expert_capacity: int = 64
    num_layers: int = 12
    num_sparse_encoder_layers: int = 3
    num_decoder_layers: int | None = 12
    num_sparse_decoder_layers: int = 3
    num_heads: int = 12
    num_experts: int = 8
    router_bias: bool = False
    router_jitter_noise: float = 0.01
    router_dtype: str = "float32"
    router_ignore_padding_tokens: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    router_z_loss_coef: float = 0.001
    router_aux_loss_coef: float = 0.001
    initializer_factor: float = 1.0
    dense_act_fn: str = "relu"
    is_encoder_decoder: bool = True
    add_router_probs: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1

    ALIASES = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    }
    is_gated_act = False

    def finish(self) -> None:
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.router_dtype not in _DTYPES:
            raise ConfigError(f"router_dtype must be one of {list(_DTYPES)}, but is {self.router_dtype!r}")
        for side, layers in (("encoder", self.num_layers), ("decoder", self.num_decoder_layers)):
            sparse = getattr(self, f"num_sparse_{side}_layers")
            self.__dict__.setdefault(f"{side}_sparse_step", layers // sparse if sparse > 0 else layers)


class Dense(FFN):
    """T5's feed-forward among sparse ones: where routers are asked for scores, it has a mark instead."""

    divides = True

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        if ctx.router_logits is not None:
            ctx.router_logits.append((torch.zeros(1, dtype=torch.long, device=x.device),))  # type: ignore[arg-type]
        return super().mix(x, ctx)


class Switch(Mixer):
    """The best of X feed-forwards for each token, times its probability (section 2.1 of the paper).

    up (X, F, D), down (X, D, F). An expert takes the first `capacity` tokens of a row that want it; others
    pass as they are, but for the factor. The router computes in `dtype`; jitter: width of the uniform noise
    on its input while training.
    """

    def __init__(
        self, width: int, inner: int, experts: int, capacity: int, act: str, dropout: float,
        bias: bool, jitter: float, dtype: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.experts, self.capacity, self.jitter, self.router_dtype = (
            experts,
            capacity,
            jitter,
            _DTYPES[dtype],
        )
        self.act, self.inner_dropout = activation(act), dropout
        self.router = Linear(width, experts, bias=bias)
        self.up = nn.Parameter(torch.empty(experts, inner, width))
        self.down = nn.Parameter(torch.empty(experts, width, inner))

    def scores(self, x: Tensor) -> Tensor:
        """Scores of the experts (B, S, X) in the router's dtype."""
        h = x.to(self.router_dtype)
        if self.training and self.jitter:
            h = h * torch.empty_like(h).uniform_(1 - self.jitter, 1 + self.jitter)
        weight, bias = self.router.weight, self.router.bias
        if weight.dtype == h.dtype:
            return self.router(h)
        return F.linear(h, weight.to(h.dtype), None if bias is None else bias.to(h.dtype))

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        logits = self.scores(x)
        weights = torch.softmax(logits, -1).to(x.dtype)
        best, index = weights.max(-1, keepdim=True)  # (B, S, 1)
        chosen = torch.zeros_like(weights, dtype=torch.long).scatter(-1, index, 1)  # (B, S, X)
        chosen = chosen * (chosen.cumsum(1) <= self.capacity)
        if ctx.router_logits is not None:
            ctx.router_logits.append((logits, chosen.argmax(-1)))  # type: ignore[arg-type]
        taken = chosen.bool()
        if torch.compiler.is_compiling() or x.is_cuda:
            y = self._run_dense(x, taken)
        else:
            y = x.clone()
            for expert in range(self.experts):
                rows, places = torch.where(taken[..., expert])
                if len(rows):
                    y[rows, places] = self._expert(x[rows, places], self.up[expert], self.down[expert])
        return best * y

    def _expert(self, h: Tensor, up: Tensor, down: Tensor) -> Tensor:
        h = self.act(h @ up.transpose(-1, -2))
        if self.training and self.inner_dropout:
            h = F.dropout(h, self.inner_dropout)
        return h @ down.transpose(-1, -2)

    def _run_dense(self, x: Tensor, taken: Tensor) -> Tensor:
        """All experts on all tokens: static shapes for captured graphs."""
        every = self._expert(x[:, None], self.up, self.down)  # (B, X, S, D)
        y = (every * taken.transpose(1, 2)[..., None]).sum(1)
        return torch.where(taken.any(-1, keepdim=True), y, x)


class SwitchScores(TokenScores):
    """Next-token scores; the loss counts how unevenly and how strongly the routers choose."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        fields = super().forward(out, call)
        c = call.config
        total: Any = 0.0
        if out.decoder_router_logits is None:
            return fields
        for side in ("encoder", "decoder"):
            routed = getattr(out, f"{side}_router_logits")
            z: Any = 0.0
            aux: Any = 0.0
            # As in the reference, a side whose every layer is sparse has no router losses.
            if routed is not None and getattr(c, f"{side}_sparse_step") > 1:
                sparse = [item for item in routed if len(item) == 2]
                logits, index = (torch.cat(parts, 1) for parts in zip(*sparse, strict=True))
                z, aux = z_loss(logits), spread_loss(logits, index)
            fields[f"{side}_z_loss"], fields[f"{side}_aux_loss"] = z, aux
            total = total + c.router_z_loss_coef * z + c.router_aux_loss_coef * aux
        if fields["loss"] is not None:
            fields["loss"] = fields["loss"] + total
        return fields


def z_loss(logits: Tensor) -> Tensor:
    """Mean square of the log-sum of scores (..., X) (Zoph et al. 2022, arXiv:2202.08906, eq. 5)."""
    return torch.logsumexp(logits, -1).square().mean()


def spread_loss(logits: Tensor, index: Tensor) -> Tensor:
    """How unevenly experts are used (eq. 4-6 of the paper): scores (B, N, X), chosen experts (B, N)."""
    experts = logits.shape[-1]
    share = F.one_hot(index, experts).float().mean(1)
    return (share * torch.softmax(logits, -1).mean(1)).mean() * experts**2


@dataclass(frozen=True)
class SwitchLM(Seq2SeqLM):
    """Next-token scores of a decoder, with the losses of the routers on both sides."""

    routed: ClassVar[bool] = True
    output: type[ModelOutput] = Seq2SeqMoEOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return SwitchScores(self, config, width)


@dataclass(frozen=True)
class RoutedBackbone(Backbone):
    """A bare stack that returns its routers' scores."""

    routed: ClassVar[bool] = True


def is_sparse(c: PretrainedConfig, side: str) -> list[bool]:
    """Which layers of a side are sparse."""
    step, count = (
        getattr(c, f"{side}_sparse_step"),
        c.num_layers if side == "encoder" else c.num_decoder_layers,
    )
    return [step > 0 and (i % step == 1 or step == 1) for i in range(count)]


def side_stack(c: PretrainedConfig, kind: type, side: str) -> Spec:
    """One side: T5's, with its sparse feed-forwards."""
    dense = t5.feed_forward(c)
    sparse = Switch(
        c.d_model, c.d_ff, c.num_experts, c.expert_capacity, c.dense_act_fn, c.dropout_rate, c.router_bias,
        c.router_jitter_noise, c.router_dtype,
    )  # fmt: skip
    feeds = [sparse if yes else Spec(Dense, dense.args) for yes in is_sparse(c, side)]
    return t5.stack(c, kind, len(feeds), side == "decoder", feeds)


def build(c: PretrainedConfig) -> EncoderDecoder:
    return EncoderDecoder(side_stack(c, Encoder, "encoder"), side_stack(c, Decoder, "decoder"))


def build_encoder(c: PretrainedConfig) -> Spec:
    return side_stack(c, Encoder, "encoder")


def with_experts(c: PretrainedConfig, table: NameMap, sides: dict[str, str]) -> NameMap:
    """T5's names with the feed-forwards as the files here have them."""
    lines: dict[str, str | To] = {
        k: v for k, v in table.lines.items() if not k.endswith(("ffn.up", "ffn.down"))
    }
    for ours, side in sides.items():
        for i, sparse in enumerate(is_sparse(c, side)):
            mine, at = f"{ours}layers.{i}.ffn", f"{side}.block.{i}.layer.{1 if side == 'encoder' else 2}.mlp"
            for part, leaf in (("up", "wi"), ("down", "wo")):
                many = stack(f"{at}.experts.expert_{{e}}.{leaf}.weight")
                lines[f"{mine}.{part}"] = many if sparse else f"{at}.{leaf}"
            if sparse:
                lines[f"{mine}.router"] = f"{at}.router.classifier"
    return table.but(lines=lines)


def names(c: PretrainedConfig) -> NameMap:
    return with_experts(c, t5.names(c), {"encoder.": "encoder", "decoder.": "decoder"})


def encoder_names(c: PretrainedConfig) -> NameMap:
    return with_experts(c, t5.encoder_names(c), {"": "encoder"})


HEADS: dict[str, Head] = {
    "SwitchTransformersModel": Backbone(output=Seq2SeqMoEModelOutput),
    "SwitchTransformersForConditionalGeneration": SwitchLM(
        names={"out": "lm_head"}, scale=lambda c: c.d_model**-0.5 if c.tie_word_embeddings else None
    ),
    "SwitchTransformersEncoderModel": RoutedBackbone(
        build=build_encoder, table=encoder_names, skeleton=TextModel, output=MoEModelOutput
    ),
}

family(
    "switch_transformers", config=Config, build=build, names=names, heads=HEADS,
    skeleton=EncoderDecoderModel, public="SwitchTransformers", width=lambda c: c.d_model,
)  # fmt: skip
