"""Qwen3 with experts (Yang et al. 2025, arXiv:2505.09388). Public checkpoints: Qwen/Qwen3-30B-A3B, ...

Differs from Qwen3 in: each token goes to 8 of 128 narrow feed-forwards, but in the layers that
`mlp_only_layers` and `decoder_sparse_step` leave out; one window, where it is switched on, for all layers.
"""

from phyla.blocks import Decoder, Experts, GatedFFN, Layer, RMSNorm, residual
from phyla.checkpoints.names import stack
from phyla.config import PretrainedConfig
from phyla.families import llama, qwen3
from phyla.family import family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 4
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    attention_dropout: float = 0.0
    decoder_sparse_step: int = 1
    moe_intermediate_size: int = 768
    num_experts_per_tok: int = 8
    num_experts: int = 128
    norm_topk_prob: bool = False
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    mlp_only_layers: list | None = None
    head_dim: int | None = None

    ALIASES = {"num_local_experts": "num_experts"}

    def finish(self) -> None:
        llama.fill_heads(self)
        self.mlp_only_layers = self.mlp_only_layers or []
        if not self.use_sliding_window:
            self.__dict__["sliding_window"] = None


def build(c: Config) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    attn = residual(qwen3.attention(c, c.sliding_window), pre=norm)
    dense = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    sparse = Experts(
        c.hidden_size, c.moe_intermediate_size, c.num_experts, c.num_experts_per_tok, act=c.hidden_act,
        renormalise=c.norm_topk_prob,
    )  # fmt: skip

    def layer(index: int) -> Layer:
        left_out = index in (c.mlp_only_layers or ()) or (index + 1) % c.decoder_sparse_step
        return Layer(attn=attn, ffn=residual(dense if left_out or not c.num_experts else sparse, pre=norm))

    return llama.build(c, layers=[layer(i) for i in range(c.num_hidden_layers)])


_FFN = "layers.{i}.mlp"
# Weights of a dense layer by their whole names: in the others, the same paths are those of all experts.
NAMES = qwen3.NAMES.but(
    lines={k: v for k, v in qwen3.NAMES.lines.items() if not k.startswith("layers.{i}.ffn.") or "norm" in k}
    | {f"layers.{{i}}.ffn.{part}.weight": f"{_FFN}.{part}_proj.weight" for part in ("gate", "up", "down")}
    | {
        f"layers.{{i}}.ffn.{part}": stack(f"{_FFN}.experts.{{e}}.{part}_proj.weight")
        for part in ("gate", "up", "down")
    }
    | {"layers.{i}.ffn.router": f"{_FFN}.gate"}
)

HEADS = llama.decoder_heads("Qwen3Moe", qa_prefix="transformer") | {
    "Qwen3MoeModel": Backbone(output=MoeModelOutputWithPast),
    "Qwen3MoeForCausalLM": CausalLM(names={"out": "lm_head"}, output=MoeCausalLMOutputWithPast, balance=True),
}

family(
    "qwen3_moe", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Qwen3Moe"
)
