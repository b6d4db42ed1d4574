"""Mixtral (Jiang et al. 2024, arXiv:2401.04088). Public checkpoints: mistralai/Mixtral-8x7B-v0.1, ...

Differs from Mistral in: each token's feed-forward is a mixture of two of eight experts.
"""

from phyla.blocks import Causal, Decoder, Experts
from phyla.checkpoints.names import stack
from phyla.config import PretrainedConfig
from phyla.families import llama
from phyla.family import family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    tie_word_embeddings: bool = False
    rope_theta: float = 1e6
    sliding_window: int | None = None
    attention_dropout: float = 0.0
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    rope_scaling: dict | None = None

    finish = llama.fill_heads


def build(c: Config) -> Decoder:
    experts = Experts(
        c.hidden_size, c.intermediate_size, c.num_local_experts, c.num_experts_per_tok, act=c.hidden_act,
        jitter=c.router_jitter_noise,
    )  # fmt: skip
    return llama.build(c, attn=llama.attention(c, mask=Causal(c.sliding_window), bias=False), ffn=experts)


_FFN = "layers.{i}.block_sparse_moe"
NAMES = llama.NAMES.but(
    lines={k: v for k, v in llama.NAMES.lines.items() if not k.startswith("layers.{i}.ffn.") or "norm" in k}
    | {
        "layers.{i}.ffn.router": f"{_FFN}.gate",
        "layers.{i}.ffn.gate": stack(f"{_FFN}.experts.{{e}}.w1.weight"),
        "layers.{i}.ffn.up": stack(f"{_FFN}.experts.{{e}}.w3.weight"),
        "layers.{i}.ffn.down": stack(f"{_FFN}.experts.{{e}}.w2.weight"),
    }
)

HEADS = llama.decoder_heads("Mixtral", qa_prefix="model") | {
    "MixtralModel": Backbone(output=MoeModelOutputWithPast),
    "MixtralForCausalLM": CausalLM(names={"out": "lm_head"}, output=MoeCausalLMOutputWithPast, balance=True),
}

family("mixtral", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Mixtral")
