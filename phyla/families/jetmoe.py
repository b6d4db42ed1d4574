"""JetMoE (Shen et al. 2024, arXiv:2404.07413). Public checkpoints: jetmoe/jetmoe-8b, jetmoe/jetmoe-8b-chat.

Differs from Llama in: experts in attention too (each token chooses query and output projections, keys and
values are shared by all), experts with a bias on their sum, two router scores a layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    Attention, Causal, Context, Decoder, Embed, Experts, Heads, Layer, Linear, RMSNorm, Rotary, Spec, repeat,
    residual,
)  # fmt: skip
from phyla.blocks.attention import attend
from phyla.blocks.mask import is_plain_causal, self_mask
from phyla.blocks.residual import Mixer
from phyla.blocks.shapes import Stream
from phyla.blocks.spec import make
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Split
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify
from phyla.heads.loss import cross_entropy
from phyla.outputs import (
    MoeCausalLMOutputWithPast, MoeModelOutputWithPast, SequenceClassifierOutputWithPast,
)  # fmt: skip
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json; there are key/value heads x chosen experts query heads."""

    vocab_size: int = 32000
    hidden_size: int = 2048
    num_hidden_layers: int = 12
    num_key_value_heads: int = 16
    kv_channels: int = 128
    intermediate_size: int = 5632
    max_position_embeddings: int = 4096
    activation_function: str = "silu"
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    output_router_logits: bool = False
    aux_loss_coef: float = 0.01
    use_cache: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    tie_word_embeddings: bool = True
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.01
    attention_dropout: float = 0.0
    rope_scaling: dict | None = None

    ALIASES = {"router_aux_loss_coef": "aux_loss_coef"}

    def finish(self) -> None:
        if self.num_experts_per_tok > self.num_local_experts:
            raise ConfigError(
                f"num_experts_per_tok must be at most num_local_experts ({self.num_local_experts}), "
                f"but is {self.num_experts_per_tok}"
            )
        self.num_attention_heads = self.num_key_value_heads * self.num_experts_per_tok


