"""DeepSeek-V3 (arXiv:2412.19437). Public checkpoints: deepseek-ai/DeepSeek-V3, deepseek-ai/DeepSeek-R1.

Differs from Llama in: keys, values and queries come from narrow latent vectors, and only a part of each head
turns with position; behind the first layers each token goes to some of many narrow experts, by sigmoid
scores, in groups, and to a shared one; heads behind the last layer guess further tokens (see `HeadsAhead`).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    Attention, Causal, Context, Decoder, Experts, GatedFFN, Layer, Linear, RMSNorm, Rotary, Spec, make,
    residual,
)  # fmt: skip
from phyla.blocks.ahead import Ahead
from phyla.blocks.mask import is_plain_causal
from phyla.blocks.residual import Mixer
from phyla.blocks.shapes import Stream
from phyla.checkpoints.names import NameMap, names_ahead, stack
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import llama
from phyla.family import HeadsAhead, family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_attention_heads: int = 128
    num_key_value_heads: int | None = 128
    n_shared_experts: int = 1
    n_routed_experts: int = 256
    output_router_logits: bool = False
    routed_scaling_factor: float = 2.5
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    qk_nope_head_dim: int = 128
    n_group: int = 8
    topk_group: int = 4
    num_experts_per_tok: int = 8
    first_k_dense_replace: int = 3
    norm_topk_prob: bool = True
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    pretraining_tp: int | None = 1
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    rope_interleave: bool = True
    attention_bias: bool = False
    attention_dropout: float = 0.0
    num_nextn_predict_layers: int = 1

    ALIASES = {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"}

    def finish(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        check_groups(self)


def check_groups(c: PretrainedConfig) -> None:
    """Refuse groups that the experts do not fill, or that hold fewer experts than a token chooses."""
    groups, each = c.n_group, c.n_routed_experts // max(c.n_group, 1)
    if groups < 1 or c.n_routed_experts % groups or each < 2 or not 0 < c.topk_group <= groups:
        raise ConfigError(
            f"n_group must divide n_routed_experts ({c.n_routed_experts}) into groups of two or more, and "
            f"topk_group be at most n_group, but they are {groups} and {c.topk_group} "
            f"(in a {c.model_type} config)"
        )
    if c.num_experts_per_tok > c.topk_group * each:
        raise ConfigError(
            f"num_experts_per_tok must be at most the {c.topk_group * each} of {c.topk_group} groups, "
            f"but is {c.num_experts_per_tok} (in a {c.model_type} config)"
        )


class LatentAttention(Mixer):
    """Attention whose keys and values are read from one narrow latent vector (section 2.1.1).

    widths: elements of a head that turn, that do not, and of its values. ranks: widths of the latent vectors
    of queries (None: none) and of keys and values; all heads share the part of the keys that turns.
    """

    caches, in_pages = True, True
    cross, softcap, kv_site = False, None, None
    new_cache, rule, seen = Attention.new_cache, Attention.rule, Attention.seen
    answer: Any = Attention.answer
    _attend_openly = Attention._attend_openly

    def __init__(
        self, width: int, heads: int, widths: tuple[int, int, int], ranks: tuple[int | None, int],
        position: Spec, bias: bool = False, scale: float | None = None, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.turned, self.still, self.value_width = widths
        self.num_heads = self.num_kv_heads = heads
        self.head_width = self.turned + self.still
        rank, self.kv_rank = ranks
        if rank is not None:
            self.q_down, self.q_down_norm = Linear(width, rank, bias=bias), make(RMSNorm(rank))
        self.narrows_q = rank is not None
        self.q = Linear(rank or width, heads * self.head_width, bias=False)
        self.kv_down = Linear(width, self.kv_rank + self.turned, bias=bias)
        self.kv_down_norm = make(RMSNorm(self.kv_rank))
        self.kv = Linear(self.kv_rank, heads * (self.still + self.value_width), bias=False)
        self.o = Linear(heads * self.value_width, width, bias=bias)
        self.position = make(position)
        self.mask, self.attention_dropout = Causal(), dropout
        self.scale = self.head_width**-0.5 if scale is None else scale

    def project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (B, H, S, E) with their turned part in front, values (B, H, S, E')."""
        q = self.q(self.q_down_norm(self.q_down(x)) if self.narrows_q else x)
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, S, still + turned)
        latent, shared = self.kv_down(x).split((self.kv_rank, self.turned), -1)
        kv = self.kv(self.kv_down_norm(latent)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = kv.split((self.still, self.value_width), -1)
        q_still, q_turned = q.split((self.still, self.turned), -1)
        q_turned, k_turned = self.position.rotate(q_turned, shared[:, None], ctx)
        k_turned = k_turned.expand(-1, self.num_heads, -1, -1)
        return torch.cat((q_turned, q_still), -1), torch.cat((k_turned, k), -1), v

    def mix(self, x: Stream, ctx: Context) -> Stream:
        q, k, v = self.project(x, ctx)
        cache, first = ctx.slot(self.slot), 0
        if cache is not None:
            k, v, first = cache.update(k, v)
        causal = is_plain_causal(self.mask, ctx, k.shape[2])
        return self.o(self.answer(q, k, v, first, causal, x, ctx))


class GroupedExperts(Experts):
    """Experts chosen by sigmoid scores, those of the best groups alone, and a shared one (section 2.1.2).

    A stored correction is added to the scores for the choice, not for the weights, which sum up to `gain`
    where `renormalise`. groups: how many there are, and how many of them a token chooses from. shared: the
    inner width of the feed-forward that all tokens go through.
    """

    exact = ("correction",)  # float32 in models of any dtype, as published
    correction: Tensor

    def __init__(
        self, width: int, inner: int, experts: int, chosen: int, groups: tuple[int, int], shared: int,
        act: str = "silu", renormalise: bool = True, gain: float = 1.0,
    ):  # fmt: skip
        super().__init__(width, inner, experts, chosen, act=act, renormalise=renormalise)
        self.groups, self.gain = groups, gain
        self.register_buffer("correction", torch.zeros(experts))
        self.shared = make(GatedFFN(width, shared, act=act))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        kept = self.correction
        super()._apply(fn, recurse)
        if self.correction.dtype != kept.dtype:
            self.correction = kept.to(self.correction.device)
        return self

    def route(self, tokens: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """As Experts; a router without anything at its site works in float32."""
        router = self.router
        bare = type(router) is Linear and router.site is None
        logits = F.linear(tokens.float(), router.weight.float()) if bare else router(tokens)  # (N, X)
        if ctx.router_logits is not None:
            ctx.router_logits.append(logits)
        scores = logits.float().sigmoid()
        count, best = self.groups
        apart = (scores + self.correction).unflatten(-1, (count, -1))  # (N, groups, X / groups)
        _, kept = apart.topk(2, -1).values.sum(-1).topk(best, -1)  # (N, best)
        open_groups = torch.zeros_like(apart[..., 0]).scatter(1, kept, 1.0) > 0
        index = apart.masked_fill(~open_groups[..., None], -math.inf).flatten(1).topk(self.chosen, -1).indices
        weights = scores.gather(1, index)
        if self.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.gain, index

    def mix(self, x: Stream, ctx: Context) -> Stream:
        return super().mix(x, ctx) + self.shared.mix(x, ctx)


def attention(c: Config) -> Spec:
    """Latent attention; yarn with `mscale_all_dim` scales its scores too."""
    layout, width = "pairs" if c.rope_interleave else "half", c.qk_rope_head_dim
    rotary = Rotary(width, c.rope_theta, c.rope_scaling, c.max_position_embeddings, layout=layout)
    yarn, scale = c.rope_scaling or {}, (width + c.qk_nope_head_dim) ** -0.5
    kind, weight = yarn.get("rope_type", yarn.get("type", "default")), yarn.get("mscale_all_dim", 0)
    factor = yarn.get("factor") or 1.0  # the rotary refuses rules that need one and have none
    if kind != "default" and weight and factor > 1:
        scale *= (0.1 * weight * math.log(factor) + 1.0) ** 2
    return LatentAttention(
        c.hidden_size, c.num_attention_heads, (width, c.qk_nope_head_dim, c.v_head_dim),
        (c.q_lora_rank, c.kv_lora_rank), rotary, bias=c.attention_bias, scale=scale,
        dropout=c.attention_dropout,
    )  # fmt: skip


def experts(c: PretrainedConfig) -> Spec:
    """The feed-forward of layers behind the first."""
    return GroupedExperts(
        c.hidden_size, c.moe_intermediate_size, c.n_routed_experts, c.num_experts_per_tok,
        (c.n_group, c.topk_group), c.moe_intermediate_size * c.n_shared_experts, act=c.hidden_act,
        renormalise=c.norm_topk_prob, gain=c.routed_scaling_factor,
    )  # fmt: skip


def layer(c: PretrainedConfig, attn: Spec, dense: bool) -> Spec:
    """One layer, with one feed-forward or with experts."""
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    ffn = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act) if dense else experts(c)
    return Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))


