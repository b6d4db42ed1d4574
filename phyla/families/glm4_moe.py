"""GLM-4.5 (arXiv:2508.06471) and 4.6. Public checkpoints: zai-org/GLM-4.5, zai-org/GLM-4.5-Air, ...

Differs from DeepSeek-V3 in: plain grouped heads, half of whose elements turn, with norms of queries and keys
where `use_qk_norm` says so, in place of latent attention.
"""

from phyla.blocks import Decoder, RMSNorm, Rotary, Spec
from phyla.config import PretrainedConfig
from phyla.families import deepseek_v3, llama, qwen3
from phyla.family import HeadsAhead, family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 151552
    hidden_size: int = 4096
    intermediate_size: int = 10944
    num_hidden_layers: int = 46
    num_attention_heads: int = 96
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    partial_rotary_factor: float = 0.5
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    moe_intermediate_size: int = 1408
    num_experts_per_tok: int = 8
    output_router_logits: bool = False
    n_shared_experts: int = 1
    n_routed_experts: int = 128
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = True
    use_qk_norm: bool = False
    num_nextn_predict_layers: int = 1

    ALIASES = {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"}

    def finish(self) -> None:
        if self.head_dim is None:  # by default the heads do not fill the width
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        llama.fill_heads(self)
        deepseek_v3.check_groups(self)


def attention(c: Config) -> Spec:
    """Llama's attention, of which a part of each head turns."""
    assert c.head_dim is not None
    turned = int(c.head_dim * c.partial_rotary_factor)
    rotary = Rotary(turned, c.rope_theta, c.rope_scaling, c.max_position_embeddings)
    by_head = RMSNorm(c.head_dim, eps=c.rms_norm_eps) if c.use_qk_norm else None
    return llama.attention(c, position=rotary, out_bias=False, norm_qk=by_head)


def build(c: Config) -> Decoder:
    return deepseek_v3.stack_of(c, attention(c))


_LINES = {k: v for k, v in qwen3.NAMES.lines.items() if not k.startswith("layers.{i}.ffn.") or "norm" in k}
NAMES = qwen3.NAMES.but(lines=_LINES | deepseek_v3.EXPERTS)

HEADS = {
    "Glm4MoeModel": Backbone(output=MoeModelOutputWithPast),
    "Glm4MoeForCausalLM": CausalLM(names={"out": "lm_head"}, output=MoeCausalLMOutputWithPast),
}


def names(c: Config) -> deepseek_v3.NameMap:
    """Files hold the heads that guess further tokens behind the last layer."""
    return deepseek_v3.without_later(c, NAMES)


def ahead(c: Config) -> HeadsAhead:
    """As DeepSeek-V3's, with this family's attention."""
    return deepseek_v3.heads_ahead(c, attention(c), NAMES)


family(
    "glm4_moe", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="Glm4Moe",
    ahead=ahead,
)  # fmt: skip
