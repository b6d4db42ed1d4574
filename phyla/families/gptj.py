"""GPT-J (Wang & Komatsuzaki 2021, github.com/kingoflolz/mesh-transformer-jax).

Public checkpoints: EleutherAI/gpt-j-6b. Differs from GPT-2 in: rotation of neighbouring elements of a part of
each head, attention and feed-forward side by side under one norm, an untied head with a bias.
"""

from phyla.blocks import (
    FFN, Attention, Causal, Decoder, Embed, Heads, LayerNorm, Parallel, Rotary, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Classify, Span
from phyla.outputs import BaseModelOutputWithPast, SequenceClassifierOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. Without rotary_dim whole heads turn."""

    vocab_size: int = 50400
    n_positions: int = 2048
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int | None = 64
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list | None = 50256
    tie_word_embeddings: bool = False

    ALIASES = {
        "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }  # fmt: skip


def build(c: Config) -> Decoder:
    norm = LayerNorm(c.n_embd, eps=c.layer_norm_epsilon)
    rotary = Rotary(c.rotary_dim or c.n_embd // c.n_head, max_positions=c.n_positions, layout="pairs")
    attn = Attention(c.n_embd, Heads(c.n_head), rotary, Causal(), bias=False, dropout=c.attn_pdrop)
    ffn = FFN(c.n_embd, c.n_inner or 4 * c.n_embd, act=c.activation_function)
    layer = Parallel(
        pre=norm, attn=residual(attn, dropout=c.resid_pdrop), ffn=residual(ffn, dropout=c.resid_pdrop)
    )
    return Decoder(
        embed=Embed(c.vocab_size, c.n_embd, segments="tokens", dropout=c.embd_pdrop),
        layers=repeat(c.n_layer, layer),
        norm=norm,
    )


NAMES = NameMap(
    {
        "embed.tokens": "wte",
        "layers.{i}.pre_norm": "h.{i}.ln_1",
        "layers.{i}.attn.q": "h.{i}.attn.q_proj",
        "layers.{i}.attn.k": "h.{i}.attn.k_proj",
        "layers.{i}.attn.v": "h.{i}.attn.v_proj",
        "layers.{i}.attn.o": "h.{i}.attn.out_proj",
        "layers.{i}.ffn.up": "h.{i}.mlp.fc_in",
        "layers.{i}.ffn.down": "h.{i}.mlp.fc_out",
        "norm": "ln_f",
    },
    prefix="transformer",
    ignore=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
)

HEADS = {
    "GPTJModel": Backbone(output=BaseModelOutputWithPast),
    "GPTJForCausalLM": CausalLM(names={"out": "lm_head"}, bias=True),
    "GPTJForSequenceClassification": Classify(
        on="last", bias=False, names={"out": "score"}, output=SequenceClassifierOutputWithPast
    ),
    "GPTJForQuestionAnswering": Span(names={"out": "qa_outputs"}),
}

family("gptj", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="GPTJ")
