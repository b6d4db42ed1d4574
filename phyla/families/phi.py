"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023, arXiv:2306.11644; Li et al. 2023, arXiv:2309.05463).

Public checkpoints: microsoft/phi-1, microsoft/phi-1_5, microsoft/phi-2. Differs from the plain decoder in:
attention and feed-forward side by side under one norm, rotation of a part of each head, biases everywhere.
"""

from phyla.blocks import (
    FFN, Causal, Decoder, Embed, LayerNorm, Parallel, Rotary, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import llama
from phyla.family import family
from phyla.heads import CausalLM
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attention_dropout: float = 0.0
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    partial_rotary_factor: float = 0.5
    qk_layernorm: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2

    def finish(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads


def build(c: Config) -> Decoder:
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    attn = llama.attention(
        c, bias=True, out_bias=True, mask=Causal(),
        position=Rotary(
            int(width * c.partial_rotary_factor), c.rope_theta, c.rope_scaling, c.max_position_embeddings
        ),
        norm_qk=LayerNorm(width, eps=c.layer_norm_eps) if c.qk_layernorm else None,
    )  # fmt: skip
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    layer = Parallel(
        pre=norm, attn=residual(attn, dropout=c.resid_pdrop), ffn=residual(ffn, dropout=c.resid_pdrop)
    )
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size, dropout=c.embd_pdrop, padding=c.pad_token_id),
        layers=repeat(c.num_hidden_layers, layer),
        norm=norm,
    )


NAMES = NameMap(
    {
        "embed.tokens": "embed_tokens",
        "layers.{i}.pre_norm": "layers.{i}.input_layernorm",
        "layers.{i}.attn.q": "layers.{i}.self_attn.q_proj",
        "layers.{i}.attn.k": "layers.{i}.self_attn.k_proj",
        "layers.{i}.attn.v": "layers.{i}.self_attn.v_proj",
        "layers.{i}.attn.o": "layers.{i}.self_attn.dense",
        "layers.{i}.attn.q_norm": "layers.{i}.self_attn.q_layernorm",
        "layers.{i}.attn.k_norm": "layers.{i}.self_attn.k_layernorm",
        "layers.{i}.ffn.up": "layers.{i}.mlp.fc1",
        "layers.{i}.ffn.down": "layers.{i}.mlp.fc2",
        "norm": "final_layernorm",
    },
    prefix="model",
    ignore=(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
)

HEADS = {k: v for k, v in llama.decoder_heads("Phi").items() if "Question" not in k} | {
    "PhiForCausalLM": CausalLM(names={"out": "lm_head"}, bias=True),
}

family("phi", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Phi")
