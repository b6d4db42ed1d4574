"""Jamba (Lieber et al. 2024, arXiv:2403.19887). Public checkpoints: ai21labs/Jamba-v0.1, Jamba-tiny-dev, ...

Differs from Mixtral in: seven of eight layers are selective state spaces (with norms on what they select),
the eighth is attention without positions; every second feed-forward is a mixture of experts, whose weights
are not renormalised.
"""

import math

from torch import Tensor

from phyla.blocks import (
    Attention, Causal, Decoder, Embed, Experts, GatedFFN, Heads, Layer, Mamba, RMSNorm, Spec, make, residual,
)  # fmt: skip
from phyla.blocks.ssm import FreshState
from phyla.checkpoints.names import NameMap, To, split, stack
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify
from phyla.outputs import (
    MoeCausalLMOutputWithPast, MoeModelOutputWithPast, SequenceClassifierOutputWithPast,
)  # fmt: skip
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. Of them, use_mamba_kernels changes no result."""

    vocab_size: int = 65536
    tie_word_embeddings: bool = False
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    num_logits_to_keep: int | None = 1
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    sliding_window: int | None = None
    max_position_embeddings: int = 262144
    attention_dropout: float = 0.0
    num_experts_per_tok: int = 2
    num_experts: int = 16
    expert_layer_period: int = 2
    expert_layer_offset: int = 1
    attn_layer_period: int = 8
    attn_layer_offset: int = 4
    use_mamba_kernels: bool = True
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int | str = "auto"
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    def finish(self) -> None:
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        if self.mamba_dt_rank == "auto":
            self.mamba_dt_rank = math.ceil(self.hidden_size / 16)
        for kind in ("attn", "expert"):
            period, offset = (getattr(self, f"{kind}_layer_{key}") for key in ("period", "offset"))
            if not 0 <= offset < period:
                raise ConfigError(
                    f"{kind}_layer_offset must be below {kind}_layer_period ({period}), but is {offset}"
                )

    @property
    def layers_block_type(self) -> list[str]:
        """The kind of each layer's mixer."""
        period, offset = self.attn_layer_period, self.attn_layer_offset
        return ["attention" if i % period == offset else "mamba" for i in range(self.num_hidden_layers)]

    @property
    def layers_num_experts(self) -> list[int]:
        """How many experts each layer has."""
        period, offset = self.expert_layer_period, self.expert_layer_offset
        return [self.num_experts if i % period == offset else 1 for i in range(self.num_hidden_layers)]


class NormedMamba(Mamba):
    """A selective state space whose step, b and c are normed."""

    def __init__(
        self, width: int, inner: int, state: int, conv: int, rank: int, act: str, bias: bool, conv_bias: bool,
        eps: float,
    ) -> None:  # fmt: skip
        super().__init__(width, inner, state, conv, rank, act, bias, conv_bias, FreshState())
        self.step_norm = make(RMSNorm(rank, eps=eps))
        self.b_norm, self.c_norm = make(RMSNorm(state, eps=eps)), make(RMSNorm(state, eps=eps))

    def selected(self, h: Tensor) -> tuple[Tensor, ...]:
        step, b, c = super().selected(h)
        return self.step_norm(step), self.b_norm(b), self.c_norm(c)


def build(c: PretrainedConfig) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    ssm = NormedMamba(
        c.hidden_size, c.mamba_expand * c.hidden_size, c.mamba_d_state, c.mamba_d_conv, int(c.mamba_dt_rank),
        c.hidden_act, c.mamba_proj_bias, c.mamba_conv_bias, c.rms_norm_eps,
    )  # fmt: skip
    heads = Heads(c.num_attention_heads, kv=c.num_key_value_heads)
    attn = Attention(c.hidden_size, heads, mask=Causal(), bias=False, dropout=c.attention_dropout)
    mixers = {
        "mamba": {"ssm": residual(ssm, pre=norm)},
        "attention": {"attn": residual(attn, pre=norm)},
    }

    def feed_forward(experts: int) -> Spec:
        if experts == 1:
            return GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
        return Experts(
            c.hidden_size, c.intermediate_size, experts, c.num_experts_per_tok, act=c.hidden_act,
            renormalise=False,
        )  # fmt: skip

    kinds = zip(c.layers_block_type, c.layers_num_experts, strict=True)
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, padding=c.pad_token_id),
        layers=tuple(
            Layer(**mixers[kind], ffn=residual(feed_forward(experts), pre=norm)) for kind, experts in kinds
        ),
        norm=norm,
    )


def names(c: PretrainedConfig) -> NameMap:
    ssm, ffn = "layers.{i}.mamba", "layers.{i}.feed_forward"
    lines: dict[str, str | To] = {
        "embed.tokens": "embed_tokens",
        "layers.{i}.attn.pre_norm": "layers.{i}.input_layernorm",
        "layers.{i}.ssm.pre_norm": "layers.{i}.input_layernorm",
        **{f"layers.{{i}}.attn.{p}": f"layers.{{i}}.self_attn.{p}_proj" for p in "qkvo"},
        "layers.{i}.ssm.in_x|in_gate": split(f"{ssm}.in_proj"),
        "layers.{i}.ssm.conv": f"{ssm}.conv1d",
        "layers.{i}.ssm.select": f"{ssm}.x_proj",
        "layers.{i}.ssm.step": f"{ssm}.dt_proj",
        "layers.{i}.ssm.step_norm": f"{ssm}.dt_layernorm",
        "layers.{i}.ssm.b_norm": f"{ssm}.b_layernorm",
        "layers.{i}.ssm.c_norm": f"{ssm}.c_layernorm",
        "layers.{i}.ssm.A_log": f"{ssm}.A_log",
        "layers.{i}.ssm.D": f"{ssm}.D",
        "layers.{i}.ssm.out": f"{ssm}.out_proj",
        "layers.{i}.ffn.pre_norm": "layers.{i}.pre_ff_layernorm",
        "layers.{i}.ffn.router": f"{ffn}.router",
        "norm": "final_layernorm",
    }
    for i, experts in enumerate(c.layers_num_experts):
        at, to = f"layers.{i}.ffn", f"layers.{i}.feed_forward"
        for part in ("gate", "up", "down"):
            one, many = f"{to}.{part}_proj", stack(f"{to}.experts.{{e}}.{part}_proj.weight")
            lines[f"{at}.{part}"] = one if experts == 1 else many
    return NameMap(lines, prefix="model")


HEADS = {
    "JambaModel": Backbone(output=MoeModelOutputWithPast),
    "JambaForCausalLM": CausalLM(names={"out": "lm_head"}, output=MoeCausalLMOutputWithPast, balance=True),
    "JambaForSequenceClassification": Classify(
        on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
    ),
}

family("jamba", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="Jamba")
