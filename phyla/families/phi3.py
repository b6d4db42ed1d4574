"""Phi-3 and Phi-4-mini (Abdin et al. 2024, arXiv:2404.14219).

Public checkpoints: microsoft/Phi-3-mini-4k-instruct, microsoft/Phi-4-mini-instruct, ...
Differs from Llama in: fused q, k, v and gate, up in files; dropout on the branches; a part of each head may
not rotate.
"""

from phyla.blocks import Causal, Decoder, Embed, GatedFFN, Layer, RMSNorm, Rotary, repeat, residual
from phyla.checkpoints.names import split
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import llama
from phyla.family import family
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attention_dropout: float = 0.0
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    partial_rotary_factor: float = 1.0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 32000
    pad_token_id: int | None = 32000
    sliding_window: int | None = None

    def finish(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        scaling = self.rope_scaling
        if scaling is not None and not {"short_factor", "long_factor"} <= set(scaling):
            raise ConfigError(
                "rope_scaling must give type, short_factor and long_factor, "
                f"but has {sorted(scaling)} (config key of phi3)"
            )


def build(c: Config) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    width = int(c.hidden_size // c.num_attention_heads * c.partial_rotary_factor)
    rotary = Rotary(
        width, c.rope_theta, c.rope_scaling, c.max_position_embeddings, c.original_max_position_embeddings
    )
    attn = llama.attention(c, position=rotary, mask=Causal(c.sliding_window), bias=False)
    ffn = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    layer = Layer(
        attn=residual(attn, pre=norm, dropout=c.resid_pdrop),
        ffn=residual(ffn, pre=norm, dropout=c.resid_pdrop),
    )
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, padding=c.pad_token_id, dropout=c.embd_pdrop),
        layers=repeat(c.num_hidden_layers, layer),
        norm=norm,
    )


_FUSED = (
    "layers.{i}.attn.q",
    "layers.{i}.attn.k",
    "layers.{i}.attn.v",
    "layers.{i}.ffn.gate",
    "layers.{i}.ffn.up",
)
NAMES = llama.NAMES.but(
    lines={k: v for k, v in llama.NAMES.lines.items() if k not in _FUSED}
    | {
        "layers.{i}.attn.q|k|v": split("layers.{i}.self_attn.qkv_proj"),
        "layers.{i}.ffn.gate|up": split("layers.{i}.mlp.gate_up_proj"),
    }
)

HEADS = {k: v for k, v in llama.decoder_heads("Phi3").items() if "Question" not in k}

family("phi3", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Phi3")
