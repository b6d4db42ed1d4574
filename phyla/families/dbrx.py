"""DBRX (Databricks 2024). Public checkpoints: databricks/dbrx-base, databricks/dbrx-instruct.

Differs from the plain decoder in: four of sixteen experts for each token, their weights scaled to a norm of
one; queries, keys and values clipped and fused in files; norms without a bias.
"""

from typing import Any

from phyla.blocks import (
    Attention, Causal, Decoder, Embed, Experts, Heads, Layer, LayerNorm, Rotary, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Reshape, Swapped
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from phyla.skeletons import TextModel


class DbrxAttentionConfig(PretrainedConfig):
    """Keys and defaults of `attn_config`."""

    attn_pdrop: float = 0.0
    clip_qkv: float | None = None
    kv_n_heads: int = 1
    rope_theta: float = 10000.0


class DbrxFFNConfig(PretrainedConfig):
    """Keys and defaults of `ffn_config`."""

    ffn_act_fn: dict | None = None
    ffn_hidden_size: int = 3584
    moe_num_experts: int = 4
    moe_top_k: int = 1
    moe_jitter_eps: float | None = None
    moe_loss_weight: float = 0.01
    moe_normalize_expert_weights: float | None = 1.0

    def finish(self) -> None:
        if self.ffn_act_fn is None:
            self.ffn_act_fn = {"name": "silu"}


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    max_seq_len: int = 2048
    vocab_size: int = 32000
    resid_pdrop: float = 0.0
    emb_pdrop: float = 0.0
    attn_config: Any = None
    ffn_config: Any = None
    use_cache: bool = True
    initializer_range: float = 0.02
    output_router_logits: bool = False
    tie_word_embeddings: bool = False

    ALIASES = {
        "hidden_size": "d_model", "max_position_embeddings": "max_seq_len", "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }  # fmt: skip

    def finish(self) -> None:
        if self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings must be false for dbrx, but is true")
        for name, kind in (("attn_config", DbrxAttentionConfig), ("ffn_config", DbrxFFNConfig)):
            given = getattr(self, name)
            if not isinstance(given, PretrainedConfig):
                setattr(self, name, kind(**(given or {})))
        self.num_key_value_heads = self.attn_config.kv_n_heads

    @property
    def num_experts_per_tok(self) -> int:
        return self.ffn_config.moe_top_k

    @property
    def router_aux_loss_coef(self) -> float:
        return self.ffn_config.moe_loss_weight


class ClippedAttention(Attention):
    """Attention whose queries, keys and values are clamped to -clip .. clip."""

    divides = True

    def __init__(
        self, width: int, heads: Heads, position: Any, mask: Any, clip: float | None, dropout: float
    ) -> None:
        super().__init__(width, heads, position, mask, bias=False, dropout=dropout)
        self.clip = clip


def build(c: PretrainedConfig) -> Decoder:
    norm, a, f = LayerNorm(c.d_model, bias=False), c.attn_config, c.ffn_config
    heads = Heads(c.n_heads, kv=a.kv_n_heads)
    rotary = Rotary(c.d_model // c.n_heads, a.rope_theta, max_positions=c.max_seq_len)
    attn = ClippedAttention(c.d_model, heads, rotary, Causal(), a.clip_qkv, a.attn_pdrop)
    ffn = Experts(
        c.d_model, f.ffn_hidden_size, f.moe_num_experts, f.moe_top_k, f.ffn_act_fn.get("name", "silu"),
        f.moe_normalize_expert_weights or False, f.moe_jitter_eps or 0.0, chances=True,
    )  # fmt: skip
    drop = c.resid_pdrop
    layer = Layer(attn=residual(attn, pre=norm, dropout=drop), ffn=residual(ffn, pre=norm, dropout=drop))
    return Decoder(
        embed=Embed(c.vocab_size, c.d_model, dropout=c.emb_pdrop, padding=c.pad_token_id),
        layers=repeat(c.n_layers, layer),
        norm=norm,
    )


def names(c: PretrainedConfig) -> NameMap:
    experts, flat = "blocks.{i}.ffn.experts.mlp", Reshape((-1, c.d_model))
    return NameMap(
        {
            "embed.tokens": "wte",
            "layers.{i}.attn.pre_norm": "blocks.{i}.norm_attn_norm.norm_1",
            "layers.{i}.attn.q|k|v": split("blocks.{i}.norm_attn_norm.attn.Wqkv"),
            "layers.{i}.attn.o": "blocks.{i}.norm_attn_norm.attn.out_proj",
            "layers.{i}.ffn.pre_norm": "blocks.{i}.norm_attn_norm.norm_2",
            "layers.{i}.ffn.router": "blocks.{i}.ffn.router.layer",
            "layers.{i}.ffn.gate": To(f"{experts}.w1", flat),
            "layers.{i}.ffn.up": To(f"{experts}.v1", flat),
            "layers.{i}.ffn.down": To(f"{experts}.w2", Swapped(flat)),
            "norm": "norm_f",
        },
        prefix="transformer",
    )


HEADS = {
    "DbrxModel": Backbone(output=MoeModelOutputWithPast),
    "DbrxForCausalLM": CausalLM(names={"out": "lm_head"}, output=MoeCausalLMOutputWithPast, balance=True),
}

family(
    "dbrx", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="Dbrx",
    width=lambda c: c.d_model,
)  # fmt: skip