def stack_of(c: PretrainedConfig, attn: Spec) -> Decoder:
    """A decoder whose first layers are dense."""
    kinds = {dense: layer(c, attn, dense) for dense in (True, False)}
    return llama.build(c, layers=[kinds[i < c.first_k_dense_replace] for i in range(c.num_hidden_layers)])


def build(c: Config) -> Decoder:
    return stack_of(c, attention(c))


_ATTN, _FFN = "layers.{i}.self_attn", "layers.{i}.mlp"
PARTS = ("gate", "up", "down")
# Weights of a dense layer by their whole names: in the others, the same paths are those of all experts.
EXPERTS = (
    {f"layers.{{i}}.ffn.{part}.weight": f"{_FFN}.{part}_proj.weight" for part in PARTS}
    | {f"layers.{{i}}.ffn.{part}": stack(f"{_FFN}.experts.{{e}}.{part}_proj.weight") for part in PARTS}
    | {f"layers.{{i}}.ffn.shared.{part}": f"{_FFN}.shared_experts.{part}_proj" for part in PARTS}
    | {
        "layers.{i}.ffn.router": f"{_FFN}.gate",
        "layers.{i}.ffn.correction": f"{_FFN}.gate.e_score_correction_bias",
    }
)


def without_later(c: PretrainedConfig, names: NameMap) -> NameMap:
    """Files hold heads ahead as layers behind the last, which the model itself has no use for."""
    later = "|".join(str(c.num_hidden_layers + i) for i in range(max(c.num_nextn_predict_layers, 1)))
    return names.but(ignore=(*names.ignore, rf"(model\.)?layers\.({later})\..*"))


