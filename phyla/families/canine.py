"""CANINE (Clark et al. 2021, arXiv:2103.06874): characters, joined to molecules for the deep stack.

Public checkpoints: google/canine-s, google/canine-c and every `model_type: canine`. Differs from BERT in:
code points hashed into several tables, attention within blocks first, a convolution down to molecules, and
one back up to characters with a last layer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Attention, Block, Context, Embed, Encoder, Heads, Layer, LayerNorm, Learned, Pool, RelativeKeys,
    Spec, StackOutput, activation, make, repeat, residual,
)  # fmt: skip
from phyla.blocks.mask import additive
from phyla.checkpoints.names import NameMap, stack
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.families import bert
from phyla.family import family
from phyla.heads import Backbone, Classify, Head, MultipleChoice, Span, TokenClassify
from phyla.outputs import CanineModelOutputWithPooling
from phyla.skeletons import TextModel

PRIMES = (31, 43, 59, 61, 73, 97, 103, 113, 137, 149, 157, 173, 181, 193, 211, 223)


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 16384
    type_vocab_size: int = 16
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0xE000
    eos_token_id: int | list | None = 0xE001
    downsampling_rate: int = 4
    upsampling_kernel_size: int = 4
    num_hash_functions: int = 8
    num_hash_buckets: int = 16384
    local_transformer_stride: int = 128

    def finish(self) -> None:
        if self.num_hash_functions > len(PRIMES):
            raise ConfigError(
                f"num_hash_functions must be at most {len(PRIMES)}, but is {self.num_hash_functions}"
            )
        if self.hidden_size % self.num_hash_functions:
            raise ConfigError(
                f"hidden_size must be a multiple of num_hash_functions ({self.num_hash_functions}), "
                f"but is {self.hidden_size}"
            )


class Hashed(Block):
    """Each code point's vector, a slice of it from each table (section 3.1): ids (B, S) -> (B, S, D)."""

    def __init__(self, hashes: int, buckets: int, width: int) -> None:
        super().__init__()
        self.hashes, self.buckets = hashes, buckets
        self.weight = nn.Parameter(torch.empty(hashes, buckets, width // hashes))

    def forward(self, ids: Tensor) -> Tensor:
        hashed = torch.stack(
            [((ids + 1) * p) % self.buckets for p in PRIMES[: self.hashes]], -1
        )  # (B, S, hashes)
        rows = hashed + torch.arange(self.hashes, device=ids.device) * self.buckets
        return F.embedding(rows, self.weight.flatten(0, 1)).flatten(-2)


class Characters(Embed):
    """Code points as vectors, plus positions and segments, normed."""

    def __init__(
        self, tokens: Spec, width: int, position: Spec, segments: int, norm: Spec, dropout: float
    ) -> None:
        super().__init__(1, width, position, segments, norm, dropout)
        self.tokens = make(tokens)


class BlockAttention(Attention):
    """Attention within blocks of `stride` characters; of several it records the first one's weights."""

    def __init__(self, width: int, heads: Heads, position: Spec | None, dropout: float, stride: int) -> None:
        super().__init__(width, heads, position=position, dropout=dropout)
        self.stride = stride

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        batch, length, width = x.shape
        blocks = -(-length // self.stride)
        if blocks == 1:
            return super().mix(x, ctx)
        extra = blocks * self.stride - length
        given = ctx.attention_mask
        # Additive: in a block without a real character all weigh the same, and their neighbours read them.
        mask = x.new_zeros(batch, length) if given is None else additive(given, x.dtype)
        inner = Context(
            torch.arange(self.stride, device=x.device)[None],
            self.stride,
            attention_mask=F.pad(mask, (0, extra), value=-torch.inf).view(-1, 1, 1, self.stride),
            implementation=ctx.implementation,
            attentions=None if ctx.attentions is None else [],
        )
        y = super().mix(F.pad(x, (0, 0, 0, extra)).view(-1, self.stride, width), inner)
        if ctx.attentions is not None and inner.attentions is not None:
            ctx.attentions.append(inner.attentions[0].unflatten(0, (batch, blocks))[:, 0])
        return y.reshape(batch, -1, width)[:, :length]


class Down(Block):
    """Every `rate` characters become one molecule, behind the first character itself (section 3.2)."""

    def __init__(self, width: int, rate: int, act: str, norm: Spec) -> None:
        super().__init__()
        self.rate, self.act, self.norm = rate, activation(act), make(norm)
        self.conv = nn.Conv1d(width, width, rate, rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x.transpose(1, 2))).transpose(1, 2)  # (B, S / rate, D)
        return self.norm(torch.cat((x[:, :1], y[:, :-1]), 1))

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """Which molecules hold a real character: bool (B, S / rate) of bool (B, S)."""
        if mask is None:
            return None
        whole = mask.shape[1] // self.rate * self.rate
        return mask[:, :whole].unflatten(1, (-1, self.rate)).any(-1)


class Up(Block):
    """Characters beside their repeated molecules, convolved to the width of one (section 3.3)."""

    def __init__(self, width: int, rate: int, window: int, act: str, norm: Spec, dropout: float) -> None:
        super().__init__()
        self.rate, self.act, self.norm, self.dropout_prob = rate, activation(act), make(norm), dropout
        self.conv = nn.Conv1d(2 * width, width, window)
        self.padding = ((window - 1) // 2, window - 1 - (window - 1) // 2)

    def forward(self, x: Tensor, molecules: Tensor) -> Tensor:
        # The first molecule is the first character's; the last one also stands for what is left over.
        slots = torch.arange(x.shape[1], device=x.device) // self.rate + 1
        repeated = molecules[:, slots.clamp(max=molecules.shape[1] - 1)]
        y = torch.cat((x, repeated), -1).transpose(1, 2)  # (B, 2 D, S)
        y = self.norm(self.act(self.conv(F.pad(y, self.padding))).transpose(1, 2))
        return F.dropout(y, self.dropout_prob, self.training)


class CharacterEncoder(Block):
    """Characters -> molecules -> characters, with a stack of layers at each of the three."""

    def __init__(
        self,
        embed: Spec,
        first: Spec,
        down: Spec,
        layers: Sequence[Spec],
        up: Spec,
        last: Spec,
        pool: Spec | None,
    ) -> None:
        super().__init__()
        self.chars, self.down = make(Encoder(embed, [first])), make(down)
        self.deep, self.up = make(Encoder(layers=layers, pool=pool)), make(up)
        self.final = make(Encoder(layers=[last]))

    @property
    def embed(self) -> nn.Module:
        """The embedding of characters."""
        return self.chars.embed

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the deep stack, which head masks number."""
        return self.deep.layers

    def forward(
        self,
        ctx: Context,
        ids: Tensor | None = None,
        vectors: Tensor | None = None,
        segment_ids: Tensor | None = None,
        record_states: bool = False,
    ) -> StackOutput:
        """Code points (B, S), or their vectors (B, S, D), to the output."""
        mask = ctx.attention_mask
        if ctx.length < self.down.rate or (mask is not None and mask.dim() != 2):
            raise ArgumentError(
                f"texts must have at least downsampling_rate ({self.down.rate}) characters and a mask "
                f"(batch, characters), but have {ctx.length}"
                + ("" if mask is None else f", mask {tuple(mask.shape)}")
            )
        around = replace(ctx, head_mask=None, memo={})
        first = self.chars(around, ids, vectors, segment_ids, record_states)
        x = self.down(first.last_hidden_state)  # (B, S / rate, D)
        slots = torch.arange(x.shape[1], device=x.device)[None]
        mask = self.down.mask(around.attention_mask)  # prompts of an adapter have made the rows longer
        inner = replace(ctx, positions=slots, length=x.shape[1], attention_mask=mask, memo={})
        deep = self.deep.run(x, inner, None, record_states)
        x = self.up(first.last_hidden_state, deep.last_hidden_state)
        final = self.final.run(x, around, None, record_states)
        if record_states:
            final.hidden_states = (*first.hidden_states, *deep.hidden_states, *final.hidden_states)
        return replace(final, pooler_output=deep.pooler_output)


def build(c: Config) -> CharacterEncoder:
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    heads, kind = Heads(c.num_attention_heads), getattr(c, "position_embedding_type", "absolute")
    table, relative = Learned(c.num_hash_buckets, c.hidden_size), None
    if kind != "absolute":
        width = heads.resolve(c.hidden_size)[2]
        table = bert.Kept(c.num_hash_buckets, c.hidden_size)
        relative = RelativeKeys(c.max_position_embeddings, width, queries=kind == "relative_key_query")
    settings: dict[str, Any] = {"position": relative, "dropout": c.attention_probs_dropout_prob}
    ffn = residual(FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act), post=norm, dropout=drop)

    def layer(attn: Spec) -> Spec:
        return Layer(attn=residual(attn, post=norm, dropout=drop), ffn=ffn)

    whole = layer(Attention(c.hidden_size, heads, **settings))
    hashed = Hashed(c.num_hash_functions, c.num_hash_buckets, c.hidden_size)
    return CharacterEncoder(
        embed=Characters(hashed, c.hidden_size, table, c.type_vocab_size, norm, drop),
        first=layer(BlockAttention(c.hidden_size, heads, stride=c.local_transformer_stride, **settings)),
        down=Down(c.hidden_size, c.downsampling_rate, c.hidden_act, norm),
        layers=repeat(c.num_hidden_layers, whole, c.pruned_heads),
        up=Up(c.hidden_size, c.downsampling_rate, c.upsampling_kernel_size, c.hidden_act, norm, drop),
        last=whole,
        pool=Pool(c.hidden_size),
    )


def layer_names(ours: str, theirs: str) -> dict[str, str]:
    """BERT's lines of the layers of one encoder."""
    lines = {k: v for k, v in bert.NAMES.lines.items() if k.startswith("layers.") and ".cross." not in k}
    return {f"{ours}.{k}": str(v).replace("encoder", theirs, 1) for k, v in lines.items()}


NAMES = NameMap(
    {
        "chars.embed.tokens.weight": stack("char_embeddings.HashBucketCodepointEmbedder_{e}.weight"),
        "chars.embed.position": "char_embeddings.char_position_embeddings",
        "chars.embed.segment": "char_embeddings.token_type_embeddings",
        "chars.embed.norm": "char_embeddings.LayerNorm",
        **layer_names("chars", "initial_char_encoder"),
        "down.conv": "chars_to_molecules.conv",
        "down.norm": "chars_to_molecules.LayerNorm",
        **layer_names("deep", "encoder"),
        "deep.pool.dense": "pooler.dense",
        "up.conv": "projection.conv",
        "up.norm": "projection.LayerNorm",
        **layer_names("final", "final_char_encoder"),
    },
    prefix="canine",
    ignore=(r"(canine\.)?char_embeddings\.position_ids",),
)

OUT, DROPOUT = {"out": "classifier"}, ("hidden_dropout_prob",)

HEADS: dict[str, Head] = {
    "CanineModel": Backbone(output=CanineModelOutputWithPooling, pool=True),
    "CanineForSequenceClassification": Classify(names=OUT, dropout=DROPOUT, pool=True),
    "CanineForTokenClassification": TokenClassify(names=OUT, dropout=DROPOUT, pool=True),
    "CanineForQuestionAnswering": Span(names={"out": "qa_outputs"}, pool=True),
    "CanineForMultipleChoice": MultipleChoice(names=OUT, dropout=DROPOUT, pool=True),
}

family("canine", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Canine")
