"""Qwen3 (Yang et al. 2025, arXiv:2505.09388). Public checkpoints: Qwen/Qwen3-0.6B, Qwen/Qwen3-8B, ...

Differs from Llama in: queries and keys normed by head, heads of a width of their own, and a sliding window in
the layers that `layer_types` names: from `max_window_layers` on, where it is switched on.
"""

from collections.abc import Iterable

from phyla.blocks import Causal, Decoder, GatedFFN, Layer, RMSNorm, Spec, residual
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import llama
from phyla.family import family
from phyla.skeletons import TextModel

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_kinds(c: PretrainedConfig, usual: Iterable[str]) -> list[str]:
    """Which attention each layer has: the file's `layer_types`, else the usual kinds."""
    kinds = list(usual if c.layer_types is None else c.layer_types)
    if len(kinds) < c.num_hidden_layers or not set(kinds) <= {FULL, SLIDING}:
        raise ConfigError(
            f"layer_types must name {FULL!r} or {SLIDING!r} for each of {c.num_hidden_layers} layers, "
            f"but is {kinds} (in a {c.model_type} config)"
        )
    return kinds


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    head_dim: int = 128
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
    max_window_layers: int = 28
    layer_types: list | None = None
    attention_dropout: float = 0.0

    def finish(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if not self.use_sliding_window:
            self.__dict__["sliding_window"] = None
        late = FULL if self.sliding_window is None else SLIDING
        counts = range(self.num_hidden_layers)
        self.layer_types = layer_kinds(self, (late if i >= self.max_window_layers else FULL for i in counts))


def attention(c: PretrainedConfig, window: int | None) -> Spec:
    """Llama's attention with queries and keys normed by head."""
    by_head = RMSNorm(c.head_dim, eps=c.rms_norm_eps)
    return llama.attention(c, mask=Causal(window), norm_qk=by_head)


def build(c: PretrainedConfig) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    ffn = residual(GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act), pre=norm)
    kinds = {
        kind: Layer(attn=residual(attention(c, window), pre=norm), ffn=ffn)
        for kind, window in ((FULL, None), (SLIDING, c.sliding_window))
    }
    return llama.build(c, layers=[kinds[kind] for kind in c.layer_types[: c.num_hidden_layers]])


NAMES = llama.NAMES.but(
    lines=dict(llama.NAMES.lines)
    | {
        "layers.{i}.attn.q_norm": "layers.{i}.self_attn.q_norm",
        "layers.{i}.attn.k_norm": "layers.{i}.self_attn.k_norm",
    }
)

HEADS = llama.decoder_heads("Qwen3", qa_prefix="transformer")

family("qwen3", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Qwen3")
