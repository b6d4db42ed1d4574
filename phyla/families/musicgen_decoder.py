"""The decoder of MusicGen (Copet et al. 2023, arXiv:2306.05284): codes of several codebooks at once.

Differs from BART's decoder in: one token table and one matrix of scores for each codebook, stored waves for
positions (cosines first), norms before each branch, no biases.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Block, Causal, Context, Decoder, Heads, Layer, LayerNorm, Spec, make, repeat, residual,
)  # fmt: skip
from phyla.blocks.embed import Tokens
from phyla.blocks.sinusoid import StoredSinusoid
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.codebooks import CodeLM
from phyla.outputs import BaseModelOutputWithPastAndCrossAttentions
from phyla.skeletons.codebooks import CodebookModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 2048
    max_position_embeddings: int = 2048
    num_hidden_layers: int = 24
    ffn_dim: int = 4096
    num_attention_heads: int = 16
    layerdrop: float = 0.0
    use_cache: bool = True
    activation_function: str = "gelu"
    hidden_size: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    initializer_factor: float = 0.02
    scale_embedding: bool = False
    num_codebooks: int = 4
    audio_channels: int = 1
    pad_token_id: int | None = 2048
    bos_token_id: int | None = 2048
    eos_token_id: int | list | None = None
    tie_word_embeddings: bool = False

    def finish(self) -> None:
        if self.audio_channels not in (1, 2):
            raise ConfigError(f"audio_channels must be 1 (mono) or 2 (stereo), but is {self.audio_channels}")

    def _check_common(self) -> None:
        size = self.__dict__["vocab_size"]
        self.__dict__["vocab_size"] = size + 1  # the token tables have a row for padding
        super()._check_common()
        self.__dict__["vocab_size"] = size


class CosinesFirst(StoredSinusoid):
    """The stored table with its cosines before its sines."""

    def _rows(self, count: int) -> Tensor:
        table, half = super()._rows(count), self.weight.shape[1] // 2
        return torch.cat((table[:, half : 2 * half], table[:, :half], table[:, 2 * half :]), 1)


class CodeEmbed(Block):
    """The sum of the vectors of a place's codes (B, K, S) -> (B, S, D), positions added."""

    site_kind = "stream"

    def __init__(self, size: int, width: int, books: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.tokens = torch.nn.ModuleList(Tokens(size, width) for _ in range(books))
        self.position = make(CosinesFirst(positions, width))
        self.dropout_prob = dropout
        self.register_module("site", None)

    def forward(self, codes: Tensor | None, vectors: Tensor | None, _: None, ctx: Context) -> Tensor:
        if vectors is None:
            assert codes is not None
            vectors = torch.stack([table(codes[:, k]) for k, table in enumerate(self.tokens)]).sum(0)
        place = torch.arange(ctx.start, ctx.start + ctx.length, device=vectors.device)[None]
        x = vectors + self.position(place).to(vectors.dtype)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        return x if self.site is None else self.site(x, ctx)


def build(c: Config) -> Spec:
    norm = LayerNorm(c.hidden_size)
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads), mask=Causal(), bias=False, dropout=c.attention_dropout
    )
    source = c.cross_attention_hidden_size
    branches = {
        "attn": attn,
        "cross": Attention(
            c.hidden_size, Heads(c.num_attention_heads), bias=False, dropout=c.attention_dropout, cross=True,
            kv_width=source,
        ),
        "ffn": FFN(
            c.hidden_size, c.ffn_dim, act=c.activation_function, bias=False, dropout=c.activation_dropout
        ),
    }  # fmt: skip
    layer = Layer(**{name: residual(part, pre=norm, dropout=c.dropout) for name, part in branches.items()})
    embed = CodeEmbed(c.vocab_size + 1, c.hidden_size, c.num_codebooks, c.max_position_embeddings, c.dropout)
    return Decoder(embed, repeat(c.num_hidden_layers, layer), norm, layer_drop=c.layerdrop)


_AT, _TO = "layers.{i}", "decoder.layers.{i}"
NAMES = NameMap(
    {
        "embed.tokens.{i}": "decoder.embed_tokens.{i}",
        "embed.position.weight": "decoder.embed_positions.weights",
        "norm": "decoder.layer_norm",
        **{
            f"{_AT}.{ours}.{p}": f"{_TO}.{theirs}.{public}"
            for ours, theirs in (("attn", "self_attn"), ("cross", "encoder_attn"))
            for p, public in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj"))
        },
        f"{_AT}.attn.pre_norm": f"{_TO}.self_attn_layer_norm",
        f"{_AT}.cross.pre_norm": f"{_TO}.encoder_attn_layer_norm",
        f"{_AT}.ffn.pre_norm": f"{_TO}.final_layer_norm",
        f"{_AT}.ffn.up": f"{_TO}.fc1",
        f"{_AT}.ffn.down": f"{_TO}.fc2",
    },
    prefix="model",
)

HEADS: dict[str, Head] = {
    "MusicgenModel": Backbone(output=BaseModelOutputWithPastAndCrossAttentions),
    "MusicgenForCausalLM": CodeLM(names={"out.{i}": "lm_heads.{i}"}),
}

family(
    "musicgen_decoder", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=CodebookModel,
    public="MusicgenDecoder", inside="decoder", bases=("MusicgenPreTrainedModel",),
)  # fmt: skip
