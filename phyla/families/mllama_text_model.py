"""The text decoder of Llama 3.2 Vision (Llama Team 2024, arXiv:2407.21783, section 7).

Public checkpoints: the text part of meta-llama/Llama-3.2-11B-Vision-Instruct.
Differs from Llama in: some layers look at images through gated cross-attention with normed queries and keys,
and stand aside where there is no image; eight more rows in the token table than tokens that can be scored.
"""

from torch import Tensor

from phyla.blocks import (
    Attention, Causal, Context, Decoder, Embed, GatedFFN, Heads, Layer, RMSNorm, Rotary, residual,
)  # fmt: skip
from phyla.config import PretrainedConfig
from phyla.families import llama
from phyla.families.mllama_vision_model import Gate
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Head
from phyla.outputs import BaseModelOutputWithPast
from phyla.skeletons.cross_text import CrossTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 128256
    hidden_size: int = 4096
    hidden_act: str = "silu"
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    intermediate_size: int = 14336
    rope_theta: float = 500000.0
    rope_scaling: dict | None = None
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    cross_attention_layers: list | None = None
    dropout: float = 0.0
    bos_token_id: int | None = 128000
    eos_token_id: int | list | None = 128001
    pad_token_id: int | None = 128004

    def finish(self) -> None:
        if self.cross_attention_layers is None:
            self.cross_attention_layers = [3, 8, 13, 18, 23, 28, 33, 38]


class Aside(Layer):
    """A layer that stands aside, feed-forward and all, where there is no image to look at."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return x if self.cross.idle(ctx) else super().forward(x, ctx)


class Seeing(GatedFFN):
    """A gated feed-forward whose output is 0 at tokens that see no image."""

    divides = True

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        y, sees = super().mix(x, ctx), ctx.notes.get("sees")
        return y if sees is None else y * sees.values.to(y)


def build(c: PretrainedConfig) -> Decoder:
    norm, width = RMSNorm(c.hidden_size, eps=c.rms_norm_eps), c.hidden_size // c.num_attention_heads
    heads = Heads(c.num_attention_heads, kv=c.num_key_value_heads)
    rotary = Rotary(width, c.rope_theta, c.rope_scaling, c.max_position_embeddings)
    attn = Attention(c.hidden_size, heads, position=rotary, mask=Causal(), bias=False, dropout=c.dropout)
    cross = Attention(
        c.hidden_size, heads, bias=False, dropout=c.dropout, cross=True,
        norm_qk=RMSNorm(width, eps=c.rms_norm_eps),
    )  # fmt: skip
    ffn = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    seeing = Seeing(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    plain = Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))
    aside = Aside(cross=residual(cross, pre=norm, scale=Gate()), ffn=residual(seeing, pre=norm, scale=Gate()))
    layers = [aside if i in c.cross_attention_layers else plain for i in range(c.num_hidden_layers)]
    return Decoder(
        embed=Embed(c.vocab_size + 8, c.hidden_size, padding=c.pad_token_id), layers=layers, norm=norm
    )


NAMES = llama.NAMES.but(
    lines=dict(llama.NAMES.lines)
    | {
        "layers.{i}.cross.pre_norm": "layers.{i}.input_layernorm",
        **{f"layers.{{i}}.cross.{part}": f"layers.{{i}}.cross_attn.{part}_proj" for part in "qkvo"},
        "layers.{i}.cross.q_norm": "layers.{i}.cross_attn.q_norm",
        "layers.{i}.cross.k_norm": "layers.{i}.cross_attn.k_norm",
        "layers.{i}.cross.layer_scale.gate": "layers.{i}.cross_attn_attn_gate",
        "layers.{i}.ffn.layer_scale.gate": "layers.{i}.cross_attn_mlp_gate",
    },
)

HEADS: dict[str, Head] = {
    "MllamaTextModel": Backbone(output=BaseModelOutputWithPast),
    "MllamaForCausalLM": CausalLM(names={"out": "lm_head"}),
}

family(
    "mllama_text_model", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=CrossTextModel,
    public="MllamaText", inside="language_model", bases=("MllamaPreTrainedModel",),
)  # fmt: skip