def chosen_product(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Each token's products with the matrices chosen for it: x (N, K or 1, in), weight (X, out, in), index
    (N, K) -> (N, K, out).
    """
    if torch.compiler.is_compiling() or x.is_cuda:
        every = torch.einsum("nki,xoi->nkxo", x, weight)  # (N, K or 1, X, out)
        every = every.expand(-1, index.shape[1], -1, -1)
        return every.gather(2, index[..., None, None].expand(-1, -1, 1, weight.shape[1]))[:, :, 0]
    order = index.flatten().argsort()  # tokens side by side that chose the same matrix
    sorted_x = x.expand(-1, index.shape[1], -1).flatten(0, 1)[order]
    counts = index.flatten().bincount(minlength=len(weight)).tolist()
    parts = [F.linear(part, matrix) for part, matrix in zip(sorted_x.split(counts), weight, strict=True)]
    return torch.cat(parts)[order.argsort()].unflatten(0, index.shape)


class ExpertAttention(Mixer):
    """Attention whose query and output projections are experts, a set of G heads each (section 2.2).

    heads: G key/value heads of width E that all experts share. q (X, G E, D), o (X, D, G E).
    """

    caches = True

    def __init__(
        self, width: int, heads: Heads, experts: int, chosen: int, position: Spec, dropout: float
    ) -> None:
        super().__init__()
        self.heads, _, self.head_width = heads.resolve(width)
        inner = self.heads * self.head_width
        self.chosen, self.attention_dropout, self.mask = chosen, dropout, Causal()
        self.router = Linear(width, experts, bias=False)
        self.q = nn.Parameter(torch.empty(experts, inner, width))
        self.k, self.v = Linear(width, inner, bias=False), Linear(width, inner, bias=False)
        self.o = nn.Parameter(torch.empty(experts, width, inner))
        self.bias = nn.Parameter(torch.empty(width))
        self.position = make(position)

    new_cache = Attention.new_cache
    cross = False

    def mix(self, x: Stream, ctx: Context) -> Stream:
        batch, length, width = x.shape
        count, heads, each = self.chosen, self.heads, self.head_width
        tokens = x.reshape(-1, width)  # (N, D)
        scores = self.router(tokens).float()
        if ctx.router_logits is not None:
            ctx.router_logits.append(scores)
        best, index = scores.topk(count, -1)  # (N, chosen)
        q = chosen_product(tokens[:, None], self.q, index)  # (N, chosen, G E)
        # Queries of one key/value head stand side by side: (B, G * chosen, S, E).
        q = q.view(batch, length, count, heads, each).permute(0, 3, 2, 1, 4).flatten(1, 2)
        k, v = (p(x).view(batch, length, heads, each).transpose(1, 2) for p in (self.k, self.v))
        q, k = self.position.rotate(q, k, ctx)
        cache, first = ctx.slot(self.slot), 0
        if cache is not None:
            k, v, first = cache.update(k, v)
        y = self._attend(q, k, v, first, ctx)  # (B, G * chosen, S, E)
        y = y.unflatten(1, (heads, count)).permute(0, 3, 2, 1, 4).reshape(-1, count, heads * each)
        y = chosen_product(y, self.o, index)  # (N, chosen, D)
        weights = torch.softmax(best, -1).to(x.dtype)
        return (y * weights[..., None]).sum(1).view_as(x) + self.bias

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, first: int, ctx: Context) -> Tensor:
        dropout, scale = self.attention_dropout if self.training else 0.0, self.head_width**-0.5
        plain = ctx.attentions is None and ctx.implementation != "eager"
        causal = plain and is_plain_causal(self.mask, ctx, k.shape[2])
        mask = None if causal else self_mask(self.mask, ctx, first, k.shape[2])
        if plain:
            return attend(q, k, v, mask, None, causal, scale, dropout)
        k, v = (t.repeat_interleave(self.chosen, 1) for t in (k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(q.dtype).min) if mask.dtype == torch.bool else (
                scores + mask
            )  # fmt: skip
        weights = F.dropout(torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype), dropout)
        if ctx.attentions is not None:
            # Public order: all heads of the first choice, then those of the second.
            ctx.attentions.append(
                weights.unflatten(1, (self.heads, self.chosen)).transpose(1, 2).flatten(1, 2)
            )
        return torch.matmul(weights, v)

    def reset(self, std: float) -> bool:
        for weight in (self.q, self.o):
            nn.init.normal_(weight, 0.0, std)
        nn.init.zeros_(self.bias)
        return True


class BiasedExperts(Experts):
    """Experts with one bias on their sum."""

    def __init__(self, width: int, inner: int, experts: int, chosen: int, act: str) -> None:
        super().__init__(width, inner, experts, chosen, act=act)
        self.bias = nn.Parameter(torch.empty(width))

    def mix(self, x: Stream, ctx: Context) -> Stream:
        return super().mix(x, ctx) + self.bias


def build(c: Config) -> Decoder:
    norm = RMSNorm(c.hidden_size)  # rms_norm_eps is the final norm's alone
    rotary = Rotary(c.kv_channels, c.rope_theta, c.rope_scaling, c.max_position_embeddings)
    heads = Heads(c.num_key_value_heads, width=c.kv_channels)
    chosen = c.num_experts_per_tok
    attn = ExpertAttention(c.hidden_size, heads, c.num_local_experts, chosen, rotary, c.attention_dropout)
    ffn = BiasedExperts(
        c.hidden_size, c.intermediate_size, c.num_local_experts, chosen, c.activation_function
    )
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, padding=c.pad_token_id),
        layers=repeat(c.num_hidden_layers, Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))),
        norm=RMSNorm(c.hidden_size, eps=c.rms_norm_eps),
    )


def late_loss(logits: Tensor, labels: Tensor, total: int | Tensor | None) -> Tensor:
    """The public loss of this family: labels shifted twice, rows laid end to end (docs/differences.md)."""
    scores, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return cross_entropy(scores[:-1], targets[1:], total)


_ATTN, _FFN = "layers.{i}.self_attention", "layers.{i}.mlp"
NAMES = NameMap(
    {
        "embed.tokens": "embed_tokens",
        "layers.{i}.attn.pre_norm": "layers.{i}.input_layernorm",
        "layers.{i}.attn.router": f"{_ATTN}.experts.router.layer",
        "layers.{i}.attn.q": f"{_ATTN}.experts.input_linear.weight",
        "layers.{i}.attn.k|v": split(f"{_ATTN}.kv_proj"),
        "layers.{i}.attn.o": f"{_ATTN}.experts.output_linear.weight",
        "layers.{i}.attn.bias": f"{_ATTN}.experts.bias",
        "layers.{i}.ffn.pre_norm": "layers.{i}.post_attention_layernorm",
        "layers.{i}.ffn.router": f"{_FFN}.router.layer",
        "layers.{i}.ffn.gate|up": To(f"{_FFN}.input_linear.weight", Split(dim=1)),
        "layers.{i}.ffn.down": f"{_FFN}.output_linear.weight",
        "layers.{i}.ffn.bias": f"{_FFN}.bias",
        "norm": "norm",
    },
    prefix="model",
)

HEADS = {
    "JetMoeModel": Backbone(output=MoeModelOutputWithPast),
    "JetMoeForCausalLM": CausalLM(
        names={"out": "lm_head"}, output=MoeCausalLMOutputWithPast, balance=True, criterion=late_loss
    ),
    "JetMoeForSequenceClassification": Classify(
        on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
    ),
}

family("jetmoe", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="JetMoe")