def names(c: Config) -> NameMap:
    """Queries without a latent vector of their own have another public name."""
    parts = {"q_down": "q_a_proj", "q_down_norm": "q_a_layernorm", "q": "q_b_proj"}
    if c.q_lora_rank is None:
        parts = {"q": "q_proj"}
    parts |= {"kv_down": "kv_a_proj_with_mqa", "kv_down_norm": "kv_a_layernorm", "kv": "kv_b_proj"}
    lines = {k: v for k, v in llama.NAMES.lines.items() if "norm" in k or k.endswith(("tokens", ".o"))}
    lines |= {f"layers.{{i}}.attn.{ours}": f"{_ATTN}.{theirs}" for ours, theirs in parts.items()}
    return without_later(c, llama.NAMES.but(lines=lines | EXPERTS))


def ahead(c: Config) -> HeadsAhead:
    """The heads that guess further tokens (section 2.2): a layer with experts each."""
    return heads_ahead(c, attention(c), names(c))


def heads_ahead(c: PretrainedConfig, attn: Spec, table: NameMap) -> HeadsAhead:
    """Heads ahead as files of this family and its relatives have them, behind the last layer."""
    one = Ahead(c.hidden_size, layer(c, attn, False), RMSNorm(c.hidden_size, eps=c.rms_norm_eps))
    count = c.num_nextn_predict_layers
    return HeadsAhead((one,) * count, names_ahead(table, c.num_hidden_layers, count))


HEADS = {k: v for k, v in llama.decoder_heads("DeepseekV3").items() if "Question" not in k} | {
    "DeepseekV3Model": Backbone(output=MoeModelOutputWithPast),
    "DeepseekV3ForCausalLM": CausalLM(names={"out": "lm_head"}, output=MoeCausalLMOutputWithPast),
}

family(
    "deepseek_v3", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel,
    public="DeepseekV3", ahead=ahead,
)  # fmt: skip
